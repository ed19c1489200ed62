"""The NeurIPS 2023 LLM Efficiency Challenge: its rules, its evaluation, and a submission to it."""

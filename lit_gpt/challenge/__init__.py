"""The NeurIPS 2023 LLM Efficiency Challenge: its rules, its two cards, and what is handed in."""

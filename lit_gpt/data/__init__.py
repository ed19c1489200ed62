"""Data sets: rows -> prompts -> tokens -> files (`prepare`), and reading those files (`dataset`)."""

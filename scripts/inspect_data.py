"""Look at prepared data before you train on it.

    python scripts/inspect_data.py data/alpaca

Shows samples with what is learnt in green, the lengths, and what would spoil the run: then the exit code is 2.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("inspect data", __doc__)

"""Look at prepared data before you train on it: samples, lengths, and what would spoil the run (then exit code 2).

python scripts/inspect_data.py data/alpaca
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("inspect data", __doc__)

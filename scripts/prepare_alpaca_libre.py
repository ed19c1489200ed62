"""Prepare Alpaca-Libre for finetuning: downloads it, or reads --data_file, and writes data/alpaca_libre.

    python scripts/prepare_alpaca_libre.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

The data's licence is CC0 1.0: free for every use.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare alpaca_libre", __doc__)

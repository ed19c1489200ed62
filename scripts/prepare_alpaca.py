"""Prepare Alpaca for finetuning: downloads it, or reads --data_file, and writes data/alpaca.

    python scripts/prepare_alpaca.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

The data's licence, CC BY-NC 4.0, allows no commercial use.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare alpaca", __doc__)

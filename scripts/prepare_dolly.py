"""Prepare Dolly for finetuning: downloads it, or reads --data_file, and writes data/dolly.

    python scripts/prepare_dolly.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

The data's licence is CC BY-SA 3.0.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare dolly", __doc__)

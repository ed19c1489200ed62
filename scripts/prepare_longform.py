"""Prepare LongForm for finetuning: downloads it, or reads --data_file, and writes data/longform.

    python scripts/prepare_longform.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Its own test split is used. The data's licence is MIT.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare longform", __doc__)

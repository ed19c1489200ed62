"""Prepare some tasks of FLAN for finetuning: downloads it, or reads --data_file, and writes data/flan.

    python scripts/prepare_flan.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Only some of its tasks, as --subsets names them. The data's licence is Apache 2.0; its sources have licences of their
own.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare flan", __doc__)

"""Prepare LIMA for finetuning: downloads it, or reads --data_file, and writes data/lima.

    python scripts/prepare_lima.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Conversations with several turns stay whole. Accept the data's licence, CC BY-NC-SA or stricter, on the hub, and put
your token into the environment variable HF_TOKEN.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare lima", __doc__)

"""Prepare OpenAssistant 1 for finetuning: downloads it, or reads --data_file, and writes data/oasst1.

    python scripts/prepare_oasst1.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Of each tree of messages in English, the path of the best-ranked ones becomes a conversation. The data's licence is
Apache 2.0.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare oasst1", __doc__)

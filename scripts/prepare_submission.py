r"""Make the folder that is handed in to the challenge, after a check of its rules: server, weights, training, papers.

    python scripts/prepare_submission.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b \
        --lora_path out/lora/dolly --track 4090 --out_dir bundle

The folder builds into the challenge's container, and into one that repeats the training.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("prepare submission", __doc__)

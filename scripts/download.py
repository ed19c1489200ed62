"""Fetch a model from the Hugging Face hub: weights, config and tokenizer, each file checked by its checksum.

    python scripts/download.py                                            # lists the known models
    python scripts/download.py --repo_id openlm-research/open_llama_7b    # to checkpoints/openlm-research/open_llama_7b

Run it again after an interruption: finished files are kept, a half-fetched one goes on where it was.
A gated model needs your access token in the environment as HF_TOKEN.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("download", __doc__)

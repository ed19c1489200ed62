r"""Continue a prompt with a base model; the text goes to stdout, everything else to stderr.

    python generate/base.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --prompt "Tell me an interesting fun fact:"
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("generate base", __doc__)

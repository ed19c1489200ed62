r"""Answer an instruction with a model whose weights were all finetuned.

    python generate/full.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b \
        --finetuned_path out/full/alpaca/lit_model_finetuned.pth --prompt "how do you make pizza?"
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("generate full", __doc__)

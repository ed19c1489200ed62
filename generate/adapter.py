r"""Answer an instruction with a model that was finetuned with LLaMA-Adapter.

    python generate/adapter.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b \
        --adapter_path out/adapter/alpaca/lit_model_adapter_finetuned.pth --prompt "how do you make pizza?"
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("generate adapter", __doc__)

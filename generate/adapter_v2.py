r"""Answer an instruction with a model that was finetuned with LLaMA-Adapter V2.

    python generate/adapter_v2.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b \
        --adapter_v2_path out/adapter_v2/alpaca/lit_model_adapter_v2_finetuned.pth --prompt "how do you make pizza?"
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("generate adapter_v2", __doc__)

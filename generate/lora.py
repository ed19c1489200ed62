r"""Answer an instruction with a model that was finetuned with LoRA; its settings are read from the file.

    python generate/lora.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --lora_path out/lora/alpaca/lit_model_lora_finetuned.pth --prompt "how do you make pizza?"
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("generate lora", __doc__)

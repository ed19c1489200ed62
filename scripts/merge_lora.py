r"""Fold what LoRA finetuning trained into its base: a converted model that every command uses like any other.

    python scripts/merge_lora.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b \
        --lora_path out/lora/alpaca/lit_model_lora_finetuned.pth --out_dir checkpoints/own/open_llama_7b-alpaca

Takes the memory of the largest part (a block or the head) in float32, not of the model. The base is not changed.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("merge lora", __doc__)

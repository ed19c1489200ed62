r"""Turn a checkpoint of litgpt (0.2 to 0.5) or of Lit-GPT 2023 into one of ours, in a folder of its own.

    python scripts/convert_litgpt_checkpoint.py --checkpoint_dir checkpoints/litgpt/pythia-160m \
        --out_dir checkpoints/own/pythia-160m

What litgpt trained with LoRA (lit_model.pth.lora) needs no conversion: give it to any command as --lora_path.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("convert litgpt", __doc__)

r"""Write a converted model in the format of another tool, with what was trained folded in or on its own.

    python scripts/convert_lit_checkpoint.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b \
        --lora_path out/lora/alpaca --output_dir export/open_llama_3b-alpaca
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("export", __doc__)

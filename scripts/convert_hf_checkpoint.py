"""Turn a downloaded checkpoint (safetensors or PyTorch .bin, in one file or in shards) into lit_model.pth beside it.

    python scripts/convert_hf_checkpoint.py --checkpoint_dir checkpoints/openlm-research/open_llama_7b

Takes the memory of the largest tensor, not of the model. The downloaded weights are not needed afterwards.
"""

from lit_gpt.cli import launch

if __name__ == "__main__":
    launch("convert", __doc__)

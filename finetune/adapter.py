r"""Finetune a model with LLaMA-Adapter: trained tokens that the upper layers see (arXiv 2303.16199).

    python finetune/adapter.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b \
        --data_dir data/alpaca --out_dir out/adapter/alpaca --precision bf16-true

The defaults below are the ones to try first when a result is to be better; every flag overrides them.
"""

from pathlib import Path

from lit_gpt.cli import launch

out_dir = Path("out/adapter/alpaca")
learning_rate = 9e-3
batch_size = 128  # samples of one update
micro_batch_size = 4  # samples of an iter
weight_decay = 0.02
adapter_prompt_length = 10
adapter_start_layer = 2

if __name__ == "__main__":
    constants = {name: value for name, value in globals().items() if isinstance(value, (bool, int, float, Path))}
    launch("finetune adapter", __doc__, **constants)

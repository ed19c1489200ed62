r"""Finetune all weights of a model; updates are kept in float32 whatever the precision is.

    python finetune/full.py --checkpoint_dir checkpoints/openlm-research/open_llama_3b \
        --data_dir data/alpaca --out_dir out/full/alpaca --precision bf16-true

The defaults below are the ones to try first when a result is to be better; every flag overrides them.
"""

from pathlib import Path

from lit_gpt.cli import launch

out_dir = Path("out/full/alpaca")
learning_rate = 3e-5
batch_size = 128  # samples of one update
micro_batch_size = 4  # samples of an iter
weight_decay = 0.0

if __name__ == "__main__":
    constants = {name: value for name, value in globals().items() if isinstance(value, (bool, int, float, Path))}
    launch("finetune full", __doc__, **constants)

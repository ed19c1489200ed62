"""finetune/lora.py on made-up weights: the speed and memory of a model of any size without its checkpoint.

    python bench/gpu_train.py --checkpoint_dir FOLDER --data_dir data/alpaca_libre --max_steps 20

FOLDER holds the config.json and the tokenizer of the model. Everything but reading `lit_model.pth` is the real command,
and all its flags work; the weights are drawn on the device when they would be read, the same ones in every run.
"""

import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt import checkpoint
from lit_gpt.cli import launch
from lit_gpt.config import Config
from lit_gpt.model import meta_gpt


class RandomWeights(Mapping):
    """The weights of a model by name: norms are one, biases zero, the rest normal with a deviation of 0.02."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.shapes = {name: weight.shape for name, weight in meta_gpt(config).state_dict().items()}

    def __getitem__(self, name: str) -> Tensor:
        where: dict[str, Any] = {"device": checkpoint.default_device(), "dtype": torch.bfloat16}
        if name.endswith(".bias"):
            return torch.zeros(self.shapes[name], **where)
        if "norm" in name:
            return torch.ones(self.shapes[name], **where)
        generator = torch.Generator(where["device"]).manual_seed(zlib.crc32(name.encode()))
        return torch.empty(self.shapes[name], **where).normal_(std=0.02, generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@cache
def random_weights(folder: Path) -> RandomWeights:
    """The weights of the model in a folder that has none."""
    return RandomWeights(Config.from_checkpoint(folder))


if __name__ == "__main__":
    checkpoint.open_weights, checkpoint.prove_weights = random_weights, lambda folder: None
    launch("finetune lora", __doc__)

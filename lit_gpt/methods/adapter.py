"""LLaMA-Adapter (arXiv 2303.16199): trained tokens that the queries of the upper layers see besides the text's.

They have a softmax of their own, and what it gives is added through a gate for every head that starts at zero. The
tokens lie before the text, are not rotated, and take the layer's own key and value projections.
"""

import torch
from torch import Tensor, nn

from lit_gpt.attention import Attend, sdpa
from lit_gpt.methods import Adapter
from lit_gpt.model import GPT, Attention


class AdapterAttention(nn.Module):
    """An `Attention` with trained tokens before the text.

    Args:
        base: the layer's attention.
        length: number of trained tokens.
    """

    def __init__(self, base: Attention, length: int) -> None:
        super().__init__()
        self.base, self.rope = base, base.rope
        where = {"device": base.o.weight.device, "dtype": torch.float32}
        self.adapter_prompt = nn.Parameter(torch.empty(1, length, base.k.in_features, **where))
        self.adapter_gate = nn.Parameter(torch.zeros(base.o.in_features // base.head_size, **where))
        nn.init.normal_(self.adapter_prompt)

    def heads(self, *args: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Attention`."""
        return self.base.heads(*args)

    def mix(self, attend: Attend, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        """See `Attention`."""
        y_BHTD = self.base.mix(attend, layer, q_BHTD, k_BGTD, v_BGTD)
        prompt = self.adapter_prompt.to(q_BHTD.dtype)
        size = (len(q_BHTD), -1, -1, -1)
        keys, values = (
            project(prompt).unflatten(-1, (-1, self.base.head_size)).transpose(1, 2).expand(size)
            for project in (self.base.k, self.base.v)
        )
        seen_BHTD = sdpa(q_BHTD, keys, values, self.base.look)
        return y_BHTD + self.adapter_gate.to(y_BHTD.dtype).view(-1, 1, 1) * seen_BHTD

    def out(self, y_BHTD: Tensor) -> Tensor:
        """See `Attention`."""
        return self.base.out(y_BHTD)


def attach(model: GPT, settings: Adapter) -> None:
    """Freezes the model and gives its upper layers trained tokens. The outputs stay exactly the same."""
    model.requires_grad_(False)
    for block in model.blocks[settings.adapter_start_layer :]:
        block.attn = AdapterAttention(block.attn, settings.adapter_prompt_length)

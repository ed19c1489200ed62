"""What litgpt trained with LoRA, read as if our own finetuning had written it.

litgpt adapts queries, keys and values as one layer: A of those that are adapted stand one below the other, r rows each,
and so do the rows of B, with r columns. Where the rows of B are added to the layer's changed over the years:

- litgpt 0.5.5 and later (`attn.qkv`): queries to queries, keys to keys, values to values.
- before (`attn.attn`), the layer's rows were those of one group after the other, and those of B were placed
  accordingly, unless all three were adapted: then they were added in their own order, to wrong rows.
- in Lit-GPT 2023 (`lit_model_lora_finetuned.pth`), always in that way (github.com/Lightning-AI/litgpt, issue 891).

What was trained on wrong rows works on these rows only. So they are kept: each of ours gets all rows of A, and the
columns of B that belong to its rows. The rank is higher, the sum the same.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.families import split_grouped
from lit_gpt.families.litgpt import LORA, read_yaml
from lit_gpt.hf_weights import stored_names
from lit_gpt.methods import SWITCHES
from lit_gpt.model import meta_gpt
from lit_gpt.peft_files import Update, as_ours
from lit_gpt.settings import UserError

KINDS = (".lora_A", ".lora_B")


def lora_of(saved: Any) -> dict[str, Tensor] | None:
    """The tensors of a file that litgpt trained with LoRA, None if it is something else."""
    state = saved.get("model", saved) if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not state:
        return None
    of_lora = all(isinstance(n, str) and n.endswith(KINDS) and isinstance(t, Tensor) for n, t in state.items())
    return state if of_lora and all(n.startswith(("transformer.", "lm_head.")) for n in state) else None


def read_litgpt(path: Path, state: dict[str, Tensor], config: Config) -> dict[str, Any]:
    """Weights of LoRA as `checkpoint.read_finetuned` gives ours.

    Args:
        path: the file; `hyperparameters.yaml` beside it says `lora_alpha`.
        state: what `lora_of` found in it.

    Raises:
        UserError: there are no hyperparameters, or the weights do not fit them or the model.
    """
    settings = _settings(path.with_name("hyperparameters.yaml"))
    names, model, updates = stored_names(replace(config, family="litgpt")), meta_gpt(config), {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in state):
        A, B = (state.get(f"{module}{kind}") for kind in KINDS)
        here = names.get(f"{module}.weight")
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or here is None:
            raise UserError(f"{path}: {module} has no A, no B, or no place in the model; is it for another model?")
        layers = [name.removesuffix(".weight") for name in here.names]
        if not layers[0].endswith(tuple(SWITCHES)):
            raise UserError(f"{path}: it adapts {module}, which ours cannot; merge it with litgpt, and convert that")
        rows = [len(model.get_parameter(name)) for name in here.names]
        adapted = [settings[f"lora_{part}"] for part in ("query", "key", "value")] if len(layers) == 3 else [True]
        sizes, r = [size * on for size, on in zip(rows, adapted, strict=True)], B.size(1)
        if not r or len(B) != sum(sizes) or A.shape != (r * sum(adapted), model.get_parameter(here.names[0]).shape[1]):
            raise UserError(
                f"{path}: A and B of {module} are {tuple(A.shape)} and {tuple(B.shape)}, which fits neither the model "
                f"nor which of queries, keys and values hyperparameters.yaml says are adapted"
            )
        A, scale = A.float(), settings["lora_alpha"] / r
        parts_A = A.split([r * on for on in adapted])
        parts_B = B.float().split(sizes)
        if here.how == "grouped" and (path.name != LORA or all(adapted)):  # to the rows that these have in the layer
            blocks = [B if on else B.new_zeros(size, 0) for size, on, B in zip(rows, adapted, parts_B, strict=True)]
            parts_A = [A] * 3
            parts_B = split_grouped(torch.block_diag(*blocks), config.n_head, config.n_query_groups)
        for layer, part_A, part_B in zip(layers, parts_A, parts_B, strict=True):
            if len(part_A):
                updates[layer] = Update(part_A, part_B, scale)
    return as_ours(updates, model, path)


def _settings(path: Path) -> dict[str, Any]:
    """`lora_alpha`, and which of queries, keys and values are adapted, by default queries and values."""
    if not path.exists():
        raise UserError(
            f"no {path}, so lora_alpha is not known; Lit-GPT 2023 wrote none: make it, with a line 'lora_alpha: 16' "
            "(or what finetune/lora.py said), and lora_query, lora_key and lora_value if not true, false and true"
        )
    found = {"lora_query": True, "lora_key": False, "lora_value": True, **read_yaml(path)}
    if type(found.get("lora_alpha")) not in (int, float) or not found["lora_alpha"] > 0:
        raise UserError(f"{path}: lora_alpha must be a positive number, got {found.get('lora_alpha')!r:.80}")
    for key in ("lora_query", "lora_key", "lora_value"):
        if type(found[key]) is not bool:
            raise UserError(f"{path}: {key} must be true or false, got {found[key]!r:.80}")
    return found

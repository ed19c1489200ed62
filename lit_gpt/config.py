"""The architecture of a model: what `lit_gpt.model.GPT` needs to know to be built, and nothing else."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.families import ACTIVATIONS, catalogue, family, litgpt
from lit_gpt.files import read_json, read_sealed
from lit_gpt.settings import UserError

MAX_SIZE, MAX_LAYERS, MOST = 1 << 24, 1 << 12, 1e30
"""No model comes near these: a larger number is damage, and building such a model would not end."""
KINDS = {
    "norm": ("layer", "plain", "rms", "rms+1"),
    "qk_norm": (None, "head", "each", "all"),
    "mlp": ("plain", "gated"),
    "activation": ACTIVATIONS,
    "positions": ("rope", "learned", "alibi", "alibi-16"),
}
"""What some fields can be."""
POSITIVE = ("embed_scale", "clip_qkv", "attn_scale", "attn_softcap", "logit_softcap", "rope_local_base")
"""Numbers that a model may have or not."""
CONVERT_LITGPT = "convert it: python scripts/convert_litgpt_checkpoint.py --checkpoint_dir {} --out_dir NEW_FOLDER"
"""What to do about a checkpoint of litgpt."""
SCALINGS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "attention_factor", "truncate"},
    "longrope": {"short_factor", "long_factor", "attention_factor", "original_max_position_embeddings"},
}
"""Kinds of `rope_scaling` and the keys of each."""


@dataclass
class Config:
    """Sizes and switches of a decoder. Fields left at None are derived from the others."""

    family: str
    """The file of `lit_gpt/families` that knows the checkpoint's names."""
    block_size: int
    """Longest sequence that the model was trained for, in tokens."""
    padded_vocab_size: int
    """Rows of the embedding; the tokenizer may know fewer."""
    n_layer: int
    n_head: int
    n_embd: int
    intermediate_size: int
    """Width of the MLP."""
    head_size: int | None = None
    """Width of a head; None: n_embd / n_head."""
    n_query_groups: int | None = None
    """Key and value heads: n_head (multi-head; also None), 1 (multi-query) or between (grouped, arXiv 2305.13245)."""
    norm: str = "layer"
    """"layer": LayerNorm, "plain": without weights, "rms": RMSNorm (arXiv 1910.07467), "rms+1": weights less one."""
    norm_eps: float = 1e-5
    norm_bias: bool = True
    """Bias of a LayerNorm."""
    pre_norm: bool = True
    """Norms in front of attention and MLP."""
    post_norm: bool = False
    """Norms behind them, before what they give is added."""
    norm_sums: bool = False
    """Instead of all these: norms of the sums, as in the first transformer."""
    final_norm: bool = True
    """A norm in front of the head."""
    qk_norm: str | None = None
    """Norms of queries and keys: "head" by head, "each" head with a norm of its own, "all" at once, or None."""
    embed_norm: bool = False
    """A norm behind the embedding."""
    embed_scale: float | None = None
    """The embedding is multiplied by this."""
    embed_size: int | None = None
    """Width of embedding and head, where matrices stand between them and the blocks; None: n_embd."""
    mlp: str = "plain"
    """"plain": down(act(up(x))), "gated": down(act(gate(x)) * up(x)) (arXiv 2002.05202)."""
    activation: str = "gelu"
    """The MLP's nonlinearity by its Hugging Face name: gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu or silu."""
    n_expert: int = 0
    """MLPs of a sparse mixture; 0: there is one, for all tokens."""
    n_expert_per_token: int = 0
    norm_expert_weights: bool = True
    """The weights of a token's experts add up to one."""
    parallel_residual: bool = False
    """Attention and MLP read the same input and are added together (GPT-J, GPT-NeoX, Falcon)."""
    shared_norm: bool = False
    """With parallel_residual: one norm for both."""
    qkv_bias: bool = False
    out_bias: bool = False
    """Bias of the attention's output projection."""
    mlp_bias: bool = False
    head_bias: bool = False
    tie_embeddings: bool = False
    """The head uses the embedding's weight."""
    clip_qkv: float | None = None
    """Queries, keys and values are kept within plus and minus this."""
    attn_scale: float | None = None
    """Of the products of queries and keys; None: head_size ** -0.5."""
    attn_softcap: float | None = None
    """c: a score x becomes c tanh(x / c)."""
    logit_softcap: float | None = None
    """The same for the logits."""
    sliding_window: int | None = None
    """Tokens that a layer with a window sees, the own one among them."""
    windowed: list[bool] | None = None
    """Which layers have one; None: all."""
    positions: str = "rope"
    """"rope": rotary (arXiv 2104.09864), "learned": embeddings, "alibi": linear biases (arXiv 2108.12409), "alibi-16":
    these as Falcon computes them, in bfloat16 and scaled like the products."""
    position_offset: int = 0
    """Rows of the learned embeddings before that of the first position."""
    rope_base: float = 10000.0
    rope_local_base: float | None = None
    """That of layers with a window, where it differs."""
    rope_percentage: float = 1.0
    """Share of a head's channels that is rotated."""
    rope_scaling: dict[str, Any] | None = None
    """{"factor": f}: positions divided by f (arXiv 2306.15595); with other keys of `SCALINGS` Llama 3.1's rule, YaRN
    (arXiv 2309.00071), or LongRoPE (arXiv 2402.13753): a divisor for every frequency, see `short_length`."""
    no_rope: list[bool] | None = None
    """Layers without rotary positions; None: none of them."""

    def __post_init__(self) -> None:
        for name in ("block_size", "padded_vocab_size", "n_layer", "n_head", "n_embd", "intermediate_size"):
            self._check_size(name)
        if self.head_size is None and self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        self.head_size = self.head_size or self.n_embd // self.n_head
        self.n_query_groups = self.n_query_groups or self.n_head
        self._check_size("head_size")
        self._check_size("n_query_groups")
        if self.n_head % self.n_query_groups:
            raise UserError(f"n_head {self.n_head} is not a multiple of n_query_groups {self.n_query_groups}")
        for name, known in KINDS.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} {getattr(self, name)!r:.80} is unknown; known are {', '.join(map(str, known))}"
                )
        for field in dataclasses.fields(self):
            if field.type is bool and not isinstance(getattr(self, field.name), bool):
                raise UserError(f"{field.name} must be true or false, got {getattr(self, field.name)!r:.80}")
        if self.shared_norm and not self.parallel_residual:
            raise UserError("shared_norm needs parallel_residual")
        if self.norm_sums and (self.parallel_residual or self.post_norm or not self.pre_norm):
            raise UserError("norm_sums goes with no other order of the norms")
        if type(self.n_expert) is not int or self.n_expert < 0 or self.n_expert > MAX_LAYERS:
            raise UserError(f"n_expert must be a whole number from 0 to {MAX_LAYERS}, got {self.n_expert!r:.80}")
        if self.n_expert and self.n_expert_per_token not in range(1, self.n_expert + 1):
            raise UserError(
                f"n_expert_per_token must be from 1 to {self.n_expert}, got {self.n_expert_per_token!r:.80}"
            )
        if self.position_offset not in (0, 2):
            raise UserError(f"position_offset must be 0 or 2, got {self.position_offset!r:.80}")
        for name in ("sliding_window", "embed_size"):
            if getattr(self, name) is not None:
                self._check_size(name)
        for name in ("windowed", "no_rope"):
            flags = getattr(self, name)
            if flags is not None and not (
                isinstance(flags, list) and len(flags) == self.n_layer and all(type(flag) is bool for flag in flags)
            ):
                raise UserError(f"{name} must be a list of {self.n_layer} times true or false, got {flags!r:.80}")
        self._check_rope()

    def _check_size(self, name: str) -> None:
        value, most = getattr(self, name), MAX_LAYERS if name == "n_layer" else MAX_SIZE
        if type(value) is not int or value < 1:
            raise UserError(f"{name} must be a whole number from 1 on, got {value!r:.80}")
        if value > most:
            raise UserError(f"{name} is {value!r:.80}, and no model has more than {most:,}")

    def _check_rope(self) -> None:
        numbers = {name: getattr(self, name) for name in ("norm_eps", "rope_base", "rope_percentage", *POSITIVE)}
        numbers = {name: value for name, value in numbers.items() if value is not None or name not in POSITIVE}
        scaling = self.rope_scaling or {"factor": 1}
        if not isinstance(scaling, dict) or set(scaling) not in SCALINGS.values():
            kinds = "; ".join(f"{kind}: {', '.join(sorted(keys))}" for kind, keys in SCALINGS.items())
            raise UserError(f"rope_scaling is {scaling!r:.200}; known are these kinds and keys: {kinds}")
        scaling = dict(scaling)
        if not isinstance(scaling.pop("truncate", True), bool):
            raise UserError("truncate must be true or false")
        divisors = {name: scaling.pop(name) for name in ("short_factor", "long_factor") if name in scaling}
        for name, values in divisors.items():
            if not isinstance(values, list):
                raise UserError(f"{name} must be a list, got {values!r:.80}")
        listed = [(name, value) for name, values in divisors.items() for value in values]
        for name, value in [*numbers.items(), *scaling.items(), *listed]:
            if type(value) not in (int, float) or not 0 < value < MOST:
                raise UserError(f"{name} must be a positive number, got {value!r:.80}")
        if self.norm_eps >= 1:
            raise UserError(f"norm_eps must be below 1, got {self.norm_eps!r:.80}")
        rotated = int(self.head_size * self.rope_percentage)
        if rotated + rotated % 2 > self.head_size:  # channels are rotated in pairs
            raise UserError(
                f"rope_percentage {self.rope_percentage} takes more pairs than head_size {self.head_size} has"
            )
        for name, values in divisors.items():
            if len(values) != (rotated + 1) // 2:
                raise UserError(f"{name} must have {(rotated + 1) // 2} numbers, got {len(values)}")
        if "beta_fast" in scaling and (scaling["beta_slow"] > scaling["beta_fast"] or self.rope_base <= 1):
            raise UserError("beta_slow must not be above beta_fast, and rope_base must be above 1")
        if "low_freq_factor" in scaling and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
            raise UserError("low_freq_factor must be below high_freq_factor")

    @classmethod
    def from_hf(cls, source: dict[str, Any] | str | Path) -> "Config":
        """Reads the `config.json` of a Hugging Face checkpoint, given as its dict or its path.

        Raises:
            UserError: the file is missing or broken, a key is missing, or the model is one that ours cannot express.
        """
        hf = source if isinstance(source, dict) else read_json(source)
        place = "config.json" if isinstance(source, dict) else source
        if not isinstance(hf, dict) or "model_type" not in hf:
            raise UserError(f"{place}: no model_type; is this the config.json of a language model?")
        with _errors_of(place):
            module = family(hf["model_type"])
            if quoted := next(_quoted(hf), None):
                raise UserError(f"{quoted} is a text: write false without quotation marks")
            if hf.get("quantization_config"):
                raise UserError("quantization_config: these weights are quantised already; download the original model")
            return cls(family=module.__name__.rpartition(".")[2], **module.fields(hf))

    @classmethod
    def from_litgpt(cls, checkpoint_dir: Path) -> "Config":
        """Reads the description of a checkpoint of litgpt; the `family` is that of its tensors' names.

        Raises:
            UserError: as `from_hf`.
        """
        path = litgpt.description(checkpoint_dir)
        found = litgpt.read_yaml(path)
        with _errors_of(path):
            return cls(family="litgpt", **litgpt.fields(found))

    @classmethod
    def from_name(cls, name: str) -> "Config":
        """A checkpoint of the catalogue by its name, with or without organisation: "open_llama_7b". Works offline.

        Raises:
            UserError: the catalogue has no such name; shows the nearest.
        """
        return cls.from_hf(catalogue.find(name).config)

    @classmethod
    def from_checkpoint(cls, checkpoint_dir: str | Path) -> "Config":
        """Reads `lit_config.json` of a converted checkpoint, or its `config.json` if it is not yet converted.

        Raises:
            UserError: neither file is there, or it is broken, or the checkpoint is litgpt's.
        """
        path = Path(checkpoint_dir) / "lit_config.json"
        if litgpt.is_litgpt(path.parent):
            raise UserError(f"{checkpoint_dir} holds a checkpoint of litgpt; {CONVERT_LITGPT.format(checkpoint_dir)}")
        if path.exists():
            known = {field.name for field in dataclasses.fields(cls)}
            facts = read_sealed(path)
            try:
                return cls(**{key: value for key, value in facts.items() if key in known})
            except (TypeError, AttributeError, UserError) as error:
                raise UserError(f"{path}: {error}; convert the checkpoint again") from error
        if not path.parent.is_dir():
            raise UserError(f"no folder {checkpoint_dir}; download a checkpoint first (scripts/download.py)")
        if not (path.parent / "config.json").exists():
            raise UserError(f"no config.json in {checkpoint_dir}; download the checkpoint again (scripts/download.py)")
        return cls.from_hf(path.parent / "config.json")

    @property
    def ends(self) -> bool:
        """Whether there is no position beyond `block_size`, rather than none that the model was trained for."""
        return self.positions == "learned"

    @property
    def short_length(self) -> int | None:
        """Tokens of the longest sequence that LongRoPE turns by its short factors; None: there is no LongRoPE.

        All of a longer one is turned by the long factors, its first tokens, too. A KV cache goes by the length that its
        rows are expected to reach (`KVCache.expect`), since what is in it cannot be turned again.
        """
        scaling = self.rope_scaling or {}
        return int(scaling["original_max_position_embeddings"]) if "short_factor" in scaling else None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for `lit_config.json`."""
        return dataclasses.asdict(self)


def _quoted(hf: dict[str, Any]) -> Iterator[str]:
    """The keys, in inner sections too, with a "false" in quotation marks, which would count as true."""
    for key, value in hf.items():
        if isinstance(value, dict):
            yield from _quoted(value)
        elif isinstance(value, str) and value.strip().lower() == "false":
            yield key


@contextlib.contextmanager
def _errors_of(place: str | Path) -> Iterator[None]:
    """Says which file a model is described in that cannot be read."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    except KeyError as error:
        raise UserError(f"{place}: key {error} is missing") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{place}: a value is of the wrong type ({error})") from error

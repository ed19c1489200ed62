"""One decoder for every family: what differs between them is a field of `Config`.

Shapes: B batch, T tokens of this call, S tokens seen so far, C channels, H query heads, G key and value heads,
D channels of a head, V vocabulary, N chosen positions. A name like `q_BHTD` says the shape.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lit_gpt.attention import Attend, Look, causal
from lit_gpt.cache import KVCache
from lit_gpt.config import Config
from lit_gpt.lean import made, rms_norm, rotate, silu_product
from lit_gpt.loss import head_loss
from lit_gpt.packs import Pack
from lit_gpt.rope import Rope, rope_tables
from lit_gpt.weight_only import joined

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
REMADE = {act for name, act in ACTIVATIONS.items() if name != "relu"}
"""What these give need not be kept (`lean.made`); relu's own backward pass keeps it, and others may depend on more."""


class GPT(nn.Module):
    """A decoder-only transformer with rotary positions.

    The parameters are uninitialised values or what a checkpoint brings: this toolkit finetunes.
    `meta_gpt` has the shapes without the memory.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.noise: float | None = None
        """NEFTune's alpha: noise on the embeddings in training, of at most alpha / sqrt(length C)."""
        width, narrow = config.embed_size or config.n_embd, config.embed_size is not None
        self.wte = nn.Embedding(config.padded_vocab_size, width)
        self.widen = nn.Linear(width, config.n_embd, bias=False) if narrow else nn.Identity()
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.block_size + config.position_offset, config.n_embd)
        self.embed_norm = build_norm(config) if config.embed_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = build_norm(config) if config.final_norm else nn.Identity()
        self.narrow = nn.Linear(config.n_embd, width, bias=False) if narrow else nn.Identity()
        self.lm_head = nn.Linear(width, config.padded_vocab_size, bias=config.head_bias)
        self.tie()

    def tie(self) -> None:
        """Lets the head use the embedding's weight where the architecture asks for it."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.wte.weight

    def forward(
        self,
        idx_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
        at_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token after every token.

        Args:
            idx_BT: token ids, int64.
            positions_BT: place of each token in its sequence, (B, T) or (1, T); by default the T places after what the
                cache holds, from 0 without a cache. Rows may stand at different places.
            cache: keys and values of earlier calls; those of this call are added to it.
            at_BT: bool; computes the logits at these positions only.

        Returns:
            (B, T, V), or (N, V) with `at_BT`.
        """
        attend, lengths_B1 = causal, None
        if cache is not None:
            positions_BT, attend, lengths_B1 = cache.begin(idx_BT, positions_BT), cache.attend, cache.lengths_B1
        places_N = None if at_BT is None else at_BT.flatten().nonzero()[:, 0]
        return self.logits(self.hidden(idx_BT, positions_BT, attend, places_N, lengths_BT=lengths_B1))

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) from what the blocks give, (..., C)."""
        logits = self.lm_head(self.narrow(self.norm(x)))
        return logits if self.config.logit_softcap is None else softcapped(logits, self.config.logit_softcap)

    def hidden(
        self,
        idx_BT: Tensor,
        positions_BT: Tensor | None = None,
        attend: Attend = causal,
        places_N: Tensor | None = None,
        recompute: int = 0,
        lengths_BT: Tensor | None = None,
    ) -> Tensor:
        """What the blocks make of the tokens, (B, T, C), before the last norm; positions count from 0 by default.

        Args:
            places_N: of which tokens it is wanted, counted through the rows: then (N, C).
            recompute: how much of the L blocks the backward pass computes again instead of keeping it: n up to L: the
                MLPs of the first n; L + n: all MLPs, and of the first n blocks the rest as well.
            lengths_BT: of the sequences, for noise and LongRoPE, or (B, 1); T by default.
        """
        if positions_BT is None:
            positions_BT = torch.arange(idx_BT.size(1), device=idx_BT.device)[None]
        x_BTC = self.wte(idx_BT)
        if self.noise is not None and self.training:
            length = torch.tensor(idx_BT.size(1)) if lengths_BT is None else lengths_BT[..., None]
            most = self.noise / (length * x_BTC.size(-1)).sqrt()
            x_BTC = x_BTC + (torch.rand_like(x_BTC) * 2 - 1) * most.to(x_BTC.dtype)
        if self.config.embed_scale is not None:
            x_BTC = x_BTC * torch.tensor(self.config.embed_scale, dtype=x_BTC.dtype)
        x_BTC = self.widen(x_BTC)
        if self.config.positions == "learned":
            x_BTC = x_BTC + self.wpe(positions_BT + self.config.position_offset)
        x_BTC = self.embed_norm(x_BTC)
        ropes = self.ropes(positions_BT, x_BTC.dtype, lengths_BT)
        if not torch.is_grad_enabled():
            recompute = 0
        for layer, block in enumerate(self.blocks):
            wanted_N = places_N if layer == len(self.blocks) - 1 else None
            if recompute > len(self.blocks) + layer:
                vars(x_BTC).pop("made", None)  # it is kept itself, not what it was made of
                x_BTC = checkpoint(block, x_BTC, ropes, attend, wanted_N, use_reentrant=False)
            else:
                x_BTC = block(x_BTC, ropes, attend, wanted_N, recompute > layer)
        return x_BTC if places_N is None else x_BTC[0]

    def ropes(self, positions_BT: Tensor, dtype: torch.dtype, lengths_BT: Tensor | None = None) -> dict[str, Rope]:
        """The rotary tables that the blocks ask for, by name; see `rope_tables`."""
        kinds = ["global"] * (self.config.positions == "rope") + ["local"] * (self.config.rope_local_base is not None)
        return {kind: rope_tables(self.config, positions_BT, dtype, kind, lengths_BT) for kind in kinds}

    def compile_blocks(self) -> None:
        """Lets training run compiled blocks, all of them the same code: it is made for the first batch and its shape.

        Attention stays outside, as it is put together anew for every batch. What needs no gradient runs as before:
        validation, generation, and a first block whose input is not trained, which would be compiled separately.
        Blocks that differ, or whose MLP is computed again, have code of their own.
        """
        from torch._functorch import config

        # By default it would keep dropped copies of the adapters' inputs beside the masks, more than plain blocks keep.
        # `aggressive_recomputation` does more, but draws other masks in the backward pass: wrong gradients.
        config.ban_recompute_used_far_apart = False
        config.ban_recompute_long_fusible_chains = False
        config.ban_recompute_materialized_backward = False
        halves = Block.compiled_halves()
        for block in self.blocks:
            block.compiled = halves

    def compile_steps(self) -> None:
        """Lets calls of a single token per row run compiled blocks, all by the same code, made at the first call."""
        halves = Block.compiled_halves()
        for block in self.blocks:
            block.compiled_step = halves

    def loss_sum(
        self,
        idx_BT: Tensor,
        pack: Pack | None,
        places_N: Tensor,
        labels_N: Tensor,
        weights_N: Tensor | None = None,
        recompute: int = 0,
    ) -> Tensor:
        """Sum of the weighted cross-entropies, in nats, of the labels at N places.

        Args:
            pack: how the one row is made up; None: rows are sequences.
            places_N: where, counted through the rows of `idx_BT`.
            recompute: see `hidden`.
        """
        if pack is None:
            x_NC = self.hidden(idx_BT, places_N=places_N, recompute=recompute)
        else:
            lengths_1T = None if self.noise is None and self.config.short_length is None else pack.lengths_1T
            x_NC = self.hidden(idx_BT, pack.positions_1T, pack.attend, places_N, recompute, lengths_1T)
        return head_loss(self.lm_head, self.narrow(self.norm(x_NC)), labels_N, weights_N, self.config.logit_softcap)


class _NoValues(TorchFunctionMode):
    """Leaves out the random values that a new layer would get."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if getattr(func, "__module__", None) == "torch.nn.init" else func(*args, **kwargs)


def meta_gpt(config: Config) -> GPT:
    """The model on the meta device: shapes only. Drawing its values there would cost seconds, and be for nothing."""
    with torch.device("meta"), _NoValues():
        return GPT(config)


Halves = tuple[Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]], Callable[..., Tensor]]
"""`Block.before` and `Block.after`, compiled."""


class Block(nn.Module):
    """Attention and MLP around a residual stream, one after the other or side by side (`parallel_residual`)."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.parallel, self.norm_sums = layer, config.parallel_residual, config.norm_sums
        self.norm_1 = build_norm(config) if config.pre_norm else nn.Identity()
        self.attn = Attention(config, layer)
        self.post_1 = build_norm(config) if config.post_norm else nn.Identity()
        self.norm_2 = None if config.shared_norm else build_norm(config) if config.pre_norm else nn.Identity()
        self.mlp = MoE(config) if config.n_expert else MLPS[config.mlp](config)
        self.post_2 = build_norm(config) if config.post_norm else nn.Identity()
        self.compiled: Halves | None = None
        """What training calls instead of `before` and `after`; see `GPT.compile_blocks`."""
        self.compiled_step: Halves | None = None
        """What decoding calls; see `GPT.compile_steps`."""

    def forward(
        self,
        x_BTC: Tensor,
        ropes: dict[str, Rope],
        attend: Attend,
        places_N: Tensor | None = None,
        recompute_mlp: bool = False,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C), or (1, N, C) for the tokens at these places, counted through the rows.

        Where no block follows, what comes after the attention is for the places only that somebody asks for.
        """
        rope = ropes.get(self.attn.rope)
        before, after = Block.before, Block.after
        if self.compiled and x_BTC.requires_grad:
            before, after = self.compiled
        elif self.compiled_step and x_BTC.size(1) == 1 and not torch.is_grad_enabled():
            before, after = self.compiled_step
        n_BTC, *heads = before(self, x_BTC, rope)
        y_BHTD = self.attn.mix(attend, self.layer, *heads)
        del heads  # where no gradient needs them, they are not to lie beside the MLP's
        if places_N is None:
            return after(self, x_BTC, n_BTC, y_BHTD, recompute_mlp)
        if after is not Block.after:  # compiled for one number of tokens
            return _chosen(after(self, x_BTC, n_BTC, y_BHTD, recompute_mlp), places_N)
        y_BHTD = _chosen(y_BHTD.transpose(1, 2), places_N).transpose(1, 2)
        return after(self, _chosen(x_BTC, places_N), _chosen(n_BTC, places_N), y_BHTD, recompute_mlp)

    @classmethod
    def compiled_halves(cls) -> Halves:
        """Its two halves, to be compiled when they are called; attention comes between them."""
        return torch.compile(cls.before, dynamic=False), torch.compile(cls.after, dynamic=False)

    def before(self, x_BTC: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that is done before tokens look at each other: the normed input, queries, keys and values."""
        n_BTC = x_BTC if self.norm_sums else self.norm_1(x_BTC)
        return n_BTC, *self.attn.heads(n_BTC, rope)

    def after(self, x_BTC: Tensor, n_BTC: Tensor, y_BHTD: Tensor, recompute_mlp: bool) -> Tensor:
        """All that is done with what attention gives, (B, T, C)."""
        mlp = self._recomputed_mlp if recompute_mlp else self._normed_mlp
        a_BTC = self.post_1(self.attn.out(y_BHTD))
        if self.parallel:
            return x_BTC + a_BTC + mlp(n_BTC if self.norm_2 is None else x_BTC)
        x_BTC = x_BTC + a_BTC
        if self.norm_sums:
            x_BTC = self.norm_1(x_BTC)
            return self.norm_2(x_BTC + mlp(x_BTC))
        return x_BTC + self.post_2(mlp(x_BTC))

    def _normed_mlp(self, x_BTC: Tensor) -> Tensor:
        """With the norm before it, if it has one of its own."""
        return self.mlp(x_BTC if self.norm_2 is None or self.norm_sums else self.norm_2(x_BTC))

    def _recomputed_mlp(self, x_BTC: Tensor) -> Tensor:
        return checkpoint(self._normed_mlp, x_BTC, use_reentrant=False)


def _chosen(x_BT: Tensor, places_N: Tensor) -> Tensor:
    """(B, T, ...) -> (1, N, ...)."""
    return x_BT.flatten(0, 1).index_select(0, places_N)[None]


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention: G key and value heads serve H query heads."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.head_size, self.clip = config.head_size, config.clip_qkv
        self.n_heads = config.n_head, config.n_query_groups
        windowed = config.sliding_window is not None and (config.windowed is None or config.windowed[layer])
        self.rope: str | None = None
        """Which of the model's rotary tables it takes: "local" for windows that have their own, otherwise "global"."""
        if config.positions == "rope" and not (config.no_rope and config.no_rope[layer]):
            self.rope = "local" if windowed and config.rope_local_base else "global"
        self.look = Look(
            scale=config.attn_scale or config.head_size**-0.5,
            window=config.sliding_window if windowed else None,
            softcap=config.attn_softcap,
            alibi_heads=config.n_head if config.positions.startswith("alibi") else None,
            alibi_rounded=config.positions == "alibi-16",
        )
        queries, keys = config.n_head * config.head_size, config.n_query_groups * config.head_size
        self.q = nn.Linear(config.n_embd, queries, bias=config.qkv_bias)
        self.k = nn.Linear(config.n_embd, keys, bias=config.qkv_bias)
        self.v = nn.Linear(config.n_embd, keys, bias=config.qkv_bias)
        self.o = nn.Linear(queries, config.n_embd, bias=config.out_bias)
        self.qkv: nn.Linear | None = None
        """The three in one; see `fuse`."""
        self.whole_norm = config.qk_norm == "all"
        """Queries and keys are normed before they are split into heads, otherwise head by head."""
        self.q_norm, self.k_norm = (build_qk_norm(config, size) for size in (queries, keys))

    def fuse(self) -> None:
        """Makes one product of those for queries, keys and values, which pays where a call is a single token.

        They are gone then: this is for a model that only decodes.
        """
        self.qkv = None if self.q_norm else joined([self.q, self.k, self.v])
        if self.qkv is not None:
            self.q = self.k = self.v = None

    def heads(self, x_BTC: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D) and keys (B, G, T, D), normed and rotated where the model does so, and values."""
        if self.qkv is not None:
            H, G = self.n_heads
            x_BTHD = self._clipped(self.qkv(x_BTC)).view(*x_BTC.shape[:2], -1, self.head_size)
            qk_BTHD, v_BTGD = x_BTHD.narrow(2, 0, H + G), x_BTHD.narrow(2, H + G, G)
            qk_BTHD = qk_BTHD if rope is None else rotate(qk_BTHD, *rope)
            q_BTHD, k_BTGD = qk_BTHD.narrow(2, 0, H), qk_BTHD.narrow(2, H, G)
            return q_BTHD.transpose(1, 2), k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2)
        q_BTHD = self._placed(self._clipped(self.q(x_BTC)), self.q_norm, rope)
        k_BTGD = self._placed(self._clipped(self.k(x_BTC)), self.k_norm, rope)
        v_BTGD = self._clipped(self.v(x_BTC)).unflatten(-1, (-1, self.head_size))
        return q_BTHD.transpose(1, 2), k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2)

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def _placed(self, x: Tensor, norm: nn.Module | None, rope: Rope | None) -> Tensor:
        if norm and self.whole_norm:
            x = norm(x)
        x_BTHD = x.unflatten(-1, (-1, self.head_size))
        if norm and not self.whole_norm:
            x_BTHD = norm(x_BTHD)
        return x_BTHD if rope is None else rotate(x_BTHD, *rope)

    def mix(self, attend: Attend, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        """What the heads take from each other's tokens, (B, H, T, D)."""
        return attend(layer, q_BHTD, k_BGTD, v_BGTD, self.look)

    def out(self, y_BHTD: Tensor) -> Tensor:
        """The heads' outputs brought together, (B, T, C)."""
        return self.o(y_BHTD.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.down(self._made(self.act, self.up(x)))

    def _made(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return made(function, *inputs) if self.act in REMADE else function(*inputs)


class GatedMLP(MLP):
    """down(act(gate(x)) * up(x)), arXiv 2002.05202."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.gate_up: nn.Linear | None = None
        """The two in one; see `fuse`."""

    def fuse(self) -> None:
        """Makes one product of those for gate and up; see `Attention.fuse`."""
        self.gate_up = joined([self.gate, self.up])
        if self.gate_up is not None:
            self.gate = self.up = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        gate, up = (self.gate(x), self.up(x)) if self.gate_up is None else self.gate_up(x).chunk(2, -1)
        return self.down(self._made(gated(self.act), gate, up))


def gated(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """act(gate) * up, as a function of both."""
    return silu_product if act is F.silu else lambda gate, up: act(gate) * up


MLPS = {"plain": MLP, "gated": GatedMLP}


class MoE(nn.Module):
    """A sparse mixture: each token goes through the few of the E experts that the router finds (arXiv 2401.04088)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.active, self.normed = config.n_expert_per_token, config.norm_expert_weights
        self.router = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.experts = nn.ModuleList(MLPS[config.mlp](config) for _ in range(config.n_expert))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        x_NC = x.flatten(0, -2)
        share_NK, expert_NK = self.router(x_NC).softmax(-1, dtype=torch.float32).topk(self.active, dim=-1)
        if self.normed:
            share_NK = share_NK / share_NK.sum(-1, keepdim=True)
        y_NC = torch.zeros_like(x_NC)
        for number, expert in enumerate(self.experts):
            places, choice = (expert_NK == number).nonzero(as_tuple=True)
            share = share_NK[places, choice, None].to(x.dtype)
            y_NC = y_NC.index_add(0, places, expert(x_NC[places]) * share)
        return y_NC.view_as(x)


def build_norm(config: Config, size: int | None = None) -> nn.Module:
    """The norm that the config names, over `size` channels, by default C."""
    size, eps = size or config.n_embd, config.norm_eps
    if config.norm == "layer":
        return LayerNorm(size, eps, bias=config.norm_bias)
    if config.norm == "plain":
        return LayerNorm(size, eps, elementwise_affine=False)
    return {"rms": RMSNorm, "rms+1": OnePlusRMSNorm}[config.norm](size, eps=eps)


def build_qk_norm(config: Config, size: int) -> nn.Module | None:
    """The norm of queries or keys, `size` channels in all."""
    if config.qk_norm is None:
        return None
    if config.qk_norm == "each":
        return HeadNorms(size // config.head_size, config)
    return build_norm(config, size if config.qk_norm == "all" else config.head_size)


class LayerNorm(nn.LayerNorm):
    """As PyTorch's, with a note of how its output was `lean.made`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return made(partial(_layer_norm, eps=self.eps), x, self.weight, self.bias)


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


class RMSNorm(nn.RMSNorm):
    """As PyTorch's, with such a note; see `lean.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return made(partial(rms_norm, eps=self.eps), x, self.weight)


class OnePlusRMSNorm(nn.RMSNorm):
    """With weights that are kept as their distance from one (Gemma)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        weight = 1 + self.weight.to(torch.promote_types(x.dtype, torch.float32))
        return made(partial(rms_norm, eps=self.eps), x, weight)


class HeadNorms(nn.ModuleList):
    """A LayerNorm without bias for every head (StableLM 2 12B)."""

    def __init__(self, heads: int, config: Config) -> None:
        super().__init__(nn.LayerNorm(config.head_size, config.norm_eps, bias=False) for _ in range(heads))

    def forward(self, x_BTHD: Tensor) -> Tensor:
        """(B, T, H, D) -> (B, T, H, D)."""
        weight_HD = torch.stack([norm.weight for norm in self])
        return F.layer_norm(x_BTHD, x_BTHD.shape[-1:], eps=self[0].eps) * weight_HD


def softcapped(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap)."""
    return cap * torch.tanh(x / cap)

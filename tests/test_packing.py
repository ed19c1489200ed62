"""Packs compute exactly what separate samples compute: losses and gradients, with and without shared beginnings."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt import GPT, Config
from lit_gpt.attention import Look, causal
from lit_gpt.data.batches import Layout, fill_packs, pack, pad
from lit_gpt.loss import head_loss
from lit_gpt.methods import LoRA
from lit_gpt.packs import Pack

SIZES = {"block_size": 64, "padded_vocab_size": 47, "n_layer": 2, "n_head": 4, "n_embd": 32, "intermediate_size": 40}
LLAMA = {**SIZES, "norm": "rms", "mlp": "gated", "activation": "silu"}
FAMILIES = {
    "llama": LLAMA,
    "llama_grouped": {**LLAMA, "n_query_groups": 2, "tie_embeddings": True},
    "gpt_neox": {**SIZES, "rope_percentage": 0.25, "parallel_residual": True, "qkv_bias": True, "mlp_bias": True},
    "falcon": {**SIZES, "n_query_groups": 1, "parallel_residual": True, "shared_norm": True},
    "windows": {**LLAMA, "n_query_groups": 2, "sliding_window": 5, "windowed": [True, False], "rope_local_base": 99.0},
    "softcaps": {**LLAMA, "n_query_groups": 2, "attn_softcap": 2.0, "logit_softcap": 3.0, "post_norm": True},
    "alibi": {**SIZES, "positions": "alibi", "norm_bias": False, "embed_norm": True},
    "alibi in 16 bits": {**SIZES, "positions": "alibi-16", "n_query_groups": 1},
    "longrope": {
        **LLAMA,
        "rope_scaling": {
            "short_factor": [1.0, 1.2, 1.5, 2.0],
            "long_factor": [2.0, 4.0, 8.0, 8.0],
            "attention_factor": 1.1,
            "original_max_position_embeddings": 12,
        },
    },
    "norms of sums": {
        **SIZES,
        "positions": "learned",
        "norm_sums": True,
        "final_norm": False,
        "embed_size": 24,
        "tie_embeddings": True,
    },
    "learned": {**SIZES, "positions": "learned", "position_offset": 2, "mlp_bias": True},
}


class Samples:
    """Stands for a TokenDataset: templates of common beginnings, own tokens, and answers that are supervised."""

    def __init__(self, templates: list[list[int]], n: int, masked: bool = True) -> None:
        generator = torch.Generator().manual_seed(4)
        self.rows, self.masks = [], []
        for i in range(n):
            own = torch.randint(1, 47, (int(torch.randint(2, 9, (), generator=generator)),), generator=generator)
            ids = torch.cat((torch.tensor(templates[i % len(templates)], dtype=torch.int64), own))
            self.rows.append(ids)
            first = len(ids) - len(own) // 2 - 1 if masked else 1
            self.masks.append(torch.arange(len(ids)) >= first)
        self.lengths = torch.tensor([len(ids) for ids in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def ids(self, i: int) -> torch.Tensor:
        return self.rows[i]

    def supervised(self, i: int) -> torch.Tensor:
        return self.masks[i]


TEMPLATES = {
    "none": [[]],
    "one": [[5, 6, 7, 8, 9, 10, 11]],
    "two": [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 20, 21, 22, 23, 24]],
}


def model_for(family: str) -> GPT:
    torch.manual_seed(0)
    model = GPT(Config("llama", **FAMILIES[family])).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def gradients(model: GPT, layout: Layout, data: Samples) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    parts = replace(layout, short_length=model.config.short_length).batches(data, list(range(len(data))))
    targets = sum(part.targets for part in parts)
    losses = [
        model.loss_sum(p.idx_BT, p.pack, p.places_N, p.labels_N, p.weights_N, p.recompute) / targets for p in parts
    ]
    torch.stack(losses).sum().backward()
    return float(sum(losses)), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("templates", TEMPLATES)
@pytest.mark.parametrize("masked", [True, False], ids=["answers", "all"])
def test_packed_gradients_equal_those_of_single_samples(family: str, templates: str, masked: bool) -> None:
    """In float64 to 1e-10, for full training and for LoRA on everything."""
    data = Samples(TEMPLATES[templates], 13, masked)
    for method in (None, LoRA(lora_dropout=0.0, lora_key=True, lora_projection=True, lora_mlp=True)):
        model = model_for(family)
        if method:
            method.attach(model)
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(parameter.data, std=0.2)
            model.double()
        single = gradients(model, Layout(micro_batch_size=1), data)
        assert single[1]
        for layout in (Layout(4), Layout(pack_length=64, share=False), Layout(pack_length=64), Layout(pack_length=500)):
            loss, grads = gradients(model, layout, data)
            assert abs(loss - single[0]) <= 1e-10 * abs(single[0])
            for name, expected in single[1].items():
                assert (grads[name] - expected).abs().max() <= 1e-10 * expected.abs().max(), (layout, name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "mixed"])
def test_what_is_computed_again_is_the_same_to_the_bit(
    family: str, dropout: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks, MLPs, and inputs of adapters that are made again; at last with nothing made again."""
    data, model = (
        Samples(TEMPLATES["two"], 13),
        model_for(family).to(torch.bfloat16 if kind == "bfloat16" else torch.float32),
    )
    LoRA(lora_dropout=dropout, lora_mlp=True, lora_projection=True).attach(model.train())
    found = []
    for recompute in (0, 1, 2, 3, 4, None):
        if recompute is None:
            monkeypatch.setattr("lit_gpt.model.made", lambda function, *inputs: function(*inputs))
        torch.manual_seed(1)
        layout = Layout(pack_length=64, recompute=lambda _, n=recompute: n or 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "mixed"):
            found.append(gradients(model, layout, data))
    for loss, grads in found[1:]:
        assert loss == found[0][0]
        assert all(torch.equal(grads[name], expected) for name, expected in found[0][1].items())


def test_packs_in_float32() -> None:
    data, model = Samples(TEMPLATES["two"], 13), model_for("llama").float()
    (loss, single), (packed_loss, packed) = (
        gradients(model, layout, data) for layout in (Layout(1), Layout(pack_length=60))
    )
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert all((packed[n] - g).abs().max() <= 1e-5 * g.abs().max() for n, g in single.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_places_asked_for_are_those_of_the_whole(family: str) -> None:
    """What the last block leaves out changes neither values nor gradients, rows of a batch included."""
    model, idx_BT, places_N = model_for(family), torch.randint(47, (2, 9)), torch.tensor([2, 3, 7, 8, 8, 15])
    whole, found = model.hidden(idx_BT).flatten(0, 1)[places_N], model.hidden(idx_BT, places_N=places_N)
    assert torch.allclose(found, whole, rtol=1e-12)
    upstream, weights = torch.randn_like(whole), [p for name, p in model.named_parameters() if "blocks" in name]
    expected, grads = (torch.autograd.grad(x, weights, upstream) for x in (whole, found))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(grads, expected, strict=True))


def test_tiles_are_cut_where_little_is_hidden() -> None:
    """Each query is in one tile, long sequences are cut, and what is seen is what sequences by themselves see."""
    torch.manual_seed(0)
    lengths, shared = [300, 40, 20, 90, 700], 25
    depths = np.concatenate([np.arange(shared), *(np.arange(shared, shared + n) for n in lengths)])
    pack, look = Pack(depths, torch.device("cpu")), Look(scale=0.3)
    q, k, v = torch.randn(3, 1, 2, len(depths), 8, dtype=torch.float64)
    rows = [place for tile in pack.tiles for place in range(tile.rows.start, tile.rows.stop)]
    assert rows == list(range(len(depths)))
    assert len(pack.tiles) > len(lengths)
    assert sum(tile.bias.numel() for tile in pack.tiles) < 0.6 * len(depths) * (shared + max(lengths))
    found, start = pack.attend(0, q, k, v, look), shared
    for n in lengths:
        places = [*range(shared), *range(start, start + n)]
        alone = causal(0, q[:, :, places], k[:, :, places], v[:, :, places], look)
        assert torch.allclose(found[:, :, start : start + n], alone[:, :, shared:], atol=1e-12)
        start += n


def test_every_sample_is_in_one_pack_and_packs_are_as_long_as_allowed() -> None:
    data = Samples(TEMPLATES["two"], 40)
    for share in (False, True):
        packs = Layout(pack_length=150, share=share).batches(data, list(range(40)))
        assert sorted(i for pack in packs for i in pack.samples) == list(range(40))
        assert {pack.idx_BT.size(1) for pack in packs} <= {64, 128}
        assert all(len(pack.places_N) % 64 == 0 for pack in packs)
        assert sum(pack.tokens for pack in packs) == int(data.lengths.sum())
        assert sum(pack.targets for pack in packs) == sum(int(on[1:].sum()) for on in data.masks)
        longest = int(data.lengths.max())
        assert any(len(data.ids(i)) == longest for i in packs[0].samples)
    shared = sum(pack.idx_BT.numel() for pack in packs)
    assert shared < 0.8 * int((data.lengths - 1).sum())


def test_long_samples_are_not_with_short_ones() -> None:
    """They are turned otherwise by LongRoPE: they share neither a pack nor the length of a padded batch."""
    data = Samples(TEMPLATES["one"], 40)
    long = {i for i in range(40) if data.lengths[i] > 13}
    assert 0 < len(long) < 40
    padded, packed = (Layout(4, length, short_length=12).batches(data, list(range(40))) for length in (0, 500))
    for batches in (padded, packed):
        assert all(set(batch.samples) <= long or not long & set(batch.samples) for batch in batches)
        assert sorted(i for batch in batches for i in batch.samples) == list(range(40))
    assert [batch.pack.lengths_1T[0, 0] for batch in packed] == [14, 12]


def test_a_sample_longer_than_a_pack_has_one_of_its_own() -> None:
    data = Samples(TEMPLATES["one"], 9)
    data.rows[3] = torch.arange(100) % 40
    data.masks[3], data.lengths[3] = torch.ones(100, dtype=torch.bool), 100
    packs = Layout(pack_length=64).batches(data, list(range(9)))
    assert [pack.samples for pack in packs if pack.idx_BT.size(1) > 64] == [[3]]
    assert sorted(i for pack in packs for i in pack.samples) == list(range(9))


def beginnings(samples: list) -> set[tuple[int, ...]]:
    """The different beginnings of samples, without their last tokens: each is a token of the tree that they form."""
    return {tuple(ids[:n]) for _, ids, _ in samples for n in range(1, len(ids))}


@pytest.mark.parametrize("seed", range(6))
def test_what_samples_have_in_common_stands_once(seed: int) -> None:
    """Some of these are equal, some continue others, some share nothing; targets count for every sample."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(3, 9, 20)
    samples = [(i, generator.integers(0, 2, n), np.ones(n, bool)) for i, n in enumerate(sizes)]
    (held,) = fill_packs(samples, 500)
    batch = pack(held, multiple=1)
    assert batch.idx_BT.numel() == len(beginnings(samples)) == len(batch.pack.depths)
    assert sorted(batch.samples) == list(range(20))
    assert batch.targets == int(batch.weights_N.sum()) == int((sizes - 1).sum())
    asked = defaultdict(int)
    for _, ids, _ in samples:
        for n in range(1, len(ids)):
            asked[tuple(ids[:n]), int(ids[n])] += 1
    seen = {}
    for place, depth in enumerate(batch.pack.depths):
        seen[depth] = int(batch.idx_BT[0, place])
        for target in (batch.places_N == place).nonzero()[:, 0]:
            text = tuple(seen[d] for d in range(depth + 1))
            assert asked.pop((text, int(batch.labels_N[target]))) == int(batch.weights_N[target])
    assert not asked


@pytest.mark.parametrize("share", [False, True])
def test_packs_keep_to_their_length(share: bool) -> None:
    """Whatever is shared, and with as few packs as the longest first gives."""
    data = Samples(TEMPLATES["two"], 40)
    samples = [(i, data.ids(i).numpy(), data.supervised(i).numpy()) for i in range(40)]
    packs = fill_packs(samples, 50, share)
    sizes = [len(beginnings(held)) if share else sum(len(ids) - 1 for _, ids, _ in held) for held in packs]
    assert sorted(i for held in packs for i, _, _ in held) == list(range(40))
    assert max(sizes) <= 50
    assert all(pack(held, share, multiple=1).idx_BT.numel() == size for held, size in zip(packs, sizes, strict=True))
    assert min(sizes[:-1]) > 50 - max(len(ids) for _, ids, _ in samples)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("head", ["frozen", "frozen_bias", "trained", "lora"])
def test_chunked_loss_equals_the_plain_one(weighted: bool, softcap: float | None, head: str, monkeypatch) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 31, bias=head == "frozen_bias").double().requires_grad_(head == "trained")
    if head == "lora":
        from lit_gpt.methods.lora import LoRALinear

        layer = LoRALinear(layer, LoRA(lora_dropout=0.0)).double()
        torch.nn.init.normal_(layer.lora_B)
    x, labels = torch.randn(23, 16, dtype=torch.float64, requires_grad=True), torch.randint(0, 31, (23,))
    weights = torch.randint(1, 4, (23,)).double() if weighted else None
    logits = layer(x) if softcap is None else softcap * torch.tanh(layer(x) / softcap)
    losses = F.cross_entropy(logits, labels, reduction="none")
    (losses * (1 if weights is None else weights)).sum().mul(0.3).backward()
    expected = [x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]
    x.grad = None
    layer.zero_grad()
    monkeypatch.setattr("lit_gpt.loss.CHUNK_BYTES", 4 * 31 * 5)  # chunks of five rows
    ours = head_loss(layer, x, labels, weights, softcap)
    assert torch.isclose(ours, (losses * (1 if weights is None else weights)).sum(), rtol=1e-12)
    (ours * 0.3).backward()
    found = [x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found, expected, strict=True))
    with torch.no_grad():
        assert torch.isclose(head_loss(layer, x, labels, weights, softcap), ours, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_loss_of_a_label_without_any_probability(dtype: torch.dtype) -> None:
    """Its exponential is 0, its loss is not infinite."""
    layer = torch.nn.Linear(2, 3, bias=False).to(dtype).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[800.0, 0], [0, 800.0], [-800.0, 0]]))
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = head_loss(layer, x, torch.tensor([2, 1]))
    assert loss.item() == 1600.0 + 800.0
    loss.backward()
    assert torch.equal(x.grad, torch.tensor([[1600.0, 0.0], [-800.0, -800.0]], dtype=dtype))


def test_the_loss_of_large_logits_keeps_its_digits() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 50, bias=False).requires_grad_(False)
    torch.nn.init.normal_(layer.weight)
    x = torch.cat([3000 * torch.ones(64, 1), torch.randn(64, 3)], 1)
    layer.weight[:, 0] = 1  # all logits are near 3000
    labels = torch.randint(0, 50, (64,))
    exact = F.cross_entropy(F.linear(x, layer.weight).double(), labels, reduction="sum").item()
    assert head_loss(layer, x, labels).item() == pytest.approx(exact, rel=1e-6)


def test_padding_is_no_target() -> None:
    data = Samples(TEMPLATES["none"], 4)
    rows = [(i, data.ids(i).numpy(), data.supervised(i).numpy()) for i in range(4)]
    batch = pad(rows)
    flat = batch.idx_BT.flatten()
    for place, label in zip(batch.places_N.tolist(), batch.labels_N.tolist(), strict=True):
        row, t = divmod(place, batch.idx_BT.size(1))
        assert int(data.ids(row)[t]) == int(flat[place])
        assert int(data.ids(row)[t + 1]) == label


class NoWaiting(TorchDispatchMode):
    """Fails where the host would read a result, or send a value that it has just made, while the device computes."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "equal", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.FORBIDDEN), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", [Layout(4), Layout(pack_length=64)], ids=["padded", "packed"])
@pytest.mark.parametrize("dora", [False, True])
def test_nothing_waits_for_the_device_in_a_batch(family: str, layout: Layout, dora: bool, monkeypatch) -> None:
    for module in ("low_rank", "methods.lora"):  # on a CPU the number of dropped elements is read
        monkeypatch.setattr(f"lit_gpt.{module}.draw_dropped", lambda x, dropout: torch.rand(x.shape) >= dropout)
    model = model_for(family).float()
    LoRA(lora_dropout=0.1, lora_dora=dora).attach(model)
    batch = layout.batches(Samples(TEMPLATES["one"], 9), list(range(9)))[0]
    targets = (batch.places_N, batch.labels_N, batch.weights_N)
    if batch.pack is not None:
        assert batch.pack.tiles is not None  # a table of the batch, made once on the host
        assert batch.pack.positions_1T is not None
        assert batch.pack.lengths_1T is not None
    model.ropes(torch.arange(3)[None], torch.float32)  # LongRoPE's factors, sent once
    for recompute in (0, 1, 2 * len(model.blocks)):
        with NoWaiting():
            (model.loss_sum(batch.idx_BT, batch.pack, *targets, recompute=recompute) / batch.targets).backward()
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        model.blocks[0].attn.q.lora_B.grad.sum().item()

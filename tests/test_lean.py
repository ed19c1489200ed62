"""The lean versions compute what the plain ones compute, and keep no more than they say."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from lit_gpt import GPT, Config
from lit_gpt.lean import made, rms_norm, rotate, silu_product
from lit_gpt.low_rank import Dropped, dora_add, draw_dropped, dropped, low_rank_add
from lit_gpt.methods import LoRA


def test_silu_product() -> None:
    gate, up = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.allclose(silu_product(gate, up), F.silu(gate) * up, rtol=1e-14)
    assert torch.autograd.gradcheck(silu_product, (gate, up))


def test_rms_norm() -> None:
    x, weight = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 5, 8), (8,)))
    assert torch.allclose(rms_norm(x, weight, 1e-3), F.rms_norm(x, (8,), weight, 1e-3), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-3), (x, weight))
    short = x.to(torch.bfloat16)
    assert torch.equal(rms_norm(short, weight.bfloat16(), 1e-3), F.rms_norm(short, (8,), weight.bfloat16(), 1e-3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rms_norm_of_one_token(dtype: torch.dtype) -> None:
    """It has a way of its own; rarely the last bit differs."""
    torch.manual_seed(0)
    for scale in (1e-3, 1.0, 1e3):
        x, weight = (torch.randn(1, 1, 2048) * scale).to(dtype), torch.randn(2048).to(dtype)
        kept = x.clone()
        with torch.no_grad():
            found, expected = rms_norm(x, weight, 1e-5), F.rms_norm(x, (2048,), weight, 1e-5)
        assert found.dtype == dtype
        assert torch.equal(x, kept)
        assert torch.allclose(found, expected, rtol=8 * torch.finfo(dtype).eps, atol=0)
        if dtype == torch.bfloat16:
            assert (found != expected).float().mean() < 0.01


@pytest.mark.parametrize("rotated", [4, 10])
def test_rotate(rotated: int) -> None:
    """Value and gradient are those of the matrix that turns every pair of channels by its angle."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 10, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(1, 3, 1, rotated // 2, dtype=torch.float64)
    pairs = torch.eye(10, dtype=torch.float64)
    y = x - x @ (pairs * (torch.arange(10) < rotated))
    for i in range(rotated // 2):
        a, b, c, s = pairs[i], pairs[i + rotated // 2], angles.cos()[..., [i]], angles.sin()[..., [i]]
        y = y + (x @ a)[..., None] * (c * a + s * b) + (x @ b)[..., None] * (c * b - s * a)
    tables = torch.cat([angles.cos()] * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
    found = rotate(x, *tables)
    assert torch.allclose(found, y, rtol=1e-12)
    with torch.no_grad():
        assert torch.allclose(rotate(x, *tables), y, rtol=1e-12)
        short = [z.bfloat16() for z in (x, *tables)]
        without = rotate(*short)
    assert torch.equal(without, rotate(*short))
    upstream = torch.randn_like(x)
    ours, expected = (torch.autograd.grad(z, x, upstream)[0] for z in (found, y))
    assert torch.allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.4])
def test_low_rank_add(dropout: float) -> None:
    torch.manual_seed(0)
    x, A, B = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 7), (3, 7), (6, 3)))
    W = torch.randn(6, 7, dtype=torch.float64)

    def ours() -> torch.Tensor:
        torch.manual_seed(1)
        return low_rank_add(F.linear(x, W), x, A, B, 1.5, dropout)

    def plain() -> torch.Tensor:
        torch.manual_seed(1)
        kept = dropped(x, draw_dropped(x, dropout) if dropout else None) / (1 - dropout)
        return F.linear(x, W) + 1.5 * F.linear(F.linear(kept, A), B)

    assert torch.allclose(ours(), plain(), rtol=1e-12)
    upstream = torch.randn(2, 5, 6, dtype=torch.float64)
    found, expected = (torch.autograd.grad(f(), (x, A, B), upstream) for f in (ours, plain))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.4])
def test_dora_add(dropout: float, bias: bool) -> None:
    torch.manual_seed(0)
    sizes = (2, 5, 7), (3, 7), (6, 3), (6,)
    x, A, B, lengths = leaves = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in sizes]
    W, norms = torch.randn(6, 7, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.5
    b = torch.randn(6, dtype=torch.float64) if bias else torch.zeros(6, dtype=torch.float64)
    drawn = draw_dropped(x, dropout) if dropout else None

    def ours() -> torch.Tensor:
        y = F.linear(x, W, b if bias else None)
        plain = y - b if bias else y
        if drawn is not None:
            plain = F.linear(Dropped.apply(x, drawn), W)
        return dora_add(y, x, plain, A, B, (lengths, norms), 1.5, dropout, drawn)

    def plain() -> torch.Tensor:
        kept = x if drawn is None else dropped(x, drawn) / (1 - dropout)
        gain = lengths / norms
        return F.linear(x, W, b) + (gain - 1) * F.linear(kept, W) + gain * 1.5 * F.linear(F.linear(kept, A), B)

    assert torch.allclose(ours(), plain(), rtol=1e-12)
    upstream = torch.randn(2, 5, 6, dtype=torch.float64)
    found, expected = (torch.autograd.grad(f(), leaves, upstream) for f in (ours, plain))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))


def test_dora_add_rounds_once() -> None:
    """In 16 bits the result is the next number to that of the 16-bit inputs: what is added is mostly less than y's last
    digit, and in two parts a fifth of the elements would become another number."""
    torch.manual_seed(0)
    x, W, A, B = (torch.randn(*s).bfloat16() for s in ((64, 96), (80, 96), (4, 96), (80, 4)))
    lengths, norms = 1 + 0.0015 * torch.randn(80), torch.ones(80)
    y, B = F.linear(x, W), B * 0.002
    found = dora_add(y.clone(), x, y, A.float(), B.float(), (lengths, norms), 1.0, 0.0, None)
    update = x.double() @ A.double().T @ B.double().T
    exact = y.double() + (lengths.double() - 1) * (y.double() + update) + update
    assert (found == exact.bfloat16()).float().mean() > 0.98
    assert 0.1 < (found != y).float().mean() < 0.9


@pytest.mark.parametrize("dropout", [1e-9, 0.05, 0.5, 0.999])
def test_draw_dropped(dropout: float) -> None:
    """Every element is dropped with this probability, whatever becomes of its neighbours."""
    torch.manual_seed(0)
    x = torch.ones(250_001, 4)
    drop = (dropped(x, draw_dropped(x, dropout)) == 0).double()
    deviations = (drop.mean(0) - dropout) / (dropout * (1 - dropout) / len(drop)) ** 0.5
    assert deviations.abs().max() < 5
    numbers = torch.stack([(dropped(x, draw_dropped(x, dropout)) == 0).sum() for _ in range(40)]).double()
    spread = (dropout * (1 - dropout) * x.numel()) ** 0.5
    assert dropout == 1e-9 or 0.6 < numbers.std() / spread < 1.5  # as of independent draws, not of a fixed number
    if dropout != 1e-9:
        assert torch.corrcoef(drop.T).fill_diagonal_(0).abs().max() < 0.01
    assert draw_dropped(torch.empty(0, 4), dropout).numel() == 0  # an expert without tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropped_is_masked_fill(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.5, -2.0, torch.inf], [torch.nan, -0.0, 3.0]], dtype=dtype)
    drop = torch.tensor([[False, True, True], [True, False, False]])
    places = drop.flatten().nonzero().flatten().int()
    assert torch.equal(dropped(x, places), x.masked_fill(drop, 0))
    assert torch.equal(dropped(x, torch.cat([places, places])), x.masked_fill(drop, 0))
    assert torch.equal(dropped(x.T, drop.T.flatten().nonzero().flatten().int()), x.T.masked_fill(drop.T, 0))
    finite = x.nan_to_num()
    assert torch.equal(dropped(finite, ~drop), finite.masked_fill(drop, 0))  # a GPU's mask


def test_dropout_drops_its_share_in_training_only() -> None:
    torch.manual_seed(0)
    x, A, B = torch.ones(1000, 8), torch.eye(8), torch.eye(8)
    y = low_rank_add(torch.zeros(1000, 8), x, A, B, 1.0, 0.25)
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_what_was_made_is_made_again_once_for_all_its_readers() -> None:
    """Values and gradients are those of the plain sum; neither it nor what it was made of is held any longer."""
    calls = []

    def square(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x * x

    x, weights = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64)
    pairs = [[torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 4), (3, 2))] for _ in range(3)]
    n = made(square, x)
    maker = n.made[0]
    y = sum(low_rank_add(torch.zeros(5, 3, dtype=torch.float64), n, A, B, 2.0) for A, B in pairs)
    leaves = [x, *(leaf for pair in pairs for leaf in pair)]
    expected = torch.autograd.grad((sum(2.0 * x * x @ A.T @ B.T for A, B in pairs) * weights).sum(), leaves)
    for times in (2, 3):  # a second backward pass makes it once more
        found = torch.autograd.grad((y * weights).sum(), leaves, retain_graph=True)
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))
        assert len(calls) == times
        assert maker.x is None


def slopes(model: GPT, change: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Of the loss when an adapter is moved in some direction: by autograd, and by a difference quotient.

    Args:
        change: what is done between the forward and the backward pass.
    """
    idx, A = torch.arange(12)[None] % 8, model.blocks[0].attn.q.lora_A
    direction = torch.randn_like(A)

    def moved(step: float) -> torch.Tensor:
        with torch.no_grad():
            A.add_(direction, alpha=step)
        loss = model(idx).square().sum()
        with torch.no_grad():
            A.sub_(direction, alpha=step)
        return loss

    quotient = float(moved(1e-6) - moved(-1e-6)) / 2e-6
    loss = model(idx).square().sum()
    change()
    return float((torch.autograd.grad(loss, A)[0] * direction).sum()), quotient


def adapted(norm: str) -> GPT:
    torch.manual_seed(0)
    sizes = {"block_size": 16, "padded_vocab_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8, "intermediate_size": 12}
    model = GPT(Config("llama", **sizes, norm=norm, mlp="gated", activation="silu")).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    LoRA(lora_dropout=0.0).attach(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.double()
    torch.nn.init.normal_(model.blocks[0].attn.q.lora_B)
    return model


@pytest.mark.parametrize("norm", ["rms", "rms+1", "layer"])
def test_gradients_are_those_of_the_norms_that_were_there_in_the_forward_pass(norm: str) -> None:
    model = adapted(norm)

    def exchange() -> None:
        model.blocks[0].norm_1.weight = torch.nn.Parameter(2 * model.blocks[0].norm_1.weight.detach())

    found, expected = slopes(model, exchange)
    assert found == pytest.approx(expected, rel=1e-5)

    def change() -> None:
        with torch.no_grad():
            model.blocks[0].norm_1.weight.mul_(2)

    if norm == "rms+1":  # it keeps what is one more than the weight, and the weight may change
        found, expected = slopes(model, change)
        assert found == pytest.approx(expected, rel=1e-5)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            slopes(model, change)


def test_what_somebody_changes_before_an_adapter_reads_it_is_kept() -> None:
    """By a hook of the adapter, in place; by one of the norm, which is not called again."""
    model = adapted("rms")

    def change(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        inputs[0].mul_(1.5)

    hook = model.blocks[0].attn.q.register_forward_pre_hook(change)
    found, expected = slopes(model)
    assert found == pytest.approx(expected, rel=1e-5)
    hook.remove()
    calls = []

    def scale(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        calls.append(output)
        return output * (1.5 if len(calls) <= 3 else 5.0)  # a fourth one would be that of the backward pass

    model.blocks[0].norm_1.register_forward_hook(scale)
    found, expected = slopes(model)
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(calls) == 3


def test_a_gradients_gradient_is_refused() -> None:
    A, B = (torch.randn(*s, requires_grad=True) for s in ((2, 4), (3, 2)))
    y = low_rank_add(torch.zeros(5, 3), torch.randn(5, 4), A, B, 2.0)
    (gradient,) = torch.autograd.grad(y.square().sum(), A, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def saved_bytes_per_token(config: Config, tokens: int, **lora: object) -> float:
    """Bytes that autograd keeps for the backward pass of one block and one token, parameters left out."""
    model = GPT(config).to(torch.bfloat16)
    LoRA(**lora).attach(model)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    totals = []
    for layers in (1, 3):
        kept.clear()
        blocks, model.blocks = model.blocks, model.blocks[:layers]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = model.hidden(torch.zeros(1, tokens, dtype=torch.int64))
        totals.append(sum(kept.values()))
        model.blocks = blocks
        del out
    return (totals[1] - totals[0]) / 2 / tokens


@pytest.mark.parametrize(("dropout", "limit"), [(0.0, 94_000), (0.05, 96_000)])
def test_a_block_of_llama_7b_keeps_at_most_96_kb_per_token(dropout: float, limit: int) -> None:
    """At width 4096 in bfloat16 with LoRA on query and value; plain autograd would keep 122 to 146 KB."""
    sizes = {"block_size": 256, "padded_vocab_size": 8, "n_layer": 3, "n_head": 4, "n_embd": 512}
    llama = Config("llama", **sizes, intermediate_size=1376, norm="rms", mlp="gated", activation="silu")
    per_token = 8 * saved_bytes_per_token(llama, 256, lora_r=1, lora_dropout=dropout)  # all at an eighth
    assert 60_000 < per_token <= limit

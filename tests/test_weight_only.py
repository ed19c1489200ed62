"""Weights of 4 and 8 bits for use: kernels compute what the rounded weights say, and what training computed with."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import command, make_checkpoint
from torch import nn

from lit_gpt import load_gpt
from lit_gpt.decode import complete
from lit_gpt.generate import Quantize
from lit_gpt.quantize import FOR_USE, dequantized, for_decoding, quantized
from lit_gpt.settings import UserError
from lit_gpt.weight_only import FEW, Int4, Int8, Packed4bit, Reordered, WeightOnly, joined

ROWS = [1, 3, FEW, FEW + 1, 80]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative, in the 2-norm."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def test_flags_offer_every_kind() -> None:
    assert get_args(Quantize) == FOR_USE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "most"), [("torch.int8", 0.01), ("torch.int4", 0.12)])
def test_rounded_layers(kind: str, most: float, dtype: torch.dtype) -> None:
    """Near the weight that was rounded, and exactly, but for the kernel's arithmetic, the weight that it stands for."""
    torch.manual_seed(0)
    weight, bias = torch.randn(128, 192), torch.randn(128)
    layer = quantized(weight, bias, kind, dtype, "cpu")
    assert isinstance(layer, nn.Linear)
    wide = dequantized(layer, torch.float32)
    assert 1e-4 < difference(wide, weight) < most
    for rows in ROWS:
        x = torch.randn(2, rows, 192).to(dtype)
        assert difference(layer(x), x.float() @ wide.t() + bias) < (1e-5 if dtype == torch.float32 else 0.01)
    assert layer(x).dtype == dtype


def test_int8_is_the_rule_of_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")
    weight = torch.randn(64, 96)
    ours, theirs = (quantized(weight, None, kind, torch.float32, "cpu") for kind in ("torch.int8", "bnb.int8"))
    assert (ours.weight - theirs.weight.data).abs().max() <= 1  # a tie may go either way
    # bitsandbytes rounds the weights to float16 first.
    assert difference(dequantized(ours, torch.float32), dequantized(theirs, torch.float32)) < 0.003


def test_int4_by_its_definition() -> None:
    """Groups keep their least and largest weight, and the others are within half a step."""
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    wide = dequantized(Int4.of(weight, None, torch.float32), torch.float32)
    groups, found = weight.view(64, 4, 64), wide.reshape(64, 4, 64)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    torch.testing.assert_close(found.amax(-1), groups.amax(-1), rtol=1e-4, atol=1e-4)
    assert ((found - groups).abs() <= step[..., None] * 0.501).all()
    assert all(len(row.unique()) <= 16 for row in found.flatten(0, 1))


def test_int4_refuses_sizes_without_a_kernel() -> None:
    with pytest.raises(UserError, match=r"torch\.int4: no kernel on this device for 100 inputs and 64 outputs"):
        Int4.of(torch.randn(64, 100), None, torch.bfloat16)


@pytest.mark.parametrize("kind", ["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq"])
def test_packed_weights_are_the_same_weights(kind: str) -> None:
    """To the bit those of bitsandbytes' own packing; the products differ by the rounding of scales to bfloat16."""
    bnb = pytest.importorskip("bitsandbytes")
    if not bnb.functional.has_avx512bf16():
        pytest.skip("the kernel needs bfloat16 instructions")
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 192).bfloat16(), torch.randn(96)
    layer = quantized(weight, bias, kind, torch.bfloat16, "cpu")
    packed = Packed4bit.of(layer)
    wide = dequantized(layer, torch.float32)
    assert difference(dequantized(packed, torch.float32), wide) < 0.004
    for rows in ROWS:
        x = torch.randn(rows, 192).bfloat16()
        assert difference(packed(x), x.float() @ wide.t() + bias) < 0.01
    own, state = bnb.functional._convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(packed.weight, own)
    assert torch.equal(packed.scales, state.absmax)


@pytest.mark.parametrize("kind", [None, "torch.int8", "torch.int4", "bnb.nf4"])
@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers(kind: str | None, bias: bool) -> None:
    torch.manual_seed(0)
    parts = []
    for outputs in (128, 64, 64):
        weight, b = torch.randn(outputs, 192).bfloat16(), torch.randn(outputs).bfloat16() if bias else None
        part = nn.Linear(192, outputs, bias=bias, dtype=torch.bfloat16)
        part.load_state_dict({"weight": weight} | ({"bias": b} if bias else {}))
        if kind:
            part = quantized(weight, b, kind, torch.bfloat16, "cpu")
        if kind == "bnb.nf4" and (part := Packed4bit.of(part)) is None:
            pytest.skip("the kernel needs bfloat16 instructions")
        parts.append(part)
    x = torch.randn(3, 192).bfloat16()
    with torch.no_grad():
        assert difference(joined(parts)(x), torch.cat([part(x) for part in parts], -1)) < 1e-3
    assert joined([parts[0], nn.Identity()]) is None
    assert joined([nn.Linear(192, 4), Int8.of(torch.randn(4, 192), None, torch.bfloat16)]) is None


@pytest.mark.parametrize("kind", FOR_USE)
def test_decoding_is_the_network_of_training(kind: str, tmp_path: Path) -> None:
    """Logits of a model that was put in order for decoding are those of the one that training computes with."""
    if kind.startswith("bnb"):
        pytest.importorskip("bitsandbytes")
    base = make_checkpoint(tmp_path / "base", n_embd=64, n_query_groups=2, intermediate_size=128)
    idx = torch.randint(0, 300, (2, 33), generator=torch.Generator().manual_seed(3))
    trained, used = (load_gpt(base, torch.bfloat16, quantize=kind) for _ in range(2))
    for_decoding(used)
    assert (used.blocks[0].attn.qkv is not None) or kind.startswith("bnb") or kind == "torch.int4"
    assert (used.blocks[0].mlp.gate_up is not None) == isinstance(used.blocks[0].mlp.down, WeightOnly)
    for x in (idx, idx[:, :1]):
        assert difference(used(x), trained(x)) < 0.015
    prompts = [[5, 6, 7], [8]]
    assert [len(text) for text in complete(used, prompts, 20)] == [20, 20]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_reordered_weights_give_the_plain_product(dtype: torch.dtype, bias: bool) -> None:
    plain = nn.Linear(72, 50, bias=bias, dtype=dtype)
    if (layer := Reordered.of(plain)) is None:
        pytest.skip("the kernel needs instructions for 16 bits")
    for rows in (1, 5, 16, 33):
        x = torch.randn(2, rows, 72, dtype=dtype)
        with torch.no_grad():
            assert difference(layer(x), plain(x)) < 0.005
            assert difference(layer(x), plain.float()(x.float())) < 0.005
        plain.to(dtype)


def test_weights_are_reordered_once_and_where_it_can_be(tmp_path: Path) -> None:
    """A head that is the embedding stays: reordered it would be a second one. So does what is quantised, or 32 bits."""
    for tied in (True, False):
        base = make_checkpoint(tmp_path / str(tied), n_embd=64, intermediate_size=128, tie_embeddings=tied)
        for kind, dtype, count in (
            (None, torch.bfloat16, 5),
            ("torch.int8", torch.bfloat16, 0),
            (None, torch.float32, 0),
        ):
            model = load_gpt(base, dtype, quantize=kind)
            before = model(torch.tensor([[1, 2, 3]]))
            for_decoding(model, several=True)
            found = [name for name, layer in model.named_modules() if isinstance(layer, Reordered)]
            if Reordered.of(nn.Linear(8, 8, dtype=torch.bfloat16)) is not None:
                assert len([name for name in found if name != "lm_head"]) == count * model.config.n_layer * (count > 0)
                assert ("lm_head" in found) == (dtype == torch.bfloat16 and not tied)
            assert difference(model(torch.tensor([[1, 2, 3]])), before) < 0.015


def test_generation_with_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_checkpoint(tmp_path / "base", n_embd=64, intermediate_size=128)
    flags = ["--checkpoint_dir", base, "--prompt", "The old cat", "--temperature", 0, "--max_new_tokens", 5]
    for kind in ("torch.int8", "torch.int4", "bnb.int8", "bnb.nf4"):
        assert command("generate base", *flags, "--quantize", kind) == 0
    assert command("generate base", "--checkpoint_dir", base, "--quantize", "torch.int3") == 2
    odd = make_checkpoint(tmp_path / "odd")
    capsys.readouterr()
    assert command("generate base", "--checkpoint_dir", odd, "--quantize", "torch.int4") == 2
    assert "no kernel on this device" in capsys.readouterr().err

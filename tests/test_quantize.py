"""Quantised bases: they compute with their own rounded weights, exactly where they can, and LoRA learns on them."""

import json
import sys
from pathlib import Path
from typing import NamedTuple, get_args

import pytest
import torch
from conftest import command, make_checkpoint
from torch import Tensor, nn

from lit_gpt import GPT, Tokenizer, load_gpt
from lit_gpt.checkpoint import default_device, read_finetuned, save_finetuned
from lit_gpt.decode import complete
from lit_gpt.finetune import Quantize
from lit_gpt.methods import LoRA, trainable_state
from lit_gpt.methods.lora import LoRALinear
from lit_gpt.prompts import get_style
from lit_gpt.quantize import KINDS, dequantized, is_quantized, quantized
from lit_gpt.run import count

bnb = pytest.importorskip("bitsandbytes")
every_kind = pytest.mark.parametrize("kind", KINDS)
IDX = torch.randint(0, 300, (2, 33), generator=torch.Generator().manual_seed(3))
EVERYWHERE = {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp", "head")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with grouped queries, biases, and rows that are no multiple of the 64 weights of a block."""
    sizes = {"n_embd": 64, "intermediate_size": 96, "n_query_groups": 2, "qkv_bias": True}
    return make_checkpoint(tmp_path_factory.mktemp("base") / "tiny", **sizes)


def plain(base: Path, model: GPT, dtype: torch.dtype) -> GPT:
    """The unquantised model with the weights that the quantised one stands for."""
    twin = load_gpt(base, dtype)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_quantized(module):
            twin.get_submodule(name).weight = nn.Parameter(dequantized(module, dtype), requires_grad=False)
    return twin


def difference(a: Tensor, b: Tensor) -> float:
    """Relative, in the 2-norm."""
    a, b = a.detach().float(), b.detach().float()
    return float((a - b).norm() / b.norm())


def adapt(model: GPT) -> LoRA:
    """LoRA on every layer, in the middle of training: the same weights at every call."""
    method = LoRA(lora_r=4, lora_dropout=0.0, **EVERYWHERE)
    method.attach(model)
    torch.manual_seed(5)
    for weight in trainable_state(model).values():
        nn.init.normal_(weight, std=0.1)
    return method


def test_flags_offer_every_kind() -> None:
    assert get_args(Quantize) == KINDS


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_the_dequantised_weights(kind: str, dtype: torch.dtype, base: Path) -> None:
    model = load_gpt(base, dtype, quantize=kind)
    assert not is_quantized(model.lm_head)
    assert {is_quantized(layer) for layer in model.blocks.modules() if isinstance(layer, nn.Linear)} == {True}
    logits, full = model(IDX), load_gpt(base, dtype)(IDX)
    assert logits.dtype == dtype
    assert 0.001 < difference(logits, full) < 0.15
    assert difference(logits, plain(base, model, dtype)(IDX)) < (1e-5 if dtype == torch.float32 else 0.002)
    assert torch.equal(model(IDX), logits)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widened_weights_are_bitsandbytes_own(kind: str, dtype: torch.dtype) -> None:
    """Over several runs of 256 rows, the last one shorter; in training and in use; alone and between other layers."""
    torch.manual_seed(0)
    weight, bias = torch.randn(600, 192, dtype=dtype), torch.randn(600, dtype=dtype)
    layer, other = quantized(weight, bias, kind, dtype, "cpu"), quantized(weight[:300] * 2, None, kind, dtype, "cpu")
    if "int8" in kind:
        own = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB).to(dtype)
    else:
        own = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    torch.testing.assert_close(dequantized(layer, dtype), own, rtol=1e-6 if dtype == torch.float32 else 0.01, atol=0)
    x = torch.randn(2, 5, 192, dtype=dtype, requires_grad=True)
    expected = nn.functional.linear(x, dequantized(layer, dtype), bias)
    for training in (True, False):
        y, _ = layer.train(training)(x), other(x)
        torch.testing.assert_close(y, expected, rtol=1e-5 if dtype == torch.float32 else 0.02, atol=1e-5)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize("width", [32, 96, 100, 129])
@pytest.mark.parametrize("kind", ["bnb.nf4", "bnb.fp4"])
def test_rows_may_end_inside_a_block_of_weights(kind: str, width: int) -> None:
    layer = quantized(torch.randn(300, width), None, kind, torch.float32, "cpu")
    state, packed = layer.weight.quant_state, layer.weight.data.view(-1).int()
    places = torch.stack((packed >> 4, packed & 15), 1).view(-1)[: 300 * width]
    expected = state.code[places] * state.absmax.repeat_interleave(state.blocksize)[: 300 * width]
    torch.testing.assert_close(dequantized(layer, torch.float32), expected.view(300, width), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(layer(torch.eye(width)), dequantized(layer, torch.float32).t(), rtol=1e-6, atol=1e-7)


def test_use_in_inference_mode_does_not_spoil_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gpt.quantize._buffers", {})
    layer, x = quantized(torch.randn(64, 64), None, "bnb.nf4", torch.float32, "cpu"), torch.ones(1, 64)
    with torch.inference_mode():
        y = layer(x)
    assert torch.equal(layer(x.requires_grad_()), y)


@every_kind
def test_gradients_are_those_over_the_dequantised_weights_after_a_validation_too(kind: str, base: Path) -> None:
    model = load_gpt(base, torch.float32, quantize=kind)
    twin = plain(base, model, torch.float32)
    gradients = []
    for gpt in (model, twin):
        adapt(gpt)
        with torch.no_grad():
            gpt.eval()(IDX)
        gpt.train()(IDX).float().logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in gpt.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert difference(gradient, gradients[1][name]) < 1e-4, name


@every_kind
def test_merging_gives_the_dequantised_base_and_the_update(kind: str, base: Path) -> None:
    model = load_gpt(base, torch.float32, quantize=kind)
    method = adapt(model)
    attached = model.eval()(IDX)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    with torch.no_grad():
        expected = {
            name: dequantized(layer.base, torch.float32) + layer.scale * layer.lora_B @ layer.lora_A
            for name, layer in layers.items()
        }
    method.merge(model)
    for name, weight in expected.items():
        merged = model.get_submodule(name)
        assert type(merged) is nn.Linear
        torch.testing.assert_close(merged.weight, weight, rtol=1e-6, atol=1e-7)
        assert merged.bias is layers[name].base.bias
    assert difference(model(IDX), attached) < 1e-5


class Finished(NamedTuple):
    """A finetuning run: its kind of quantisation, its folder, and the model in memory at its end."""

    kind: str
    folder: Path
    model: GPT


@pytest.fixture(scope="module", params=KINDS)
def finished(
    request: pytest.FixtureRequest, base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """Three steps through the command, with a validation in their middle."""
    folder, models = tmp_path_factory.mktemp(request.param), []

    def save(path: Path, model: GPT, *rest: object) -> None:
        models.append(model)
        save_finetuned(path, model, *rest)

    flags = ["--checkpoint_dir", base, "--data_dir", data, "--out_dir", folder, "--quantize", request.param]
    flags += ["--precision", "32-true", "--batch_size", 8, "--learning_rate", 0.05, "--max_steps", 3]
    flags += ["--eval_interval", 2, "--lora_mlp", "true", "--lora_head", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_gpt.run.save_finetuned", save)
        assert command("finetune lora", *flags) == 0
    return Finished(request.param, folder, models[-1].eval())


def test_finetuning_lowers_the_loss_and_leaves_the_base(finished: Finished, base: Path) -> None:
    result = json.loads((finished.folder / "run.json").read_text())["result"]
    assert result["val_loss"] < result["first_val_loss"] - 0.1
    untouched = load_gpt(base, quantize=finished.kind, device=default_device())
    before = dict(untouched.named_parameters())
    after = {name.replace(".base.", "."): p for name, p in finished.model.named_parameters() if not p.requires_grad}
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())
    for name, layer in finished.model.named_modules():
        if isinstance(layer, nn.Linear):
            twin = untouched.get_submodule(name.removesuffix(".base"))
            assert torch.equal(dequantized(layer, torch.float32), dequantized(twin, torch.float32))


def test_the_file_alone_brings_the_same_network_back(finished: Finished, base: Path) -> None:
    assert read_finetuned(finished.folder)["quantize"] == finished.kind
    idx = IDX.to(default_device())
    again = load_gpt(base, finetuned=finished.folder, device=idx.device)
    assert torch.equal(again(idx), finished.model(idx))
    assert not torch.equal(again(idx), load_gpt(base, quantize=finished.kind, device=idx.device)(idx))


def test_generation_uses_the_quantised_base(
    finished: Finished,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    used: list[str] = []

    def note(weight: Tensor, bias: Tensor | None, kind: str, *rest: object) -> nn.Linear:
        used.append(kind)
        return quantized(weight, bias, kind, *rest)

    monkeypatch.setattr("lit_gpt.checkpoint.quantized", note)
    flags = ["--checkpoint_dir", base, "--lora_path", finished.folder, "--precision", "32-true", "--temperature", 0]
    assert command("generate lora", *flags, "--prompt", "Say word 3.", "--max_new_tokens", 9) == 0
    tokenizer = Tokenizer(base)
    prompt = tokenizer.encode(get_style("alpaca").prompt("Say word 3."))
    (answer,) = complete(finished.model, [prompt], 9, stop_ids=[tokenizer.eos_id])
    assert capsys.readouterr().out.strip() == tokenizer.decode(answer).strip()
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]
    assert used == [finished.kind] * 14
    assert command("generate lora", *flags, "--quantize", "none", "--max_new_tokens", 1) == 0
    assert len(used) == 14


def test_precisions_that_do_not_go_together_and_a_missing_package(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--checkpoint_dir", base, "--data_dir", data, "--out_dir", tmp_path / "out", "--quantize", "bnb.nf4"]
    assert command("finetune lora", *flags, "--precision", "bf16-mixed") == 2
    told = "--quantize bnb.nf4 needs --precision bf16-true or 32-true, got bf16-mixed"
    assert capsys.readouterr().err == f"error: {told}\n"
    assert command("finetune full", *flags) == 2
    assert "--quantize: full finetuning trains these weights" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert command("finetune lora", *flags) == 2
    assert "--quantize needs bitsandbytes; pip install bitsandbytes" in capsys.readouterr().err
    assert not (tmp_path / "out" / "lit_model_lora_finetuned.pth").exists()


@every_kind
def test_parameters_are_counted_unpacked(kind: str) -> None:
    layer = quantized(torch.randn(64, 128), torch.zeros(64), kind, torch.bfloat16, "cpu")
    assert [count(parameter) for parameter in layer.parameters()] == [64 * 128, 64]


@every_kind
def test_dora_over_a_quantised_base(base: Path, kind: str) -> None:
    """Its rows have the lengths of the weight that the layer computes with, so attaching changes nothing."""
    model = load_gpt(base, torch.float32, quantize=kind)
    before = model(IDX)
    LoRA(lora_dora=True, **EVERYWHERE).attach(model)
    assert difference(model(IDX), before) <= 1e-6
    for module in model.modules():
        if isinstance(module, LoRALinear):
            assert difference(module.lora_magnitude, dequantized(module.base, torch.float32).norm(dim=1)) <= 1e-6

"""Methods: attaching changes nothing, the numbers are those of the reference, the base stays untouched."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_gpt import GPT, Config
from lit_gpt.methods import Adapter, AdapterV2, Full, LoRA, describe, restore, trainable_state
from lit_gpt.methods.adapter_v2 import ScaledLinear
from lit_gpt.methods.lora import LoRALinear
from lit_gpt.optim import AdamW, build
from lit_gpt.packs import Pack
from lit_gpt.settings import UserError

PEFT_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "gate": "gate_proj", "up": "up_proj"}
PEFT_NAMES |= {"down": "down_proj", "lm_head": "lm_head"}
ALL = {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp", "head")}


def tiny(groups: int = 4, **changes) -> GPT:
    torch.manual_seed(1)
    sizes = {
        "block_size": 64,
        "padded_vocab_size": 61,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "intermediate_size": 48,
    }
    config = Config("llama", **sizes, n_query_groups=groups, norm="rms", mlp="gated", activation="silu", **changes)
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def randomise(model: GPT) -> None:
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)


def with_transformers(groups: int) -> tuple[torch.nn.Module, GPT]:
    """A random Llama of `transformers`, and ours with its weights."""
    import transformers

    from lit_gpt.families import llama

    hf_config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=groups,
        max_position_embeddings=64,
    )
    theirs = transformers.LlamaForCausalLM(hf_config)
    ours = GPT(Config.from_hf(hf_config.to_dict()))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3)
            parts = name.split(".")
            layer = parts[1] if parts[0] == "blocks" else ""
            template = ".".join([parts[0], "{}", *parts[2:]]) if layer else name
            (hf_name,) = [theirs_ for theirs_, ours_ in llama.WEIGHTS.items() if ours_ == template]
            theirs.get_parameter(hf_name.format(layer)).copy_(parameter)
    return theirs, ours


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("variant", ["plain", "rslora", "dora"])
def test_lora_equals_peft(groups: int, variant: str) -> None:
    """Logits, loss and gradients equal PEFT's, for multi-head, grouped and multi-query attention."""
    import peft

    theirs, ours = with_transformers(groups)
    method = LoRA(
        lora_r=3, lora_alpha=7, lora_dropout=0.0, **{f"lora_{variant}": True} if variant != "plain" else {}, **ALL
    )
    method.attach(ours)
    randomise(ours)
    options = {"use_rslora": variant == "rslora", "use_dora": variant == "dora"}
    peft_config = peft.LoraConfig(
        r=3, lora_alpha=7, lora_dropout=0.0, target_modules=list(PEFT_NAMES.values()), **options
    )
    theirs = peft.get_peft_model(theirs, peft_config)
    pairs = []
    for name, module in ours.named_modules():
        if isinstance(module, LoRALinear):
            layer, kind = name.split(".")[1] if "." in name else "", PEFT_NAMES[name.split(".")[-1]]
            (match,) = [
                m
                for n, m in theirs.named_modules()
                if n.endswith(kind) and hasattr(m, "lora_A") and (not layer or f"layers.{layer}." in n)
            ]
            reference = (match.lora_A["default"].weight, match.lora_B["default"].weight)
            with torch.no_grad():
                reference[0].copy_(module.lora_A)
                reference[1].copy_(module.lora_B)
            pairs += [(module.lora_A, reference[0]), (module.lora_B, reference[1])]
            if variant == "dora":
                magnitude = match.lora_magnitude_vector["default"].weight
                with torch.no_grad():
                    magnitude.copy_(module.lora_magnitude.mul_(1.3))
                pairs.append((module.lora_magnitude, magnitude))
    assert len(pairs) == (3 if variant == "dora" else 2) * (2 * 7 + 1)
    idx, labels = torch.randint(0, 61, (3, 11)), torch.randint(0, 61, (3, 11))
    logits, expected = ours(idx), theirs(idx).logits
    assert relative(logits, expected) <= 1e-5
    losses = [F.cross_entropy(x.reshape(-1, 61), labels.reshape(-1)) for x in (logits, expected)]
    assert relative(losses[0], losses[1]) <= 1e-5
    for loss in losses:
        loss.backward()
    assert all(relative(mine.grad, reference.grad) <= 1e-5 for mine, reference in pairs)


@pytest.mark.parametrize("groups", [4, 2])
def test_adapter_equals_peft(groups: int) -> None:
    """PEFT has one gate for all heads of a layer, ours one for each: with equal gates they are the same."""
    import peft

    theirs, ours = with_transformers(groups)
    Adapter(adapter_prompt_length=5, adapter_start_layer=1).attach(ours)
    config = peft.AdaptionPromptConfig(adapter_len=5, adapter_layers=1, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(theirs, config)
    (reference,) = [m for m in theirs.modules() if hasattr(m, "adaption_prompt")]
    mine = ours.blocks[1].attn
    with torch.no_grad():
        reference.adaption_prompt.copy_(mine.adapter_prompt)
        reference.adaption_gate.fill_(0.7)
        mine.adapter_gate.fill_(0.7)
    idx, labels = torch.randint(0, 61, (3, 11)), torch.randint(0, 61, (3, 11))
    logits, expected = ours(idx), theirs(idx).logits
    assert relative(logits, expected) <= 1e-5
    for x in (logits, expected):
        F.cross_entropy(x.reshape(-1, 61), labels.reshape(-1)).backward()
    assert relative(mine.adapter_prompt.grad, reference.adaption_prompt.grad) <= 1e-5
    assert relative(mine.adapter_gate.grad.sum(), reference.adaption_gate.grad.sum()) <= 1e-5


def test_adapter_v2_is_its_equation() -> None:
    """Every linear layer is scale * (W x + b + bias); norms and adapters are trained, the rest is not."""
    torch.manual_seed(0)
    for base in (torch.nn.Linear(5, 7), torch.nn.Linear(5, 7, bias=False)):
        layer, x = ScaledLinear(base), torch.randn(4, 5)
        with torch.no_grad():
            layer.adapter_scale.normal_()
            layer.adapter_bias.normal_()
        bias = 0 if base.bias is None else base.bias
        expected = layer.adapter_scale * (x @ base.weight.T + bias + layer.adapter_bias)
        assert relative(layer(x), expected) <= 1e-6
    model = tiny()
    AdapterV2(adapter_start_layer=1).attach(model)
    names = set(trainable_state(model))
    assert len([n for n in names if n.endswith(("adapter_scale", "adapter_bias"))]) == 2 * (2 * 7 + 1)
    assert {n for n in names if "adapter_scale" not in n and "adapter_bias" not in n} == {
        *("blocks.1.attn.adapter_prompt", "blocks.1.attn.adapter_gate", "norm.weight"),
        *(f"blocks.{layer}.norm_{i}.weight" for layer in (0, 1) for i in (1, 2)),
    }


EVERY = [
    LoRA(**ALL),
    LoRA(lora_dora=True, **ALL),
    Adapter(adapter_start_layer=1),
    AdapterV2(adapter_start_layer=0),
    Full(),
]


@pytest.mark.parametrize("method", EVERY, ids=lambda m: f"{m.name}{' dora' * getattr(m, 'lora_dora', False)}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attaching_changes_nothing_and_training_learns(method: Any, dtype: torch.dtype) -> None:
    """Packed and recomputed, with float32 values of all that is trained."""
    model, idx = tiny(groups=2).to(dtype), torch.randint(0, 61, (1, 24))
    before = model(idx)
    method.attach(model)
    assert torch.equal(model(idx), before)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = build(model, method, "adamw", 0.02, 0.0, fused=True)
    assert all(p.dtype == torch.float32 for group in optimizer.param_groups for p in group["params"])
    pack, places, losses = Pack(np.r_[:14, :10], torch.device("cpu")), torch.arange(23), []
    for _ in range(8):
        loss = model.loss_sum(idx, pack, places, idx[0, 1:], recompute=2 * len(model.blocks))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.99 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_lora_plus_lets_b_learn_faster() -> None:
    model, method = tiny(), LoRA(lora_plus_ratio=16.0)
    method.attach(model)
    optimizer = build(model, method, "adamw", 1e-3, 0.0, fused=False)
    scales = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert scales[id(parameter)] == (16.0 if name.endswith("lora_B") else 1.0)


def test_16_bit_weights_are_trained_in_float32() -> None:
    """Fully finetuned in bfloat16: gradients add up in float32, updates far below a weight's precision are not lost."""
    model = tiny().to(torch.bfloat16)
    Full().attach(model)
    names = [name for name, _ in model.named_parameters()]
    reference = {name: p.detach().float().requires_grad_() for name, p in model.named_parameters()}
    plain = torch.optim.AdamW(list(reference.values()), lr=1e-5, weight_decay=0.0)
    optimizer = build(model, Full(), "adamw", 1e-5, 0.0, fused=False)
    for step in range(30):
        for part in range(2):
            torch.manual_seed(100 * step + part)
            for name, parameter in model.named_parameters():
                gradient = torch.randn_like(parameter)
                (parameter * gradient).sum().backward()
                wide = gradient.float()
                reference[name].grad = wide if reference[name].grad is None else reference[name].grad + wide
        for one in (optimizer, plain):
            one.step()
            one.zero_grad()
    for name in names:
        assert torch.equal(model.get_parameter(name), reference[name].to(torch.bfloat16)), name
    saved = copy.deepcopy(optimizer.state_dict())
    again = build(model, Full(), "adamw", 1e-5, 0.0, fused=False)
    again.load_state_dict(saved)
    masters = [p for group in again.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(masters, reference.values(), strict=True))


def test_adamw_is_pytorchs() -> None:
    values, gradients = torch.randn(2, 5), torch.randn(3, 2, 5)
    ours, plain = (torch.nn.Parameter(values.clone()) for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.1, "fused": True}
    for kind, parameter in ((AdamW, ours), (torch.optim.AdamW, plain)):
        optimizer = kind([parameter], **options)
        for i, gradient in enumerate(gradients):
            parameter.grad = gradient.clone()
            optimizer.step()
            optimizer.zero_grad()
            assert parameter.grad is None
            if i == 1:  # goes on in another one
                state, optimizer = optimizer.state_dict(), kind([parameter], **options)
                optimizer.load_state_dict(state)
    assert torch.equal(ours, plain)
    assert not torch.equal(ours, values)


def test_training_does_without_the_compiler() -> None:
    """It takes a second and 70 MB to import; who asks for it still gets it."""
    code = """
import sys, torch
from lit_gpt.finetune import import_fabric
from lit_gpt.optim import AdamW
fabric = import_fabric()(accelerator="cpu", devices=1)
fabric.launch()
model = torch.nn.Linear(2, 2)
model, optimizer = fabric.setup(model, AdamW(model.parameters(), fused=True))
fabric.backward(model(torch.ones(1, 2)).sum())
fabric.clip_gradients(model, optimizer, max_norm=1.0)
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert not {"torch._dynamo", "sympy", "transformers", "scipy"} & set(sys.modules)
assert torch._dynamo.OptimizedModule.__module__.startswith("torch._dynamo")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("kind", ["adamw-8bit", "paged-adamw-8bit"])
def test_8_bit_optimizers_learn_and_are_saved(kind: str) -> None:
    torch.manual_seed(0)
    model = tiny().to(torch.bfloat16)
    Full().attach(model)
    optimizer, idx, losses = build(model, Full(), kind, 0.01, 0.0, fused=False), torch.randint(0, 61, (2, 24)), []
    for _ in range(6):
        loss = F.cross_entropy(model(idx)[:, :-1].reshape(-1, 61).float(), idx[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_noise_on_the_embeddings() -> None:
    """NEFTune: uniform in plus and minus alpha / sqrt(L C), with the length of a token's own sample; training only."""
    model, idx = tiny(), torch.zeros(1, 1000, dtype=torch.int64)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pack = Pack(np.r_[:100, :900], torch.device("cpu"))
    model.noise = 5.0
    for training in (False, True):
        model.train(training).hidden(idx, pack.positions_1T, pack.attend, lengths_BT=pack.lengths_1T)
    plain, noisy = seen
    assert torch.equal(plain, model.wte(idx))
    noise = (noisy - plain)[0].detach()
    for length, part in ((100, noise[:100]), (900, noise[100:])):
        most = 5.0 / (length * 32) ** 0.5
        assert 0.99 * most < part.abs().max() <= most * 1.001
        assert part.mean().abs() < 0.05 * most
        assert part.std() == pytest.approx(most / 3**0.5, rel=0.05)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"qkv_bias": True, "mlp_bias": True}])
def test_attach_changes_nothing_and_merge_restores_a_plain_model(changes: dict, dora: bool) -> None:
    model, idx = tiny(groups=2, **changes).eval(), torch.randint(0, 61, (2, 9))
    names, before = set(model.state_dict()), model(idx)
    method = LoRA(**ALL, lora_dora=dora)
    method.attach(model)
    assert torch.equal(model(idx), before)
    randomise(model)
    changed = model(idx)
    assert relative(changed, before) > 0.01
    method.merge(model)
    assert set(model.state_dict()) == names
    assert relative(model(idx), changed) <= 1e-5
    assert not model.config.tie_embeddings  # the head now differs from the embedding


def test_a_scaled_layer_rounds_once() -> None:
    """In bfloat16 a scale of 1.001 times a number is that number."""
    torch.manual_seed(0)
    layer = ScaledLinear(torch.nn.Linear(96, 80, bias=False).bfloat16()).requires_grad_(False)
    layer.adapter_scale.add_(torch.randn(80), alpha=0.0015)
    layer.adapter_bias.add_(torch.randn(80), alpha=0.001)
    x = torch.randn(64, 96).bfloat16()
    exact = layer.adapter_scale.double() * (layer.base(x).double() + layer.adapter_bias.double())
    assert (layer(x) == exact.bfloat16()).float().mean() > 0.98


def test_dora_leaves_rows_of_zeros_alone() -> None:
    """Heads have them for ids that no token has: their length is no divisor."""
    model, idx = tiny().eval(), torch.randint(0, 61, (2, 9))
    model.lm_head.weight.data[-2:] = 0
    before = model(idx)
    LoRA(lora_head=True, lora_dora=True).attach(model)
    assert torch.equal(model(idx), before)
    model(idx).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert torch.equal(model.lm_head.merged().weight[-2:], torch.zeros(2, 32))


def test_merge_in_bfloat16_rounds_once() -> None:
    model = tiny().to(torch.bfloat16)
    LoRA().attach(model)
    randomise(model)
    layer = model.blocks[0].attn.q
    exact = layer.base.weight.double() + layer.scale * layer.lora_B.double() @ layer.lora_A.double()
    assert torch.equal(layer.merged().weight, exact.float().to(torch.bfloat16))


def test_training_moves_only_the_update() -> None:
    model = tiny()
    frozen = {name: p.clone() for name, p in model.state_dict().items()}
    LoRA(lora_dropout=0.0).attach(model)
    trained = trainable_state(model)
    assert {name.split(".")[-1] for name in trained} == {"lora_A", "lora_B"}
    assert len(trained) == 2 * 2 * 2
    before = {name: p.clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    idx = torch.randint(0, 61, (2, 9))
    for _ in range(3):
        F.cross_entropy(model(idx)[:, :-1].reshape(-1, 61), idx[:, 1:].reshape(-1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(
        torch.equal(p, frozen[name.replace(".base", "")])
        for name, p in model.state_dict().items()
        if "lora_" not in name
    )
    assert not any(torch.equal(p, before[name]) for name, p in trainable_state(model).items())


def test_lora_weights_are_float32_on_a_16_bit_base() -> None:
    model = tiny().to(torch.bfloat16)
    LoRA().attach(model)
    assert {p.dtype for p in trainable_state(model).values()} == {torch.float32}
    assert model(torch.zeros(1, 3, dtype=torch.int64)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("switch", "count"), [("query", 2), ("key", 2), ("value", 2), ("projection", 2), ("mlp", 6), ("head", 1)]
)
def test_every_switch_adapts_its_layers(switch: str, count: int) -> None:
    model = tiny()
    off = {"lora_query": False, "lora_value": False}
    LoRA(**{**off, f"lora_{switch}": True}).attach(model)
    assert sum(isinstance(m, LoRALinear) for m in model.modules()) == count


def test_default_lora_of_open_llama_7b_has_the_guides_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPT(Config.from_name("open_llama_7b"))
        base = sum(p.numel() for p in model.parameters())
        LoRA().attach(model)
    assert base == 6_738_415_616
    assert sum(p.numel() for p in trainable_state(model).values()) == 4_194_304


def test_describe_and_restore() -> None:
    method = LoRA(lora_r=5, lora_mlp=True)
    assert restore(describe(method)) == method
    with pytest.raises(UserError, match="'magic' is unknown; known are lora"):
        restore({"name": "magic"})
    with pytest.raises(UserError, match="newer version"):
        restore({"name": "lora", "lora_colour": "red"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_r": 0}, "--lora_r: must be at least 1"),
        ({"lora_dropout": 1.0}, "--lora_dropout"),
        ({"lora_query": False, "lora_value": False}, "adapts nothing"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoRA(**changes)


def test_an_adapter_for_no_layer_is_refused() -> None:
    with pytest.raises(UserError, match="--adapter_start_layer 2: the layers are 0 to 1; no layer"):
        Adapter().attach(tiny())

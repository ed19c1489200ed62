"""Methods: attaching changes nothing, the numbers are those of the reference, the base stays untouched."""

import pytest
import torch
import torch.nn.functional as F

from lit_gpt import GPT, Config
from lit_gpt.methods import LoRA, describe, restore, trainable_state
from lit_gpt.methods.lora import LoRALinear
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


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_lora_equals_peft(groups: int) -> None:
    """Logits, loss and the gradients of A and B equal PEFT's, for multi-head, grouped and multi-query attention."""
    import peft
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
    method = LoRA(lora_r=3, lora_alpha=7, lora_dropout=0.0, **ALL)
    method.attach(ours)
    randomise(ours)
    peft_config = peft.LoraConfig(r=3, lora_alpha=7, lora_dropout=0.0, target_modules=list(PEFT_NAMES.values()))
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
    assert len(pairs) == 2 * (2 * 7 + 1)
    idx, labels = torch.randint(0, 61, (3, 11)), torch.randint(0, 61, (3, 11))
    logits, expected = ours(idx), theirs(idx).logits
    assert relative(logits, expected) <= 1e-5
    losses = [F.cross_entropy(x.reshape(-1, 61), labels.reshape(-1)) for x in (logits, expected)]
    assert relative(losses[0], losses[1]) <= 1e-5
    for loss in losses:
        loss.backward()
    assert all(relative(mine.grad, reference.grad) <= 1e-5 for mine, reference in pairs)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"qkv_bias": True, "mlp_bias": True}])
def test_attach_changes_nothing_and_merge_restores_a_plain_model(changes: dict) -> None:
    model, idx = tiny(groups=2, **changes).eval(), torch.randint(0, 61, (2, 9))
    names, before = set(model.state_dict()), model(idx)
    method = LoRA(**ALL)
    method.attach(model)
    assert torch.equal(model(idx), before)
    randomise(model)
    changed = model(idx)
    assert relative(changed, before) > 0.01
    method.merge(model)
    assert set(model.state_dict()) == names
    assert relative(model(idx), changed) <= 1e-5
    assert not model.config.tie_embeddings  # the head now differs from the embedding


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

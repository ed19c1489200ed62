"""InternLM computes what a Llama with its weights computes; `transformers` has no class for the two."""

import pytest
import torch
import transformers

from lit_gpt.config import Config
from lit_gpt.families import internlm2, stored
from lit_gpt.families.catalogue import CATALOGUE, Row
from lit_gpt.hf_weights import state_dict_from_hf
from lit_gpt.model import GPT
from lit_gpt.settings import UserError

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
HEAD = SIZES["hidden_size"] // SIZES["num_attention_heads"]
NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


def llama(bias: bool, groups: int = 4, **rope: float | str) -> torch.nn.Module:
    """A random one, its norms and biases too."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES,
        num_key_value_heads=groups,
        attention_bias=bias,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **rope},
    )
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and "bias" not in name), std=0.2)
    return model.eval()


@torch.inference_mode()
def compare(theirs: torch.nn.Module, hf: dict, state: dict[str, torch.Tensor]) -> None:
    """The logits of the Llama and of ours, with the weights as files of InternLM have them."""
    config = Config.from_hf(hf)
    ours = GPT(config)
    ours.load_state_dict(state_dict_from_hf(state, config))
    idx = torch.randint(SIZES["vocab_size"], (3, 64))
    expected = theirs(idx).logits
    assert (ours(idx) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("keys", "bias", "theta"),
    [
        ({}, True, 10000.0),
        ({"bias": True, "rotary": {"base": 500, "type": "origin"}}, True, 500.0),
        ({"bias": False, "rotary": {"base": 10000, "type": "dynamic"}}, False, 10000.0),
    ],
)
def test_internlm_is_a_llama_with_biases(keys: dict, bias: bool, theta: float) -> None:
    theirs = llama(bias, rope_theta=theta)
    state = {**theirs.state_dict(), "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(1)}
    compare(theirs, {"model_type": "internlm", **SIZES, **keys}, state)


def of_internlm2(state: dict[str, torch.Tensor], groups: int) -> dict[str, torch.Tensor]:
    """A Llama's weights under the other's names, group by group: its queries, its key, its value."""
    found = {}
    for name, tensor in state.items():
        for old, new in NAMES.items():
            name = name.replace(f"{old}.", f"{new}.")
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            q, k, v = (state[name.replace("q_proj", part)].split(HEAD) for part in ("q_proj", "k_proj", "v_proj"))
            each = len(q) // groups
            tensor = torch.cat([row for g in range(groups) for row in (*q[g * each : g * each + each], k[g], v[g])])
            name = name.replace("self_attn.q_proj", "attention.wqkv")
        found[name] = tensor
    return found


@pytest.mark.parametrize(
    ("keys", "bias", "groups", "rope"),
    [
        ({"num_key_value_heads": 2, "rope_theta": 1000000.0}, True, 2, {"rope_theta": 1000000.0}),
        ({"num_key_value_heads": 1, "bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, False, 1, {}),
        ({"bias": False, "rope_scaling": None}, False, 4, {}),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, True, 4, {"rope_type": "linear", "factor": 4.0}),
    ],
)
def test_internlm2_is_a_llama_with_fused_weights(keys: dict, bias: bool, groups: int, rope: dict) -> None:
    theirs = llama(bias, groups, **rope)
    hf = {"model_type": "internlm2", **SIZES, **keys}
    state = of_internlm2(theirs.state_dict(), groups)
    compare(theirs, hf, state)
    config = Config.from_hf(hf)
    ours = state_dict_from_hf(state, config)
    for name, value in internlm2.WEIGHTS.items():
        there = stored(value)
        parts = [ours.get(part.replace("{}", "1")) for part in there.names]
        if parts[0] is not None:
            assert torch.equal(there.put_together(parts, config), state[name.replace("{}", "1")]), name
    with pytest.raises(UserError, match=r"has no model.embed_tokens.weight"):
        state_dict_from_hf(theirs.state_dict(), config)


@pytest.mark.parametrize(
    "row", [row for row in CATALOGUE.values() if "internlm" in row.config["model_type"]], ids=lambda row: row.name
)
def test_parameters_of_the_catalogue(row: Row) -> None:
    """As many as a Llama of this shape has."""
    sizes = {name: row.config.get(name) for name in (*SIZES, "num_key_value_heads")}
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, attention_bias=row.config["bias"]))
    assert sum(parameter.numel() for parameter in theirs.parameters()) == row.parameters

"""Every family computes what `transformers` computes, whatever year its config.json is from."""

import copy
import dataclasses
import functools
import importlib
import json
import re
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from conftest import SHARED
from transformers.activations import ACT2FN

from lit_gpt import families
from lit_gpt.config import Config
from lit_gpt.decode import Sampling, complete
from lit_gpt.families import join_grouped, split_grouped
from lit_gpt.files import write_json
from lit_gpt.hf_weights import state_dict_from_hf
from lit_gpt.model import ACTIVATIONS, GPT, KVCache
from lit_gpt.settings import UserError

TOLERANCE = 1e-5
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SIZES = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "model_type": "llama", "intermediate_size": 70, "rms_norm_eps": 1e-5}
NEOX = {**SIZES, "model_type": "gpt_neox", "intermediate_size": 90, "hidden_size": 64}
FALCON = {**SIZES, "model_type": "falcon", "layer_norm_epsilon": 1e-4}
RW = {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}
GROUPED = {"new_decoder_architecture": True, "num_kv_heads": 2}


def rope(kind: str, **settings: float) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


VARIANTS = {
    "llama: multi-head": LLAMA,
    "llama: grouped queries, other rope base": {
        **LLAMA,
        "num_key_value_heads": 2,
        **rope("default", rope_theta=1000000.0),
    },
    "llama: one key head, wide heads": {**LLAMA, "num_key_value_heads": 1, "head_dim": 20, "vocab_size": 97},
    "llama: biases": {**LLAMA, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "llama: tied": {**LLAMA, "tie_word_embeddings": True},
    "llama: condensed": {**LLAMA, **rope("linear", factor=8.0)},
    "llama: llama3 scaling": {**LLAMA, "num_key_value_heads": 2, **rope("llama3", **LLAMA3)},
    "llama: dynamic scaling": {**LLAMA, **rope("dynamic", factor=4.0)},
    "llama: yarn": {**LLAMA, **rope("yarn", factor=4.0, original_max_position_embeddings=32)},
    "llama: yarn with all its settings": {
        **LLAMA,
        "head_dim": 24,
        **rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=20,
            beta_fast=4.0,
            beta_slow=0.5,
            mscale=0.7,
            mscale_all_dim=0.3,
            truncate=False,
        ),
    },
    "llama: longrope": {
        **LLAMA,
        "max_position_embeddings": 512,
        **rope(
            "longrope",
            original_max_position_embeddings=64,
            short_factor=[1.0, 1.1, 1.3, 1.5, 2.0, 3.0],
            long_factor=[2.0, 3.0, 4.0, 6.0, 8.0, 8.0],
        ),
    },
    "gpt_neox: parallel": NEOX,
    "gpt_neox: sequential, full rotary": {
        **NEOX,
        "use_parallel_residual": False,
        **rope("default", partial_rotary_factor=1.0),
    },
    "gpt_neox: odd number of rotated channels": {**NEOX, "hidden_size": 48, "vocab_size": 83},
    "gpt_neox: other rope base and epsilon": {
        **NEOX,
        "layer_norm_eps": 1e-3,
        **rope("default", rope_theta=500.0, partial_rotary_factor=0.5),
    },
    "gpt_neox: no attention bias, gelu_fast": {**NEOX, "attention_bias": False, "hidden_act": "gelu_fast"},
    "gpt_neox: tied, gelu_new": {**NEOX, "tie_word_embeddings": True, "hidden_act": "gelu_new"},
    "gpt_neox: scaled rope": {**NEOX, **rope("linear", factor=2.0, partial_rotary_factor=0.25)},
    "falcon: 7B": {**FALCON, "num_attention_heads": 3},
    "falcon: 40B": {**FALCON, **GROUPED},
    "falcon: 40B with biases": {**FALCON, **GROUPED, "bias": True},
    "falcon: 11B": {
        **FALCON,
        **GROUPED,
        "num_ln_in_parallel_attn": 1,
        "tie_word_embeddings": False,
        "ffn_hidden_size": 100,
        **rope("default", rope_theta=500042.0),
    },
    "falcon: multi-head": {**FALCON, "multi_query": False, "bias": True},
    "falcon: sequential": {**FALCON, "parallel_attn": False, "bias": True, "activation": "gelu_pytorch_tanh"},
    "falcon: sequential, multi-head": {**FALCON, "parallel_attn": False, "multi_query": False},
    "falcon: RW": {**FALCON, **RW, "hidden_size": 64, "num_attention_heads": 16},
    "falcon: RW with 12 heads, one key head": {**FALCON, "num_attention_heads": 12, "alibi": True},
    "falcon: scaled rope": {**FALCON, **rope("linear", factor=2.0)},
}
OTHERS = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("variants_*.py"))]
for other in OTHERS:
    VARIANTS |= other.VARIANTS
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@functools.cache
def pair(variant: str) -> tuple[torch.nn.Module, GPT]:
    """A random model of `transformers`, norms and biases too, and ours with its weights."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**VARIANTS[variant]))
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and "bias" not in name), std=0.2)
    config = Config.from_hf(theirs.config.to_dict())
    ours = GPT(config)
    missing, unexpected = ours.load_state_dict(state_dict_from_hf(as_saved(theirs), config), strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_embeddings else [])
    return theirs.eval(), ours.eval()


def as_saved(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its tensors by their names in files, which differ from those in memory (GPT-NeoX's head, all experts)."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return safetensors.torch.load_file(Path(folder) / "model.safetensors")


def tokens(model: GPT, *shape: int) -> torch.Tensor:
    return torch.randint(model.config.padded_vocab_size, shape, generator=torch.Generator().manual_seed(sum(shape)))


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


FAMILIES = {settings["model_type"]: variant for variant, settings in reversed(VARIANTS.items())}
"""The first variant of each architecture."""


@pytest.mark.parametrize("variant", FAMILIES.values(), ids=FAMILIES.keys())
@torch.inference_mode()
def test_greedy_text_of_200_tokens_is_that_of_transformers(variant: str) -> None:
    """In one pass over our text: at every place the likeliest next token of theirs is the one that we took."""
    theirs, ours = pair(variant)
    prompt = tokens(ours, 1, 5)[0].tolist()
    (text,) = complete(ours, [prompt], 200)
    assert len(text) == min(200, ours.config.block_size - 5)
    logits_TV = theirs(torch.tensor([prompt + text[:-1]])).logits[0, 4:]
    assert logits_TV.argmax(-1).tolist() == text


@pytest.mark.parametrize("variant", ["llama: grouped queries, other rope base", "gpt_neox: parallel"])
def test_greedy_text_is_that_of_generate(variant: str) -> None:
    theirs, ours = pair(variant)
    prompt = tokens(ours, 1, 5)
    options = {"max_new_tokens": 200, "eos_token_id": -1, "do_sample": False, "repetition_penalty": 1.3}
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **options)[0, 5:]
    assert complete(ours, prompt.tolist(), 200, sampling=Sampling(repetition_penalty=1.3)) == [expected.tolist()]


@every_variant
@torch.inference_mode()
def test_logits_equal_transformers(variant: str) -> None:
    theirs, ours = pair(variant)
    for batch, length in ((1, 1), (3, 2), (2, 17), (3, 64)):
        idx = tokens(ours, batch, length)
        expected = theirs(idx).logits
        assert error(ours(idx), expected) <= TOLERANCE, (batch, length)
    at = torch.arange(64) % 7 == torch.tensor([[1], [5], [6]])
    assert error(ours(idx, at_BT=at), expected[at]) <= TOLERANCE


@every_variant
@torch.inference_mode()
def test_cache_equals_transformers(variant: str) -> None:
    """Token by token from the first, and a prompt followed by pieces of any length."""
    theirs, ours = pair(variant)
    idx = tokens(ours, 2, 11)
    expected = theirs(idx).logits
    for pieces in ([1] * 11, [4, 1, 3, 1, 2], [11]):
        cache = KVCache(ours.config, 2, 11, "cpu", torch.float32)
        logits = torch.cat([ours(piece, cache=cache) for piece in idx.split(pieces, dim=1)], dim=1)
        assert error(logits, expected) <= TOLERANCE, pieces


@every_variant
@torch.inference_mode()
def test_cache_with_rows_of_different_lengths(variant: str) -> None:
    """Padded prompts decode as each row would alone, though padding lies in the slots to be filled."""
    theirs, ours = pair(variant)
    idx, lengths, steps = tokens(ours, 3, 11), torch.tensor([2, 5, 1]), 6
    rows = torch.arange(3)
    cache = KVCache(ours.config, 3, 11, "cpu", torch.float32)
    prompts = idx[:, :5].masked_fill(torch.arange(5) >= lengths[:, None], 0)
    got = [ours(prompts, cache=cache, positions_BT=torch.arange(5)[None])[rows, lengths - 1]]
    for step in range(steps):
        at = lengths + step
        got.append(ours(idx[rows, at][:, None], cache=cache, positions_BT=at[:, None])[:, 0])
    alone = [theirs(idx[row : row + 1, : length + steps]).logits[0, length - 1 :] for row, length in enumerate(lengths)]
    assert error(torch.stack(got, dim=1), torch.stack(alone)) <= TOLERANCE


@pytest.mark.parametrize("variant", ["llama: llama3 scaling", "llama: yarn"])
@torch.inference_mode()
def test_positions_may_start_anywhere(variant: str) -> None:
    theirs, ours = pair(variant)
    idx, positions = tokens(ours, 2, 9), torch.arange(9)[None] + torch.tensor([[0], [40]])
    assert error(ours(idx, positions_BT=positions), theirs(idx, position_ids=positions).logits) <= TOLERANCE


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "longrope" in name and "without" not in name])
@torch.inference_mode()
def test_beyond_the_original_length_all_of_a_text_is_turned_otherwise(variant: str) -> None:
    """LongRoPE: on both sides of that length, also for what is in a cache, by the length that is expected of a row."""
    theirs, ours = pair(variant)
    short = ours.config.short_length
    idx = tokens(ours, 3, short + 9)
    whole = {length: theirs(idx[:, :length]).logits for length in (short - 1, short, short + 1, short + 9)}
    for length, expected in whole.items():
        assert error(ours(idx[:, :length]), expected) <= TOLERANCE, length
        cache = KVCache(ours.config, 3, short + 9, "cpu", torch.float32)
        cache.expect([length] * 3)
        pieces = [ours(piece, cache=cache) for piece in idx[:, :length].split([length - 4, 1, 3], 1)]
        assert error(torch.cat(pieces, 1), expected) <= TOLERANCE, length
    assert error(whole[short + 9][:, :9], whole[short][:, :9]) > 1e-3
    lengths = [short - 4, short - 3, short - 4]  # with four new tokens, the second becomes long
    prompts = [row[:length].tolist() for row, length in zip(idx, lengths, strict=True)]
    texts = complete(ours, [*prompts, prompts[0]], 4)
    assert texts == [complete(ours, [prompt], 4)[0] for prompt in [*prompts, prompts[0]]]
    for prompt, text in zip(prompts, texts, strict=False):
        ids = torch.tensor([prompt + text])
        assert theirs(ids).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == text


@torch.inference_mode()
def test_a_cache_forgets_what_was_turned_otherwise() -> None:
    _, ours = pair("llama: longrope")
    prompt = tokens(ours, 1, 60)[0].tolist()
    cache = KVCache(ours.config, 1, 80, "cpu", torch.float32)
    cache.expect([64])
    (text,) = complete(ours, [prompt], 4, cache=cache)
    for more, kept in ((3, 59), (10, 0), (4, 0), (4, 59)):  # with ten tokens, the text is long
        expected = complete(ours, [prompt], more)
        cache.used = 59
        cache.expect([60 + more])
        assert cache.used == kept
        assert complete(ours, [prompt], more, cache=cache) == expected
    assert expected == [text]


@torch.inference_mode()
def test_biases_of_falcon_rw_are_rounded_at_every_place() -> None:
    """From 256 on, places themselves are rounded in 16 bits; a cache does it in the same way."""
    theirs, ours = pair("falcon: RW")
    idx = tokens(ours, 1, 600)
    expected = theirs(idx).logits
    cache = KVCache(ours.config, 1, 600, "cpu", torch.float32)
    pieces = torch.cat([ours(piece, cache=cache) for piece in idx.split([590, 1, 9], 1)], 1)
    assert max(error(ours(idx), expected), error(pieces, expected)) <= TOLERANCE
    exact = copy.deepcopy(ours)
    for block in exact.blocks:
        block.attn.look = dataclasses.replace(block.attn.look, alibi_rounded=False)
    assert error(exact(idx), expected) > 1e-3


# --- config.json of 2022 to 2026 -----------------------------------------------------------------------------------


def of_2023(hf: dict) -> dict:
    """A config of transformers 5 as transformers 4 wrote it."""
    for other in OTHERS:
        if hf["model_type"] in getattr(other, "OF_2023", {}):
            return other.OF_2023[hf["model_type"]](hf)
    hf = dict(hf)
    scaling = hf.pop("rope_parameters")
    theta, kind, share = (scaling.pop(key, None) for key in ("rope_theta", "rope_type", "partial_rotary_factor"))
    if hf["model_type"] == "gpt_neox":
        hf |= {"rotary_emb_base": theta, "rotary_pct": share}
    else:
        hf |= {"rope_theta": theta}
    if kind != "default":
        hf["rope_scaling"] = {"type" if kind == "linear" else "rope_type": kind, **scaling}
    return hf


@every_variant
def test_every_year_says_the_same(variant: str, tmp_path) -> None:
    theirs, ours = pair(variant)
    theirs.config.save_pretrained(tmp_path)
    assert Config.from_hf(tmp_path / "config.json") == ours.config
    assert Config.from_checkpoint(tmp_path) == ours.config
    old = of_2023(json.loads(json.dumps(theirs.config.to_dict())))
    assert Config.from_hf(old) == ours.config
    assert Config.from_hf(transformers.AutoConfig.for_model(**old).to_dict()) == ours.config
    write_json(tmp_path / "lit_config.json", ours.config.to_dict())
    (tmp_path / "config.json").unlink()
    assert Config.from_checkpoint(tmp_path) == ours.config


FALCON_2023 = {
    "hidden_size": 4544,
    "n_layer": 32,
    "n_head": 71,
    "vocab_size": 65024,
    "layer_norm_epsilon": 1e-5,
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "bias": False,
}
RELEASED = [
    (
        "tiiuae/falcon-7b",
        {**FALCON_2023, "model_type": "RefinedWebModel", "multi_query": True, "parallel_attn": True},
    ),
    ("tiiuae/falcon-7b", {**FALCON_2023, "model_type": "falcon", "multi_query": True, "parallel_attn": True}),
    (
        "tiiuae/falcon-40b",
        {**FALCON_2023, "model_type": "RefinedWeb", "hidden_size": 8192, "n_layer": 60, "n_head": 128, "n_head_kv": 8},
    ),
    (
        "tiiuae/falcon-rw-1b",
        {
            **FALCON_2023,
            "model_type": "RefinedWebModel",
            **{"hidden_size": 2048, "n_layer": 24, "n_head": 32, "vocab_size": 50304},
            **RW,
        },
    ),
    (
        "lmsys/longchat-7b-16k",
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_sequence_length": 16384,
            "max_position_embeddings": 2048,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "rms_norm_eps": 1e-6,
            "rope_condense_ratio": 8,
        },
    ),
    (
        "EleutherAI/gpt-neox-20b",
        {
            "model_type": "gpt_neox",
            "hidden_act": "gelu_fast",
            "hidden_size": 6144,
            "intermediate_size": 24576,
            "num_attention_heads": 64,
            "num_hidden_layers": 44,
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "vocab_size": 50432,
        },
    ),
]


@pytest.mark.parametrize(("name", "hf"), RELEASED + [row for o in OTHERS for row in getattr(o, "RELEASED", [])])
def test_config_of_the_first_release(name: str, hf: dict) -> None:
    """As the repositories had them first: with few keys, and Falcon's with keys of its own code."""
    assert Config.from_hf(hf) == Config.from_name(name)


def test_refined_web_defaults() -> None:
    """What falcon's own code assumed when a key was missing differs from what `transformers` assumes."""
    config = Config.from_hf({**FALCON_2023, "model_type": "RefinedWebModel"})
    assert (config.n_query_groups, config.parallel_residual, config.shared_norm) == (71, False, False)
    config = Config.from_hf({**FALCON_2023, "model_type": "falcon"})
    assert (config.n_query_groups, config.parallel_residual, config.shared_norm) == (1, True, True)


@pytest.mark.skipif(not (SHARED / "hub").is_dir(), reason="no ../shared/hub")
def test_config_of_a_classifier_is_that_of_its_base() -> None:
    """A classifier on top of Pythia, saved by transformers 4.47, which writes old and new keys."""
    assert Config.from_checkpoint(SHARED / "hub" / "EleutherAI" / "pythia-410m") == Config.from_name("pythia-410m")


# --- what is refused -----------------------------------------------------------------------------------------------

YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
LONG = {"type": "longrope", "factor": 2.0, "original_max_position_embeddings": 64}
LONG |= {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
REFUSED = [
    (
        {"model_type": "mamba"},
        "model_type 'mamba' is not supported; supported are RefinedWeb, RefinedWebModel, bloom, ",
    ),
    ({**LLAMA, "hidden_act": "relu2"}, "hidden_act 'relu2' is not supported; supported are gelu, gelu_new"),
    ({**NEOX, "hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not supported"),
    ({**FALCON, "activation": "mish"}, "activation 'mish' is not supported"),
    ({**FALCON, "apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ({**LLAMA, "rope_scaling": {"type": "strange", "factor": 2.0}}, "rope_scaling type 'strange' is not supported"),
    ({**LLAMA, "rope_scaling": "strange"}, "rope_scaling type 'strange' is not supported; supported are default, "),
    ({**FALCON, "rope_parameters": {"rope_type": "proportional"}}, "rope_scaling type 'proportional'"),
    ({**LLAMA, "rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 2.0}}, "beta_slow must not be above beta_fast"),
    ({**LLAMA, "rope_scaling": {**YARN, "attention_factor": -1.0}}, "attention_factor must be a positive number"),
    ({**LLAMA, "rope_scaling": {**YARN, "short_factor": [1.0]}}, "rope_scaling type 'yarn' is not supported"),
    ({**LLAMA, "rope_scaling": {**LONG, "short_factor": [1.0] * 5}}, "short_factor must have 6 numbers, got 5"),
    ({**LLAMA, "rope_scaling": {**LONG, "long_factor": [1.0] * 7}}, "long_factor must have 6 numbers, got 7"),
    ({**LLAMA, "rope_scaling": {**LONG, "short_factor": [0.0] * 6}}, "short_factor must be a positive number"),
    ({**LLAMA, "rope_scaling": {**LONG, "long_factor": [-1.0] * 6}}, "long_factor must be a positive number"),
    (
        {**LLAMA, "rope_scaling": {**LONG, "original_max_position_embeddings": 1}},
        "original_max_position_embeddings must be above 1, got 1",
    ),
    ({**LLAMA, "rope_scaling": {**LONG, "short_factor": 1.0}}, "a value is of the wrong type"),
    ({**LLAMA, "rope_scaling": {**YARN, "type": "su"}}, "key 'short_factor' is missing"),
    ({**LLAMA, "rope_scaling": {"type": "linear"}}, "key 'factor' is missing"),
    ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported in a llama model"),
    ({**LLAMA, "attention_bias": "False"}, "attention_bias is a text: write false without quotation marks"),
    ({**LLAMA, "rope_scaling": {**YARN, "truncate": "false"}}, "truncate is a text: write false without"),
    ({**LLAMA, "rms_norm_eps": 10**30}, "norm_eps must be below 1, got 1"),
    ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "quantised already; download the original"),
    ({**LLAMA, "num_attention_heads": 5}, "n_embd 48 is not a multiple of n_head 5"),
    ({**LLAMA, "num_key_value_heads": 3}, "n_head 4 is not a multiple of n_query_groups 3"),
    ({**LLAMA, "num_hidden_layers": None}, "n_layer must be a whole number from 1 on, got None"),
    ({**LLAMA, "vocab_size": "many"}, "padded_vocab_size must be a whole number from 1 on, got 'many'"),
    ({**FALCON, "hidden_size": None}, "a value is of the wrong type"),
    ({**LLAMA, "rope_scaling": {"type": "linear", "factor": "eight"}}, "a value is of the wrong type"),
    ({key: value for key, value in NEOX.items() if key != "vocab_size"}, "key 'vocab_size' is missing"),
    ({key: value for key, value in FALCON.items() if key != "hidden_size"}, "key 'hidden_size' is missing"),
    ({"architectures": ["LlamaForCausalLM"]}, "no model_type; is this the config.json of a language model?"),
    ([], "no model_type"),
]


@pytest.mark.parametrize(("hf", "message"), REFUSED + [row for other in OTHERS for row in other.REFUSED])
def test_refused_with_a_reason(hf, message: str, tmp_path) -> None:
    path = tmp_path / "config.json"
    write_json(path, hf)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}"):
        Config.from_hf(path)
    if hf:
        with pytest.raises(UserError, match=f"^config.json: .*{re.escape(message)}"):
            Config.from_hf(hf)


def test_broken_or_missing_config(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no folder .*scripts/download.py"):
        Config.from_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no config.json in .*scripts/download.py"):
        Config.from_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama",\n "hidden_size": 4')
    with pytest.raises(UserError, match=r"config.json:2: not valid JSON"):
        Config.from_checkpoint(tmp_path)
    for broken in ({"family": "llama"}, ["family"]):
        write_json(tmp_path / "lit_config.json", broken)
        with pytest.raises(UserError, match=r"lit_config.json: .*; convert the checkpoint again"):
            Config.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_sums": True, "parallel_residual": True}, "norm_sums goes with no other order of the norms"),
        ({"norm_sums": True, "pre_norm": False}, "norm_sums goes with no other order of the norms"),
        ({"embed_size": 0}, "embed_size must be a whole number from 1 on, got 0"),
        (
            {"rope_scaling": {"short_factor": [1.0] * 6, "attention_factor": 1.0}},
            "known are these kinds and keys: .*long_",
        ),
    ],
)
def test_descriptions_that_no_model_has(changes: dict, message: str, tmp_path) -> None:
    """Of a converted checkpoint; the last one is as LongRoPE was written when it ended at the original length."""
    known = pair("llama: longrope")[1].config.to_dict()
    write_json(tmp_path / "lit_config.json", {**known, **changes})
    with pytest.raises(UserError, match=f"lit_config.json: .*{message}.*; convert the checkpoint again"):
        Config.from_checkpoint(tmp_path)


# --- the tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("llama: multi-head", ["model.layers.1.self_attn.rotary_emb.inv_freq"]),
        (
            "gpt_neox: parallel",
            [f"gpt_neox.layers.1.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")],
        ),
        ("falcon: 7B", [f"transformer.h.1.self_attention.{name}.inv_freq" for name in ("rotary", "maybe_rotary")]),
    ],
)
def test_tensors_of_old_exports(variant: str, names: list[str]) -> None:
    """Masks and rotary tables, which older versions saved, are ignored; the old name of GPT-NeoX's head is known."""
    theirs, ours = pair(variant)
    state = {name.replace("lm_head", "embed_out"): tensor for name, tensor in theirs.state_dict().items()}
    if ours.config.family != "gpt_neox":
        state = theirs.state_dict()
    translated = state_dict_from_hf({**state, **dict.fromkeys(names, torch.ones(1))}, ours.config)
    for name, tensor in translated.items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    with pytest.raises(UserError, match="surprise"):
        state_dict_from_hf({**state, "surprise": torch.ones(1)}, ours.config)


@pytest.mark.parametrize(
    ("variant", "theirs", "older", "more"),
    [
        ("gpt2: small", "transformer.", "", ["h.1.attn.bias", "h.1.attn.masked_bias"]),
        ("bloom: 560M", "transformer.", "", []),
        ("opt: 125M", "model.decoder.", "decoder.", ["decoder.version"]),
        ("gptj: 6B", "", "", ["transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"]),
        ("gpt_bigcode: StarCoder", "", "", ["transformer.bias"]),
    ],
)
def test_names_of_older_files(variant: str, theirs: str, older: str, more: list[str]) -> None:
    """Prefixes that came later, and buffers that are no weights."""
    model, ours = pair(variant)
    state = {
        older + name.removeprefix(theirs) if name.startswith(theirs) else name: x for name, x in as_saved(model).items()
    }
    found = state_dict_from_hf({**state, **dict.fromkeys(more, torch.zeros(1))}, ours.config)
    assert found.keys() <= ours.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in found.items())


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 2), (5, 1), (1, 1)])
@pytest.mark.parametrize("shape", [(), (7,)])
def test_split_and_join(heads: int, groups: int, shape: tuple[int, ...]) -> None:
    """Splitting a fused projection gives its heads in order, and joining gives the same rows again."""
    head, per_group = 3, heads // groups
    fused = torch.arange(float((heads + 2 * groups) * head * 7)).view(-1, 7)[(slice(None), *([0] * (not shape)))]
    q, k, v = split_grouped(fused, heads, groups)
    assert q.shape == (heads * head, *shape)
    assert k.shape == v.shape == (groups * head, *shape)
    for group, rows in enumerate(fused.split((per_group + 2) * head)):
        parts = rows.split(head)
        assert torch.equal(torch.cat(parts[:per_group]), q.split(per_group * head)[group])
        assert torch.equal(parts[-2], k.split(head)[group])
        assert torch.equal(parts[-1], v.split(head)[group])
    assert torch.equal(join_grouped(q, k, v, heads, groups), fused)


def test_activations() -> None:
    assert set(families.ACTIVATIONS) == set(ACTIVATIONS)
    x = torch.linspace(-9, 9, 999)
    for name, function in ACTIVATIONS.items():
        assert error(function(x), ACT2FN[name](x)) <= 1e-6, name


def test_every_family_has_its_table() -> None:
    tested = {variant["model_type"] for variant in VARIANTS.values()}
    untested = {"RefinedWeb", "RefinedWebModel", "stablelm_epoch"}  # transformers' older names, in RELEASED
    assert set(families.families()) - tested - untested == {"internlm", "internlm2"}  # tests/test_internlm.py
    for module in set(families.families().values()):
        assert module.MODEL_TYPES
        assert module.WEIGHTS
        assert all(re.compile(pattern) for pattern in module.IGNORED)

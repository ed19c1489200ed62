"""Checkpoints and LoRA weights of litgpt 0.2 to 0.5 and Lit-GPT 2023: the same logits, from files of every year.

The layouts are written out here once more, row by row. With LITGPT_PYTHON, the path of a Python that has litgpt 0.5,
litgpt's own model saves the files and says what its logits are.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from conftest import command, train_sentencepiece
from safetensors.torch import load_file
from test_families import error, pair, tokens
from torch import Tensor

from lit_gpt import Config, load_gpt
from lit_gpt.checkpoint import read_finetuned
from lit_gpt.files import read_json, write_json
from lit_gpt.settings import UserError

TOLERANCE = 1e-5
SIZES = {"block_size": 64, "n_layer": 3, "n_embd": 32, "n_head": 4, "padded_vocab_size": 96, "vocab_size": 96}
LLAMA = {
    **SIZES,
    "name": "Llama-like",
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "intermediate_size": 56,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
}
GEMMA = {
    **LLAMA,
    "name": "Gemma-like",
    "mlp_class_name": "GemmaMLP",
    "gelu_approximate": "tanh",
    "scale_embeddings": True,
    "head_size": 12,
    "n_query_groups": 1,
}
GEMMA_2 = {
    **GEMMA,
    "name": "Gemma-2-like",
    "n_query_groups": 2,
    "post_attention_norm": True,
    "post_mlp_norm": True,
    "attention_scores_scalar": 20,
    "attention_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "sliding_window_size": 5,
    "sliding_window_indices": [1, 0, 1],
}
PYTHIA = {**SIZES, "name": "pythia-like", "norm_eps": 1e-3, "rotary_percentage": 0.25}
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 16}
MODELS = {
    "llama: multi-head": LLAMA,
    "llama: grouped queries, condensed": {**LLAMA, "n_query_groups": 2, "rope_condense_ratio": 4, "rope_base": 500},
    "llama 3: scaled rope": {**LLAMA, "n_query_groups": 2, "rope_adjustments": LLAMA_3},
    "pythia: parallel, partly rotated": PYTHIA,
    "gpt_neox: sequential": {**PYTHIA, "parallel_residual": False, "rotary_percentage": 1.0},
    "falcon: one key head, one norm": {
        **SIZES,
        "n_query_groups": 1,
        "shared_attention_norm": True,
        "bias": False,
        "rotary_percentage": 1.0,
    },
    "falcon: grouped queries, two norms": {**SIZES, "n_query_groups": 2, "bias": False, "rotary_percentage": 1.0},
    "phi: biases, one norm": {
        **PYTHIA,
        "shared_attention_norm": True,
        "lm_head_bias": True,
        "gelu_approximate": "tanh",
        "rotary_percentage": 0.5,
    },
    "stablelm: layer norms": {**LLAMA, "norm_class_name": "LayerNorm", "rotary_percentage": 0.25},
    "olmo: norms without weights": {**LLAMA, "norm_class_name": "LayerNorm", "name": "OLMo-like"},
    "olmo 2: norms behind": {
        **LLAMA,
        "name": "OLMo-2-like",
        "norm_1": False,
        "norm_2": False,
        "post_attention_norm": True,
        "post_mlp_norm": True,
        "norm_qk": True,
        "norm_qk_type": "olmo2",
    },
    "mistral: windows": {**LLAMA, "n_query_groups": 2, "sliding_window_size": 5},
    "mixtral: experts": {
        **LLAMA,
        "n_query_groups": 2,
        "mlp_class_name": "LLaMAMoE",
        "n_expert": 4,
        "n_expert_per_token": 2,
        "moe_intermediate_size": 24,
    },
    "qwen 2: biases of queries, keys and values": {**LLAMA, "n_query_groups": 2, "attn_bias": True},
    "qwen 3: norms of queries and keys": {**LLAMA, "n_query_groups": 2, "norm_qk": True, "head_size": 12},
    "gemma": GEMMA,
    "gemma 2: softcaps, windows": GEMMA_2,
    "gemma 3: a rotary base for windows": {
        **GEMMA_2,
        "name": "Gemma-3-like",
        "attention_logit_softcapping": None,
        "final_logit_softcapping": None,
        "norm_qk": True,
        "rope_base": 1000000,
        "rope_local_base_freq": 500.0,
        "rope_indices": [1, 0, 1],
    },
}

SAVES = """
import dataclasses, json, sys
from pathlib import Path
import torch, yaml

folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
idx = torch.randint(90, (2, 20))
for name, (settings, lora) in asked.items():
    if lora is None:
        from litgpt.model import GPT, Config
    else:
        from litgpt.lora import GPT, Config, lora_filter, merge_lora_weights
    place = folder / name
    place.mkdir(parents=True)
    model = GPT(Config(**settings, **(lora or {}))).eval()
    for parameter_name, parameter in model.named_parameters():
        is_norm = parameter.ndim == 1 and "bias" not in parameter_name
        torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.2)
    state = model.state_dict()
    if lora is not None:
        trained = {key: value for key, value in state.items() if lora_filter(key, value)}
        torch.save(trained, place / "lit_model.pth.lora")
        (place / "hyperparameters.yaml").write_text(yaml.dump(lora))
        state = {k.replace("linear.", ""): v for k, v in state.items() if not lora_filter(k, v)}
    torch.save(state, place / "lit_model.pth")
    known = dataclasses.asdict(model.config)
    (place / "model_config.yaml").write_text(yaml.dump({k: v for k, v in known.items() if not k.startswith("lora_")}))
    with torch.inference_mode():
        torch.save({"idx": idx, "logits": model(idx)}, place / "expected.pt")
"""


def litgpt_says(folder: Path, asked: dict) -> None:
    """litgpt itself saves random models, each with some tokens and their logits."""
    python = os.environ.get("LITGPT_PYTHON")
    if not python:
        pytest.skip("LITGPT_PYTHON names no Python with litgpt 0.5")
    subprocess.run([python, "-c", SAVES, folder, json.dumps(asked)], check=True)


def converted(folder: Path, out: Path) -> torch.nn.Module:
    assert command("convert litgpt", "--checkpoint_dir", folder, "--out_dir", out) == 0
    return load_gpt(out, torch.float32)


@torch.inference_mode()
def test_logits_equal_litgpt(tmp_path: Path) -> None:
    litgpt_says(tmp_path, {name: (settings, None) for name, settings in MODELS.items()})
    for name in MODELS:
        expected = torch.load(tmp_path / name / "expected.pt")
        model = converted(tmp_path / name, tmp_path / "ours" / name)
        assert error(model(expected["idx"]), expected["logits"]) <= TOLERANCE, name


NOTHING = {f"lora_{part}": False for part in ("query", "key", "value", "projection", "mlp", "head")}
EVERYTHING = dict.fromkeys(NOTHING, True)
LORA = {**NOTHING, "lora_r": 3, "lora_alpha": 5}
ADAPTED = {
    "queries and values": ("llama: multi-head", {**LORA, "lora_query": True, "lora_value": True}),
    "grouped: keys": ("llama 3: scaled rope", {**LORA, "lora_key": True}),
    "grouped: everything": ("qwen 2: biases of queries, keys and values", {**LORA, **EVERYTHING}),
    "parallel: everything": ("pythia: parallel, partly rotated", {**LORA, **EVERYTHING}),
    "wide heads, no queries": ("gemma", {**LORA, **EVERYTHING, "lora_query": False}),
}


@torch.inference_mode()
def test_lora_equals_litgpt(tmp_path: Path) -> None:
    litgpt_says(tmp_path, {name: (MODELS[model], lora) for name, (model, lora) in ADAPTED.items()})
    for name in ADAPTED:
        expected = torch.load(tmp_path / name / "expected.pt")
        base = converted(tmp_path / name, tmp_path / "ours" / name)
        assert error(base(expected["idx"]), expected["logits"]) > 1e-2
        for merge in (False, True):
            model = load_gpt(tmp_path / "ours" / name, torch.float32, finetuned=tmp_path / name, merge=merge)
            assert error(model(expected["idx"]), expected["logits"]) <= TOLERANCE, name


# --- without litgpt: its layouts, written out ----------------------------------------------------------------------

GROUPED = {"n_query_groups": 2}
LINEAR = {"rotary_percentage": 1.0, "bias": False}
DESCRIBED = {
    "llama: multi-head": LLAMA,
    "llama: grouped queries, other rope base": {**LLAMA, **GROUPED, "rope_base": 1000000},
    "llama: condensed": {**LLAMA, "rope_condense_ratio": 8},
    "llama: tied": LLAMA,
    "gpt_neox: parallel": {},
    "falcon: 7B": {**LINEAR, "norm_eps": 1e-4, "n_query_groups": 1, "shared_attention_norm": True},
    "falcon: 40B": {**LINEAR, **GROUPED, "norm_eps": 1e-4},
    "phi: 1.5": {
        "shared_attention_norm": True,
        "lm_head_bias": True,
        "gelu_approximate": "tanh",
        "rotary_percentage": 0.5,
    },
    "gemma: 2B, one key head": {**GEMMA, "head_size": 20, "n_query_groups": 1},
    "mixtral: one of three experts, tied": {
        **LLAMA,
        **GROUPED,
        "mlp_class_name": "LLaMAMoE",
        "n_expert": 3,
        "n_expert_per_token": 1,
        "rope_base": 1000000,
    },
    "qwen2: 2.5, tied": {**LLAMA, "n_query_groups": 1, "attn_bias": True, "rope_base": 1000000, "norm_eps": 1e-6},
}
"""Models of transformers -> what litgpt says of them; sizes are added."""
NAMES = (
    ("wte.", "transformer.wte."),
    ("norm.", "transformer.ln_f."),
    ("blocks.", "transformer.h."),
    ("attn.o.", "attn.proj."),
    ("mlp.router.", "mlp.gate."),
)


def one_layer(parts: list[Tensor], config: Config, year: int) -> Tensor:
    """Queries, keys and values below each other; in 2023, the rows of one group, then those of the next."""
    if year > 2024:
        return torch.cat(parts)
    heads = [part.split(config.head_size) for part in parts]
    each, rows = config.n_head // config.n_query_groups, []
    for group in range(config.n_query_groups):
        rows += [*heads[0][group * each : (group + 1) * each], heads[1][group], heads[2][group]]
    return torch.cat(rows)


def of_litgpt(ours: torch.nn.Module, year: int) -> dict[str, Tensor]:
    """The weights of a model as litgpt keeps them: fused, with a head of their own, under its names."""
    state, config = {**ours.state_dict()}, ours.config
    state["lm_head.weight"] = ours.lm_head.weight.detach()
    for layer in range(config.n_layer):
        for kind in ("weight", "bias"):
            names = [f"blocks.{layer}.attn.{part}.{kind}" for part in "qkv"]
            if names[0] in state:
                fused = one_layer([state.pop(name) for name in names], config, year)
                state[f"blocks.{layer}.attn.{'qkv' if year > 2024 else 'attn'}.{kind}"] = fused
    found = {}
    for name, tensor in state.items():
        for theirs, named in NAMES:
            name = (
                named + name.removeprefix(theirs)
                if name.startswith(theirs)
                else name.replace(f".{theirs}", f".{named}")
            )
        for part, named in (("gate", "fc_1"), ("up", "fc_2" if config.mlp == "gated" else "fc"), ("down", "proj")):
            if name.count("experts") or not config.n_expert:
                name = name.replace(f".{part}.", f".{named}.")
        found[name] = tensor.clone()
    return found


def describe(ours: torch.nn.Module, said: dict, year: int) -> dict:
    """What litgpt's description of a model says, with the keys of the year."""
    config = ours.config
    sizes = {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "block_size": config.block_size,
    }
    sizes |= {"intermediate_size": config.intermediate_size, "padded_vocab_size": config.padded_vocab_size}
    said = {**said, **sizes}
    if year > 2024:
        return said
    old = {"norm_class_name": "_norm_class", "mlp_class_name": "_mlp_class", "rope_condense_ratio": "condense_ratio"}
    return {old.get(key, key): value for key, value in said.items()}


def litgpt_folder(folder: Path, variant: str, year: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model of transformers in a folder of litgpt."""
    theirs, ours = pair(variant)
    folder.mkdir(parents=True)
    torch.save(of_litgpt(ours, year), folder / "lit_model.pth")
    said = describe(ours, DESCRIBED[variant], year)
    file = folder / ("model_config.yaml" if year > 2024 else "lit_config.json")
    file.write_text(yaml.dump(said) if year > 2024 else json.dumps(said))
    return theirs, ours


@pytest.mark.parametrize("year", [2025, 2023])
@pytest.mark.parametrize("variant", DESCRIBED)
@torch.inference_mode()
def test_logits_equal_transformers(variant: str, year: int, tmp_path: Path) -> None:
    theirs, ours = litgpt_folder(tmp_path / "litgpt", variant, year)
    idx = tokens(ours, 2, 17)
    assert error(converted(tmp_path / "litgpt", tmp_path / "ours")(idx), theirs(idx).logits) <= TOLERANCE
    tied = read_json(tmp_path / "ours" / "lit_config.json")["tie_embeddings"]
    assert tied == ours.config.tie_embeddings


@pytest.mark.parametrize("variant", DESCRIBED)
def test_back_to_transformers_by_way_of_litgpt(variant: str, tmp_path: Path, capsys) -> None:
    """With the original's config.json, an export has the same names and bits as the original."""
    theirs, _ = litgpt_folder(tmp_path / "litgpt", variant, 2025)
    theirs.save_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "config.json").rename(tmp_path / "litgpt" / "config.json")
    converted(tmp_path / "litgpt", tmp_path / "ours")
    assert "note" not in capsys.readouterr().err
    assert command("export", "--checkpoint_dir", tmp_path / "ours", "--output_dir", tmp_path / "out") == 0
    before, after = load_file(tmp_path / "hub" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    idx = torch.randint(90, (2, 7))
    with torch.inference_mode():
        assert torch.equal(again.eval()(idx).logits, theirs(idx).logits)


def test_a_head_that_was_trained_on_its_own(tmp_path: Path) -> None:
    """litgpt ties nothing: once trained, head and embedding differ, and the export says so."""
    theirs, _ = litgpt_folder(tmp_path / "litgpt", "llama: tied", 2025)
    theirs.config.save_pretrained(tmp_path / "litgpt")
    state = torch.load(tmp_path / "litgpt" / "lit_model.pth")
    state["lm_head.weight"] += 0.1
    torch.save({"model": state, "step": 3}, tmp_path / "litgpt" / "lit_model.pth")  # as a run saves it
    ours = converted(tmp_path / "litgpt", tmp_path / "ours")
    assert not ours.config.tie_embeddings
    assert command("export", "--checkpoint_dir", tmp_path / "ours", "--output_dir", tmp_path / "out") == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    idx = torch.randint(90, (2, 7))
    with torch.inference_mode():
        assert error(again.eval()(idx).logits, ours(idx)) <= TOLERANCE
        assert error(theirs(idx).logits, ours(idx)) > 1e-2


def test_what_config_json_says_otherwise_is_reported(tmp_path: Path, capsys) -> None:
    theirs, _ = litgpt_folder(tmp_path / "litgpt", "llama: condensed", 2025)
    write_json(tmp_path / "litgpt" / "config.json", {**theirs.config.to_dict(), "rms_norm_eps": 1e-3})
    assert converted(tmp_path / "litgpt", tmp_path / "ours").config.norm_eps == 1e-5
    note = "note: the original's config.json differs from model_config.yaml, which counts: "
    assert f"{note}norm_eps 0.001 there, 1e-05 here" in capsys.readouterr().err.splitlines()


YEARS = [2023, 2024, 2025]


def rows_of_update(config: Config, adapted: list[bool], year: int) -> list[int]:
    """To which rows of litgpt's fused layer the rows of B are added."""
    D, G, each = config.head_size, config.n_query_groups, config.n_head // config.n_query_groups
    sizes = [D * config.n_head, D * G, D * G]
    if year == 2024 and not all(adapted):
        kinds = [kind for _ in range(G) for kind in [0] * each + [1, 2] for _ in range(D)]
        return [row for part in range(3) if adapted[part] for row, kind in enumerate(kinds) if kind == part]
    return [sum(sizes[:part]) + row for part in range(3) if adapted[part] for row in range(sizes[part])]


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("adapted", [(True, False, True), (False, True, False), (True, True, True)])
@pytest.mark.parametrize("variant", ["llama: multi-head", "llama: grouped queries, other rope base", "falcon: 7B"])
@torch.inference_mode()
def test_updates_reach_the_rows_that_were_trained(variant: str, adapted: tuple, year: int, tmp_path: Path) -> None:
    """LoRA over a base equals a base to whose fused layers the update was added."""
    _, ours = litgpt_folder(tmp_path / "base", variant, year)
    state, config = torch.load(tmp_path / "base" / "lit_model.pth"), ours.config
    rows, r, trained = rows_of_update(config, adapted, year), 2, {}
    for layer in range(config.n_layer):
        module = f"transformer.h.{layer}.attn.{'qkv' if year > 2024 else 'attn'}"
        A, B = torch.randn(r * sum(adapted), config.n_embd), torch.randn(len(rows), r) * 0.1
        trained |= {f"{module}.lora_A": A, f"{module}.lora_B": B}
        sizes = [len(ours.get_parameter(f"blocks.0.attn.{part}.weight")) for part in "qkv"]
        products = [
            b @ a
            for a, b in zip(A.split(r), B.split([n for n, on in zip(sizes, adapted, strict=True) if on]), strict=True)
        ]
        state[f"{module}.weight"][rows] += 3 / r * torch.cat(products)
    write_json(tmp_path / "lora" / "hyperparameters.yaml", dict(zip(QKV, adapted, strict=True)) | {"lora_alpha": 3})
    file = tmp_path / "lora" / ("lit_model_lora_finetuned.pth" if year == 2023 else "lit_model.pth.lora")
    torch.save({"model": trained}, file)
    torch.save(state, tmp_path / "base" / "lit_model.pth.new")
    before = converted(tmp_path / "base", tmp_path / "ours")
    after = load_gpt(tmp_path / "ours", torch.float32, finetuned=tmp_path / "lora")
    (tmp_path / "base" / "lit_model.pth.new").replace(tmp_path / "base" / "lit_model.pth")
    expected = converted(tmp_path / "base", tmp_path / "expected")
    idx = tokens(ours, 2, 9)
    assert error(after(idx), expected(idx)) <= TOLERANCE
    assert error(before(idx), expected(idx)) > 1e-3


QKV = ("lora_query", "lora_key", "lora_value")


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    litgpt_folder(tmp_path / "litgpt", "llama: multi-head", 2025)
    return tmp_path / "litgpt"


def refused(capsys, name: str, *flags: object) -> str:
    """The one line that a command says."""
    assert command(name, *flags) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("year", [2025, 2023])
def test_other_commands_say_which_command_converts_it(year: int, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "litgpt"
    litgpt_folder(folder, "llama: multi-head", year)
    train_sentencepiece(folder)
    before = (folder / "lit_model.pth").read_bytes()
    advice = f"convert it: python scripts/convert_litgpt_checkpoint.py --checkpoint_dir {folder} --out_dir "
    assert advice in refused(capsys, "generate base", "--checkpoint_dir", folder)
    pair("llama: multi-head")[0].save_pretrained(folder)  # the hub's files beside litgpt's
    capsys.readouterr()
    for name, flags in (("convert", ()), ("export", ("--output_dir", tmp_path / "out"))):
        assert advice in refused(capsys, name, "--checkpoint_dir", folder, *flags)
    assert (folder / "lit_model.pth").read_bytes() == before


def test_where_the_result_goes(folder: Path, tmp_path: Path, capsys) -> None:
    flags = ["--checkpoint_dir", folder, "--out_dir"]
    assert "is the model itself" in refused(capsys, "convert litgpt", *flags, folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lit_model.pth").touch()
    assert "holds another model" in refused(capsys, "convert litgpt", *flags, tmp_path / "other")
    converted(folder, tmp_path / "ours")
    converted(folder, tmp_path / "ours")  # its own earlier result
    capsys.readouterr()
    said = refused(capsys, "export", "--checkpoint_dir", tmp_path / "ours", "--output_dir", tmp_path / "out")
    assert f"put the original model's config.json into {folder} and convert it again" in said
    said = refused(capsys, "convert litgpt", "--checkpoint_dir", tmp_path / "ours", "--out_dir", tmp_path / "new")
    assert f"no checkpoint of litgpt in {tmp_path / 'ours'}: expected lit_model.pth and model_config.yaml" in said
    assert "no checkpoint of litgpt in" in refused(capsys, "convert litgpt", "--checkpoint_dir", "no", "--out_dir", "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_attention": {"q_lora_rank": 4}}, 'latent_attention {"q_lora_rank": 4} is not supported'),
        ({"rope_interleave": True}, "rope_interleave true is not supported"),
        ({"n_shared_expert": 1}, "n_shared_expert 1 is not supported"),
        ({"mlp_class_name": "Strange"}, "mlp_class_name 'Strange' is not supported; supported are GptNeoxMLP, "),
        ({"norm_class_name": "Strange"}, "norm_class_name 'Strange' is not supported"),
        ({"gelu_approximate": "sigmoid"}, "gelu_approximate 'sigmoid' is not supported"),
        ({"norm_1": False}, "norm_1 False with norm_2 True is not supported"),
        ({"parallel_residual": True, "post_attention_norm": True, "post_mlp_norm": True}, "with parallel_residual"),
        ({"rope_adjustments": {"factor": 4, "beta_fast": 32, "beta_slow": 1}}, 'rope_adjustments {"beta_fast": 32, '),
        ({"rope_local_base_freq": 100.0}, "rope_local_base_freq is supported in the layers with a window"),
        ({"sliding_window_size": 4, "sliding_window_layer_placing": 3}, "sliding_window_layer_placing 3 is not"),
        ({"rope_base": "far"}, "a value is of the wrong type"),
        ({"n_head": "four"}, "n_head must be a whole number"),
        ({"norm_eps": "small"}, "norm_eps must be a positive number"),
        ({"n_layer": 3}, "missing in"),
        ({"n_layer": 1}, "the model of model_config.yaml has no transformer.h.1."),
        ({"padded_vocab_size": 96}, "if tokens were added, set padded_vocab_size to 101 in model_config.yaml"),
        ({"n_embd": 24, "head_size": 12}, "by model_config.yaml it is"),
    ],
)
def test_descriptions_that_are_refused(change: dict, message: str, folder: Path, tmp_path: Path, capsys) -> None:
    said = yaml.safe_load((folder / "model_config.yaml").read_text())
    (folder / "model_config.yaml").write_text(yaml.dump({**said, **change}))
    assert message in refused(capsys, "convert litgpt", "--checkpoint_dir", folder, "--out_dir", tmp_path / "ours")
    assert not (tmp_path / "ours" / "lit_model.pth").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "model_config.yaml:1: not YAML"),
        ("just words", "expected keys"),
        ("{}", "key 'n_embd' is missing"),
        ("!!python/object/apply:os.system [exit]", "not YAML that can be read"),
    ],
)
def test_descriptions_that_are_none(text: str, message: str, folder: Path, tmp_path: Path, capsys) -> None:
    (folder / "model_config.yaml").write_text(text)
    assert message in refused(capsys, "convert litgpt", "--checkpoint_dir", folder, "--out_dir", tmp_path / "ours")


class Attack:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("attacked",)


def test_damaged_and_hostile_weights(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, flags = folder / "lit_model.pth", ["--checkpoint_dir", folder, "--out_dir", tmp_path / "ours"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "lit_model.pth is damaged" in refused(capsys, "convert litgpt", *flags)
    torch.save({"model": {"lm_head.weight": Attack()}}, path)
    assert "was not read: it may be an attack" in refused(capsys, "convert litgpt", *flags)
    torch.save(["no", "weights"], path)
    assert "holds something other than named tensors" in refused(capsys, "convert litgpt", *flags)
    path.unlink()
    (folder / "lit_model.pth.lora").touch()
    assert "weights of LoRA are used as they are (--lora_path)" in refused(capsys, "convert litgpt", *flags)
    assert not (tmp_path / "attacked").exists()


UPDATE = {"transformer.h.0.attn.qkv.lora_A": torch.ones(4, 48), "transformer.h.0.attn.qkv.lora_B": torch.ones(96, 2)}


@pytest.mark.parametrize(
    ("state", "settings", "message"),
    [
        (UPDATE, None, "so lora_alpha is not known; Lit-GPT 2023 wrote none: make it, with a line 'lora_alpha: 16'"),
        (UPDATE, {"lora_alpha": 0}, "lora_alpha must be a positive number, got 0"),
        (UPDATE, {"lora_alpha": 4, "lora_key": 1}, "lora_key must be true or false, got 1"),
        (UPDATE, {"lora_alpha": 4, "lora_key": True}, "are (4, 48) and (96, 2), which fits neither the model nor"),
        (dict([*UPDATE.items()][:1]), {"lora_alpha": 4}, "transformer.h.0.attn.qkv has no A, no B, or no place"),
        ({"transformer.h.7.mlp.fc_1.lora_A": torch.ones(1, 48)}, {"lora_alpha": 4}, "transformer.h.7.mlp.fc_1 has no"),
        (
            {key: tensor[:0] if "A" in key else tensor[:, :0] for key, tensor in UPDATE.items()},
            {"lora_alpha": 4},
            "fits",
        ),
        ({"transformer.h.0.lora_A": 3}, {"lora_alpha": 4}, "holds no finetuned weights"),
    ],
)
def test_updates_that_are_refused(
    state: dict, settings: dict | None, message: str, folder: Path, tmp_path: Path
) -> None:
    converted(folder, tmp_path / "ours")
    (tmp_path / "lora").mkdir()
    torch.save(state, tmp_path / "lora" / "lit_model.pth.lora")
    if settings:
        write_json(tmp_path / "lora" / "hyperparameters.yaml", settings)
    with pytest.raises(UserError, match=re.escape(message)):
        read_finetuned(tmp_path / "lora", tmp_path / "ours")


def test_updates_of_a_router_are_refused(tmp_path: Path) -> None:
    litgpt_folder(tmp_path / "litgpt", "mixtral: one of three experts, tied", 2025)
    converted(tmp_path / "litgpt", tmp_path / "ours")
    (tmp_path / "lora").mkdir()
    name = "transformer.h.0.mlp.gate.lora_"
    torch.save({f"{name}A": torch.ones(2, 48), f"{name}B": torch.ones(3, 2)}, tmp_path / "lora" / "lit_model.pth.lora")
    write_json(tmp_path / "lora" / "hyperparameters.yaml", {"lora_alpha": 4})
    with pytest.raises(UserError, match=r"it adapts transformer\.h\.0\.mlp\.gate, which ours cannot"):
        read_finetuned(tmp_path / "lora", tmp_path / "ours")

"""The catalogue's numbers: parameters as published, as our model has them, and as `transformers` has them."""

import functools
import json
import subprocess
import sys

import pytest
import torch
import transformers

from lit_gpt.config import Config
from lit_gpt.families.catalogue import CATALOGUE, Row, find
from lit_gpt.methods import LoRA
from lit_gpt.model import GPT, meta_gpt
from lit_gpt.settings import UserError

SHAPES = {
    json.dumps(row.config): row
    for row in CATALOGUE.values()
    if row.config["model_type"] in transformers.CONFIG_MAPPING  # InternLM is not: tests/test_internlm.py
}
"""One row of each shape."""

NON_EMBEDDING = {
    "pythia-14m": 1_189_888,
    "pythia-31m": 4_739_072,
    "pythia-70m": 18_915_328,
    "pythia-160m": 85_056_000,
    "pythia-410m": 302_311_424,
    "pythia-1b": 805_736_448,
    "pythia-1.4b": 1_208_602_624,
    "pythia-2.8b": 2_517_652_480,
    "pythia-6.9b": 6_444_163_072,
    "pythia-12b": 11_327_027_200,
}
"""Parameters without the two embeddings, from the model cards of Pythia."""


@functools.cache
def meta(shape: str) -> GPT:
    return meta_gpt(Config.from_hf(json.loads(shape)))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("row", CATALOGUE.values(), ids=lambda row: row.repo_id)
def test_parameters(row: Row) -> None:
    model = meta(json.dumps(row.config))
    assert Config.from_name(row.repo_id) == Config.from_name(row.name) == model.config
    assert count(model) == row.parameters


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: SHAPES[shape].name)
def test_parameters_equal_transformers(shape: str) -> None:
    """Layers are alike: what one and two of them have tells it for all. Our config reads theirs in the same way."""
    theirs = transformers.AutoConfig.for_model(**json.loads(shape))
    assert Config.from_hf(theirs.to_dict()) == meta(shape).config
    layers, counts = theirs.num_hidden_layers, []
    for theirs.num_hidden_layers in (1, 2):
        with torch.device("meta"):
            counts.append(count(transformers.AutoModelForCausalLM.from_config(theirs)))
    assert counts[0] + (layers - 1) * (counts[1] - counts[0]) == SHAPES[shape].parameters


def test_parameters_as_published() -> None:
    assert find("open_llama_7b").parameters == 6_738_415_616
    assert find("Llama-2-70b-hf").parameters == 68_976_648_192
    assert find("gpt-neox-20b").parameters == 20_554_567_680
    assert find("falcon-7b").parameters == 6_921_720_704
    for name, parameters in NON_EMBEDDING.items():
        config = Config.from_name(name)
        assert find(name).parameters - 2 * config.padded_vocab_size * config.n_embd == parameters


def test_default_lora_of_open_llama_7b() -> None:
    with torch.device("meta"):
        model = GPT(Config.from_name("open_llama_7b"))
        LoRA().attach(model)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 4_194_304


def test_rows_make_sense() -> None:
    names = [row.name.lower() for row in CATALOGUE.values()]
    assert len(set(names)) == len(names)
    for repo_id, row in CATALOGUE.items():
        assert repo_id == row.repo_id
        assert repo_id.count("/") == 1
        assert row.licence
        assert not (row.allowed and row.instruct)
    by_kind = {row.name: (row.instruct, row.allowed, row.gated) for row in CATALOGUE.values()}
    assert by_kind["Llama-2-7b-hf"] == (False, True, True)
    assert by_kind["Llama-2-7b-chat-hf"] == (True, False, True)
    assert by_kind["stablelm-base-alpha-3b"] == (False, False, False)
    assert by_kind["falcon-180B"] == (False, True, True)


def test_find() -> None:
    row = CATALOGUE["openlm-research/open_llama_7b"]
    assert (
        find("open_llama_7b") is find("openlm-research/open_llama_7b") is find("OpenLM-Research/Open_LLaMA_7B") is row
    )
    with pytest.raises(UserError, match=r"no model 'open_lama_7b'; did you mean openlm-research/open_llama_7b"):
        find("open_lama_7b")
    with pytest.raises(UserError, match=r"did you mean .*EleutherAI/pythia-410m"):
        Config.from_name("EleutherAI/pythia-400m")
    with pytest.raises(UserError, match=r"no model 'zzz'; scripts/download.py without --repo_id lists all"):
        find("zzz")


def test_from_name_needs_no_torch() -> None:
    """Sizes are at hand before anything heavy is imported."""
    code = "import lit_gpt.config as c, sys; c.Config.from_name('falcon-40b'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

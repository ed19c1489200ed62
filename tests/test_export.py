"""What we write is what others read: the same bits, the same logits."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
import torch
import transformers
from conftest import SHARED, command, make_checkpoint, train_sentencepiece
from safetensors.torch import load_file, save_file
from test_families import VARIANTS, error

from lit_gpt import Config, load_gpt
from lit_gpt.cache import KVCache
from lit_gpt.checkpoint import base_identity, read_finetuned, save_finetuned, style_of
from lit_gpt.export import CONVERTER
from lit_gpt.files import write_json
from lit_gpt.methods import Adapter, Full, LoRA, Method, file_of
from lit_gpt.prompts import Turn, get_style
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer

ALL = {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp", "head")}


def hf_checkpoint(variant: str, folder: Path) -> torch.nn.Module:
    """A random model of `transformers` in a folder, converted; norms and biases are random, too."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**VARIANTS[variant]))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and "bias" not in name), std=0.2)
    model.save_pretrained(folder)
    assert command("convert", "--checkpoint_dir", folder) == 0
    return model.eval()


def trained(folder: Path, method: Method, path: Path, style: str = "alpaca") -> None:
    """A finetuned file with random values, as a run on the model in `folder` would write it."""
    model = load_gpt(folder, torch.float32)
    method.attach(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "magnitude" in name:
            parameter.data.mul_(1.2)
    save_finetuned(path, model, method, {"prompt_style": style, "base": base_identity(folder), "quantize": None})


def test_the_language_model_of_one_with_images(tmp_path: Path) -> None:
    theirs = hf_checkpoint("gemma3: with eyes", tmp_path / "model")
    assert command("export", "--checkpoint_dir", tmp_path / "model", "--output_dir", tmp_path / "out") == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again).__name__ == "Gemma3ForCausalLM"
    idx = torch.randint(3, 90, (2, 7))
    with torch.inference_mode():
        assert error(again.eval()(idx).logits, theirs(idx).logits) <= 1e-6


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if "eyes" not in variant])
def test_there_and_back_is_the_same_to_the_bit(variant: str, tmp_path: Path) -> None:
    """Names, bits and description of the files of `transformers`, for every family; in several files, too."""
    theirs = hf_checkpoint(variant, tmp_path / "model")
    out = tmp_path / "out"
    assert command("export", "--checkpoint_dir", tmp_path / "model", "--output_dir", out) == 0
    before, after = load_file(tmp_path / "model" / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((out / "config.json").read_text()) == json.loads((tmp_path / "model" / "config.json").read_text())
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    idx = torch.randint(theirs.config.vocab_size, (2, 7))
    with torch.inference_mode():
        assert torch.equal(again.eval()(idx).logits, theirs(idx).logits)


@pytest.mark.parametrize("method", [LoRA(**ALL), LoRA(**ALL, lora_dora=True)], ids=["lora", "dora"])
@pytest.mark.parametrize("variant", ["llama: tied", "gpt_neox: parallel", "falcon: 40B"])
def test_merged_into_files_of_transformers(variant: str, method: LoRA, tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    hf_checkpoint(variant, folder)
    trained(folder, method, tmp_path / "lit_model_lora_finetuned.pth")
    flags = ["--checkpoint_dir", folder, "--lora_path", tmp_path, "--output_dir", out, "--shard_gb", 2e-5]
    assert command("export", *flags) == 0
    assert len(list(out.glob("model-*.safetensors"))) > 2
    ours = load_gpt(folder, torch.float32, finetuned=tmp_path)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    idx = torch.randint(ours.config.padded_vocab_size, (2, 7))
    with torch.inference_mode():
        assert error(model.eval()(idx).logits, ours(idx)) <= 1e-5


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("llama: grouped queries, other rope base", ALL),
        ("llama: biases", {**ALL, "lora_rslora": True}),
        ("llama: multi-head", {**ALL, "lora_dora": True}),
        ("gpt_neox: parallel", ALL),
        ("gpt_neox: parallel", {"lora_r": 3}),
        ("falcon: 40B", {"lora_key": True, "lora_projection": True}),
    ],
)
def test_peft_opens_what_was_trained(variant: str, changes: dict, tmp_path: Path) -> None:
    import peft

    folder, out = tmp_path / "model", tmp_path / "out"
    hf_checkpoint(variant, folder)
    trained(folder, LoRA(**changes), tmp_path / "lit_model_lora_finetuned.pth")
    flags = ["--checkpoint_dir", folder, "--lora_path", tmp_path, "--output_dir", out, "--format", "peft"]
    assert command("export", *flags) == 0
    ours = load_gpt(folder, torch.float32, finetuned=tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(base, out)
    idx = torch.randint(ours.config.padded_vocab_size, (2, 7))
    with torch.inference_mode():
        expected = ours(idx)
        assert error(model.eval()(idx).logits, expected) <= 1e-5
        assert error(load_gpt(folder, torch.float32)(idx), expected) > 1e-3
    assert style_of(folder, out).name == "alpaca"
    (out / "prompt_style.json").unlink()
    assert style_of(folder, out) is None


def test_the_folder_of_a_run_or_a_model_is_not_written_into(checkpoint: Path, tmp_path: Path, capsys) -> None:
    """Otherwise its finetuned file would stand beside an adapter for PEFT, or a model among another one's files."""
    trained(checkpoint, LoRA(), tmp_path / "lit_model_lora_finetuned.pth")
    flags = ["--checkpoint_dir", checkpoint, "--lora_path", tmp_path, "--format", "peft"]
    for place in (tmp_path, make_checkpoint(tmp_path / "tests" / "other")):
        assert command("export", *flags, "--output_dir", place) == 2
        assert f"--output_dir {place} holds another model" in capsys.readouterr().err
    (tmp_path / "adapter_config.json").write_text("{}")  # ours is taken all the same
    assert style_of(checkpoint, tmp_path).name == "alpaca"
    assert read_finetuned(tmp_path, checkpoint)["prompt_style"] == "alpaca"


@pytest.mark.parametrize(
    ("variant", "method", "message"),
    [
        (
            "llama: multi-head",
            Adapter(adapter_start_layer=1),
            "--format peft is for LoRA, as PEFT's adaption prompt has one gate for a layer",
        ),
        ("llama: multi-head", Full(), "was trained with full; --format peft is for LoRA\n"),
        (
            "mixtral: 8x7B",
            LoRA(**ALL),
            "adapters of experts are kept differently by every version of PEFT; use --format",
        ),
        ("gpt_neox: parallel", LoRA(lora_dora=True), "holds several layers of ours, which DoRA scales one by one"),
    ],
)
def test_what_peft_has_no_form_for(variant: str, method: Method, message: str, tmp_path: Path, capsys) -> None:
    hf_checkpoint(variant, tmp_path / "model")
    trained(tmp_path / "model", method, tmp_path / file_of(method.name))
    flags = ["--checkpoint_dir", tmp_path / "model", "--lora_path", tmp_path, "--output_dir", tmp_path / "out"]
    capsys.readouterr()
    assert command("export", *flags, "--format", "peft") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("llama: grouped queries, other rope base", {"target_modules": "all-linear"}),
        ("llama: biases", {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}, "lora_alpha": 7}),
        ("llama: multi-head", {"target_modules": ["v_proj"], "use_rslora": True, "layers_to_transform": [1]}),
        ("llama: multi-head", {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"], "use_dora": True}),
        ("gpt_neox: parallel", {"target_modules": ["query_key_value", "dense"]}),
        ("gpt_neox: parallel", {"target_modules": ["query_key_value"], "use_dora": True}),
        ("falcon: 40B", {"target_modules": ["query_key_value"], "alpha_pattern": {"query_key_value": 3}}),
    ],
)
def test_adapters_of_peft_are_read(variant: str, settings: dict, tmp_path: Path, data: Path, capsys) -> None:
    import peft

    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    base = hf_checkpoint(variant, folder)
    config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(adapter)
    idx = torch.randint(base.config.vocab_size, (2, 7))
    with torch.inference_mode():
        expected = theirs(idx).logits
        for merge in (False, True):
            assert error(load_gpt(folder, torch.float32, finetuned=adapter, merge=merge)(idx), expected) <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3 is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"bias": "all"}, "bias all is not supported"),
    ],
)
def test_adapters_of_peft_that_are_refused(change: dict, message: str, checkpoint: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", **change})
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message):
        read_finetuned(tmp_path, checkpoint)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="is damaged"):
        read_finetuned(tmp_path, checkpoint)


def test_training_goes_on_from_what_was_trained_before(checkpoint: Path, data: Path, tmp_path: Path, capsys) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--precision", "32-true", "--batch_size", 8]
    flags += ["--learning_rate", 0.05, "--max_steps", 8, "--lora_head", "true"]
    assert command("finetune lora", *flags, "--out_dir", tmp_path / "a") == 0
    assert command("finetune lora", *flags, "--out_dir", tmp_path / "b", "--init_from", tmp_path / "a") == 0
    first, second = (json.loads((tmp_path / x / "run.json").read_text())["result"] for x in "ab")
    assert second["first_val_loss"] == pytest.approx(first["val_loss"], rel=1e-6)
    assert second["val_loss"] < first["val_loss"]
    other = ["--out_dir", tmp_path / "c", "--init_from", tmp_path / "a", "--lora_alpha", 3]
    assert command("finetune lora", *flags, *other) == 2
    assert "lora_alpha is 16 there, but 3 here" in capsys.readouterr().err


def test_gguf_and_ollama(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv(CONVERTER, raising=False)
    folder, out = tmp_path / "model", tmp_path / "out"
    hf_checkpoint("llama: multi-head", folder)
    train_sentencepiece(folder)
    trained(folder, LoRA(), tmp_path / "lit_model_lora_finetuned.pth")
    flags = ["--checkpoint_dir", folder, "--lora_path", tmp_path, "--output_dir", out, "--format", "gguf"]
    assert command("export", *flags) == 0
    rest = f"{out} --outfile {out}/model.gguf --outtype f32"
    assert f"with it: convert_hf_to_gguf.py {rest}\n" in capsys.readouterr().err
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    modelfile = (out / "Modelfile").read_text()
    assert modelfile.startswith('FROM ./model.gguf\nTEMPLATE """Below is an instruction')
    assert "### Instruction:\n{{ .Prompt }}\n" in modelfile
    monkeypatch.setenv(CONVERTER, "python3 -c 'raise SystemExit(3)'")
    assert command("export", *flags) == 2
    assert f"error: python3 -c 'raise SystemExit(3)' {rest} failed with exit code 3; does" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["falcon: 11B", "falcon: RW", "falcon: scaled rope"])
def test_positions_that_llama_cpp_does_not_give_a_falcon(variant: str, tmp_path: Path, capsys) -> None:
    """Its converter would leave them out without a word."""
    hf_checkpoint(variant, tmp_path / "model")
    flags = ["--checkpoint_dir", tmp_path / "model", "--output_dir", tmp_path / "out", "--format", "gguf"]
    assert command("export", *flags) == 2
    assert "llama.cpp gives every Falcon unscaled rotary positions with rope_theta 10000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


LLAMA_CPP = """
import json, sys, llama_cpp, numpy
path, ids, texts, out = json.load(sys.stdin)
model = llama_cpp.Llama(path, n_ctx=256, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
model.eval(ids)
numpy.save(out, model.scores[: len(ids)])
print(json.dumps([model.tokenize(text.encode(), special=True) for text in texts]))
"""
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
SMALL |= {"max_position_embeddings": 256}
GROUPED = {**SMALL, "num_key_value_heads": 2}
FACTORS = {"short_factor": [1 + 0.1 * i for i in range(16)], "long_factor": [2.0 + i for i in range(16)]}
LONGROPE = {"original_max_position_embeddings": 64}  # llama.cpp goes by the length of the cache, as ours does
LONGROPE |= {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **LONGROPE, **FACTORS}}
MISTRAL, PYTHIA = "mistralai/Mistral-7B-v0.1", "EleutherAI/pythia-410m"
GGUF = {
    "llama": (MISTRAL, 32000, GROUPED, "mistral", 1e-5),
    "mixtral": (MISTRAL, 32000, {**GROUPED, "num_local_experts": 4}, "chatml", 1e-5),
    "phi3": (MISTRAL, 32000, {**GROUPED, "pad_token_id": 0}, "alpaca", 1e-5),
    "phi3, longrope": (MISTRAL, 32000, {**GROUPED, "pad_token_id": 0, **LONGROPE}, "alpaca", 1e-5),
    "gemma": (None, 512, {**GROUPED, "head_dim": 32}, "gemma", 1e-3),
    "gemma2": (None, 512, {**GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32}, "gemma", 1e-3),
    "gpt_neox": (PYTHIA, 50304, SMALL, "alpaca", 1e-3),  # its GELU is a table in 16 bits
    "falcon": (PYTHIA, 50304, SMALL, "falcon", 1e-3),  # multi-query
    "qwen3": (PYTHIA, 50304, {**GROUPED, "head_dim": 32}, "mistral", 1e-5),
    "olmo2": (PYTHIA, 50304, GROUPED, "zephyr", 1e-5),
}


def train_gemma_tokenizer(folder: Path) -> None:
    """As Gemma's: no space is put in front, and special tokens have its ids."""
    names = ["pad", "eos", "bos", "unk"]
    turns = {106: "<start_of_turn>", 107: "<end_of_turn>"}
    symbols = [turns.get(i, f"<unused{i}>") for i in range(4, 108)]
    own = {f"{name}_id": i for i, name in enumerate(names)} | {f"{name}_piece": f"<{name}>" for name in names}
    train_sentencepiece(folder, user_defined_symbols=symbols, vocab_size=460, add_dummy_prefix=False, **own)
    special = {str(i): {"content": mark, "special": True} for i, mark in turns.items()}
    marks = {f"{name}_token": f"<{name}>" for name in names}
    kind = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "added_tokens_decoder": special, **marks}
    write_json(folder / "tokenizer_config.json", kind)


@pytest.mark.parametrize("kind", GGUF)
def test_llama_cpp_computes_the_same(kind: str, tmp_path: Path) -> None:
    """With LLAMA_CPP_CONVERTER, "PYTHON .../convert_hf_to_gguf.py", of a Python that has llama-cpp-python as well."""
    python = shlex.split(os.environ.get(CONVERTER, ""))[:1]
    if not python:
        pytest.skip(f"{CONVERTER} names no converter")
    repo, vocabulary, sizes, style, bound = GGUF[kind]
    if repo and not (SHARED / "hub" / repo).is_dir():
        pytest.skip("no ../shared")
    folder, out = tmp_path / "model", tmp_path / "out"
    torch.manual_seed(0)
    described = transformers.AutoConfig.for_model(kind.split(",")[0], vocab_size=vocabulary, **sizes)
    transformers.AutoModelForCausalLM.from_config(described).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())  # as the hub's files have it
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "rotary_emb_base": rope["rope_theta"], "rotary_pct": 0.25}
    if rope["rope_type"] == "longrope":
        config["rope_scaling"] = {"type": "longrope", **FACTORS}
    write_json(folder / "config.json", config)
    for path in (SHARED / "hub" / repo).glob("*token*") if repo else ():
        shutil.copyfile(path, folder / path.name)
    if repo is None:
        train_gemma_tokenizer(folder)
    assert command("convert", "--checkpoint_dir", folder) == 0
    trained(folder, LoRA(), tmp_path / "lit_model_lora_finetuned.pth", style)
    flags = ["--checkpoint_dir", folder, "--lora_path", tmp_path, "--output_dir", out, "--format", "gguf"]
    assert command("export", *flags) == 0
    tokenizer, question = Tokenizer(folder), "Isn't it  naïve?\n\nKäse, 猫 🙂 and 12"
    ids = tokenizer.encode(question)
    template = (out / "Modelfile").read_text().split('"""')[1]
    texts = [question, template.replace("{{ .Prompt }}", question)]
    job = json.dumps([str(out / "model.gguf"), ids, texts, str(tmp_path / "logits.npy")])
    answer = subprocess.run([*python, "-c", LLAMA_CPP], input=job, capture_output=True, text=True, check=True).stdout
    encoded = get_style(style).encode_prompt(tokenizer, (Turn("user", question),))
    assert json.loads(answer.splitlines()[-1]) == [ids, encoded]
    with torch.inference_mode():
        model = load_gpt(folder, torch.float32, finetuned=tmp_path)
        ours = model(torch.tensor([ids]), cache=KVCache(model.config, 1, 256, "cpu", torch.float32))[0]
    assert error(torch.from_numpy(numpy.load(tmp_path / "logits.npy")), ours[:, :vocabulary]) <= bound


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "peft"], "--format peft writes what was trained; give it with --lora_path"),
        (["--shard_gb", 0], "--shard_gb: must be positive"),
        (["--lora_path", "no/such"], "no file no/such"),
    ],
)
def test_bad_input(flags: list, message: str, checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert command("export", "--checkpoint_dir", checkpoint, "--output_dir", tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert command("export", "--checkpoint_dir", checkpoint, "--output_dir", checkpoint) == 2
    assert "is the model itself" in capsys.readouterr().err


def test_the_config_knows_its_own_names(tmp_path: Path) -> None:
    hf_checkpoint("gpt_neox: parallel", tmp_path)
    told = json.loads((tmp_path / "lit_config.json").read_text())
    assert "gpt_neox.embed_in.weight" in told["stored_as"]
    assert Config.from_checkpoint(tmp_path).family == "gpt_neox"

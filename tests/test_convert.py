"""A checkpoint of the hub becomes ours bit by bit, in little memory, or says in one line why not."""

import itertools
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from lit_gpt import convert as convert_module
from lit_gpt import hf_weights
from lit_gpt.checkpoint import load_gpt
from lit_gpt.config import Config
from lit_gpt.convert import Convert, convert
from lit_gpt.files import read_json, write_json
from lit_gpt.hf_weights import state_dict_from_hf
from lit_gpt.settings import UserError, run

SIZES = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": {**SIZES, "model_type": "llama", "intermediate_size": 70, "num_key_value_heads": 2},
    "llama, tied": {**SIZES, "model_type": "llama", "intermediate_size": 70, "tie_word_embeddings": True},
    "gpt_neox": {**SIZES, "model_type": "gpt_neox", "intermediate_size": 90},
    "falcon, multi-query": {**SIZES, "model_type": "falcon"},
    "falcon, grouped": {**SIZES, "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
}
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def hf_model(kind: str = "llama", dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """A random model, norms and biases too."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**MODELS[kind]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)


def of_files(model: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """The state as files have it: a tied head once."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def write_hf(folder: Path, state: dict[str, Tensor], config: dict, files: str = "model.safetensors") -> Path:
    """Writes a checkpoint as the hub has it, in one file or in three."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    name = files.removesuffix(".index.json")
    save = save_file if name == "model.safetensors" else torch.save
    if files == name:
        save(state, folder / name)
        return folder
    stem, suffix = name.split(".")
    weight_map = {key: f"{stem}-{1 + number % 3:05}-of-00003.{suffix}" for number, key in enumerate(state)}
    for shard in set(weight_map.values()):
        save({key: state[key] for key in state if weight_map[key] == shard}, folder / shard)
    write_json(folder / files, {"metadata": {"total_size": 0}, "weight_map": weight_map})
    return folder


def checkpoint(folder: Path, kind: str = "llama", files: str = "model.safetensors") -> Path:
    model = hf_model(kind)
    return write_hf(folder, of_files(model), model.config.to_dict(), files)


def converted(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "lit_model.pth", weights_only=True, mmap=True)


def assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name


def command(folder: Path, *flags: str) -> int:
    """`scripts/convert_hf_checkpoint.py`, in this process."""
    return run(convert, [Convert], "convert", "", argv=["--checkpoint_dir", str(folder), *flags])


# --- what comes out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize("kind", MODELS)
def test_every_layout_gives_the_same_bits(tmp_path: Path, kind: str, files: str) -> None:
    model = hf_model(kind)
    config = Config.from_hf(model.config.to_dict())
    convert(Convert(write_hf(tmp_path, of_files(model), model.config.to_dict(), files)))
    assert_equal(converted(tmp_path), state_dict_from_hf(model.state_dict(), config))
    assert Config.from_checkpoint(tmp_path) == config
    idx = torch.arange(7)[None]
    with torch.inference_mode():
        torch.testing.assert_close(load_gpt(tmp_path)(idx), model.eval()(idx).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "llama, tied", "gpt_neox", "falcon, grouped"])
def test_what_transformers_writes(tmp_path: Path, kind: str) -> None:
    model = hf_model(kind, torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    convert(Convert(tmp_path))
    assert_equal(converted(tmp_path), state_dict_from_hf(model.state_dict(), Config.from_hf(tmp_path / "config.json")))


def test_fused_weights_are_taken_apart(tmp_path: Path) -> None:
    """Row by row as the model in `transformers` uses them, not as our own function says."""
    convert(Convert(checkpoint(tmp_path / "neox", "gpt_neox")))
    fused = hf_model("gpt_neox").gpt_neox.layers[1].attention.query_key_value.weight.view(4, 3, 12, 48)
    state = converted(tmp_path / "neox")
    for part, name in enumerate("qkv"):
        assert torch.equal(state[f"blocks.1.attn.{name}.weight"], fused[:, part].reshape(48, 48))
    convert(Convert(checkpoint(tmp_path / "falcon", "falcon, grouped")))
    fused = hf_model("falcon, grouped").transformer.h[1].self_attention.query_key_value.weight.view(2, 4, 12, 48)
    state = converted(tmp_path / "falcon")
    assert torch.equal(state["blocks.1.attn.q.weight"], fused[:, :2].reshape(48, 48))
    assert torch.equal(state["blocks.1.attn.k.weight"], fused[:, 2].reshape(24, 48))
    assert torch.equal(state["blocks.1.attn.v.weight"], fused[:, 3].reshape(24, 48))


def test_old_bin_files(tmp_path: Path) -> None:
    """Before torch 1.6 there was no archive, old exports carry tables, and parameters are not always in one piece."""
    model = hf_model()
    state = {name: torch.nn.Parameter(tensor.t().contiguous().t()) for name, tensor in of_files(model).items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(6)
    write_hf(tmp_path, {}, model.config.to_dict(), "pytorch_model.bin")
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(Convert(tmp_path))
    assert_equal(converted(tmp_path), state_dict_from_hf(model.state_dict(), Config.from_hf(tmp_path / "config.json")))


def test_a_tied_head_may_be_there_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_weights, "MAPPED", 7 * 48 * 4)  # compared 7 rows at a time
    model = hf_model("llama, tied")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    convert(Convert(write_hf(tmp_path, state, model.config.to_dict())))
    assert "lm_head.weight" not in converted(tmp_path)
    state["lm_head.weight"][-1, -1] += 1
    write_hf(tmp_path, state, model.config.to_dict())
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight.*tie_word_embeddings"):
        convert(Convert(tmp_path))


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    convert(Convert(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(tmp_path: Path, dtype: str) -> None:
    model = hf_model("gpt_neox")
    assert command(checkpoint(tmp_path, "gpt_neox"), "--dtype", dtype) == 0
    expected = state_dict_from_hf(model.to(getattr(torch, dtype)).state_dict(), Config.from_checkpoint(tmp_path))
    assert_equal(converted(tmp_path), expected)
    assert read_json(tmp_path / "lit_config.json")["dtype"] == dtype


def test_the_type_stays_as_stored(tmp_path: Path) -> None:
    model = hf_model(dtype=torch.bfloat16)
    convert(Convert(write_hf(tmp_path, of_files(model), model.config.to_dict())))
    assert {tensor.dtype for tensor in converted(tmp_path).values()} == {torch.bfloat16}
    assert read_json(tmp_path / "lit_config.json")["dtype"] == "bfloat16"


def test_source(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    convert(Convert(tmp_path))
    assert read_json(tmp_path / "lit_config.json")["source"] is None
    source = {"repo_id": "org/name", "revision": "main", "commit": "abc"}
    write_json(tmp_path / "download.json", {**source, "files": {}})
    convert(Convert(tmp_path))
    assert read_json(tmp_path / "lit_config.json")["source"] == source


def test_identity_of_the_weights(tmp_path: Path) -> None:
    def identity(state: dict[str, Tensor], files: str = "model.safetensors", dtype: str | None = None) -> str:
        folder = write_hf(tmp_path / str(len(list(tmp_path.iterdir()))), state, config, files)
        convert(Convert(folder, dtype))
        return read_json(folder / "lit_config.json")["weights_sha256"]

    config, state = hf_model().config.to_dict(), of_files(hf_model())
    first, second = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    changed = {**state, first: state[first].clone()}
    changed[first][3, 5] = -changed[first][3, 5]
    same = {identity(state, files) for files in FILES} | {identity(dict(reversed(state.items())))}
    assert len(same) == 1
    others = {
        identity(changed),
        identity({**state, first: state[second], second: state[first]}),
        identity(state, dtype="float16"),
    }
    assert len(same | others) == 4


def test_says_what_it_did_and_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(checkpoint(tmp_path)) == 0
    out, err = capsys.readouterr()
    assert out == ""
    done, following = err.splitlines()
    assert done.startswith("0.04 M parameters, float32, 0.2 MB in ")
    assert done.endswith(f"-> {tmp_path / 'lit_model.pth'}")
    assert f"python generate/base.py --checkpoint_dir {tmp_path}" in following


# --- how it is written ---------------------------------------------------------------------------------------------


def test_a_failure_midway_leaves_the_old_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path)
    convert(Convert(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    read = hf_weights.read

    def failing(failure: BaseException):
        def read_some(*args: object) -> Iterator[tuple[str, Tensor]]:
            yield from itertools.islice(read(*args), 5)
            raise failure

        return read_some

    for failure, code in ((OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(hf_weights, "read", failing(failure))
        assert command(tmp_path, "--dtype", "bfloat16") == code
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


MEASURE = """
import sys
from pathlib import Path
from lit_gpt.convert import Convert, convert

def memory(which):
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith(which))

convert(Convert(Path(sys.argv[1])))  # everything is imported
before = memory("VmHWM")
convert(Convert(Path(sys.argv[2])))
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize("files", ["model.safetensors", "pytorch_model.bin"])
def test_memory_is_that_of_the_largest_tensor(tmp_path: Path, files: str) -> None:
    """116 MB in one file; the largest tensor has 4 MB, and 34 MB may be mapped at a time."""
    config = {**hf_model().config.to_dict(), "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 9}
    with torch.device("meta"):
        shapes = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).state_dict()
    state = {name: torch.full(tensor.shape, 0.5) for name, tensor in shapes.items()}
    assert sum(tensor.nbytes for tensor in state.values()) > 110e6
    write_hf(tmp_path / "large", state, config, files)
    small, large = checkpoint(tmp_path / "small", files=files), tmp_path / "large"
    done = subprocess.run([sys.executable, "-c", MEASURE, small, large], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 70, done.stdout


# --- what is refused -----------------------------------------------------------------------------------------------


class Exploit:
    """Creates a file when it is unpickled by a reader that executes what it reads."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_the_exploit_works(tmp_path: Path) -> None:
    """Without the defence the file does execute; otherwise its refusal, tested below, would show nothing."""
    torch.save(Exploit(tmp_path / "executed"), tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "executed").exists()


def edit(change: dict) -> dict:
    """The tensors of a good checkpoint with some replaced, or left out where the new one is None."""
    state = {**of_files(hf_model()), **change}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def rewrite(change: dict, files: str = "model.safetensors", config: dict | None = None):
    """A spoiler: writes a checkpoint with other tensors or another config.json."""
    return lambda folder: write_hf(folder, edit(change), {**hf_model().config.to_dict(), **(config or {})}, files)


def cut(name: str, kept: float = 0.9):
    def spoil(folder: Path) -> None:
        rewrite({}, name)(folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * kept)])

    return spoil


def indexed(**files: str):
    """Writes shards, and then an index that names others."""

    def spoil(folder: Path) -> None:
        rewrite({}, "model.safetensors.index.json")(folder)
        index = folder / "model.safetensors.index.json"
        write_json(index, {"weight_map": {**read_json(index)["weight_map"], **files}})

    return spoil


def attack(save):
    def spoil(folder: Path) -> None:
        rewrite({}, "pytorch_model.bin")(folder)
        save({"model.norm.weight": Exploit(folder / "executed")}, folder / "pytorch_model.bin")

    return spoil


def save_plain_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def save_old(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def remove(*names: str, files: str = "model.safetensors"):
    def spoil(folder: Path) -> None:
        rewrite({}, files)(folder)
        for name in names:
            (folder / name).unlink()

    return spoil


UP, NORM, EMBED = "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
SHARD = "model-00002-of-00003.safetensors"
REFUSED = {
    "no folder": (lambda folder: None, "no folder {folder}; download"),
    "no config": (remove("config.json"), "no config.json in {folder}; download"),
    "no weights": (remove("model.safetensors"), "no weights in {folder} .*download"),
    "broken config": (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{")), r"config.json:1"),
    "unknown architecture": (rewrite({}, config={"model_type": "mamba"}), "model_type 'mamba' is not supported"),
    "shard missing": (
        remove(SHARD, files="model.safetensors.index.json"),
        f"{{folder}}: 1 of 3 weight files missing: {SHARD}",
    ),
    "path out of the folder": (indexed(x="../secret.safetensors"), r"'\.\./secret.safetensors' is no weight file"),
    "absolute path": (indexed(x="/etc/secret.bin"), "'/etc/secret.bin' is no weight file"),
    "no file name": (indexed(x=3), "no weight_map from tensors to files"),
    "cut safetensors": (cut("model.safetensors"), "{folder}/model.safetensors is damaged or cut off"),
    "cut in the header": (cut("model.safetensors", 0.001), "{folder}/model.safetensors is damaged or cut off"),
    "empty file": (cut("model.safetensors", 0), "{folder}/model.safetensors is damaged or cut off"),
    "cut bin": (cut("pytorch_model.bin"), "{folder}/pytorch_model.bin is damaged or cut off"),
    "empty bin": (cut("pytorch_model.bin", 0), "{folder}/pytorch_model.bin is damaged or cut off"),
    "attack": (attack(torch.save), r"{folder}/pytorch_model.bin holds more than tensors \(posix.system\)"),
    "attack in an old file": (attack(save_old), r"{folder}/pytorch_model.bin holds more than tensors \(posix.system\)"),
    "attack in a plain pickle": (
        attack(save_plain_pickle),
        r"{folder}/pytorch_model.bin holds more than tensors \(posix.system\)",
    ),
    "no dict": (
        lambda folder: (rewrite({}, "pytorch_model.bin")(folder), torch.save([1], folder / "pytorch_model.bin")),
        "{folder}/pytorch_model.bin holds something other than named tensors",
    ),
    "unknown tensor": (
        rewrite({"model.layers.2.mlp.up_proj.weight": torch.zeros(1), "x": torch.zeros(1)}),
        "has no model.layers.2.mlp.up_proj.weight in {folder}/model.safetensors, x in {folder}/model.safetensors",
    ),
    "missing tensor": (rewrite({UP: None, NORM: None}), rf"({NORM}, {UP}|{UP}, {NORM}) missing in {{folder}}/model.s"),
    "missing head": (rewrite({"lm_head.weight": None}), "lm_head.weight missing in"),
    "bias without a place": (rewrite({UP.replace("weight", "bias"): torch.zeros(70)}), "has no model.layers.1.mlp.up_"),
    "wrong shape": (rewrite({UP: torch.zeros(48, 70)}), rf"{UP} is \(48, 70\), by config.json it is \(70, 48\)"),
    "too many tokens": (
        rewrite({EMBED: torch.zeros(103, 48)}),
        rf"{EMBED} is \(103, 48\), by config.json it is \(101, 48\); if tokens were added, set vocab_size to 103",
    ),
    "too few tokens": (rewrite({}, config={"vocab_size": 104}), "set vocab_size to 101 in config.json"),
    "quantised": (rewrite({UP: torch.zeros(70, 48, dtype=torch.int8)}), f"{UP} is torch.int8.*original model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, case: str) -> None:
    folder = tmp_path / "org" / "name"
    spoil, expected = REFUSED[case]
    folder.parent.mkdir()
    spoil(folder)
    before = sorted(tmp_path.rglob("*"))
    assert command(folder) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search(expected.format(folder=folder), message), message
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left, and no attack has succeeded"


def test_twice(tmp_path: Path) -> None:
    checkpoint(tmp_path, files="model.safetensors.index.json")
    save_file({NORM: torch.zeros(48)}, tmp_path / "more.safetensors")
    index = read_json(tmp_path / "model.safetensors.index.json")
    write_json(
        tmp_path / "model.safetensors.index.json", {"weight_map": {**index["weight_map"], "x": "more.safetensors"}}
    )
    with pytest.raises(UserError, match=f"{NORM} is there twice"):
        convert(Convert(tmp_path))


def test_full_disk_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path)
    usage = type(convert_module.shutil.disk_usage("."))
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"takes 0\.2 MB, 0\.0 MB free"):
        convert(Convert(tmp_path))
    assert not (tmp_path / "lit_model.pth").exists()


def test_state_dict_from_hf_names_what_is_wrong() -> None:
    config = Config.from_hf(hf_model().config.to_dict())
    with pytest.raises(UserError, match=f"{NORM} missing in the state dict"):
        state_dict_from_hf(edit({NORM: None}), config)


def test_other_positions_are_no_added_tokens(tmp_path: Path) -> None:
    """A table of positions that is longer than config.json says: vocab_size would not mend it."""
    config = transformers.GPT2Config(vocab_size=101, n_positions=32, n_embd=48, n_layer=1, n_head=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), "n_positions": 16})
    with pytest.raises(UserError, match=r"wpe.weight is .*is it this checkpoint's own config.json") as raised:
        convert(Convert(tmp_path))
    assert "vocab_size" not in str(raised.value)

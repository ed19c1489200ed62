"""Files of strangers execute nothing and lead nowhere; no token is shown; nothing is sent anywhere."""

import ast
import builtins
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import command, make_checkpoint
from hub_server import HubServer
from safetensors.torch import save_file

from lit_gpt.checkpoint import load_gpt
from lit_gpt.config import Config
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.files import read_json, write_json
from lit_gpt.hf_weights import find_shards, stored_names
from lit_gpt.hub import Download, download
from lit_gpt.resume import MANIFEST, OPTIMIZER, _facts
from lit_gpt.settings import UserError, run
from lit_gpt.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
TOKEN = "hf_" + "Secret0123456789" * 2
CONFIG = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
}


def write_hf(folder: Path, checkpoint: Path, files: str = "model.safetensors") -> Path:
    """The tests' checkpoint as the hub would have it."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = load_gpt(checkpoint).state_dict()
    names = stored_names(Config.from_hf(CONFIG))
    state = {theirs: ours[name].clone() for theirs, here in names.items() for name in here.names}
    (save_file if files.endswith("safetensors") else torch.save)(state, folder / files)
    write_json(folder / "config.json", CONFIG)
    (folder / "tokenizer.model").write_bytes((checkpoint / "tokenizer.model").read_bytes())
    return folder


def one_line(capsys: pytest.CaptureFixture, code: int) -> str:
    """The line of a command that was refused."""
    told = capsys.readouterr()
    assert code == 2, told.err
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err


# --- pickles that execute something --------------------------------------------------------------------------------


class Exploit:
    """Calls a function when it is unpickled by a reader that executes what it reads."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def payloads(marker: Path) -> dict[str, Exploit]:
    """Each makes a file."""
    return {
        "os.system": Exploit(os.system, f"touch {marker}"),
        "exec": Exploit(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "open": Exploit(io.open, str(marker), "w"),
        "Popen": Exploit(subprocess.call, ["touch", str(marker)]),
        "torch": Exploit(torch.save, 1, str(marker)),  # of a module that the reader knows
    }


def save_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def save_old(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def save_tar(value: Any, path: Path) -> None:
    """Torch's first format, which its reader still knows."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(0, protocol=2) + pickle.dumps(value, protocol=2)
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


FORMATS = {"zip": save_zip, "old": save_old, "pickle": save_pickle, "tar": save_tar}


@pytest.mark.parametrize("payload", sorted(payloads(Path())))
def test_the_exploits_work(tmp_path: Path, payload: str) -> None:
    """On a reader without defence; otherwise their refusal, tested below, would show nothing."""
    for kind in ("zip", "old"):
        FORMATS[kind]({"x": payloads(tmp_path / kind)[payload]}, tmp_path / "x.bin")
        torch.load(tmp_path / "x.bin", weights_only=False)
        assert (tmp_path / kind).exists()


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("payload", sorted(payloads(Path())))
def test_no_file_executes_anything(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, payload: str, form: str
) -> None:
    """Real tensors, and an exploit among them, in every file that is read with torch."""
    save, marker = FORMATS[form], tmp_path / "executed"
    exploit = payloads(marker)[payload]

    def spoil(path: Path, state: dict[str, Any]) -> None:
        save({**state, "zzz": exploit}, path)

    hub = write_hf(tmp_path / "hub", checkpoint, "pytorch_model.bin")
    spoil(hub / "pytorch_model.bin", torch.load(hub / "pytorch_model.bin", weights_only=True))
    assert str(hub / "pytorch_model.bin") in one_line(capsys, command("convert", "--checkpoint_dir", hub))
    assert not (hub / "lit_model.pth").exists()

    base = make_checkpoint(tmp_path / "base")
    capsys.readouterr()
    spoil(base / "lit_model.pth", torch.load(base / "lit_model.pth", weights_only=True))
    generate = ["--checkpoint_dir", base, "--max_new_tokens", 1]
    assert str(base / "lit_model.pth") in one_line(capsys, command("generate base", *generate))

    lora = tmp_path / "lit_model_lora_finetuned.pth"
    spoil(lora, {"method": {"name": "lora"}, "weights": {"x": torch.zeros(3)}, "prompt_style": "alpaca"})
    for name, flags in (("generate lora", ["--prompt", "x"]), ("merge lora", ["--out_dir", tmp_path / "merged"])):
        flags = ["--checkpoint_dir", checkpoint, "--lora_path", lora, *flags]
        assert str(lora) in one_line(capsys, command(name, *flags))

    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "meta.json").write_bytes((data / "meta.json").read_bytes())
    spoil(rows / "train.pt", torch.load(data / "train.pt", weights_only=True))
    with pytest.raises(UserError, match=r"train\.pt: damaged, or not a prepared split"):
        TokenDataset(rows)
    assert not marker.exists()


def test_a_checkpoint_of_a_run_executes_nothing(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The optimizer's state holds an exploit, and the manifest has its right digest."""
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path / "out", "--max_steps", 2]
    flags += ["--batch_size", 4, "--eval_iters", 1, "--save_interval", 1, "--precision", "32-true"]
    assert command("finetune lora", *flags) == 0
    (tmp_path / "out" / "run.json").unlink()
    folder, marker = tmp_path / "out" / "step-000001", tmp_path / "executed"
    for form in ("zip", "old"):
        state = {"optimizer": {}, "precision": {}, "x": payloads(marker)["os.system"]}
        FORMATS[form](state, folder / OPTIMIZER)
        write_json(folder / MANIFEST, {p.name: _facts(p) for p in folder.iterdir() if p.name != MANIFEST})
        capsys.readouterr()
        assert command("finetune lora", *flags, "--resume", folder) == 2
        told = "holds more than tensors and was not read" if form == "zip" else "is damaged or not a file of ours"
        assert f"error: {folder / OPTIMIZER} {told}" in capsys.readouterr().err
        assert not marker.exists()


def test_torchscript_is_no_checkpoint(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """torch.load would hand it to the reader of compiled programs."""
    folder = write_hf(tmp_path / "hub", checkpoint, "pytorch_model.bin")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "pytorch_model.bin")
    capsys.readouterr()
    assert "pytorch_model.bin is damaged" in one_line(capsys, command("convert", "--checkpoint_dir", folder))


# --- names that lead elsewhere -------------------------------------------------------------------------------------

ELSEWHERE = [
    "..",
    "sub/a.bin",
    "./a.bin",
    "..\\a.bin",
    "a.bin\0",
    "a\n.bin",
    "",
    ".hidden.bin",
    "a.bin/",
    "~/a.bin",
    "a.pth",
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_index_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").touch()
    (tmp_path / "a.bin").touch()
    write_json(tmp_path / "pytorch_model.bin.index.json", {"weight_map": {"x": name}})
    with pytest.raises(UserError, match="is no weight file of this folder; do not trust this checkpoint"):
        find_shards(tmp_path)


def test_nothing_is_written_through_a_link(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A repository that was cloned may bring links; what they lead to stays as it is."""
    folder = write_hf(tmp_path / "hub", checkpoint)
    links = ["lit_model.pth", "lit_config.json", ".lit_model.pth.tmp", ".lit_config.json.tmp"]
    for name in links:
        (tmp_path / name).write_text("precious")
        (folder / name).symlink_to(tmp_path / name)
    assert command("convert", "--checkpoint_dir", folder) == 0
    assert [(tmp_path / name).read_text() for name in links] == ["precious"] * len(links)
    assert load_gpt(folder).config == Config.from_hf(CONFIG)


def test_the_cache_of_the_hub_client_can_be_converted(checkpoint: Path, tmp_path: Path) -> None:
    """There, files are links to where their bytes lie: links that are read are followed."""
    blobs, folder = write_hf(tmp_path / "blobs", checkpoint), tmp_path / "snapshots"
    folder.mkdir()
    for blob in blobs.iterdir():
        (folder / blob.name).symlink_to(blob)
    before = {path.name: path.read_bytes() for path in blobs.iterdir()}
    assert command("convert", "--checkpoint_dir", folder) == 0
    assert {path.name: path.read_bytes() for path in blobs.iterdir()} == before


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A local hub that the client in this process talks to."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with HubServer(TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


GOOD = {"config.json": b"{}", "tokenizer.json": b"{}"}
SHARDS = {"model.safetensors": b"weights"}


def test_names_that_a_hub_lists(hub: HubServer, tmp_path: Path) -> None:
    """Only names of ours are fetched, whatever else is offered."""
    evil = [
        f"{place}config.json" for place in ("../", "../../", "/", "a/../../", "..\\", "C:\\", "~/", "./", "sub/", ".")
    ]
    evil += [
        "tokenizer_config.json/../../x",
        "config.json\0",
        "tokenizer\n.json",
        "tokenizer/../../tokenizer.json",
        "..",
    ]
    evil += ["download.json", ".download.lock", "lit_model.pth", "lit_config.json", "tokenizer.py", "modeling_x.py"]
    evil += [f"model-00001-of-{'9' * 5000}.safetensors", "model-00001-of-00001.safetensors/../../../x.safetensors"]
    hub.add("org/name", GOOD | dict.fromkeys(evil, b"evil"), SHARDS)
    home = tmp_path / "a" / "b"
    download(Download(repo_id="org/name", checkpoint_dir=home))
    found = {path.relative_to(home / "org/name"): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found.pop(Path("download.json"))
    assert found == {Path(name): content for name, content in (GOOD | SHARDS).items()}


@pytest.mark.parametrize(
    "row",
    [
        {"oid": "/../../../x"},
        {"oid": 7},
        {"oid": None},
        {"oid": ""},
        {"size": -1},
        {"size": "12"},
        {"size": None},
        {"size": 1e300},
        {"lfs": {"oid": "../../../../x", "size": 2, "pointerSize": 1}},
        {"lfs": {"oid": "0" * 64, "size": -5, "pointerSize": 1}},
        {"lfs": {"oid": None, "size": 2, "pointerSize": 1}},
        {"lfs": "x"},
        {"path": 5},
        {"path": None},
    ],
    ids=str,
)
def test_listings_that_are_none(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict) -> None:
    repo = hub.add("org/name", GOOD, SHARDS)
    rows = repo.tree()
    rows[1] = {**rows[1], **row}
    monkeypatch.setattr(type(repo), "tree", lambda self: rows)
    with pytest.raises(UserError, match=r"does not answer like a Hugging Face hub|has no config\.json"):
        download(Download(repo_id="org/name", checkpoint_dir=tmp_path / "x"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- names of code -------------------------------------------------------------------------------------------------


def test_checkpoints_name_no_code(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Python files of a checkpoint are neither run nor imported, whatever its settings say."""
    folder, marker = write_hf(tmp_path / "hub", checkpoint), tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w')\nclass Evil:\n    pass\n"
    for name in ("evil.py", "modeling_llama.py", "conftest.py", "sitecustomize.py", "tokenizers.py", "__init__.py"):
        (folder / name).write_text(code)
    auto = {f"Auto{kind}": "evil.Evil" for kind in ("Config", "Model", "ModelForCausalLM", "Tokenizer")}
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}"
    write_json(folder / "config.json", {**CONFIG, "auto_map": auto, "architectures": ["evil.Evil"], "custom": template})
    evil = {
        "tokenizer_class": "evil.Evil",
        "auto_map": auto,
        "chat_template": template,
        "bos_token": "__import__('evil')",
    }
    write_json(folder / "tokenizer_config.json", evil)
    (folder / "chat_template.jinja").write_text(template)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    assert command("convert", "--checkpoint_dir", ".") == 0
    assert Tokenizer(".").encode("The old cat")
    assert command("generate base", "--checkpoint_dir", ".", "--max_new_tokens", 1) == 0
    assert not marker.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"]
)
def test_files_of_settings_name_no_code(tmp_path: Path, capsys: pytest.CaptureFixture, tag: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "x.yaml"
    argument = "" if "name" in tag else f" [touch {marker}]"
    for text in (f"prompt: {tag}{argument}", f"{tag}{argument}", f"? {tag}{argument}\n: 1"):
        path.write_text(text)
        one_line(capsys, command("generate base", "--checkpoint_dir", tmp_path, "--config", path))
    one_line(capsys, command("generate base", "--checkpoint_dir", tmp_path, f"--seed={tag}{argument}"))
    assert not marker.exists()


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with the place and the name of what is called; of partial(f, ...), too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.args[0] if ast.unparse(node.func).endswith("partial") and node.args else node.func
            yield ast.unparse(called), node


FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"}
FORBIDDEN |= {"pickle.Unpickler", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
FORBIDDEN |= {"torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "np.load", "joblib.load"}


@pytest.mark.parametrize("folder", ["lit_gpt", "finetune", "generate", "scripts", "eval", "submission", "quickstart"])
def test_no_code_executes_data(folder: str) -> None:
    """No call that runs text, a shell or a pickle; torch.load never without weights_only=True."""
    loads = 0
    for path in (ROOT / folder).rglob("*.py"):
        for name, node in calls(path):
            place, given = f"{path}:{node.lineno}", {key.arg: ast.unparse(key.value) for key in node.keywords}
            assert name not in FORBIDDEN, place
            assert given.get("shell", "False") == "False", place
            assert "trust_remote_code" not in given or given["trust_remote_code"] == "False", place
            if name == "torch.load":
                loads += 1
                assert given.get("weights_only") == "True", place
    assert loads >= (4 if folder == "lit_gpt" else 0)


# --- tokens --------------------------------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture, folder: Path) -> str:
    """All that was printed, and all that was written."""
    out, err = capsys.readouterr()
    return out + err + "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
def test_no_failure_shows_the_token(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, debug: list[str]
) -> None:
    from huggingface_hub import constants

    repo = hub.add("org/name", GOOD, SHARDS, private=True)
    hub.add("org/gated", GOOD, SHARDS, gated=True)
    base = ["--checkpoint_dir", tmp_path / "x", "--token", TOKEN, *debug]
    wrong = "hf_" + "Wrong9876543210" * 2
    assert command("download", "--repo_id", "org/name", *base) == 0
    assert command("download", "--repo_id", "org/gated", *base) == 2
    assert command("download", "--repo_id", "org/none", *base) == 2
    assert command("download", "--repo_id", "org/name", *base, "--revision", TOKEN[:10]) == 2
    assert command("download", "--repo_id", "org/name", "--token", wrong, *debug) == 2
    repo.faults["config.json"] = iter(["500", "corrupt", "corrupt", "reset:0", "reset:0"])
    for _ in range(3):
        (tmp_path / "x/org/name/config.json").unlink(missing_ok=True)
        assert command("download", "--repo_id", "org/name", *base) == 2
    hub.status = 418
    echo = lambda self, *args, **more: self.answer(418, self.headers.get("Authorization", "").encode(), {})  # noqa: E731
    monkeypatch.setattr("hub_server._Handler.answer_json", echo)
    assert command("download", "--repo_id", "org/name", *base) == 2
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert command("download", "--repo_id", "org/name", *base) == 2
    assert (
        command("download", "--repo_id", "org/name", "--token", f"{TOKEN}\n", "--checkpoint_dir", "/dev/null", *debug)
        == 2
    )
    found = told(capsys, tmp_path)
    assert found.count("error: ") >= 10
    assert TOKEN not in found
    assert wrong not in found


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
def test_no_wrong_flag_or_file_shows_the_token(tmp_path: Path, capsys: pytest.CaptureFixture, debug: list[str]) -> None:
    """A token in a wrong place, or beside something wrong."""
    for words in (
        [TOKEN],
        ["--tokn", TOKEN],
        [f"--tokn={TOKEN}"],
        [f"--{TOKEN}"],
        ["--tokenizer_only", TOKEN],
        ["--token", f"!!bool {TOKEN}"],
        ["--token", f"[{TOKEN}]", "--bogus", "1"],
        ["--token", TOKEN, "--tokenizer_only", "maybe"],
    ):
        one = command("download", "--repo_id", "../x", *words, *debug)
        assert one == 2, words
    for text in (f"token: {TOKEN}\n b: 1", f"token: !x {TOKEN}", f"tokn: {TOKEN}", f"token {TOKEN}", f"{TOKEN}: 1"):
        (tmp_path / "x.yaml").write_text(text)
        assert command("download", "--repo_id", "../x", "--config", tmp_path / "x.yaml", *debug) == 2
    out, err = capsys.readouterr()
    assert err.count("error: ") >= 13
    assert TOKEN not in out + err
    with pytest.raises(SystemExit):
        command("download", "--token", TOKEN, "--print_config")
    assert TOKEN not in capsys.readouterr().out


def test_an_error_of_the_program_shows_no_token(capsys: pytest.CaptureFixture) -> None:
    def fail() -> None:
        raise ValueError(f"Authorization: Bearer {TOKEN}")

    assert run(fail, [], "x", "Doc.", argv=["--debug"]) == 1
    told = capsys.readouterr().err
    assert "Bearer hf_***" in told
    assert "Traceback" in told
    assert TOKEN not in told


# --- no network ----------------------------------------------------------------------------------------------------

OFFLINE = """
import json, os, socket, sys
sent, started = [], set()
NETWORK = ("connect", "getaddrinfo", "gethostbyname", "gethostbyaddr", "sendto", "sendmsg")
NETWORK = {"socket." + name for name in NETWORK}

def watch(event, args):
    if event in NETWORK:
        sent.append([event, str(args)])
        raise OSError(f"{event} is not allowed")
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system"):
        started.add(os.path.basename(str(args[0])))

sys.addaudithook(watch)
sys.path.insert(0, "tests")
from conftest import command

hub, rows, out = sys.argv[1:]
own = ["--checkpoint_dir", hub]
lora = ["--lora_path", out + "/lora"]
short = ["--max_new_tokens", 3, "--precision", "32-true"]
train = ["--max_steps", 2, "--batch_size", 4, "--eval_iters", 1, "--precision", "32-true", "--eval_prompt", "Say it."]
codes = [
    command("convert", *own),
    command("prepare json", *own, "--data_file", rows, "--destination_path", out + "/set"),
    command("finetune lora", *own, "--data_dir", out + "/set", "--out_dir", out + "/lora", *train),
    command("generate base", *own, *short),
    command("generate lora", *own, *lora, *short),
    command("merge lora", *own, *lora, "--out_dir", out + "/merged"),
    command("generate base", "--checkpoint_dir", out + "/merged", *short),
]
before = list(sent)
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    pass
print()
print(json.dumps({"codes": codes, "sent": before, "watched": sent != before, "started": sorted(started)}))
"""


def test_nothing_is_sent(checkpoint: Path, tmp_path: Path) -> None:
    """From a downloaded checkpoint to a merged one: no connection, no name looked up, no token in any file."""
    hub = write_hf(tmp_path / "hub" / "model", checkpoint)
    rows = [{"instruction": f"Say {n}.", "output": f"the word is {n}"} for n in range(20)]
    write_json(tmp_path / "rows.json", rows)
    out = tmp_path / "out"
    words = [sys.executable, "-c", OFFLINE, hub, tmp_path / "rows.json", out]
    env = {**os.environ, "HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN, "HOME": str(tmp_path / "home")}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["codes"] == [0] * 7, done.stderr
    assert found["sent"] == []
    assert found["watched"], "a connection would have been seen"
    assert set(found["started"]) <= {"git", "uname", "fc-list"}, "and no program was started that could send something"
    assert read_json(out / "lora" / "run.json")["result"]
    assert TOKEN not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path

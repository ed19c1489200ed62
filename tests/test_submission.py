"""What is handed in to the challenge: the bundle builds and trains again as it says, and broken rules are told.

No container is built here: the lines of the Dockerfiles are carried out in an empty folder instead, all but the
installation of packages.
"""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import command, local_hub, stand_in
from hub_server import HubServer
from test_cli import launched

from lit_gpt.challenge import rules
from lit_gpt.challenge.cards import CARDS, outlook, serving
from lit_gpt.challenge.rules import RULES, DataSet, Entry, Finding
from lit_gpt.checkpoint import load_gpt, read_finetuned
from lit_gpt.config import Config
from lit_gpt.families.catalogue import CATALOGUE
from lit_gpt.files import locked, read_json, sha256, write_json
from lit_gpt.finetune import Finetune
from lit_gpt.methods import LoRA

ROOT = Path(__file__).parents[1]
BASE = "openlm-research/open_llama_3b"
CHECKPOINT = f"checkpoints/{BASE}"
ROWS = [
    {
        "instruction": f"Name {n} towns.",
        "context": "Rome, Oslo" * (n % 2),
        "response": f"Oslo is one of {n}.",
        "category": "x",
    }
    for n in range(24)
]
SHORT = ["--precision", "32-true", "--max_steps", 3, "--batch_size", 4, "--micro_batch_size", 2, "--eval_iters", 1]
TOKEN = "hf_" + "a1B2" * 9


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, HubServer]]:
    """A folder where a small base was fetched from a hub, under an approved name, and finetuned on Dolly; the hub."""
    folder = tmp_path_factory.mktemp("place")
    files = {path.name: path.read_bytes() for path in (ROOT / "quickstart/hub/lit-gpt/tiny-facts").iterdir()}
    weights = {name: files.pop(name) for name in [*files] if name.endswith((".safetensors", ".model"))}
    rows = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    with pytest.MonkeyPatch.context() as patch, local_hub(patch) as hub:
        patch.chdir(folder)
        stand_in(patch, BASE, files["config.json"])
        hub.add(BASE, files, lfs=weights)
        hub.add("datasets/databricks/databricks-dolly-15k", {"databricks-dolly-15k.jsonl": rows})
        assert command("download", "--repo_id", BASE) == 0
        assert command("convert", "--checkpoint_dir", CHECKPOINT) == 0
        assert command("prepare dolly", "--checkpoint_dir", CHECKPOINT) == 0
        assert finetune("lora", "out/lora", "--lora_dropout", 0.1, "--neftune_alpha", 5) == 0
        yield folder, hub


def finetune(method: str, out: str, *flags: object, data: str = "data/dolly") -> int:
    places = ["--checkpoint_dir", CHECKPOINT, "--data_dir", data, "--out_dir", out]
    return command(f"finetune {method}", *places, *SHORT, *flags)


@pytest.fixture
def here(place: tuple[Path, HubServer], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `place`, to be in."""
    monkeypatch.chdir(place[0])
    return place[0]


def prepare(out: Path, *flags: object, lora: str | None = "out/lora", track: str = "a100") -> int:
    tuned = ["--lora_path", lora] if lora else []
    places = ["--checkpoint_dir", CHECKPOINT, *tuned, "--track", track, "--out_dir", out]
    return command("prepare submission", *places, *flags)


def build(bundle: Path, dockerfiles: list[str], root: Path, endpoint: str) -> list[list[str]]:
    """Carries out Dockerfiles in the empty folder `root`, as far as that can be done without Docker; their commands.

    What two of them have in common is done once.
    """
    commands, done = [], set()
    for line in "\n".join((bundle / name).read_text() for name in dockerfiles).splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "CMD":
            commands.append(json.loads(rest))
        elif line in done:
            continue
        elif kind == "COPY":
            source, target = rest.split()
            assert (bundle / source).exists(), line
            target = root / (source if target == "." else target)
            copy = shutil.copytree if (bundle / source).is_dir() else shutil.copyfile
            copy(bundle / source, target)
        elif kind == "RUN" and not rest.startswith(("pip install", "apt-get")):
            run = start(
                root, ["sh", "-c", re.sub(r"\bpython ", f"{shlex.quote(sys.executable)} ", rest)], HF_ENDPOINT=endpoint
            )
            assert run.returncode == 0, f"{rest}\n{run.stderr}"
        else:
            assert kind in ("", "#", "FROM", "WORKDIR", "ENV", "EXPOSE", "RUN"), line
        done.add(line)
    return commands


def start(root: Path, words: list[str], **environment: str) -> subprocess.CompletedProcess:
    """Runs a program in `root` as in the container: the package is the one that lies there."""
    env = os.environ | {"PYTHONPATH": str(root)} | environment
    return subprocess.run(words, cwd=root, env=env, capture_output=True, text=True)


def prepare_again(bundle: Path, here: Path) -> None:
    """The steps of Dockerfile.train that prepare the data: in the bundle itself, in this process, for this base."""
    os.chdir(bundle)
    (bundle / "checkpoints").symlink_to(here / "checkpoints")
    for line in re.findall(r"^RUN python (scripts/prepare.*)", Path("Dockerfile.train").read_text(), re.MULTILINE):
        launcher, *words = shlex.split(line)
        if "--checkpoint_dir" in words:
            words[words.index("--checkpoint_dir") + 1] = CHECKPOINT
        assert command(launched(launcher), *words) == 0


def imported_from(root: Path) -> str:
    """The folder of the package that a program in `root` imports."""
    return start(root, [sys.executable, "-c", "import lit_gpt; print(lit_gpt.__path__[0])"]).stdout.strip()


def answer(root: Path, words: list[str]) -> str:
    """What the server in `root` says to the organisers' first request; it is started by the container's command."""
    words = [sys.executable, *words[1:], "--host", "127.0.0.1", "--port", "0"]  # the last ones win
    env = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(words, cwd=root, env=env, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://[\d.:]+", line)))
            body = json.dumps({"prompt": "The capital of France is "}).encode()
            asked = urllib.request.Request(f"{address}/process", body, {"Content-Type": "application/json"})
            return json.load(urllib.request.urlopen(asked, timeout=60))["text"]
        finally:
            server.terminate()


def test_a_bundle_by_reference_serves_and_trains_again(place: tuple, here: Path, tmp_path: Path) -> None:
    """Both Dockerfiles, line by line: base and data come from the hub, and training gives the same bits again."""
    bundle, root = tmp_path / "bundle", tmp_path / "root"
    assert prepare(bundle, "--weights", "reference") == 0
    assert not list(bundle.rglob("lit_model.pth"))
    assert sum(path.stat().st_size for path in bundle.rglob("*")) < 3e6
    shown = (bundle / "SUBMISSION.md").read_text()
    assert shown.count("| kept |") >= len(RULES)
    assert "broken" not in shown
    root.mkdir()
    serve, train = build(bundle, ["Dockerfile", "Dockerfile.train"], root, place[1].endpoint)
    assert imported_from(root) == str(root / "lit_gpt")
    assert (root / f"model/{BASE}/lit_model.pth").is_file()
    assert not list(root.rglob("*.safetensors"))
    assert serve[-2:] == ["--port", "80"]
    assert answer(root, serve)
    done = start(root, [sys.executable, *train[1:]])
    assert done.returncode == 0, done.stderr
    before, after = (read_finetuned(path)["weights"] for path in ("out/lora", root / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    facts = read_json(root / "out/run.json")["settings"]
    assert (facts["max_time"], facts["memory_gb"]) == ("23h30m", 40)
    settings = yaml.safe_load((bundle / "serve.yaml").read_text())
    model = load_gpt(root / settings["checkpoint_dir"], finetuned=root / settings["lora_path"])
    expected = load_gpt(CHECKPOINT, finetuned="out/lora")
    assert torch.equal(model(torch.arange(9)[None]), expected(torch.arange(9)[None]))


def test_the_base_that_is_fetched_must_be_that_one(place: tuple, here: Path, tmp_path: Path) -> None:
    assert prepare(tmp_path / "bundle", "--weights", "reference") == 0
    sums = tmp_path / "bundle/model/weights.sha256"
    assert f"{BASE}/tokenizer.model" in sums.read_text()
    sums.write_text(re.sub(r"^[0-9a-f]{8}", "00000000", sums.read_text()))
    (tmp_path / "root").mkdir()
    with pytest.raises(AssertionError, match="did NOT match"):
        build(tmp_path / "bundle", ["Dockerfile"], tmp_path / "root", place[1].endpoint)


def test_a_bundle_by_copy(here: Path, tmp_path: Path) -> None:
    """It is whole: it works where nothing else is, with its own code, and Dockerfile.train fetches the base."""
    bundle = tmp_path / "bundle"
    assert prepare(bundle, track="4090") == 0
    for dockerfile in ("Dockerfile", "Dockerfile.train"):
        copies = re.findall(r"^COPY (\S+)", (bundle / dockerfile).read_text(), re.MULTILINE)
        assert all((bundle / name).exists() for name in copies)
    assert "scripts/download.py --repo_id" in (bundle / "Dockerfile.train").read_text()
    assert imported_from(bundle) == str(bundle / "lit_gpt")
    for text in bundle.glob("*.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)", text.read_text())
        assert all((bundle / link).exists() for link in links), text
    settings = yaml.safe_load((bundle / "serve.yaml").read_text())
    assert settings["checkpoint_dir"] == "model"
    assert settings["batch_size"] == 30
    code = f"from lit_gpt import load_gpt; print(load_gpt('model', finetuned={settings['lora_path']!r}).config.n_layer)"
    assert start(bundle, [sys.executable, "-c", code]).stdout == "4\n"
    data, whose = ((bundle / name).read_text() for name in ("DATA.md", "ATTRIBUTION.md"))
    assert "huggingface.co/datasets/databricks/databricks-dolly-15k" in data
    assert "23 rows were trained on, 1 more kept for validation" in data
    assert "- rows taken: 24" in data
    assert "CC-BY-SA-3.0" in data
    assert f"{BASE} (https://huggingface.co/{BASE}); licence: apache-2.0" in whose
    commands = re.findall(r"^.*submission/verify.py.*", (bundle / "SUBMISSION.md").read_text(), re.MULTILINE)
    assert all(line.startswith("PYTHONPATH=. ") for line in commands)  # the package is nowhere else
    lines = (bundle / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"torch", "lightning", "sentencepiece", "huggingface-hub", "pyyaml", "bitsandbytes"} <= names
    assert not names & {"pytest", "ruff", "lm-eval", "lit-gpt"}


def test_an_earlier_bundle_is_replaced_and_nothing_else(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    assert prepare(bundle) == 0
    (bundle / "model/old").write_text("")
    (bundle / "verify-failures").mkdir()  # what a trial left there
    assert prepare(bundle, lora=None) == 0
    assert not (bundle / "model/old").exists()
    assert not (bundle / "finetuned").exists()
    assert not (bundle / "Dockerfile.train").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}
    assert prepare(here / "data") == 2
    assert "is something else than an earlier bundle" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert prepare(tmp_path / "file") == 2


def test_nothing_but_an_earlier_bundle_is_replaced(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of somebody's with a SUBMISSION.md; what was trained again; what the bundle is made from; links."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/SUBMISSION.md").write_text("mine")
    assert prepare(tmp_path / "own") == 2
    assert "is something else than an earlier bundle" in capsys.readouterr().err
    bundle = tmp_path / "bundle"
    assert prepare(bundle) == 0
    (bundle / "retrained").mkdir()
    assert prepare(bundle) == 2
    assert "holds retrained; move that away" in capsys.readouterr().err
    (bundle / "retrained").rmdir()
    assert prepare(bundle, lora=str(bundle / "finetuned")) == 2
    assert "is made from" in capsys.readouterr().err
    (tmp_path / "link").symlink_to("bundle")
    (bundle / "model/old").write_text("")
    assert prepare(tmp_path / "link") == 0
    assert prepare(bundle / "train/..") == 0
    assert (tmp_path / "link").is_symlink()
    assert not (bundle / "model/old").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "link", "own"}


def test_the_next_command_can_be_copied(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "a bundle"
    assert prepare(bundle) == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-1] == str(bundle)
    for name in ("Dockerfile.train", "SUBMISSION.md"):
        assert '-v "$PWD/retrained:/submission/out" train' in (bundle / name).read_text()


def test_one_writes_at_a_time(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path / ".bundle.lock", "locked"):
        assert prepare(tmp_path / "bundle") == 2
    assert "another process is writing" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_an_earlier_bundle_stays_if_the_new_one_cannot_take_its_place(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    assert prepare(bundle) == 0
    (bundle / "model/old").write_text("")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == ".bundle.new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    assert prepare(bundle) == 130
    assert (bundle / "model/old").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_merged_weights(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Merged here or before: the same model, no finetuned file, and the training begins with the base."""
    once, before = tmp_path / "once", tmp_path / "before"
    assert prepare(once, "--merge", "true") == 0
    assert "against the network that was trained" in capsys.readouterr().err
    flags = ["--checkpoint_dir", CHECKPOINT, "--lora_path", "out/lora", "--out_dir", "own/merged"]
    assert command("merge lora", *flags) == 0
    assert command("prepare submission", "--checkpoint_dir", "own/merged", "--track", "a100", "--out_dir", before) == 0
    ids, expected = torch.arange(9)[None], load_gpt(CHECKPOINT, finetuned="out/lora")
    for bundle in (once, before):
        assert torch.allclose(load_gpt(bundle / "model")(ids), expected(ids), atol=1e-4)
        assert "lora_path" not in yaml.safe_load((bundle / "serve.yaml").read_text())
        assert not (bundle / "finetuned").exists()
        assert f"--checkpoint_dir base/{BASE}" in (bundle / "Dockerfile.train").read_text()
        assert yaml.safe_load((bundle / "train/finetune.yaml").read_text())["checkpoint_dir"] == f"base/{BASE}"
    shutil.copytree("own/merged", "own/moved")
    told = read_json("own/moved/lit_config.json")
    told["merged"]["base"]["checkpoint_dir"] = "gone"
    del told["sha256"]
    write_json("own/moved/lit_config.json", told)
    flags = ["--checkpoint_dir", "own/moved", "--track", "a100", "--out_dir", tmp_path / "x"]
    assert command("prepare submission", *flags) == 2
    assert "which is not there any more; download and convert it again" in capsys.readouterr().err
    assert prepare(tmp_path / "x", "--merge", "true", "--weights", "reference") == 2
    assert "merged weights can be fetched nowhere" in capsys.readouterr().err
    assert prepare(tmp_path / "x", "--merge", "true", lora=None) == 2
    assert (
        command(
            "prepare submission",
            "--checkpoint_dir",
            "own/merged",
            "--track",
            "a100",
            "--out_dir",
            tmp_path / "x",
            "--weights",
            "reference",
        )
        == 2
    )
    assert "is no download from the hub" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["adapter", "adapter_v2", "full"])
def test_every_method(method: str, here: Path, tmp_path: Path) -> None:
    assert finetune(method, f"out/{method}") == 0
    flag = "--finetuned_path" if method == "full" else f"--{method}_path"
    assert prepare(tmp_path / "bundle", flag, f"out/{method}", lora=None) == 0
    settings = yaml.safe_load((tmp_path / "bundle/serve.yaml").read_text())
    model = load_gpt(tmp_path / "bundle/model", finetuned=tmp_path / "bundle" / settings["lora_path"])
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids), load_gpt(CHECKPOINT, finetuned=f"out/{method}")(ids))
    assert (
        json.loads((tmp_path / "bundle/Dockerfile.train").read_text().splitlines()[-1][4:])[1]
        == f"finetune/{method}.py"
    )


def test_all_broken_rules_are_told_at_once(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alpaca-Libre, a token in a file: both are told, nothing is written, and both can be allowed by name."""
    row = {"instruction": "Say it.", "input": "", "output": "It is said.", "status": "ok"}
    Path("libre.jsonl").write_text("".join(json.dumps(row | {"output": f"It is said {n}."}) + "\n" for n in range(20)))
    flags = ["--checkpoint_dir", CHECKPOINT, "--data_file", "libre.jsonl"]
    assert command("prepare alpaca_libre", *flags) == 0
    assert finetune("lora", "out/libre", data="data/alpaca_libre") == 0
    run = Path("out/libre/run.json")
    run.write_text(run.read_text().replace('"command": "', f'"command": "WANDB=1 --token {TOKEN} '))
    capsys.readouterr()
    bundle = tmp_path / "bundle"
    assert prepare(bundle, lora="out/libre") == 2
    *told, last = capsys.readouterr().err.splitlines()
    assert re.match(
        r"data: alpaca_libre was withdrawn .* on 2023-08-09: .*OpenAI.* \[challenge.md.*72111a3\]$", told[0]
    )
    assert told[1].startswith(
        "secrets: train/run.json:2 (out/libre/run.json) holds a token of Hugging Face; take it out"
    )
    assert last.startswith(
        'error: broken: data, secrets; nothing was written. To hand in all the same: --allow "[data,secrets]"'
    )
    assert TOKEN not in "".join(told)
    assert not bundle.exists()
    assert prepare(bundle, "--allow", "data", lora="out/libre") == 2
    assert "data: " not in capsys.readouterr().err
    assert prepare(bundle, "--allow", "[data,secrets]", lora="out/libre") == 0
    assert "4 of 6 kept; allowed: data, secrets" in capsys.readouterr().out
    shown = (bundle / "SUBMISSION.md").read_text()
    assert "| data | **broken, allowed by --allow** | alpaca_libre was withdrawn" in shown
    assert "data/libre.jsonl" in (bundle / "Dockerfile.train").read_text()
    assert prepare(bundle, "--allow", "dat") == 2
    assert "no rule 'dat'; did you mean data?" in capsys.readouterr().err


def test_data_of_ones_own(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Must be public somewhere, and goes into the bundle, so that the training can be repeated."""
    for name, count in (("own", 20), ("test", 3)):
        rows = [{"question": f"What is {n} and {name}?", "answer": f"It is {n}."} for n in range(count)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--checkpoint_dir", CHECKPOINT, "--data_file", "own.jsonl", "--test_file", "test.jsonl"]
    flags += ["--map", "instruction=question,output=answer", "--mask_inputs", "false", "--prompt_style", "chatml"]
    assert command("prepare json", *flags) == 0
    assert finetune("lora", "out/own", data="data/own") == 0
    assert prepare(tmp_path / "bundle", lora="out/own") == 2
    assert "data: own is data of your own, which must be public" in capsys.readouterr().err
    assert prepare(tmp_path / "bundle", "--data_url", "ftp://x", lora="out/own") == 2
    url = "https://example.org/own"
    assert prepare(tmp_path / "bundle", "--data_url", url, lora="out/own") == 0
    assert url in (tmp_path / "bundle/DATA.md").read_text()
    prepare_again(tmp_path / "bundle", here)
    for name in ("train.pt", "test.pt"):
        assert (tmp_path / "bundle/data/own" / name).read_bytes() == (here / "data/own" / name).read_bytes()


def test_a_mix_is_made_again(here: Path, tmp_path: Path) -> None:
    Path("extra.jsonl").write_text(
        "".join(json.dumps({"instruction": f"Say {n}.", "output": f"{n}!"}) + "\n" for n in range(30))
    )
    Path("secret.jsonl").write_text(json.dumps({"text": " ".join(f"word{n}" for n in range(20))}))
    Path("both.yaml").write_text(
        "sources:\n- {name: dolly, repo_id: databricks/databricks-dolly-15k, data_file: databricks-dolly-15k.jsonl,"
        " map: 'instruction=instruction,input=context,output=response', licence: CC-BY-SA-3.0, weight: 1}\n"
        "- {data_file: extra.jsonl, weight: 1}\nrows: 20\ndecontaminate: [secret.jsonl]\n"
    )
    assert command("prepare mix", "both.yaml") == 0
    flags = ["--checkpoint_dir", CHECKPOINT, "--data_file", "data/both/mix.jsonl", "--destination_path", "data/both"]
    assert command("prepare json", *flags) == 0
    assert finetune("lora", "out/both", data="data/both") == 0
    bundle = tmp_path / "bundle"
    assert prepare(bundle, "--data_url", "https://example.org/extra", lora="out/both", track="4090") == 0
    plan = yaml.safe_load((bundle / "train/mix.yaml").read_text())
    assert len(plan["sources"][0]["revision"]) == 40
    assert plan["sources"][1]["data_file"] == ["train/data/extra.jsonl"]
    data = (bundle / "DATA.md").read_text()
    assert "## dolly" in data
    assert data.count("- rows taken: 10") == 2
    rows = read_json("data/both/meta.json")["rows"]
    assert rows["train"] + rows["test"] == 20
    assert f"{rows['train']} rows were trained on, {rows['test']} more kept for validation" in data
    prepare_again(bundle, here)
    (line,) = (bundle / "train/data.sha256").read_text().splitlines()
    assert line == f"{sha256('data/both/mix.jsonl')}  data/both/mix.jsonl"
    assert (bundle / "data/both/train.pt").read_bytes() == (here / "data/both/train.pt").read_bytes()


def test_a_run_that_began_with_another(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it began with goes along, and 24 hours for both cannot be shown."""
    for first in ("out/lora", "out/lora/lit_model_lora_finetuned.pth"):
        assert finetune("lora", "out/second", "--init_from", first, "--resume", "never") == 0
        assert prepare(tmp_path / "bundle", lora="out/second") == 2
        assert f"hours: the run began with {first}, whose own training is neither counted" in capsys.readouterr().err
        assert prepare(tmp_path / "bundle", "--allow", "hours", lora="out/second") == 0
        told = yaml.safe_load((tmp_path / "bundle/train/finetune.yaml").read_text())["init_from"]
        begun = read_finetuned(tmp_path / "bundle" / told)["weights"]
        assert begun.keys() == read_finetuned("out/lora")["weights"].keys()


def test_what_the_run_was_made_with_must_be_there(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("out/lora", "out/changed")
    run = read_json("out/changed/run.json")

    def told(**changes: dict) -> str:
        write_json("out/changed/run.json", {**run, **{key: {**run[key], **change} for key, change in changes.items()}})
        assert prepare(tmp_path / "x", lora="out/changed") == 2
        return capsys.readouterr().err

    assert "the run's data, data/none, are not there any more" in told(settings={"data_dir": "data/none"})
    shutil.copytree("data/dolly", "data/other")
    Path("data/other/train.pt").write_bytes(Path("data/dolly/test.pt").read_bytes())
    assert "holds other data than the run was made with" in told(settings={"data_dir": "data/other"})
    write_json("out/changed/run.json", {"settings": {}})
    assert prepare(tmp_path / "x", lora="out/changed") == 2
    assert "is not what a finetuning run writes" in capsys.readouterr().err
    for changes in ({"seconds": None}, {"tokens": "many"}):
        assert "is not what a finetuning run writes" in told(result=changes)
    assert "its settings are not those of a run" in told(settings={"keep_last": "many"})
    Path("out/changed/run.json").unlink()
    assert prepare(tmp_path / "x", lora="out/changed") == 2
    assert "hours: no run.json beside what was trained" in capsys.readouterr().err
    assert prepare(tmp_path / "x", lora="out/none") == 2
    assert (
        command("prepare submission", "--checkpoint_dir", "none", "--track", "a100", "--out_dir", tmp_path / "x") == 2
    )
    assert (
        command("prepare submission", "--checkpoint_dir", CHECKPOINT, "--track", "3090", "--out_dir", tmp_path / "x")
        == 2
    )
    assert not (tmp_path / "x").exists()


def test_a_run_json_of_another_run(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the file knows of its run; files of earlier versions, which know less; checkpoints; merged models."""
    shutil.copytree("out/lora", "out/copied")
    file, other = Path("out/copied/lit_model_lora_finetuned.pth"), "bring that back"
    run, saved = read_json("out/lora/run.json"), torch.load(file)

    def said(flags: tuple = (), lora: str | None = "out/copied", **changes: dict) -> str:
        write_json("out/copied/run.json", {**run, **{key: {**run[key], **change} for key, change in changes.items()}})
        assert prepare(tmp_path / "x", *flags, lora=lora) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    place = "error: out/copied/run.json is not of the run that wrote out/copied/lit_model_lora_finetuned.pth: "
    assert said(settings={"max_steps": 300}) == f"{place}max_steps was 3, is 300; {other}"
    assert "data train.pt was " in said(data={"train.pt": "0" * 64})
    assert "lora_r was 8, is 16; seed was 1337, is 1; step was 3, is 2; bring" in said(
        method={"lora_r": 16}, settings={"seed": 1}, result={"steps": 2}
    )
    assert "base weights_sha256 was " in said(base={"weights_sha256": "0" * 64})
    # the folder of a checkpoint
    (file.parent / "step-000002").mkdir()
    torch.save({**saved, "run": {**saved["run"], "step": 2}}, file.parent / "step-000002" / file.name)
    assert "seed was 1337, is 1; bring" in said(lora="out/copied/step-000002", settings={"seed": 1})
    # what was merged
    flags = ["--checkpoint_dir", CHECKPOINT, "--lora_path", "out/copied", "--out_dir", "own/copied"]
    assert command("merge lora", *flags) == 0
    capsys.readouterr()
    assert "seed was 1337, is 1; bring" in said(("--checkpoint_dir", "own/copied"), None, settings={"seed": 1})
    # an earlier version's
    torch.save({key: value for key, value in saved.items() if key != "run"}, file)
    for part, change in {"method": {"lora_alpha": 1}, "settings": {"quantize": "bnb.nf4"}}.items():
        (name,) = change
        assert f"{place}{name} was " in said(**{part: change})
    write_json("out/copied/run.json", run)
    assert prepare(tmp_path / "bundle", lora="out/copied") == 0


def test_damaged_weights_are_not_handed_in(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut short, and something else of that name."""
    damaged = shutil.copytree(CHECKPOINT, tmp_path / "open_llama_3b")
    weights = damaged / "lit_model.pth"
    for content in (weights.read_bytes()[:100_000], b"hello"):
        weights.write_bytes(content)
        flags = ["--checkpoint_dir", damaged, "--track", "a100", "--out_dir", tmp_path / "x"]
        assert command("prepare submission", *flags) == 2
        assert "lit_model.pth is damaged" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_settings_of_the_server(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("checkpoint_dir: elsewhere\nport: 8090\nbatch_size: 4\nquantize: torch.int8\n")
    assert prepare(tmp_path / "bundle", "--serve_config", own) == 0
    settings = yaml.safe_load((tmp_path / "bundle/serve.yaml").read_text())
    assert (settings["batch_size"], settings["quantize"], settings["cut"]) == (4, "torch.int8", None)
    assert settings["checkpoint_dir"] == "model"
    assert "port" not in settings
    own.write_text("max_seq_length: 100\nprompt_style: trained\n")
    assert prepare(tmp_path / "bundle", "--serve_config", own) == 0
    report = (tmp_path / "bundle/SUBMISSION.md").read_text()
    assert "for 100 tokens; longer prompts lose their beginning" in report
    (tmp_path / "style.jinja").write_text("{{ messages[0]['content'] }}")
    wrong = {"batch: 8": "own.yaml:1: unknown key 'batch'", "- a": "not a list", "cut: 3": "--cut"}
    wrong |= {"prompt_style: alpace": "alpaca", f"prompt_style: {tmp_path}/style.jinja": "which the container lacks"}
    for text, said in wrong.items():
        own.write_text(text)
        assert prepare(tmp_path / "x", "--serve_config", own) == 2
        assert said in capsys.readouterr().err


# --- each rule by itself -----------------------------------------------------------------------------------------


@functools.cache
def allowed() -> Entry:
    """A 7B model in 16 bits that was trained on Dolly for an hour."""
    config = Config.from_name("open_llama_7b")
    result = {"seconds": 3600.0, "saving": 1.0, "tokens": 10_000_000}
    run = {"settings": {"devices": 1, "num_nodes": 1}, "hardware": "NVIDIA A100-SXM4-40GB", "result": result}
    return Entry(
        card=CARDS["a100"],
        base="openlm-research/open_llama_7b",
        config=config,
        data=[DataSet("dolly")],
        files={},
        serving=serving(config, "bf16-true", None, 2048),
        rows=16,
        training=outlook(CARDS["a100"], Finetune(Path("x")), LoRA(), config),
        run=run,
        tuned=True,
        to_fetch=int(13.5e9),
        to_load=int(13.5e9),
    )


def entry(**changes: object) -> Entry:
    """What is allowed, but for some changes."""
    return replace(allowed(), **changes)


def broken(rule: str, tried: Entry) -> str:
    """What a rule objects to."""
    return "; ".join(finding.text for finding in RULES[rule].check(tried) if not finding.kept)


def test_what_is_allowed() -> None:
    found = rules.findings(entry())
    assert set(found) == {"base", "data", "secrets", "memory", "hours", "start"}
    for name, said in found.items():
        assert said, name
        assert all(isinstance(finding, Finding) and finding.kept for finding in said), said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mistralai/Mistral-7B-v0.1", ""),
        ("EleutherAI/pythia-160m", ""),
        ("mistralai/Mistral-7B-Instruct-v0.1", "tuned to follow instructions"),
        ("lmsys/vicuna-7b-v1.5", "tuned to follow instructions"),
        ("microsoft/phi-2", "not among the approved bases"),
        ("stabilityai/stablelm-base-alpha-3b", "not among the approved bases"),
        ("codellama/CodeLlama-7b-hf", "not among the approved bases"),
        ("own/model", "not in the catalogue"),
        (None, "nobody knows what the base model is"),
    ],
)
def test_bases(name: str | None, said: str) -> None:
    config = Config.from_name(name) if name in CATALOGUE else entry().config
    found = broken("base", entry(base=name, config=config))
    assert said in found if said else not found


def test_a_base_has_the_shape_of_its_name() -> None:
    """Its name is what lit_config.json says, which everyone can write."""
    found = broken("base", entry(config=Config.from_name("mistralai/Mistral-7B-v0.1")))
    assert found.startswith("lit_config.json says openlm-research/open_llama_7b, but it is another model: ")
    assert "family is mistral, not llama, n_query_groups is 8, not 32, intermediate_size is 14336" in found
    for name, value in {"n_layer": 31, "n_embd": 2048, "n_head": 64, "padded_vocab_size": 32064}.items():
        changed = replace(entry().config, n_query_groups=None, head_size=None, **{name: value})
        assert f"{name} is {value}, not {getattr(entry().config, name)}" in broken("base", entry(config=changed))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        *[(DataSet(name), "") for name in ("dolly", "oasst1", "lima", "flan", "gsm8k")],
        (DataSet("rows", repo_id="org/rows"), ""),
        (DataSet("rows", urls=["https://example.org/rows.json"]), ""),
        (DataSet("rows", local=[Path("rows.json")]), "data of your own, which must be public"),
        (DataSet("alpaca_libre"), "was withdrawn"),
        (DataSet("alpaca", urls=["https://x/alpaca_data_cleaned_archive.json"]), "generated by models of OpenAI"),
        (DataSet("longform"), "instructions that were generated by models of OpenAI"),
        (DataSet("train", repo_id="Open-Orca/OpenOrca"), "generated by models of OpenAI"),
        (DataSet("data", repo_id="garage-bAInd/Open-Platypus"), "parts that were generated"),
        (DataSet("sharegpt", local=[Path("sharegpt.json")]), "generated by models of OpenAI"),
    ],
    ids=lambda value: value.name if isinstance(value, DataSet) else "",
)
def test_data(source: DataSet, said: str) -> None:
    found = broken("data", entry(data=[DataSet("dolly"), source]))
    assert said in found if said else not found


def test_data_that_nobody_knows() -> None:
    assert "what was trained on is not known" in broken("data", entry(data=[]))
    assert not broken("data", entry(data=[], tuned=False))


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "sk-" + "a1B2" * 8,
        "sk-ant-api03-" + "a1B2" * 8,
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2" * 12,
        "AKIA" + "A1B2" * 4,
        "AIza" + "a1B2c3D" * 5,
        "xoxb-" + "1234567890-abc",
        "-----BEGIN " + "RSA PRIVATE KEY-----",
        "WANDB_API_KEY=" + "0123456789abcdef" * 2,
        'api_key: "' + "0123456789abcdef" * 2 + '"',
        "--token " + "0123456789abcdef" * 2,
    ],
)
def test_secrets(secret: str, tmp_path: Path) -> None:
    """Found in texts and in files, with their line, and not repeated."""
    path = tmp_path / "log.txt"
    path.write_text(f"one\ntwo\nthree {secret}\n")
    (tmp_path / "weights.bin").write_bytes(b"\0" + secret.encode())
    found = broken(
        "secrets", entry(files={"train/log.txt": path, "a.md": f"x\n{secret}", "w.bin": tmp_path / "weights.bin"})
    )
    assert f"train/log.txt:3 ({path}) holds " in found
    assert "a.md:2 holds " in found
    assert "w.bin" not in found
    assert secret not in found


def test_no_secrets_where_there_are_none() -> None:
    code = {str(path): path for folder in ("lit_gpt", "scripts", "finetune") for path in (ROOT / folder).rglob("*.py")}
    harmless = (
        "hf_token, sk-learn, --token T, HF_TOKEN=$HF_TOKEN, max_tokens: 12345678901234567890, a risk-based-approach"
    )
    assert not broken("secrets", entry(files={**code, "a.md": harmless}))


def test_memory() -> None:
    config = Config.from_name("open_llama_7b")
    needed = serving(config, "bf16-true", None, 2048)
    assert needed.weights == pytest.approx(13.48, rel=1e-3)
    assert needed.cache == pytest.approx(32 * 2 * 4096 * 2048 * 2 / 1e9)
    assert needed.total(needed.rows(22.56)) <= 22.56 < needed.total(needed.rows(22.56) + 1)
    small = entry(card=CARDS["4090"])
    assert "serving takes 31." in broken("memory", small)
    assert "serve fewer rows" in broken("memory", small)
    assert not broken("memory", replace(small, rows=4))
    quantised = serving(config, "bf16-true", "bnb.nf4-dq", 2048)
    assert quantised.weights < 4
    assert not broken("memory", replace(small, serving=quantised))
    big = Config.from_name("Llama-2-13b-hf")
    for card, kind, said in (("4090", None, "training takes"), ("a100", None, ""), ("4090", "bnb.nf4-dq", "")):
        run = outlook(CARDS[card], Finetune(Path("x"), quantize=kind), LoRA(), big)
        found = broken("memory", replace(small, card=CARDS[card], rows=1, serving=quantised, training=run))
        assert said in found if said else not found


def test_hours() -> None:
    def run(**changes: object) -> Entry:
        told = entry().run
        result = {**told["result"], **{k: v for k, v in changes.items() if k in told["result"]}}
        settings = {**told["settings"], **{k: v for k, v in changes.items() if k in ("devices", "init_from")}}
        return entry(
            run={**told, "hardware": changes.get("hardware", told["hardware"]), "result": result, "settings": settings}
        )

    assert not broken("hours", run(seconds=23.9 * 3600))
    assert "24.10 hours on NVIDIA A100-SXM4-40GB" in broken("hours", run(seconds=24.1 * 3600))
    there = run(hardware="NVIDIA H200", tokens=10**9, seconds=20 * 3600.0)
    assert re.search(
        r"take about \d+\.\d\d hours on the A100 by the model .*not measured there; .*20.00 hours on NVIDIA H200",
        broken("hours", there),
    )
    assert not broken("hours", run(hardware="NVIDIA H200", seconds=99 * 3600.0))
    assert "8 devices; one is allowed" in broken("hours", run(devices=8))
    assert "began with out/first" in broken("hours", run(init_from="out/first"))
    assert "no run.json" in broken("hours", entry(run=None))
    assert not broken("hours", entry(run=None, tuned=False))


def test_start() -> None:
    assert not broken("start", entry())
    assert "65.0 GB fetched" in broken("start", entry(to_fetch=int(65e9)))
    assert "gated, and the container gets no token" in broken("start", entry(gated=True))
    assert not broken("start", entry(gated=True, to_fetch=0))

"""Downloads with the real client from a local hub: what is fetched, what is kept, and what is said when it fails."""

import hashlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import HubServer, git_sha1, sha256
from jsonargparse.typing import SecretStr

from lit_gpt.families.catalogue import CATALOGUE
from lit_gpt.hub import Download, download, select
from lit_gpt.settings import UserError

LAUNCHER = Path(__file__).parents[1] / "scripts" / "download.py"
REPO = "acme/model-7b"
SMALL = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"do good",
    "model.safetensors.index.json": b'{"weight_map": {}}',
}
LARGE = {
    "tokenizer.model": bytes(range(256)) * 4,
    "model-00001-of-00002.safetensors": b"first" * 1000,
    "model-00002-of-00002.safetensors": b"second" * 1000,
}
UNWANTED = {
    "README.md": b"# hello",
    "modeling_acme.py": b"import os",
    "tokenizer.py": b"import os",
    "training_args.bin": b"pickle",
    "pytorch_model.bin": b"the same weights again",
    "model.fp16.safetensors": b"and again",
    "model-q4.gguf": b"and again",
    "flax_model.msgpack": b"and again",
    "tf_model.h5": b"and again",
    "consolidated.00.pth": b"and again",
    "original/config.json": b"{}",
}
BIG = {"pytorch_model.bin": hashlib.shake_128(b"weights").digest(12_000_000)}  # the client writes blocks of 10 MiB


def launch(hub: HubServer, tmp_path: Path, *flags: str, **popen) -> subprocess.Popen:
    """Starts the launcher as its user would, in `tmp_path`, with a home of its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(LAUNCHER.parents[1])}
    env |= popen.pop("env", {})
    command = [sys.executable, str(LAUNCHER), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=tmp_path, env=env, **pipes, **popen)


def fails(match: str, **settings) -> str:
    """Runs a download that must fail with a message that holds `match`; returns the message."""
    with pytest.raises(UserError) as caught:
        download(Download(**settings))
    message = str(caught.value)
    assert match in message
    assert "\n" not in message
    return message


def held(folder: Path) -> dict[str, bytes]:
    """All files of a checkpoint folder, hidden ones too, without the record."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "download.json"}


def test_launcher_fetches_the_needed_files_verified_and_without_a_trace_of_the_token(hub, tmp_path):
    repo = hub.add(REPO, SMALL | UNWANTED, LARGE, private=True)
    folder, secret = tmp_path / "checkpoints" / REPO, {"HF_TOKEN": hub.token}
    first = launch(hub, tmp_path, "--repo_id", REPO, env=secret)
    out, err = first.communicate()
    assert (first.returncode, out) == (0, "")
    assert held(folder) == SMALL | LARGE
    record = json.loads((folder / "download.json").read_text())
    assert (record["repo_id"], record["revision"], record["commit"]) == (REPO, "main", repo.commit)
    expected = {name: {"size": len(data), "git_sha1": git_sha1(data)} for name, data in SMALL.items()}
    expected |= {name: {"size": len(data), "sha256": sha256(data)} for name, data in LARGE.items()}
    assert record["files"] == expected
    assert "convert_hf_checkpoint.py --checkpoint_dir checkpoints/acme/model-7b" in err

    to_storage = [request for request in hub.requests if request.path.startswith("/storage/")]
    assert len(to_storage) == len(LARGE)
    assert {request.authorization for request in to_storage} == {None}  # the token leaves for the hub only

    # again: nothing is fetched; with the flag, and then offline, nothing is asked
    hub.requests.clear()
    again = launch(hub, tmp_path, "--repo_id", REPO, "--token", hub.token)
    offline = launch(hub, tmp_path, "--repo_id", REPO, env=secret | {"HF_HUB_OFFLINE": "1"})
    other = launch(hub, tmp_path, "--repo_id", REPO, "--revision", "v2", env=secret | {"HF_HUB_OFFLINE": "1"})
    wrong = launch(hub, tmp_path, "--repo_id", REPO, "--token", "hf_wrong", "--debug")
    outputs = [out + err]
    for process, code in ((again, 0), (offline, 0), (other, 2), (wrong, 2)):
        out, err = process.communicate()
        assert process.returncode == code, err
        outputs.append(out + err)
    assert not [request for request in hub.requests if "/resolve/" in request.path]
    assert "does not accept the token" in outputs[-1]
    assert "no finished download of acme/model-7b at revision v2" in outputs[-2]
    for text in [*outputs, *(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())]:
        assert hub.token not in text
        assert "hf_wrong" not in text


def test_the_stock_client_takes_the_local_server_for_a_hub(hub, tmp_path):
    """What the other tests rest on: HEAD, ETag, commit and redirects are as the client's own download wants them."""
    from huggingface_hub import HfApi

    repo = hub.add(REPO, SMALL, LARGE)
    api = HfApi(endpoint=hub.endpoint)
    api.snapshot_download(REPO, local_dir=tmp_path)
    checked = api.verify_repo_checksums(REPO, local_dir=tmp_path)
    assert (checked.checked_count, checked.mismatches, checked.missing_paths) == (len(SMALL) + len(LARGE), [], [])
    assert repo.commit in (tmp_path / ".cache/huggingface/download/config.json.metadata").read_text()
    assert "HEAD" in {request.method for request in hub.requests}


def test_list_of_known_models(hub, tmp_path, capsys):
    download(Download())
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == set(CATALOGUE)
    assert ["codellama/CodeLlama-13b-hf", "13.02", "B", "llama2"] in [line.split() for line in lines]
    assert not hub.requests


def test_selection():
    assert set(select(SMALL | LARGE | UNWANTED, False, "x")) == set(SMALL | LARGE)
    assert select(SMALL | LARGE | UNWANTED, False, "x")[-1] == "model-00002-of-00002.safetensors"  # weights last
    assert set(select(SMALL | LARGE, True, "x")) == {*SMALL, "tokenizer.model"} - {"model.safetensors.index.json"}
    shard, index = "model-00001-of-00002.safetensors", "model.safetensors.index.json"
    assert select(["config.json", shard, index, "pytorch_model.bin"], False, "x") == [
        "config.json",
        "pytorch_model.bin",
    ]
    assert select(["config.json", "model.safetensors", shard, index], False, "x") == [
        "config.json",
        "model.safetensors",
    ]
    bins = ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    assert select(["config.json", *bins], False, "x") == ["config.json", *bins]
    with pytest.raises(UserError, match=r"x has no complete weights .* it has model-00001-of-00002\.safetensors"):
        select(["config.json", shard, index], False, "x")
    with pytest.raises(UserError, match=r"it has model-q4\.gguf"):
        select(["config.json", "model-q4.gguf"], False, "x")
    with pytest.raises(UserError, match=r"x has no config\.json"):
        select(["model.safetensors"], False, "x")


def test_errors_of_the_hub_are_one_line_that_says_what_to_do(hub, tmp_path, monkeypatch):
    hub.add("acme/gated", SMALL, LARGE, gated=True)
    hub.add(REPO, SMALL, LARGE)
    here = {"checkpoint_dir": tmp_path}
    right, wrong = SecretStr(hub.token), SecretStr("hf_wrong_one")
    licence = f"acme/gated is gated: accept its licence at {hub.endpoint}/acme/gated, then pass that account's token"
    fails(licence, repo_id="acme/gated", **here)
    fails(licence, repo_id="acme/gated", token=right, **here)
    fails("did you mean openlm-research/open_llama_7b?", repo_id="open_llama_7b", **here)
    fails("did you mean EleutherAI/pythia-160m?", repo_id="https://hub.example/EleutherAI/pythia-160m", **here)
    fails("<org>/<name>", repo_id="../up", **here)
    fails(f"acme/absent is not at {hub.endpoint}, or is private", repo_id="acme/absent", **here)
    fails("did you mean openlm-research/open_llama_7b?", repo_id="openlm/open-llama-7b", token=right, **here)
    fails(f"has no revision 'v9'; see {hub.endpoint}/acme/model-7b/commits/main", repo_id=REPO, revision="v9", **here)
    assert "hf_wrong_one" not in fails("does not accept the token", repo_id=REPO, token=wrong, **here)
    message = fails("holds a character that no token has", repo_id=REPO, token=SecretStr("hf_ab\ncd"), **here)
    assert "hf_ab" not in message
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_env")
    hub.status = 418  # an answer that repeats the request's token
    monkeypatch.setattr("hub_server._Handler.answer_json", lambda self, *a, **k: self.answer(418, b"hf_wrong_env", {}))
    assert "hf_wrong_env" not in fails("answered 418 for acme/model-7b (***)", repo_id=REPO, **here)


def test_server_failures(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    repo = hub.add(REPO, SMALL, LARGE)
    here = {"repo_id": REPO, "checkpoint_dir": tmp_path / "new"}
    shard = "model-00002-of-00002.safetensors"
    repo.faults[shard] = iter(["500"])
    fails(f"{hub.endpoint} answered 500 for {REPO}/{shard}", **here)
    kept = set(held(tmp_path / "new" / REPO)) & set(SMALL | LARGE)
    assert kept == set(SMALL | LARGE) - {shard}
    hub.requests.clear()
    download(Download(**here))  # the same command again fetches what was missing, and no more
    assert {request.path.split("/")[-1] for request in hub.requests if "/resolve/" in request.path} == {shard}
    assert held(tmp_path / "new" / REPO) == SMALL | LARGE

    hub.status = 503
    fails("answered 503", **here)
    hub.status = None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "new" / REPO / shard).write_bytes(b"damaged")
    fails(f"HF_HUB_OFFLINE is set and {REPO}/{shard} is missing or damaged", **here)
    fails("HF_HUB_OFFLINE is set and", repo_id=REPO, checkpoint_dir=tmp_path / "other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "status", 200)  # whoever answers is no hub
    monkeypatch.setattr("hub_server._Handler.answer_json", lambda self, *a, **k: self.answer(200, b"<html>", {}))
    fails("does not answer like a Hugging Face hub", **here)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fails("no connection to http://127.0.0.1:9", **here)


def test_wrong_checksums_are_fetched_once_more_and_then_named(hub, tmp_path, capsys):
    repo = hub.add(REPO, SMALL, LARGE)
    here = {"repo_id": REPO, "checkpoint_dir": tmp_path}
    shard = "model-00001-of-00002.safetensors"
    repo.faults = {shard: iter(["corrupt"]), "config.json": iter(["corrupt"])}
    download(Download(**here))
    assert held(tmp_path / REPO) == SMALL | LARGE
    assert len(hub.fetched(shard)) == len(hub.fetched("config.json")) == 2

    (tmp_path / REPO / shard).write_bytes(LARGE[shard][:-1] + b"?")  # same size, other bytes
    hub.requests.clear()
    repo.faults[shard] = itertools.repeat("corrupt")
    fails(f"{shard}: its checksum is not the one that {hub.endpoint} gives, twice in a row", **here)
    assert f"{shard} is not what {hub.endpoint} has" in capsys.readouterr().err
    assert len(hub.fetched(shard)) == 2
    assert set(held(tmp_path / REPO)) == set(SMALL | LARGE) - {shard}


def test_broken_connections_go_on_at_the_byte(hub, tmp_path):
    """Closed or reset in the middle: goes on within the process. Killed: the same command goes on."""
    (name,) = BIG
    repo = hub.add(REPO, SMALL, BIG)
    here = {"repo_id": REPO, "checkpoint_dir": tmp_path / "in_process"}
    repo.faults[name] = iter(["reset:11000000", "close:1000"])
    download(Download(**here))
    block = f"bytes={10 << 20}-"
    assert hub.fetched(name) == [None, block, block]
    assert (tmp_path / "in_process" / REPO / name).read_bytes() == BIG[name]

    hub.requests.clear()
    repo.faults[name] = iter(["reset:11000000", "reset:0"])
    fails(f"no connection to {hub.endpoint} for {REPO}/{name}", repo_id=REPO, checkpoint_dir=tmp_path / "lost")
    download(Download(repo_id=REPO, checkpoint_dir=tmp_path / "lost"))
    assert hub.fetched(name) == [None, block, block]
    assert (tmp_path / "lost" / REPO / name).read_bytes() == BIG[name]

    hub.requests.clear()
    repo.faults[name] = iter(["stall:11000000"])
    folder = tmp_path / "checkpoints" / REPO
    killed = launch(hub, tmp_path, "--repo_id", REPO)
    deadline = time.monotonic() + 30
    while [path.stat().st_size for path in folder.glob(f".{name}.*")] != [10 << 20] and time.monotonic() < deadline:
        time.sleep(0.02)
    waiting = launch(hub, tmp_path, "--repo_id", REPO)
    assert waiting.stderr.readline().startswith(f"another download into checkpoints/{REPO} is running")
    assert not (folder / name).exists()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert waiting.communicate()[0] == ""
    assert waiting.returncode == 0
    assert hub.fetched(name) == [None, block]
    assert (folder / name).read_bytes() == BIG[name]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_disk_space(hub, tmp_path):
    repo = hub.add(REPO, SMALL, BIG)
    (name,) = BIG
    repo.claims[name] = 10**16
    fails("the download needs 10000000.0 GB, ", repo_id=REPO, checkpoint_dir=tmp_path)
    assert not hub.fetched(name)
    repo.claims.clear()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (11_000_000, 11_000_000))  # noqa: E731
    full = launch(hub, tmp_path, "--repo_id", REPO, preexec_fn=limit)
    out, err = full.communicate()
    assert full.returncode == 2
    assert err.splitlines()[-1].startswith(f"error: the disk of checkpoints/{REPO} is full")
    assert "Traceback" not in err
    assert out == ""


def test_another_revision_replaces_what_differs(hub, tmp_path):
    repo = hub.add(REPO, SMALL, LARGE)
    old = repo.commit
    here = {"repo_id": REPO, "checkpoint_dir": tmp_path}
    download(Download(**here, tokenizer_only=True))
    assert set(held(tmp_path / REPO)) == {*SMALL, "tokenizer.model"} - {"model.safetensors.index.json"}
    repo.files = SMALL | {"config.json": b'{"model_type": "llama", "v": 2}'}
    repo.faults["config.json"] = iter(["500"])
    fails("answered 500", **here)
    assert not (tmp_path / REPO / "download.json").exists()  # the files are of two commits
    hub.requests.clear()
    download(Download(**here, revision=repo.commit))
    record = json.loads((tmp_path / REPO / "download.json").read_text())
    assert repo.commit == record["commit"] == record["revision"] != old
    assert not hub.fetched("tokenizer.model")
    assert held(tmp_path / REPO) == repo.files | LARGE
    download(Download(**here, tokenizer_only=True))  # forgets no weights
    assert json.loads((tmp_path / REPO / "download.json").read_text())["files"] == record["files"]


def test_a_folder_plays_the_hub(tmp_path, monkeypatch):
    source = tmp_path / "stick" / REPO
    source.mkdir(parents=True)
    for name, data in (SMALL | UNWANTED | LARGE).items():
        if "/" not in name:
            (source / name).write_bytes(data)
    here = {"from_folder": tmp_path / "stick", "checkpoint_dir": tmp_path / "to"}
    download(Download(repo_id=REPO, **here))
    assert held(tmp_path / "to" / REPO) == SMALL | LARGE
    record = json.loads((tmp_path / "to" / REPO / "download.json").read_text())
    assert record["commit"] is None
    assert {name: entry["sha256"] for name, entry in record["files"].items()} == {
        name: sha256(data) for name, data in (SMALL | LARGE).items()
    }
    # a second hop: the record travels, and tells a copy that was damaged on the way
    (tmp_path / "to" / REPO / "tokenizer.model").write_bytes(b"damaged")
    onward = {"from_folder": tmp_path / "to", "checkpoint_dir": tmp_path / "on"}
    fails("tokenizer.model: its checksum is not the one that", repo_id=REPO, **onward)
    fails(f"no folder {tmp_path}/stick/acme/other; {tmp_path}/stick holds {REPO}", repo_id="acme/other", **here)
    fails("--revision does not go with --from_folder", repo_id=REPO, revision="v1", **here)

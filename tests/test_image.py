"""The images of a bundle, really built and run: with IMAGE_BUILDER, "docker" or what takes its words, such as "podman".

    IMAGE_BUILDER=docker python -m pytest tests/test_image.py
installs all packages the first time, gigabytes with PyTorch for CUDA, and fetches `python:3.X-slim` unless it is there.
"""

import json
import os
import shlex
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import command

from lit_gpt.challenge.started import GRACE
from lit_gpt.checkpoint import read_finetuned
from lit_gpt.files import read_json

ROOT = Path(__file__).parents[1]
BUILDER = shlex.split(os.environ.get("IMAGE_BUILDER", ""))
MODEL = "checkpoints/lit-gpt/tiny-facts"
pytestmark = pytest.mark.skipif(not BUILDER, reason="IMAGE_BUILDER names no docker")


def container(*words: object) -> str:
    """What the builder prints on stdout."""
    done = subprocess.run([*BUILDER, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the embedded model, finetuned for three steps; its folder has the run beside it, in out/."""
    folder = tmp_path_factory.mktemp("image")
    rows = [{"instruction": f"Name {n} towns.", "output": f"Oslo is one of {n}."} for n in range(24)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fetched = ["--repo_id", "lit-gpt/tiny-facts", "--from_folder", ROOT / "quickstart/hub"]
        assert command("download", *fetched) == 0
        assert command("convert", "--checkpoint_dir", MODEL) == 0
        assert command("prepare json", "--checkpoint_dir", MODEL, "--data_file", "rows.jsonl") == 0
        short = ["--max_steps", 3, "--batch_size", 4, "--micro_batch_size", 2, "--eval_iters", 1]
        places = ["--checkpoint_dir", MODEL, "--data_dir", "data/rows", "--out_dir", "out"]
        assert command("finetune lora", *places, "--precision", "32-true", *short) == 0
        handed_in = ["--lora_path", "out", "--track", "4090", "--out_dir", "bundle", "--allow", "[base,data]"]
        assert command("prepare submission", "--checkpoint_dir", MODEL, *handed_in) == 0
    return folder / "bundle"


@pytest.fixture
def image(bundle: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The image of one of the bundle's two files, and the name of a container that the test may start from it."""
    name = f"lit-gpt-{uuid.uuid4().hex[:12]}"
    container("build", "-t", name, "-f", bundle / request.param, bundle)
    try:
        yield name
    finally:
        subprocess.run([*BUILDER, "rm", "--force", name], capture_output=True)
        subprocess.run([*BUILDER, "rmi", name], capture_output=True)


def asked(address: str, path: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))


@pytest.mark.parametrize("image", ["Dockerfile"], indirect=True)
def test_the_server_answers_and_ends(image: str) -> None:
    """Published as the organisers do it; `docker stop` ends it before it would be killed."""
    container("run", "--detach", "--name", image, "-p", "127.0.0.1::80", image)
    address = "http://" + container("port", image, "80").splitlines()[0]
    for _ in range(600):
        try:
            assert asked(address, "/health")["status"] == "ok"
            break
        except OSError:
            assert container("inspect", "--format", "{{.State.Running}}", image) == "true"
            time.sleep(0.2)
    body = {"prompt": "The capital of France is", "max_new_tokens": 4, "temperature": 0}
    assert len(asked(address, "/process", body)["tokens"]) == 4
    container("stop", "--time", GRACE, image)
    assert container("inspect", "--format", "{{.State.ExitCode}}", image) == "143"  # 137 had it been killed


@pytest.mark.parametrize("image", ["Dockerfile.train"], indirect=True)
def test_the_finetuning_is_repeated(image: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "retrained").mkdir()
    container("run", "--rm", "--name", image, "-v", f"{tmp_path}/retrained:/submission/out", image)
    before, after = (read_finetuned(path)["weights"] for path in (bundle.parent / "out", tmp_path / "retrained"))
    assert before.keys() == after.keys()
    for name, weights in before.items():  # another build of PyTorch may round otherwise
        assert (weights - after[name]).norm() <= 1e-2 * weights.norm(), name
    assert read_json(tmp_path / "retrained/run.json")["settings"]["data_dir"] == "data/rows"

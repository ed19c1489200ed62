"""The tutorial's commands run as written, on the embedded model: only size and the tutorial's network are replaced."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import local_hub, stand_in
from hub_server import HubServer
from test_readme import blocks, commands, small, start

from lit_gpt.challenge.started import listens
from lit_gpt.files import read_json

pytest.importorskip("uvicorn")

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "tutorials/neurips_challenge.md").read_text(encoding="utf-8")
MODEL = "mistralai/Mistral-7B-v0.1"
HELM = os.environ.get("HELM_PYTHON")
SMALL = {
    "scripts/inspect_data.py": "--samples 1",
    "finetune/lora.py": "--quantize null --precision 32-true --lora_r 4 --max_steps 2 --batch_size 4"
    " --micro_batch_size 2 --pack_length 256 --eval_iters 1",
    "eval/lm_eval_harness.py": "--include_path tasks --precision 32-true",
    "submission/serve.py": "--precision 32-true",
    "scripts/prepare_submission.py": "--serve_config small.yaml",
    "submission/verify.py": "--clients 8",
}
"""Start of a command -> what is added for lack of a GPU and time."""


def put_stand_ins(folder: Path, hub: HubServer, patch: pytest.MonkeyPatch) -> None:
    """What the guide finds on the network: the embedded model, its window widened to the challenge's; Dolly."""
    files = {path.name: path.read_bytes() for path in (ROOT / "quickstart/hub/lit-gpt/tiny-facts").iterdir()}
    config = json.loads(files["config.json"]) | {"max_position_embeddings": 2048}
    files["config.json"] = json.dumps(config).encode()
    stand_in(patch, MODEL, files["config.json"])
    weights = {name: files.pop(name) for name in [*files] if name.endswith((".safetensors", ".model"))}
    hub.add(MODEL, files, lfs=weights)
    rows = [{"instruction": f"Name {n} towns.", "context": "", "response": f"Oslo is one of {n}."} for n in range(64)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    hub.add("datasets/databricks/databricks-dolly-15k", {"databricks-dolly-15k.jsonl": lines})
    shutil.copytree(ROOT / "config_hub", folder / "config_hub")
    mix = yaml.safe_load((ROOT / "config_hub/mix.yaml").read_text())
    mix = {**mix, "sources": [source for source in mix["sources"] if source["name"] == "dolly"], "rows": None}
    (folder / "config_hub/mix.yaml").write_text(yaml.safe_dump({key: value for key, value in mix.items() if value}))
    (folder / "small.yaml").write_text("precision: 32-true\ncut: blank_line\n")
    (folder / "tasks").mkdir()
    (folder / "rows.jsonl").write_bytes(lines)
    task = {"output_type": "multiple_choice", "doc_to_text": "{{instruction}}", "doc_to_choice": ["yes", "no"]}
    task |= {"doc_to_target": 0, "dataset_path": "json", "test_split": "test"}
    task["dataset_kwargs"] = {"data_files": {"test": str(folder / "rows.jsonl")}}
    for name in re.search(r'--eval_tasks "\[(.*?)\]"', TEXT)[1].split(","):
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **task}))
    if HELM:
        from helm_samples import write_samples

        write_samples(folder / "data/helm")


class Guide:
    """Carries out commands as a reader would, who leaves the server running until it is no longer needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, str] = {}
        """Command -> what it printed."""
        self.server: subprocess.Popen | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])

    def run(self, words: list[str]) -> None:
        line = shlex.join(words)
        words = [word.replace("8080", self.port) for word in words]
        if words[:2] == ["python", "submission/serve.py"]:
            flags = [*small(words[1:], SMALL), "--port", self.port]
            self.server = subprocess.Popen([sys.executable, str(ROOT / flags[0]), *flags[1:]], cwd=self.folder)
            while not listens(f"http://127.0.0.1:{self.port}"):
                assert self.server.poll() is None, line
                time.sleep(0.1)
        elif words[:2] == ["python", "submission/helm_check.py"]:
            if HELM:
                words[words.index("--helm_python") + 1] = HELM
                self.launch(line, [*words[1:], "--max_eval_instances", "2", "--tasks", "[bbq]"])
        elif words[0] == "python" and words[1] != "-m":
            self.launch(line, small(words[1:], SMALL))
        elif words[0] == "curl":
            data = words[words.index("-d") + 1].encode()
            request = urllib.request.Request(words[-1], data, {"Content-Type": "application/json"})
            self.said[line] = urllib.request.urlopen(request).read().decode()
        else:
            assert words[:2] in (["pip", "install"], ["python", "-m"]) or words[0] == "helm/bin/pip", line
        if words[0] == "python" and "bundle" in line:
            self.stop()

    def launch(self, line: str, words: list[str]) -> None:
        code, out, err = start(*words)
        assert code == 0, f"{line}\n{out}\n{err}"
        self.said[line] = out

    def stop(self) -> None:
        if self.server:
            self.server.terminate()
            assert self.server.wait(20) in (0, 143)
            self.server = None


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory, own_tasks: Path) -> Iterator[Guide]:
    """After every command of the tutorial."""
    folder = tmp_path_factory.mktemp("guide")
    with pytest.MonkeyPatch.context() as patch, local_hub(patch) as hub:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        put_stand_ins(folder, hub, patch)
        guide = Guide(folder)
        try:
            for words in commands(TEXT):
                guide.run(words)
            yield guide
        finally:
            guide.stop()


def test_the_tutorial_ends_in_a_verified_bundle(guide: Guide) -> None:
    verified = {line: said for line, said in guide.said.items() if "verify.py" in line}
    assert len(verified) == 2
    for line, said in verified.items():
        assert re.search(r"\d+ checks: \d+ passed, \d+ warned, 0 failed", said), f"{line}\n{said}"
    answer = next(said for line, said in guide.said.items() if line.startswith("curl"))
    assert json.loads(answer)["text"]
    assert (guide.folder / "bundle/Dockerfile").is_file()
    results = read_json(guide.folder / "out/4090/results.json")["results"]
    assert set(results) == {"gsm8k", "truthfulqa_mc1"}
    if HELM:
        assert any("| bbq subject=Age |" in said for said in guide.said.values())


def test_the_rest_of_the_tutorial() -> None:
    """Docker is not at hand where tests run: its files and ports are those of the bundle's own Dockerfile."""
    assert [line.split()[:2] for line in "".join(blocks("sh", TEXT)).splitlines()] == [
        ["docker", "build"],
        ["docker", "run"],
    ]
    for name in re.findall(r"`([\w/]+\.(?:py|yaml))`", TEXT):
        assert (ROOT / name).is_file(), name

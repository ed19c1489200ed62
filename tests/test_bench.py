"""The benchmark of finetuning: the real command on random weights, the job for the peers, and the table."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_gpt.data.batches import Batches, Layout
from lit_gpt.data.dataset import TokenDataset, write_dataset
from lit_gpt.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def result(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """A folder with `results.json` and `README.md` after a run of bench/train.py; the results; what it printed."""
    folder = tmp_path_factory.mktemp("bench")
    model = folder / "model"
    model.mkdir()
    shutil.copy(checkpoint / "tokenizer.model", model)
    shutil.copy(checkpoint / "lit_config.json", model)
    rng = np.random.default_rng(0)
    samples = [rng.integers(3, 300, size).astype(np.int32) for size in rng.integers(8, 40, 20)]
    masks = [np.arange(len(ids)) >= 4 for ids in samples]
    splits = {"train": (samples, masks), "test": (samples[:4], masks[:4])}
    write_dataset(folder / "data", splits, Tokenizer(model), {"name": "t", "prompt_style": "alpaca"})
    (folder / "README.md").write_text("before\n<!-- cpu -->\nold\n<!-- /cpu -->\nafter\n")
    command = [sys.executable, ROOT / "bench" / "train.py", "--checkpoint_dir", model, "--data_dir", folder / "data"]
    command += ["--random_weights", "--systems", "ours", "--steps", "2", "--skip", "1", "--rounds", "1"]
    command += ["--batch_size", "8", "--lora_dropout", "0", "--device", "cpu", "--results", folder / "results.json"]
    command += ["--write", folder / "README.md"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "results.json").read_text()), done.stdout


def test_measures_the_samples_of_the_run(result: tuple[Path, dict, str]) -> None:
    folder, results, _ = result
    dataset = TokenDataset(folder / "data")
    batches = Batches(dataset, list(range(20)), 8, Layout(), 1337)
    assert results["tokens"] == [int(dataset.lengths[batches.step_samples(step)].sum()) for step in range(2)]
    (run,) = results["runs"]["ours"]
    assert run["losses"] == pytest.approx([math.log(320)] * 2, rel=0.05)  # nothing is known yet: weights are random
    assert min(run["tokens_per_second"]) > 0
    assert run["memory_gb"] > 0.1


def test_table_replaces_the_section(result: tuple[Path, dict, str]) -> None:
    folder, _, printed = result
    text = (folder / "README.md").read_text()
    assert text == f"before\n<!-- cpu -->\n{printed.strip()}\n<!-- /cpu -->\nafter\n"
    assert "| this project |" in text


def test_peers_get_padded_batches_of_our_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench" / "peers")
    import common

    samples = [
        {"ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"ids": [8], "labels": [8]},
        {"ids": [9, 9], "labels": [9, 9]},
    ]
    first, second = common.padded(samples, 2, "cpu")
    ids, labels, mask = (x.tolist() for x in first)
    assert ids[0] == [5, 6, 7]
    assert ids[1][:1] == [8]
    assert labels == [[-100, 6, 7], [8, -100, -100]]
    assert mask == [[1, 1, 1], [1, 0, 0]]
    assert torch.equal(second[0], torch.tensor([[9, 9]]))


def test_evaluation_is_measured(checkpoint: Path, tmp_path: Path) -> None:
    """Our side, with a question of each kind; the peer needs a checkpoint of transformers."""
    pytest.importorskip("lm_eval")
    targets = {"choices": ["The sun.", "The sea."], "labels": [1, 0]}
    rows = {"truthfulqa": {"question": "What shines?", "mc1_targets": targets, "mc2_targets": targets}}
    rows["hellaswag"] = {"ind": 1, "query": "The old cat", "choices": ["sees.", "likes.", "the sun.", "a"], "gold": 2}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "README.md").write_text("<!-- evaluate -->\nold\n<!-- /evaluate -->\n")
    flags = ["--truthfulqa", tmp_path / "truthfulqa.jsonl", "--hellaswag", tmp_path / "hellaswag.jsonl"]
    flags += ["--systems", "ours", "--rounds", "1", "--device", "cpu", "--precision", "32-true"]
    flags += ["--results", tmp_path / "found.json", "--write", tmp_path / "README.md"]
    words = [sys.executable, ROOT / "bench" / "evaluate.py", "--checkpoint_dir", checkpoint, *flags]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    [run] = json.loads((tmp_path / "found.json").read_text())["runs"]["ours"]
    assert len(run["answers"]) == 2 + 2 + 4
    assert run["answers"][:2] == run["answers"][2:4]
    assert run["seconds"].keys() == {"TruthfulQA", "HellaSwag"}
    assert "| this project |" in (tmp_path / "README.md").read_text()


def test_generation_is_measured(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "lit_config.json", tmp_path)
    command = [sys.executable, ROOT / "bench" / "generate.py", "--checkpoint_dir", tmp_path, "--random_weights"]
    command += ["--systems", "ours,ours-int8", "--rounds", "1", "--repeats", "1", "--new_tokens", "5"]
    command += ["--device", "cpu", "--results", tmp_path / "results.json"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "BENCH_READ_MB": "8"}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    config = json.loads((checkpoint / "lit_config.json").read_text())
    (plain,), (small,) = (results["runs"][name] for name in ("ours", "ours-int8"))
    blocks = config["n_layer"] * (4 * config["n_embd"] ** 2 + 3 * config["n_embd"] * config["intermediate_size"])
    other = config["n_embd"] * (config["padded_vocab_size"] + 2 * config["n_layer"] + 1)
    assert plain["weight_bytes"] == 2 * (blocks + other)
    assert blocks < small["weight_bytes"] - 2 * other < 1.2 * blocks
    assert [len(text) for text in plain["tokens"]] == [5]
    assert min(plain["rates"] + plain["tokens_per_second"]) > 0
    assert "| this project, torch.int8 |" in done.stdout

"""Runs that are killed, stopped, damaged and continued: the weights come out the same, to the bit."""

import csv
import json
import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import command, make_checkpoint
from forks import Forks

from lit_gpt.checkpoint import read_finetuned
from lit_gpt.resume import damage, steps_saved

FLAGS = ["--precision", "32-true", "--batch_size", 8, "--micro_batch_size", 2, "--learning_rate", 0.02]
FLAGS += ["--max_steps", 60, "--save_interval", 3, "--eval_interval", 10, "--log_interval", 2, "--eval_iters", 2]
FLAGS += ["--lora_dropout", 0.2]
FILE = "lit_model_lora_finetuned.pth"
KILLS = int(os.environ.get("KILLS", "25"))
"""How many processes are killed at random moments; `make test-faults` kills more."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def flags(checkpoint: Path, data: Path) -> list:
    return ["--checkpoint_dir", checkpoint, "--data_dir", data, *FLAGS]


@pytest.fixture(scope="module")
def whole(forks: Forks, flags: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert forks.run("finetune lora", [*flags, "--out_dir", out], out / "log") == 0, (out / "log").read_text()
    return out


def assert_same_run(out: Path, whole: Path) -> None:
    """Same weights to the bit, and the same rows but for what clocks and memory say."""
    a, b = read_finetuned(out / FILE)["weights"], read_finetuned(whole / FILE)["weights"]
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert a.keys() == b.keys()
    clocks = ("tokens_per_second", "seconds", "memory_gb")
    rows = [
        [{k: v for k, v in row.items() if k not in clocks} for row in csv.DictReader((f / "metrics.csv").open())]
        for f in (out, whole)
    ]
    assert rows[0] == rows[1]
    results = [json.loads((f / "run.json").read_text())["result"] for f in (out, whole)]
    for key in ("steps", "samples", "tokens", "first_val_loss", "val_loss", "best"):
        assert results[0][key] == results[1][key], key
    assert not [p.name for p in out.iterdir() if p.name.endswith(".tmp")]


def test_kill_9_at_random_moments(forks: Forks, flags: list, whole: Path, tmp_path: Path) -> None:
    """Each run is killed again and again until one process gets to the end."""
    chance, killed, runs, mid_write = random.Random(0), 0, 0, 0
    while killed < KILLS:
        out = tmp_path / f"run{runs}"
        runs += 1
        out.mkdir()
        while True:
            job = ("finetune lora", [*flags, "--out_dir", out], out / "log")
            code = forks.kill_after(chance.uniform(0.05, 1.0), signal.SIGKILL, *job) if killed < KILLS else forks.run(*job)
            if code != -9:
                assert code == 0, (out / "log").read_text()
                break
            killed += 1
            mid_write += bool(list(out.glob("*.tmp")) or list(out.glob(".*.tmp")))
        assert_same_run(out, whole)
    print(f"\n{killed} processes of {runs} runs killed, {mid_write} while they wrote; all weights equal to the bit")


def test_killed_at_every_step_of_writing_a_checkpoint(forks: Forks, flags: list, whole: Path, tmp_path: Path) -> None:
    """From the third checkpoint on, whose predecessors are removed, a process dies at each operation on its files."""
    moments = 0
    for bomb in range(60, 60 + 40):
        out = tmp_path / str(bomb)
        out.mkdir()
        job = ("finetune lora", [*flags, "--out_dir", out], out / "log")
        assert forks.run(*job, bomb=bomb, place=out / "step-") in (-9, 0)
        moments += 1
    assert moments

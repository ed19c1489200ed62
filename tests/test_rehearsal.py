"""`--dry_run`: the plan, the data, one real step, one save, and nothing that stays."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import command

from lit_gpt.data.dataset import TokenDataset, write_dataset
from lit_gpt.tokenizer import Tokenizer

FLAGS = ["--precision", "32-true", "--batch_size", 8, "--micro_batch_size", 2, "--pack_length", 128]


@pytest.mark.parametrize("method", ["lora", "full", "adapter_v2"])
def test_a_step_and_a_save_are_tried(
    method: str, checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path / "a/out", *FLAGS]
    files = sorted(checkpoint.iterdir())
    assert command(f"finetune {method}", *flags, "--max_steps", 6, "--dry_run", "true") == 0
    shown = capsys.readouterr().out
    order = [shown.index(f"\n{label} ") for label in ("peak", "labels", "memory", "step", "save", "end")]
    assert order == sorted(order), "the plan stands before what is tried"
    packs = TokenDataset(data).lengths
    tokens = int(re.search(r"with the largest pack, ([\d,]+) tokens", shown)[1].replace(",", ""))
    assert int(packs.max()) - 1 <= tokens <= 128 + 64
    assert float(re.search(r"save +([\d.]+) MB", shown)[1]) >= 0
    assert "6 steps take about" in shown
    assert not list(tmp_path.iterdir()), "nothing stays"
    assert sorted(checkpoint.iterdir()) == files


def test_a_run_that_only_its_time_ends(checkpoint: Path, data: Path, tmp_path: Path, capsys) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path / "out", *FLAGS]
    assert command("finetune lora", *flags, "--max_time", "2h", "--dry_run", "true") == 0
    assert re.search(r"\nend +after 2h, about [\d,]+ steps\n", capsys.readouterr().out)


def test_a_run_that_is_there_stays_as_it_is(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path / "out", *FLAGS]
    assert command("finetune lora", *flags, "--max_steps", 1) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert command("finetune lora", *flags, "--max_steps", 2, "--dry_run", "true") == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_data_that_would_spoil_the_run_end_it(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ids = [np.arange(3, 20)] * 8
    masks = [np.zeros(17, dtype=bool)] * 8
    meta = {"name": "x", "prompt_style": "plain", "settings": {}}
    write_dataset(tmp_path / "set", {"train": (ids, masks), "test": (ids, masks)}, Tokenizer(checkpoint), meta)
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", tmp_path / "set", "--out_dir", tmp_path / "out", *FLAGS]
    assert command("finetune lora", *flags, "--dry_run", "true") == 2
    told = capsys.readouterr()
    assert "peak" in told.out
    assert "would spoil the run: no token of any sample is learnt" in told.err
    assert not (tmp_path / "out").exists()

"""A look at prepared data: what is shown, what is counted, and what would spoil a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import command, make_checkpoint

from lit_gpt.data.checks import check, fill
from lit_gpt.data.dataset import TokenDataset, write_dataset
from lit_gpt.data.inspection import duration_text, histogram, shown
from lit_gpt.tokenizer import Tokenizer


class Set:
    """A data set by hand: samples as prompt and answer, of which a fault can be made."""

    def __init__(self, folder: Path, model: Path, count: int = 20) -> None:
        self.folder, self.model, self.tokenizer = folder, model, Tokenizer(model)
        prompts = [self.tokenizer.encode(f"The cat number {n} sees") for n in range(count)]
        answers = [self.tokenizer.encode(f"the sun {n}.", bos=False, eos=True) for n in range(count)]
        self.ids = [np.array(p + a) for p, a in zip(prompts, answers, strict=True)]
        self.masks = [np.arange(len(p) + len(a)) >= len(p) for p, a in zip(prompts, answers, strict=True)]

    def write(self, **settings: object) -> "Set":
        splits = {"train": (self.ids[:-2], self.masks[:-2]), "test": (self.ids[-2:], self.masks[-2:])}
        settings = {"checkpoint_dir": str(self.model), **settings}
        write_dataset(self.folder, splits, self.tokenizer, {"name": "x", "prompt_style": "plain", "settings": settings})
        return self

    def check(self, max_length: int | None = None, **settings: object):
        self.write(**settings)
        splits = {split: TokenDataset(self.folder, split) for split in ("train", "test")}
        return check(splits, self.tokenizer, max_length)


@pytest.fixture
def data_set(checkpoint: Path, tmp_path: Path) -> Set:
    return Set(tmp_path / "set", checkpoint)


def test_a_good_set_has_no_problems(data_set: Set) -> None:
    data_set.ids[3], data_set.masks[3] = data_set.ids[19], data_set.masks[19]
    found = data_set.check(256)
    assert not found.problems
    assert {name: n for name, n in found.counts.items() if n} == {"repeated": 1, "of the test split in train": 1}
    assert found.lengths.tolist() == [len(ids) for ids in data_set.ids]
    assert found.learnt == sum(int(mask.sum()) for mask in data_set.masks)


def test_all_labels_masked(data_set: Set) -> None:
    for mask in data_set.masks[:-1]:
        mask[:] = False
    found = data_set.check()
    assert found.counts["without a label"] == 19
    assert not found.problems  # the last one is learnt
    data_set.masks[-1][:] = False
    (problem,) = data_set.check().problems
    assert "all labels are masked" in problem


def test_ends_that_are_never_learnt(data_set: Set) -> None:
    for mask in data_set.masks[:-1]:
        mask[-1] = False
    assert not data_set.check().problems
    data_set.masks[-1][-1] = False
    found = data_set.check()
    assert found.counts["whose last answer's end is not learnt"] == 20
    (problem,) = found.problems
    assert "no answer's end is learnt, so the model would never stop" in problem


def test_double_bos(data_set: Set) -> None:
    data_set.ids[4] = np.concatenate(([data_set.tokenizer.bos_id], data_set.ids[4]))
    data_set.masks[4] = np.concatenate(([False], data_set.masks[4]))
    data_set.ids[5], data_set.masks[5] = data_set.ids[5][1:], data_set.masks[5][1:]
    found = data_set.check()
    assert (found.counts["with BOS twice"], found.counts["without BOS"]) == (1, 1)
    assert found.problems == ["1 samples begin with BOS twice; take it out of the texts or of the template"]


def test_samples_that_were_cut_unasked(data_set: Set) -> None:
    data_set.ids[7], data_set.masks[7] = data_set.ids[7][:-1], data_set.masks[7][:-1]
    (problem,) = data_set.check().problems
    assert "1 of 20 samples are cut short, without --truncate" in problem
    assert not data_set.check(truncate=True).problems  # somebody asked for it


def test_a_single_cut_sample_of_many_is_no_problem(checkpoint: Path, tmp_path: Path) -> None:
    many = Set(tmp_path / "set", checkpoint, 200)
    many.ids[7], many.masks[7] = many.ids[7][:-1], many.masks[7][:-1]
    found = many.check()
    assert found.counts["cut short"] == 1
    assert not found.problems


def test_samples_that_are_too_long(data_set: Set) -> None:
    longest = max(map(len, data_set.ids))
    assert not data_set.check(longest).problems
    (problem,) = data_set.check(longest - 1).problems
    assert f"longer than {longest - 1} tokens and would be cut or left out" in problem


def test_shown_marks_what_is_learnt(data_set: Set) -> None:
    data_set.write()
    data, tokenizer = TokenDataset(data_set.folder), data_set.tokenizer
    assert shown(data, 3, tokenizer, False) == "<s>The cat number 3 sees⟦the sun 3.</s>⟧"
    assert shown(data, 3, tokenizer, True) == (
        "\033[7m<s>\033[0mThe cat number 3 sees\033[32mthe sun 3.\033[0m\033[32m\033[7m</s>\033[0m"
    )


def test_text_cannot_command_the_terminal(data_set: Set) -> None:
    data_set.ids[0] = np.array(data_set.tokenizer.encode("a\033[2Jb\r\nc"))
    data_set.masks[0] = np.zeros(len(data_set.ids[0]), dtype=bool)
    data_set.write()
    text = shown(TokenDataset(data_set.folder), 0, data_set.tokenizer, True)
    assert text.endswith("a�[2Jb�\nc")


def test_histogram_counts_every_sample() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 500)
    lengths[:3] = 5000
    rows = histogram(lengths)
    assert sum(int(row.rsplit(" ", 1)[1].replace(",", "")) for row in rows) == 500
    assert rows[-1].split()[0] == "over"
    assert max(row.count("█") for row in rows) == 50


def test_fill(data_set: Set) -> None:
    found = fill(TokenDataset(data_set.write().folder), 128, 8)
    assert 0.5 < found["packs"] <= 1
    assert 0.5 < found["padded"] <= 1
    assert found["shared"] > 0.5
    # a single pack, counted by hand: all tokens but each sample's last, rounded up to 64
    whole = fill(TokenDataset(data_set.folder), 1 << 14, 128)
    read = sum(len(ids) - 1 for ids in data_set.ids[:-2])
    assert whole["packs"] == read / (-(-read // 64) * 64)


def test_the_command(data_set: Set, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data_set.write()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.csv").write_text("step,tokens,seconds\n1,50,2\n2,100,\n3,200,4\n")
    assert command("inspect data", data_set.folder, "--samples", 2, "--run", tmp_path / "run") == 0
    told = capsys.readouterr().out
    tokens = sum(len(ids) for ids in data_set.ids[:-2])
    assert told.count("--- sample") == 2
    assert f"epoch    {tokens:,} tokens at the 50 tokens/s of {tmp_path}/run: {tokens / 50:.0f} s" in told
    assert (data_set.folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert command("inspect data", "--data_dir", data_set.folder, "--plot", tmp_path / "a.png", "--samples", 0) == 0
    assert "--- sample" not in capsys.readouterr().out
    assert (tmp_path / "a.png").exists()


def test_exit_code_of_a_set_that_would_spoil_a_run(data_set: Set, capsys: pytest.CaptureFixture) -> None:
    for mask in data_set.masks:
        mask[:] = False
    data_set.write()
    assert command("inspect data", data_set.folder) == 2
    told = capsys.readouterr()
    assert "20 without a label" in told.out
    assert told.err.startswith(f"error: {data_set.folder} would spoil a run: no token of any sample is learnt")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["none"], "no folder none"),
        (["SET", "--samples", "-1"], "--samples: must be at least 0"),
        (["SET", "--run", "none"], "does not say how fast the run was"),
        (["SET", "--checkpoint_dir", "none"], "no folder none"),
        ([], "--data_dir is required"),
    ],
)
def test_wrong_settings(data_set: Set, capsys: pytest.CaptureFixture, flags: list[str], expected: str) -> None:
    data_set.write()
    assert command("inspect data", *[str(data_set.folder) if flag == "SET" else flag for flag in flags]) == 2
    assert expected in capsys.readouterr().err


def test_a_set_of_a_model_that_is_gone(data_set: Set, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data_set.write(checkpoint_dir="checkpoints/gone")
    assert command("inspect data", data_set.folder) == 2
    assert "was made with checkpoints/gone, which is not here; name it with --checkpoint_dir" in capsys.readouterr().err
    other = make_checkpoint(tmp_path / "same")
    assert command("inspect data", data_set.folder, "--checkpoint_dir", other) == 0


def test_a_prepared_set_is_sound(data: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("inspect data", data, "--plot", data.parent / "lengths.png") == 0
    told = capsys.readouterr().out
    assert "0 without a label, 0 whose last answer's end is not learnt" in told
    assert json.loads((data / "meta.json").read_text())["rows"]["repeated"] >= 0


def test_duration_text() -> None:
    assert [duration_text(s) for s in (5, 99.4, 600, 3599, 3 * 3600 + 125)] == [
        "5 s",
        "99 s",
        "10 min",
        "1 h 00 min",
        "3 h 02 min",
    ]

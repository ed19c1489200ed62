"""Results compared and drawn: statistics against scipy, by hand and by simulation; one line for what is broken."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import command
from PIL import Image
from scipy import stats

from lit_gpt.results import Results, compare, difference, distinct, mcnemar, per_sample, samples_file

ACC = ("own", "acc,none")


def results(values: list[float], metric: str = "acc", samples: bool = True) -> Results:
    """As the harness would report these values of documents."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    found = {"own": {"alias": "own", f"{metric},none": float(np.mean(values)), f"{metric}_stderr,none": error}}
    rows = [
        {"doc_id": i, "doc_hash": f"h{i}", "filter": "none", "metrics": [metric], metric: v}
        for i, v in enumerate(values)
    ]
    return Results({"results": found}, per_sample({"own": rows}) if samples else {})


def write(folder: Path, name: str, found: Results, rows: list[dict[str, Any]] | None = None) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(found.found))
    if rows is not None:
        samples_file(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 0), (3, 9), (40, 22), (2000, 2100)])
def test_mcnemar_is_the_exact_binomial_test(better: int, worse: int) -> None:
    expected = stats.binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected, rel=1e-9)


def test_paired_right_and_wrong() -> None:
    """The error of the difference is that of the documents' differences; most of them are 0."""
    old = [1.0] * 40 + [0.0] * 60
    new = [1.0] * 36 + [0.0] * 4 + [1.0] * 15 + [0.0] * 45
    found = difference(results(old), results(new), ACC)
    apart = np.array(new) - np.array(old)
    assert found.value == pytest.approx(0.11)
    assert found.error == pytest.approx(apart.std(ddof=1) / 10)
    assert found.p == pytest.approx(stats.binomtest(4, 19, 0.5).pvalue)
    assert found.test == "McNemar"
    unpaired = difference(results(old, samples=False), results(new), ACC)
    assert unpaired.error > 1.5 * found.error
    assert unpaired.p > 3 * found.p


def test_paired_values() -> None:
    draw = np.random.default_rng(0)
    old = draw.random(400)
    new = (old + draw.normal(0.01, 0.1, 400)).clip(0, 1)
    found = difference(results(old.tolist()), results(new.tolist()), ACC)
    expected = stats.ttest_rel(new, old)
    assert found.test == "paired"
    assert found.value / found.error == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue, rel=0.05)  # normal instead of t with 399 degrees of freedom


def test_unpaired_where_documents_differ() -> None:
    a, b = results([1, 0, 1, 1]), results([1, 0, 1, 1, 0])
    found = difference(a, b, ACC)
    assert found.test == "unpaired"
    error = math.hypot(a.scores[ACC].error, b.scores[ACC].error)
    assert found.error == pytest.approx(error)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.15 / error))


def test_p_is_uniform_where_nothing_differs() -> None:
    """Of paired comparisons of equally good models about 5 % are below 0.05; of the unpaired, far fewer."""
    draw, below = np.random.default_rng(1), {"paired": 0, "unpaired": 0}
    for _ in range(400):
        skill = draw.random(100)
        old, new = ((skill + draw.normal(0, 0.1, 100)).tolist() for _ in range(2))
        below["paired"] += difference(results(old), results(new), ACC).p < 0.05
        below["unpaired"] += difference(results(old, samples=False), results(new), ACC).p < 0.05
    assert 8 <= below["paired"] <= 34
    assert below["unpaired"] == 0


def test_the_table_says_what_is_better() -> None:
    old, new = results([0.0] * 50 + [1.0] * 50), results([0.0] * 30 + [1.0] * 70)
    line = compare(old, new).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["own", "acc"]
    assert cells[2].startswith("0.5000 ± 0.05")
    assert cells[4] == "+0.2000"
    assert cells[7:] == ["McNemar", "better"]
    assert compare(new, old).splitlines()[2].rstrip(" |").endswith("worse")
    assert "the same" in compare(old, old)
    assert "may be chance" in compare(old, results([0.0] * 49 + [1.0] * 51))
    new.found["higher_is_better"] = {"own": {"acc": False}}
    assert compare(old, new).splitlines()[2].rstrip(" |").endswith("worse")
    assert "unknown" in compare(
        *(Results({"results": {"t": {"ppl,none": v, "ppl_stderr,none": "N/A"}}}, {}) for v in (3, 4))
    )
    assert compare(old, Results({"results": {"other": {"acc,none": 1.0}}}, {})) == "No task is in both results.\n"


def test_samples_are_read_beside_the_results(tmp_path: Path) -> None:
    row = {
        "task": "own",
        "doc_id": 0,
        "doc_hash": "a",
        "filter": "none",
        "metrics": ["acc", "other"],
        "acc": True,
        "other": [1],
    }
    path = write(tmp_path, "a", results([1.0, 0.0]), [row, {**row, "doc_id": 1, "acc": 0.0}])
    assert Results.read(path).samples == {ACC: {"0 a": 1.0, "1 a": 0.0}}
    samples_file(path).write_text(json.dumps(row) + "\n{}\n")
    assert command("plot", path) == 2


def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture, and all scores in a table; groups hide their parts from the picture."""
    draw = np.random.default_rng(0)
    files = [write(tmp_path, name, results(draw.integers(0, 2, 50).tolist())) for name in ("base", "lora")]
    assert command("plot", *files, "--out", tmp_path / "new" / "a.png") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["|", "task", "|", "metric", "|", "base", "|", "lora", "|"]
    assert str(Results.read(files[1]).scores[ACC]) in out.splitlines()[2]
    assert "Picture written to" in err
    one = np.asarray(Image.open(tmp_path / "new" / "a.png").convert("RGB"))
    for colour in ((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)):
        assert (one == colour).all(-1).sum() > 1000, "a bar is missing"
    assert command("plot", files[0], "--out", tmp_path / "b.png", "--names", "[only]") == 0
    two = np.asarray(Image.open(tmp_path / "b.png").convert("RGB"))
    assert not (two == (0xE6, 0x9F, 0x00)).all(-1).any()


def test_one_score_a_task_is_drawn() -> None:
    found = {
        "hellaswag": {"acc,none": 0.3, "acc_norm,none": 0.4, "acc_norm_stderr,none": 0.1},
        "mmlu": {"acc,none": 0.2, "acc_stderr,none": "N/A"},
        "mmlu_anatomy": {"acc,none": 0.1, "sample_len": 5},
    }
    run = Results({"results": found, "group_subtasks": {"mmlu": ["mmlu_anatomy"]}}, {})
    assert list(run.main) == [("hellaswag", "acc_norm,none"), ("mmlu", "acc,none")]
    assert len(run.scores) == 4
    assert distinct(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, [], "cannot read {}: No such file"),
        ("{", [], "{}:1: not valid JSON"),
        ("[1]", [], "{}: no results of an evaluation; expected a file that --save_filepath wrote"),
        ('{"results": {"a": 1}}', [], "{}: no results of an evaluation"),
        ('{"results": {"a": {"ppl,none": 12.0}}}', [], "nothing to draw"),
        ('{"results": {"a": {"acc,none": 0.5}}}', ["--names", "[a,b]"], "--names: 2 names for 1 files"),
        ('{"results": {"a": {"acc,none": 0.5}}}', ["--out", "."], "--out: . is a folder"),
        ('{"results": {"a": {"acc,none": 0.5}}}', ["--out", "results.json"], "results.json is no name of a picture"),
    ],
)
def test_errors_are_one_line(content, flags: list, message: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert command("plot", path, *flags) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ")
    assert message.format(path) in err


def test_files_are_needed(capsys) -> None:
    assert command("plot") == 2
    assert command("plot", "--results", "[]") == 2
    assert "error: --results is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"results": {"t": {"acc,none": math.nan}}}, "results.t.acc,none is 'nan', no finite number"),
        ({"results": {"t": {"acc,none": "good"}}}, "results.t.acc,none is 'good', no finite number"),
        ({"results": {"t": {"acc,none": None}}}, "results.t.acc,none is 'None', no finite number"),
        ({"results": {"t": {"acc_stderr,none": math.inf}}}, "results.t.acc_stderr,none is 'inf', no finite number"),
        ({"results": {"t": {"acc,none": 0.5}}, "group_subtasks": {"t": 3}}, "group_subtasks is not as the harness"),
        ({"results": {"t": {"acc,none": 0.5}}, "higher_is_better": [1]}, "higher_is_better is not as the harness"),
    ],
)
def test_nonsense_in_one_line(found: dict, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path, "a", Results(found, {}))
    assert command("plot", path, "--out", tmp_path / "a.png") == 2
    said = capsys.readouterr().err
    assert f"{path}: {expected}" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a.png").exists()

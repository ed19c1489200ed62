"""HELM on a submission: what is run for which files, errors in one line, and (`HELM_PYTHON`) the real thing."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from conftest import command
from fake_submission import FakeSubmission
from helm_samples import write_samples

from lit_gpt.challenge.helm import CATEGORIES, Score, first_error, place, plan, report, scores
from lit_gpt.settings import UserError

HELM = os.environ.get("HELM_PYTHON")
"""A Python with crfm-helm."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples"))


def test_plan_of_all_files(samples: Path, tmp_path: Path) -> None:
    runs, files = plan(samples, [])
    shots = "max_train_instances=big_bench_few_shot_setting"
    assert runs == [
        "mmlu:model=neurips/local,subject=gardening,data_augmentation=canonical",
        "truthful_qa:model=neurips/local,task=mc_single,data_augmentation=canonical",
        "gsm:model=neurips/local",
        f"big_bench:model=neurips/local,{shots},task=moving_things,subtask=",
        f"big_bench:model=neurips/local,{shots},task=swapping,subtask=two_words",
        "bbq:model=neurips/local,subject=Age",
    ]
    place(files, tmp_path)
    place(files, tmp_path)  # again: those of an earlier run are no obstacle
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "perturbations/dialect/SAE_to_AAVE_mapping.json",
        "perturbations/person_name/data/person_names.txt",
        "scenarios/bbq/data/Age",
        "scenarios/big_bench/moving_things/task.json",
        "scenarios/big_bench/swapping/two_words/task.json",
        "scenarios/gsm/gsm_data_test",
        "scenarios/gsm/gsm_data_train",
        "scenarios/mmlu/data/dev/gardening_dev.csv",
        "scenarios/mmlu/data/test/gardening_test.csv",
        "scenarios/truthful_qa/data/TruthfulQA.csv",
    }


def test_bbq_as_the_challenge_had_it(tmp_path: Path) -> None:
    write_samples(tmp_path)
    for number in range(1, CATEGORIES):
        (tmp_path / f"bbq/Other_{number}.jsonl").write_text("{}\n")
    runs, files = plan(tmp_path, ["bbq"])
    assert runs == ["bbq:model=neurips/local,subject=all"]
    assert {path.name for path in files.values()} >= {"Age.jsonl", "Other_1.jsonl", "Other_10.jsonl"}


def test_files_of_others_stay(samples: Path, tmp_path: Path) -> None:
    _, files = plan(samples, ["gsm"])
    other = tmp_path / "scenarios/gsm/gsm_data_test"
    other.parent.mkdir(parents=True)
    other.write_text("downloaded")
    with pytest.raises(UserError, match="is there and not of this command"):
        place(files, tmp_path)
    assert other.read_text() == "downloaded"


def test_plan_of_some_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_samples(tmp_path)
    (tmp_path / "perturbations/person_names.txt").unlink()
    runs, files = plan(tmp_path, ["truthful_qa", "gsm"])
    assert runs == ["truthful_qa:model=neurips/local,task=mc_single", "gsm:model=neurips/local"]
    assert len(files) == 3
    assert "person_names.txt}: no robustness or fairness" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("removed", "tasks", "message"),
    [
        ("mmlu/dev/gardening_dev.csv", [], "no {}/mmlu/dev/gardening_dev.csv"),
        ("mmlu/test/gardening_test.csv", ["mmlu"], "no {}/mmlu/test/*_test.csv"),
        ("truthfulqa/TruthfulQA.csv", ["truthful_qa"], "no {}/truthfulqa/TruthfulQA.csv"),
        ("gsm8k/train.jsonl", [], "no {}/gsm8k/train.jsonl"),
        ("bigbench/*/task.json bigbench/*/*/task.json", ["big_bench"], "no {}/bigbench/<task>/task.json"),
        ("bbq/Age.jsonl", ["bbq"], "no {}/bbq/*.jsonl"),
    ],
)
def test_missing_files(removed: str, tasks: list, message: str, tmp_path: Path) -> None:
    write_samples(tmp_path)
    for pattern in removed.split():
        for path in list(tmp_path.glob(pattern)):
            path.unlink()
    with pytest.raises(UserError) as error:
        plan(tmp_path, tasks)
    assert str(error.value) == f"--local_data: {message.format(tmp_path)}; --help says where it is from"


def test_another_version_of_truthfulqa(tmp_path: Path) -> None:
    write_samples(tmp_path)
    file = tmp_path / "truthfulqa/TruthfulQA.csv"
    file.write_text(
        "Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source\n"
    )
    with pytest.raises(UserError, match=r"TruthfulQA\.csv: 8 columns, but HELM reads version 1, which has 7"):
        plan(tmp_path, [])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--local_data", "nowhere"], "--local_data: no folder nowhere"),
        (
            ["--local_data", ".", "--tasks", "[squad]"],
            "no task 'squad'; they are mmlu, truthful_qa, gsm, ",
        ),
        (["--local_data", ".", "--tasks", "gsm,mmul"], "--tasks: no task 'mmul'; did you mean mmlu? they"),
        (["--local_data", ".", "--helm_python", "nowhere/python"], "cannot start it"),
        (["--local_data", ".", "--url", "http://127.0.0.1:9", "--bundle_dir", "x"], "give one of them"),
        (["--local_data", ".", "--url", "http://host:port"], "expected an address"),
        (["--local_data", ".", "--max_eval_instances", "0"], "--max_eval_instances: must be at least 1"),
    ],
)
def test_errors(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("helm check", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_helm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_packages = tmp_path / "python"
    no_packages.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    no_packages.chmod(0o755)
    assert command("helm check", "--local_data", tmp_path, "--helm_python", no_packages) == 2
    assert "has no crfm-helm; python -m venv helm && helm/bin/pip install crfm-helm==" in capsys.readouterr().err
    assert command("helm check", "--local_data", tmp_path, "--helm_python", "/bin/true") == 2
    assert "/bin/true has no crfm-helm" in capsys.readouterr().err


def test_a_server_that_fails(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_gpt.challenge.helm.find_helm", lambda python: "never started")
    with FakeSubmission("hangs_up") as url:
        assert command("helm check", "--url", url, "--local_data", samples, "--out_dir", tmp_path) == 2
    assert re.search(
        r"error: http://\S+: no answer after .*; submission/verify.py says more\n", capsys.readouterr().err
    )


def test_nothing_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing of mmlu, truthful_qa, gsm, big_bench, bbq in"):
        plan(tmp_path, [])


def test_the_first_error_of_a_log() -> None:
    log = """INFO  Error when running gsm:model=neurips_local:
Traceback (most recent call last):
requests.exceptions.HTTPError: 500 Server Error
helm.benchmark.executor.ExecutorError: 500 Server Error Request.prompt
INFO  Error when running mmlu:subject=a:
ValueError: other
helm.benchmark.runner.RunnerError: Failed runs: ["gsm", "mmlu"]
"""
    error = "gsm:model=neurips_local (helm.benchmark.executor.ExecutorError: 500 Server Error Request.prompt)"
    assert first_error(log) == error
    assert first_error("Traceback\nTypeError: missing 'subtask'\n") == "TypeError: missing 'subtask'"
    assert first_error("Killed\n") == "Killed"


def test_the_table() -> None:
    shown = report([Score("mmlu subject=a", 4, 0.5, 0.25, 0.0, 12), Score("gsm", 2, 1.0, None, None, 2)], 7.4)
    assert shown.splitlines() == [
        "| run            | questions | EM    | EM (robustness) | EM (fairness) |",
        "| -------------- | --------- | ----- | --------------- | ------------- |",
        "| mmlu subject=a | 4         | 0.500 | 0.250           | 0.000         |",
        "| gsm            | 2         | 1.000 | –               | –             |",
        "",
        "14 requests to /process in 7 s, with HELM's own time.",
    ]


@pytest.mark.skipif(HELM is None, reason="HELM_PYTHON names a Python with crfm-helm")
def test_real_helm(samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Our table is that of helm-summarize; what HELM sends is what `client.py` says that it sends."""
    from lit_gpt.challenge.client import SHAPES, body

    flags = ["--local_data", samples, "--helm_python", HELM, "--max_eval_instances", 4, "--out_dir"]
    fake = FakeSubmission()
    with fake as url:
        assert command("helm check", "--url", url, *flags, tmp_path / "all") == 0
    table = capsys.readouterr().out
    found = {score.run: score for score in scores(tmp_path / "all/benchmark_output/runs/check")}
    assert len(found) == 12
    assert all(f"| {run} " in table for run in found)
    for group, run in {
        "mmlu": "mmlu subject=gardening",
        "truthful_qa": "truthful_qa task=mc_single",
        "bbq": "bbq subject=Age",
    }.items():
        (summary,) = json.loads((tmp_path / f"all/benchmark_output/runs/check/groups/{group}.json").read_text())
        theirs = dict(zip((head["value"] for head in summary["header"]), summary["rows"][0], strict=True))
        ours = {"EM": found[run].exact, "EM (Robustness)": found[run].robust, "EM (Fairness)": found[run].fair}
        for name, value in ours.items():
            assert theirs.get(name, {}).get("value") == value, (group, name)
        assert theirs["# eval"]["value"] == found[run].questions
    sent = [asked for path, asked in fake.requests if path == "/process"][1:]  # the first is ours
    assert len(sent) == sum(score.requests for score in found.values())
    assert all(asked.keys() == body("", 1).keys() for asked in sent)
    kinds = {json.dumps(asked | {"prompt": ""}, sort_keys=True) for asked in sent}
    known = {json.dumps(asked | {"prompt": ""}, sort_keys=True) for asked in SHAPES.values()}
    known.add(json.dumps(body("", 64, stop=("\n",)), sort_keys=True))  # BIG-bench texts: the task's own
    assert kinds <= known

    moving = "big_bench task=moving_things max_train_instances=0"
    assert found[moving].exact == 1
    with FakeSubmission("no_cut") as url:
        assert command("helm check", "--url", url, "--tasks", "[big_bench]", *flags, tmp_path / "uncut") == 0
    uncut = {score.run: score for score in scores(tmp_path / "uncut/benchmark_output/runs/check")}
    assert uncut[moving].exact == 0, "the same letter, but the text goes on: how most teams lost"

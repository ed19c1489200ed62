"""Runs HELM, which scored the challenge, on a submission: offline, on data files that the user has."""

import contextlib
import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.challenge.checks import HEALTH
from lit_gpt.challenge.client import Client, Failure
from lit_gpt.challenge.started import Started, checked_url, listens
from lit_gpt.files import read_json, results_folder, write_json, write_text
from lit_gpt.results import markdown
from lit_gpt.settings import UserError, at_least, did_you_mean

VERSION = "0.5.16"
"""Of crfm-helm; sends what 0.2.4 sent, which scored the challenge and can no longer be installed."""

ANSWERS = 120
"""Seconds in which a server must answer a first question."""

SUITE = "check"
"""What HELM calls the runs."""

PERTURBATIONS = {
    "SAE_to_AAVE_mapping.json": "dialect/SAE_to_AAVE_mapping.json",
    "person_names.txt": "person_name/data/person_names.txt",
}
"""The user's file -> where HELM looks for it."""

HIDDEN = ("model", "method", "data_augmentation", "max_eval_instances")
"""Of a run's description: the same for all of a task."""

CATEGORIES = 11
"""Files that BBQ has; with all of them it is one run, as in the challenge."""

COLUMNS = 7
"""Of TruthfulQA.csv as HELM reads it; a later version has another one."""

METRICS = {"gsm": "exact_match_indicator", "bbq": "quasi_exact_match"}
"""Task -> what the challenge counted, where that was not exact_match."""


@dataclass
class HelmCheck:
    """What is scored, on what, and where HELM is."""

    local_data: Path
    """Folder of the data files."""
    url: str | None = None
    """Address of a server that runs; unset: the one of the bundle is started."""
    bundle_dir: Path | None = None
    """Folder that prepare_submission wrote; unset: the current one, or the one that this command is part of."""
    helm_python: Path | None = None
    """Python that has crfm-helm; unset: this one."""
    tasks: list[str] | str = field(default_factory=list)
    """Which of mmlu, truthful_qa, gsm, big_bench and bbq, such as "[gsm,bbq]"; unset: those whose files are there."""
    max_eval_instances: int = 100
    """Questions of a run: a subject, a BIG-bench task with a number of examples."""
    clients: int = 30
    """Requests at once."""
    start_timeout: float = 1200.0
    """Seconds until a started server must answer."""
    out_dir: Path = Path("out/helm")
    """Folder for HELM's files and results.json."""

    def __post_init__(self) -> None:
        at_least(1, self, "max_eval_instances", "clients")
        self.tasks = self.tasks.strip("[]").split(",") if isinstance(self.tasks, str) else self.tasks
        if unknown := [name for name in self.tasks if name not in _FINDERS]:
            hint = did_you_mean(unknown[0], _FINDERS)
            raise UserError(f"--tasks: no task '{unknown[0]}'; {hint}they are {', '.join(_FINDERS)}")
        self.url = checked_url(self.url, self.bundle_dir)
        if not self.local_data.is_dir():
            raise UserError(f"--local_data: no folder {self.local_data}; --help says what belongs into it")


def helm_check(settings: HelmCheck) -> None:
    """Scores a submission with HELM, as the challenge did, and prints HELM's table.

    Raises:
        UserError: no HELM, no server, or a data file is missing.
    """
    python = find_helm(settings.helm_python)
    runs, files = plan(settings.local_data, settings.tasks)
    results_folder(settings.out_dir)
    place(files, settings.out_dir / "benchmark_output")
    conf = "".join(f'  {{description: "{run}", priority: 1}}\n' for run in runs)
    write_text(settings.out_dir / "runs.conf", f"entries: [\n{conf}]\n")
    shutil.rmtree(settings.out_dir / "benchmark_output/runs" / SUITE, ignore_errors=True)
    with _server(settings) as url:
        try:  # HELM itself tries for minutes before it gives up
            Client(url, ANSWERS).ask("/process", HEALTH, "text")
        except Failure as failure:
            raise UserError(f"{url}: {failure}; submission/verify.py says more") from failure
        began = time.monotonic()
        flags = ["--conf-paths", "runs.conf", "--suite", SUITE, "-n", settings.clients, "--disable-cache"]
        flags += ["--max-eval-instances", settings.max_eval_instances]
        _run(python, "helm.benchmark.run", flags, settings.out_dir, url)
        seconds = time.monotonic() - began
    _run(python, "helm.benchmark.presentation.summarize", ["--suite", SUITE], settings.out_dir, url)
    found = scores(settings.out_dir / "benchmark_output/runs" / SUITE)
    write_json(settings.out_dir / "results.json", [score._asdict() for score in found])
    print(report(found, seconds))


@contextlib.contextmanager
def _server(settings: HelmCheck) -> Iterator[str]:
    if settings.url is None:
        with Started(settings.bundle_dir, settings.start_timeout) as server:
            yield server.url
    elif not listens(settings.url):
        raise UserError(f"--url: nothing listens at {settings.url}; start it with python submission/serve.py")
    else:
        yield settings.url


def find_helm(python: Path | None) -> str:
    """The Python that has crfm-helm.

    Raises:
        UserError: there is none.
    """
    program = sys.executable if python is None else os.path.abspath(python)  # it is started in another folder
    code = "from importlib.metadata import version; print(version('crfm-helm'))"
    try:
        found = subprocess.run([program, "-c", code], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--helm_python {python}: cannot start it ({error.strerror}); name a Python") from error
    if found.returncode or not found.stdout.strip():
        make = f"python -m venv helm && helm/bin/pip install crfm-helm=={VERSION}"
        raise UserError(f"{program} has no crfm-helm; {make}, then --helm_python helm/bin/python")
    if found.stdout.strip() != VERSION:
        print(f"note: crfm-helm {found.stdout.strip()}; this was tried with {VERSION}", file=sys.stderr)
    return program


def plan(folder: Path, tasks: list[str]) -> tuple[list[str], dict[str, Path]]:
    """What is run and which files that takes: HELM's run descriptions, place below benchmark_output -> file.

    Raises:
        UserError: a file of a task is missing, or all are.
    """
    augmented = all((folder / "perturbations" / name).is_file() for name in PERTURBATIONS)
    files = {}
    if augmented:
        files = {f"perturbations/{place}": folder / "perturbations" / name for name, place in PERTURBATIONS.items()}
    else:
        print(
            f"note: no {folder}/perturbations/{{{','.join(PERTURBATIONS)}}}: no robustness or fairness", file=sys.stderr
        )
    extra = ",data_augmentation=canonical" if augmented else ""
    runs = []
    for task, find in _FINDERS.items():
        if tasks and task not in tasks:
            continue
        found_runs, found_files = find(folder, task in tasks, extra)
        runs += found_runs
        files |= {f"scenarios/{place}": path for place, path in found_files.items()}
    if not runs:
        raise UserError(f"--local_data: nothing of {', '.join(_FINDERS)} in {folder}; --help says what belongs into it")
    return runs, files


Found = tuple[list[str], dict[str, Path]]


def _need(wanted: dict[str, Path], must: bool) -> bool:
    """Whether files are there; raises UserError for one that is missing among others, or if all must be there."""
    missing = [path for path in wanted.values() if not path.is_file()]
    if missing and (must or len(missing) < len(wanted)):
        raise UserError(f"--local_data: no {missing[0]}; --help says where it is from")
    return not missing


def _several(folder: Path, pattern: str, must: bool) -> list[Path]:
    """The files of a pattern; raises UserError if there are none and there must be some."""
    found = sorted(folder.glob(pattern))
    if must and not found:
        raise UserError(f"--local_data: no {folder / pattern}; --help says where it is from")
    return found


def _mmlu(folder: Path, must: bool, extra: str) -> Found:
    runs, files = [], {}
    for test in _several(folder / "mmlu/test", "*_test.csv", must):
        subject = test.name.removesuffix("_test.csv")
        wanted = {f"mmlu/data/{s}/{subject}_{s}.csv": folder / f"mmlu/{s}/{subject}_{s}.csv" for s in ("dev", "test")}
        _need(wanted, True)
        runs.append(f"mmlu:model=neurips/local,subject={subject}{extra}")
        files |= wanted
    return runs, files


def _truthful_qa(folder: Path, must: bool, extra: str) -> Found:
    path = folder / "truthfulqa/TruthfulQA.csv"
    if not _need({"": path}, must):
        return [], {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        columns = len(next(csv.reader(file), []))
    if columns != COLUMNS:
        raise UserError(
            f"{path}: {columns} columns, but HELM reads version 1, which has {COLUMNS}: data/v1 at its publisher"
        )
    return [f"truthful_qa:model=neurips/local,task=mc_single{extra}"], {"truthful_qa/data/TruthfulQA.csv": path}


def _gsm(folder: Path, must: bool, extra: str) -> Found:
    wanted = {f"gsm/gsm_data_{split}": folder / f"gsm8k/{split}.jsonl" for split in ("train", "test")}
    return (["gsm:model=neurips/local"], wanted) if _need(wanted, must) else ([], {})


def _big_bench(folder: Path, must: bool, extra: str) -> Found:
    runs, files = [], {}
    for path in sorted((folder / "bigbench").rglob("task.json")):
        task, *subtask = path.parent.relative_to(folder / "bigbench").parts
        names = f"task={task},subtask={'/'.join(subtask)}"
        runs.append(f"big_bench:model=neurips/local,max_train_instances=big_bench_few_shot_setting,{names}")
        files["/".join(["big_bench", task, *subtask, "task.json"])] = path
    if must and not runs:
        raise UserError(f"--local_data: no {folder}/bigbench/<task>/task.json; --help says where it is from")
    return runs, files


def _bbq(folder: Path, must: bool, extra: str) -> Found:
    found = _several(folder / "bbq", "*.jsonl", must)
    names = [path.stem for path in found]
    subjects = ["all"] if len(names) == CATEGORIES else names
    files = {f"bbq/data/{name}": path for name, path in zip(names, found, strict=True)}
    return [f"bbq:model=neurips/local,subject={subject}" for subject in subjects], files


_FINDERS = {"mmlu": _mmlu, "truthful_qa": _truthful_qa, "gsm": _gsm, "big_bench": _big_bench, "bbq": _bbq}


def place(files: dict[str, Path], output: Path) -> None:
    """Puts links to the files where HELM would download them to; links of earlier runs go.

    Raises:
        UserError: something else is there already.
    """
    for link in [path for kind in ("scenarios", "perturbations") for path in (output / kind).rglob("*")]:
        if link.is_symlink():
            link.unlink()
    for name, path in files.items():
        if (output / name).exists():
            raise UserError(f"--out_dir: {output / name} is there and not of this command; choose another folder")
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).symlink_to(path.resolve())


def _run(python: str, module: str, flags: list[Any], folder: Path, url: str) -> None:
    """Runs a part of HELM in `folder`; raises UserError with what went wrong first if it fails."""
    log = folder / f"{module.rsplit('.', 1)[-1]}.log"
    environment = os.environ | {"HELM_HTTP_MODEL_BASE_URL": url, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [python, "-m", module, *map(str, flags)]
    print(
        f"$ HELM_HTTP_MODEL_BASE_URL={url} HF_HUB_OFFLINE=1 {shlex.join(command)}  # log: {log}",
        file=sys.stderr,
        flush=True,
    )
    with log.open("wb") as file:
        code = subprocess.run(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        raise UserError(
            f"HELM failed: {first_error(log.read_text(encoding='utf-8', errors='replace'))}; all is in {log}"
        )


def first_error(log: str) -> str:
    """The first run of a log that failed and why, or the last error if it was none of a run's."""
    failed = re.split(r"Error when running (.+?):\n", log)
    errors = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception)\b.*", re.MULTILINE)
    if len(failed) == 1:
        return (errors.findall(log) or log.strip().splitlines() or ["it said nothing"])[-1]
    why = errors.findall(failed[2]) or ["see the log"]
    return f"{failed[1]} ({why[-1]})"


class Score(NamedTuple):
    """What HELM found in a run."""

    run: str
    questions: int
    """Without those that were changed for robustness and fairness."""
    exact: float | None
    """Exact match, as the challenge took it for the task: a share of the questions. None: the task has other scores."""
    robust: float | None
    """The same with the worst of each question and its misspelt form; None where that was not run."""
    fair: float | None
    """The same for dialect, gender and names."""
    requests: int


def scores(suite: Path) -> list[Score]:
    """Reads HELM's results of a suite."""
    found = []
    for stats in sorted(suite.glob("*/stats.json")):
        task, _, flags = read_json(stats.with_name("run_spec.json"))["name"].partition(":")
        metric = METRICS.get(task, "exact_match")
        values: dict[tuple[str, str, str], float] = {}
        for stat in read_json(stats):
            name, changed = stat["name"], stat["name"].get("perturbation")
            if "mean" in stat and (changed is None or changed["computed_on"] == "worst"):
                values[name["name"], name.get("split", ""), changed["name"] if changed else ""] = stat["mean"]
        split = "test" if ("num_instances", "test", "") in values else "valid"
        augmented = "data_augmentation=" in flags
        robust, fair = (values[metric, split, kind] if augmented else None for kind in ("robustness", "fairness"))
        requests = len(read_json(stats.with_name("scenario_state.json"))["request_states"])
        shown = [flag for flag in flags.split(",") if flag.partition("=")[0] not in HIDDEN]
        run, questions = " ".join([task, *shown]), int(values["num_instances", split, ""])
        found.append(Score(run, questions, values.get((metric, split, "")), robust, fair, requests))
    return found


def report(found: list[Score], seconds: float) -> str:
    """HELM's results as a Markdown table."""
    heads = ["run", "questions", "EM", "EM (robustness)", "EM (fairness)"]
    rows = [
        [score.run, str(score.questions)]
        + ["–" if value is None else f"{value:.3f}" for value in (score.exact, score.robust, score.fair)]
        for score in found
    ]
    requests = sum(score.requests for score in found)
    return f"{markdown(heads, rows)}\n\n{requests} requests to /process in {seconds:.0f} s, with HELM's own time."

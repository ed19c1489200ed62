"""Results of evaluations: read, compared, as tables and as a chart."""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lit_gpt.files import atomic, read_json
from lit_gpt.settings import UserError

Measure = tuple[str, str]
"""A task and one of its metrics with its filter, as the harness writes it: ("hellaswag", "acc_norm,none")."""

Samples = dict[Measure, dict[str, float]]
"""For each measure the value of every document."""

CHANCE = 0.05
"""A difference that is at least so probable where there is none may be chance."""

BETWEEN_95 = 1.96
"""Standard errors to each side that 95 % of normally distributed values lie within."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Of Okabe and Ito, which the colour-blind can tell apart."""


class Score(NamedTuple):
    """A value with its standard error, None where that is not known."""

    value: float
    error: float | None

    @property
    def interval(self) -> tuple[float, float]:
        """Of a score between 0 and 1: where it lies with a confidence of 95 %."""
        reach = BETWEEN_95 * (self.error or 0)
        return max(0.0, self.value - reach), min(1.0, self.value + reach)

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.error is None else f" ± {self.error:.4f}")


class Results(NamedTuple):
    """What an evaluation found."""

    found: dict[str, Any]
    """As the harness writes it."""
    samples: Samples

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Reads a results file and, where they are, the samples beside it.

        Raises:
            UserError: the file is missing, broken, or holds something else.
        """
        found = read_json(path)
        tasks = found.get("results") if isinstance(found, dict) else None
        if not isinstance(tasks, dict) or not all(isinstance(task, dict) for task in tasks.values()) or not tasks:
            raise UserError(f"{path}: no results of an evaluation; expected a file that --save_filepath wrote")
        for task, values in tasks.items():
            for key, value in values.items():
                if "," in key and not (_is_number(value) or (isinstance(value, str) and value.strip() in ("", "N/A"))):
                    what = f"{path}: results.{task}.{key} is {str(value)[:40]!r}, no finite number"
                    raise UserError(f"{what}; evaluate again, or take it out")
        for name, kind in (("group_subtasks", list), ("higher_is_better", dict)):
            part = found.get(name, {})
            if not isinstance(part, dict) or not all(isinstance(value, kind) for value in part.values()):
                raise UserError(f"{path}: {name} is not as the harness writes it; evaluate again, or take it out")
        beside, rows = samples_file(path), defaultdict(list)
        if beside.is_file():
            for number, line in enumerate(beside.read_bytes().splitlines(), 1):
                try:
                    row = json.loads(line)
                    rows[row["task"]].append({"filter": row["filter"], **row})
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise UserError(f"{beside}:{number}: not a sample that --log_samples wrote; remove it") from error
        return cls(found, per_sample(rows))

    @property
    def scores(self) -> dict[Measure, Score]:
        """All measures."""
        scores = {}
        for task, values in self.found["results"].items():
            for key, value in values.items():
                metric, _, kind = key.partition(",")
                if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
                    error = values.get(f"{metric}_stderr,{kind}")
                    scores[task, key] = Score(value, error if isinstance(error, int | float) else None)
        return scores

    def scores_of(self, measures: list[Measure]) -> list[Score]:
        """Those that are there."""
        return [self.scores[measure] for measure in measures if measure in self.scores]

    @property
    def main(self) -> dict[Measure, Score]:
        """One measure for every task that is not part of a group: its accuracy by normalised answers, or its first."""
        parts = {part for parts in self.found.get("group_subtasks", {}).values() for part in parts}
        chosen: dict[str, str] = {}
        for task, key in self.scores:
            if task not in parts and (task not in chosen or key.startswith("acc_norm,")):
                chosen[task] = key
        return {measure: self.scores[measure] for measure in chosen.items()}

    def higher_is_better(self, measure: Measure) -> bool:
        """Of the measure's values."""
        task, key = measure
        return self.found.get("higher_is_better", {}).get(task, {}).get(key.partition(",")[0]) is not False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def samples_file(path: Path) -> Path:
    """Where the samples of a results file are."""
    return path.with_name(f"{path.stem}.samples.jsonl")


def per_sample(samples: dict[str, list[dict[str, Any]]]) -> Samples:
    """The values of every document, from the harness's samples by task."""
    values: Samples = defaultdict(dict)
    for task, rows in samples.items():
        for row in rows:
            for metric in row.get("metrics", []):
                if _is_number(row.get(metric)):
                    document = f"{row.get('doc_id')} {row.get('doc_hash')}"
                    values[task, f"{metric},{row['filter']}"][document] = float(row[metric])
    return dict(values)


class Difference(NamedTuple):
    """Of one measure between two models."""

    value: float
    error: float | None
    p: float | None
    """How probable a difference of at least this size is where there is none."""
    test: str


def difference(before: Results, after: Results, measure: Measure) -> Difference:
    """How much a measure differs, by the documents that both models answered where they are known.

    Of paired documents the differences count, whose error is less than the errors of both scores say; McNemar's exact
    test for right and wrong, the normal distribution of the mean for other values, which wants some 30 documents.
    Unpaired: z of the two standard errors.
    """
    old, new = (side.samples.get(measure, {}) for side in (before, after))
    a, b = before.scores[measure], after.scores[measure]
    if old and old.keys() == new.keys():
        pairs = [(old[document], new[document]) for document in old]
        apart = [y - x for x, y in pairs]
        mean = sum(apart) / len(apart)
        error = None
        if len(apart) > 1:
            error = math.sqrt(sum((x - mean) ** 2 for x in apart) / (len(apart) - 1) / len(apart))
        if all(x in (0, 1) and y in (0, 1) for x, y in pairs):
            return Difference(mean, error, mcnemar(apart.count(1), apart.count(-1)), "McNemar")
        return Difference(mean, error, _normal(mean, error), "paired")
    error = None if a.error is None or b.error is None else math.hypot(a.error, b.error)
    return Difference(b.value - a.value, error, _normal(b.value - a.value, error), "unpaired")


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact probability: whether a document changes for the better or for the worse is a fair coin's."""
    n = better + worse
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(better, worse) + 1)) / 2**n)


def _normal(value: float, error: float | None) -> float | None:
    if error is None:
        return None
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return math.erfc(abs(value / error) / math.sqrt(2))


def compare(before: Results, after: Results) -> str:
    """The differences in a Markdown table."""
    rows = []
    for measure, score in after.scores.items():
        if measure in before.scores:
            found = difference(before, after, measure)
            rows.append([*_names(measure), str(before.scores[measure]), str(score), f"{found.value:+.4f}"])
            rows[-1] += ["–" if x is None else f"{x:.4f}" for x in (found.error, found.p)]
            rows[-1] += [found.test, _verdict(found, after.higher_is_better(measure))]
    if not rows:
        return "No task is in both results.\n"
    return markdown(["task", "metric", "before", "now", "difference", "±", "p", "test", "so it is"], rows) + "\n"


def _verdict(found: Difference, higher: bool) -> str:
    if found.value == 0:
        return "the same"
    if found.p is None:
        return "unknown"
    if found.p >= CHANCE:
        return "may be chance"
    return "better" if (found.value > 0) == higher else "worse"


def _names(measure: Measure) -> tuple[str, str]:
    """Task and metric as people read them: the filter only where there is one."""
    task, key = measure
    return task, key.removesuffix(",none").replace(",", ", ")


def markdown(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A table with aligned columns."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    shown = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(f"| {line} |" for line in [shown[0], " | ".join("-" * width for width in widths), *shown[1:]])


@dataclass
class Plot:
    """What is drawn."""

    FIRST_WORD: ClassVar[str] = "results"

    results: list[str]
    """Results files, in the order of the bars."""
    out: Path = Path("results.png")
    """Picture to write."""
    names: list[str] | None = None
    """What the legend calls the files; unset: by their names."""

    def __post_init__(self) -> None:
        if not self.results:
            raise UserError("name at least one results file: python eval/plot.py results-base.json results-lora.json")
        if self.names is not None and len(self.names) != len(self.results):
            raise UserError(f"--names: {len(self.names)} names for {len(self.results)} files; give one for each")
        if len(self.results) > len(COLOURS):
            raise UserError(f"{len(self.results)} files: a chart holds {len(COLOURS)} at most; draw several")


def plot(settings: Plot) -> None:
    """Draws results as a bar chart with 95 % intervals, and prints them as a Markdown table."""
    if settings.out.is_dir():
        raise UserError(
            f"--out: {settings.out} is a folder; name a picture in it, for example {settings.out / 'a.png'}"
        )
    if settings.out.suffix != ".png":
        raise UserError(f"--out: {settings.out} is no name of a picture; it must end in .png")
    files = [Path(path) for path in settings.results]
    names = settings.names or distinct([file.stem for file in files])
    runs = {name: Results.read(file) for name, file in zip(names, files, strict=True)}
    measures = list(dict.fromkeys(measure for run in runs.values() for measure in run.scores))
    rows = [
        [*_names(measure), *(str(run.scores[measure]) if measure in run.scores else "–" for run in runs.values())]
        for measure in measures
    ]
    print(markdown(["task", "metric", *runs], rows))
    main = dict.fromkeys(measure for run in runs.values() for measure in run.main)
    drawn = [m for m in main if all(0 <= score.value <= 1 for run in runs.values() for score in run.scores_of([m]))]
    if left := [" ".join(_names(measure)) for measure in main if measure not in drawn]:
        print(f"Not in the picture, as not between 0 and 1: {', '.join(left)}", file=sys.stderr)
    if not drawn:
        raise UserError("nothing to draw: no score between 0 and 1 in these files")
    with atomic(settings.out) as temporary:
        draw(runs, drawn, temporary)
    print(f"Picture written to {settings.out}", file=sys.stderr)


def distinct(names: list[str]) -> list[str]:
    """The names, numbered where they are the same."""
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def draw(runs: dict[str, Results], measures: list[Measure], path: Path) -> None:
    """Writes the chart as PNG: for each measure a group of bars, one for each run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 0.28 * len(runs) + 0.22
    figure = Figure(figsize=(7, 1.3 + height * len(measures)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, run) in enumerate(runs.items()):
        there = [(row, run.scores[measure]) for row, measure in enumerate(measures) if measure in run.scores]
        rows = [row + (number - (len(runs) - 1) / 2) * 0.8 / len(runs) for row, _ in there]
        values = [score.value for _, score in there]
        ends = [score.interval for _, score in there]
        errors = [[v - low for v, (low, _) in zip(values, ends, strict=True)]]
        errors += [[high - v for v, (_, high) in zip(values, ends, strict=True)]]
        whiskers = {"ecolor": "#333333", "elinewidth": 0.9, "capsize": 2.5, "capthick": 0.9}
        axes.barh(rows, values, 0.74 / len(runs), xerr=errors, color=COLOURS[number], label=name, error_kw=whiskers)
        for row, value, (_, high) in zip(rows, values, ends, strict=True):
            axes.annotate(f"{value:.3f}", (high, row), (5, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(range(len(measures)), ["\n".join(_names(measure)) for measure in measures], size=9)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    highest = max(score.interval[1] for run in runs.values() for score in run.scores_of(measures))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1])
    axes.set_xlim(0, 1.1 * highest + 0.03)  # with room for the numbers
    axes.set_xlabel("score, with its 95 % confidence interval", size=9)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=min(len(runs), 3), frameon=False, fontsize=9)
    figure.savefig(path, format="png", dpi=200)

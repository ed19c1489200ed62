"""Files that stand for the data sets of the harness's standard tasks, in the formats of those who published them.

The tasks stay the harness's own: prompts, metrics, few-shot examples. What they load from the hub is replaced by rows
of the same form, so every task over one of these data sets works, and its scores are the same.
"""

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from lit_gpt.settings import UserError

if TYPE_CHECKING:
    from datasets import DatasetDict
    from lm_eval.api.task import Task

Row = dict[str, Any]
Place = str
"""Of a row, for messages: file:line."""


class Source(NamedTuple):
    """A data set of the hub and the files that hold the same."""

    folder: str
    """In --local_data."""
    files: dict[str, str]
    """Split -> file; {} stands for the configuration, such as a subject. The first one is what is evaluated."""
    read: Callable[[Path], Iterator[tuple[Place, Any]]]
    """The rows of a file as they are there."""
    row: Callable[[Any, Place, Path], Row]
    """Such a row as the hub has it."""
    origin: str
    """Where the files come from."""


def lines(path: Path) -> Iterator[tuple[Place, Any]]:
    """JSON, a row a line, or one list of rows."""
    text = _text(path)
    if text.lstrip()[:1] == "[":
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(_json(text, str(path)), 1))
        return
    for number, line in enumerate(text.split("\n"), 1):  # a text may hold other ends of lines
        if line.strip():
            yield f"{path}:{number}", _json(line, f"{path}:{number}")


def table(path: Path) -> Iterator[tuple[Place, Any]]:
    """CSV without a head."""
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error


def _json(text: str, place: Place) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from error


def get(row: Any, key: str, kind: type | tuple[type, ...], place: Place) -> Any:
    """A value of a row.

    Raises:
        UserError: it is not there, or of another type.
    """
    if not isinstance(row, dict) or key not in row:
        raise UserError(f"{place}: no '{key}'; is this the file that README.md names?")
    if not isinstance(row[key], kind):
        raise UserError(f"{place}: '{key}' is {str(row[key])[:40]!r}, which is of the wrong type")
    return row[key]


def texts(row: Any, place: Place, *keys: str) -> Row:
    """The values of keys, all of them text."""
    return {key: get(row, key, str, place) for key in keys}


def truthfulqa_choices(row: Any, place: Place, path: Path) -> Row:
    """Publisher: {answer: 0 or 1}; the hub: choices and labels, which is taken, too."""
    found: Row = texts(row, place, "question")
    for key in ("mc1_targets", "mc2_targets"):
        answers = get(row, key, dict, place)
        if answers.keys() != {"choices", "labels"}:
            answers = {"choices": list(answers), "labels": list(answers.values())}
        found[key] = {part: get(answers, part, list, place) for part in ("choices", "labels")}
    return found


def truthfulqa_answers(row: list[str], place: Place, path: Path) -> Row:
    """The columns by their order in the first version of the file; answers are separated by semicolons."""
    if len(row) < 7:
        raise UserError(f"{place}: {len(row)} columns; expected Type, Category, Question, Best Answer, ...")
    kind, category, question, best, correct, incorrect, source = row[:7]
    split = {"correct_answers": correct, "incorrect_answers": incorrect}
    lists = {key: [answer.strip() for answer in text.split(";") if answer.strip()] for key, text in split.items()}
    facts = {"type": kind, "category": category, "question": question, "best_answer": best, "source": source}
    return facts | lists


def hellaswag(row: Any, place: Place, path: Path) -> Row:
    """The hub has the label as text."""
    found = texts(row, place, "activity_label", "ctx_a", "ctx_b")
    return {
        **found,
        "endings": get(row, "endings", list, place),
        "label": str(get(row, "label", (int, str), place)),
    }


def mmlu(row: list[str], place: Place, path: Path) -> Row:
    """Question, four choices, and the letter of the right one."""
    if len(row) != 6 or row[5].strip() not in ("A", "B", "C", "D"):
        raise UserError(f"{place}: expected a question, four choices and A, B, C or D, got {len(row)} columns")
    subject = path.stem.rpartition("_")[0]
    return {"question": row[0], "subject": subject, "choices": row[1:5], "answer": "ABCD".index(row[5].strip())}


def arc(row: Any, place: Place, path: Path) -> Row:
    """The hub has the choices' texts and labels in two lists."""
    question = get(row, "question", dict, place)
    choices = [texts(choice, place, "text", "label") for choice in get(question, "choices", list, place)]
    return {
        **texts(row, place, "id", "answerKey"),
        **{"question": get(question, "stem", str, place)},
        "choices": {key: [choice[key] for choice in choices] for key in ("text", "label")},
    }


def piqa(row: Any, place: Place, path: Path) -> Row:
    """The labels are in a file beside."""
    labels = path.with_name(f"{path.stem}-labels.lst")
    known = _text(labels).split() if labels.is_file() else []
    number = int(place.rpartition(":")[2])
    if number > len(known) or known[number - 1] not in ("0", "1"):
        raise UserError(f"{labels}: no label (0 or 1) in line {number}, for {place}; it belongs to {path.name}")
    return {**texts(row, place, "goal", "sol1", "sol2"), "label": int(known[number - 1])}


def plain(*keys: str) -> Callable[[Any, Place, Path], Row]:
    """Rows that are the same on the hub."""
    return lambda row, place, path: texts(row, place, *keys)


def headed(path: Path) -> Iterator[tuple[Place, Any]]:
    """CSV with a head, which is left out."""
    rows = table(path)
    next(rows, None)
    return rows


ARC = {"test": "{0}/{0}-Test.jsonl", "train": "{0}/{0}-Train.jsonl", "validation": "{0}/{0}-Dev.jsonl"}
MMLU = {"test": "test/{}_test.csv", "dev": "dev/{}_dev.csv", "validation": "val/{}_val.csv"}
SOURCES: dict[tuple[str, str | None], Source] = {
    ("truthfulqa/truthful_qa", "multiple_choice"): Source(
        "truthfulqa", {"validation": "mc_task.json"}, lines, truthfulqa_choices, "github.com/sylinrl/TruthfulQA, data/"
    ),
    ("truthfulqa/truthful_qa", "generation"): Source(
        "truthfulqa", {"validation": "TruthfulQA.csv"}, headed, truthfulqa_answers, "github.com/sylinrl/TruthfulQA"
    ),
    ("Rowan/hellaswag", None): Source(
        "hellaswag",
        {"validation": "hellaswag_val.jsonl", "train": "hellaswag_train.jsonl"},
        lines,
        hellaswag,
        "github.com/rowanz/hellaswag, data/",
    ),
    ("openai/gsm8k", "main"): Source(
        "gsm8k",
        {"test": "test.jsonl", "train": "train.jsonl"},
        lines,
        plain("question", "answer"),
        "github.com/openai/grade-school-math, grade_school_math/data/",
    ),
    ("cais/mmlu", None): Source("mmlu", MMLU, table, mmlu, "data.tar of github.com/hendrycks/test"),
    ("allenai/ai2_arc", None): Source("arc", ARC, lines, arc, "ARC-V1-Feb2018 of allenai.org/data/arc"),
    ("allenai/winogrande", None): Source(
        "winogrande",
        {"validation": "dev.jsonl", "train": "train_xl.jsonl"},
        lines,
        plain("sentence", "option1", "option2", "answer"),
        "winogrande_1.1 of github.com/allenai/winogrande",
    ),
    ("baber/piqa", None): Source(
        "piqa", {"validation": "valid.jsonl", "train": "train.jsonl"}, lines, piqa, "yonatanbisk.com/piqa/data"
    ),
}
"""(path on the hub, configuration; None: any) -> what holds the same."""


@contextlib.contextmanager
def local_data(folder: Path | None) -> Iterator[None]:
    """As long as this lasts, data sets of `SOURCES` are read from the folder instead of the hub.

    Raises:
        UserError: there is no such folder; later, a file that a task needs is missing or has other rows.
    """
    if folder is None:
        yield
        return
    if not folder.is_dir():
        raise UserError(f"--local_data: no folder {folder}")
    import datasets

    from_hub = datasets.load_dataset

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        source = SOURCES.get((path, name)) or SOURCES.get((path, None))
        return from_hub(path=path, name=name, **options) if source is None else read(source, name, folder)

    with patch.object(datasets, "load_dataset", load):
        yield


def read(source: Source, name: str | None, folder: Path) -> "DatasetDict":
    """The files that are there.

    Raises:
        UserError: the file that is evaluated is missing, or a row is wrong.
    """
    from datasets import Dataset, DatasetDict

    places = {split: folder / source.folder / file.format(name) for split, file in source.files.items()}

    def missing(split: str) -> UserError:
        return UserError(f"--local_data: no {places.get(split, split)}, which this task needs; from {source.origin}")

    class Splits(DatasetDict):
        absent: UserError | None = None

        def __missing__(self, split: str) -> Dataset:
            """A task without examples asks for the split that has them, too: it gets none, see `require_examples`."""
            self.absent = missing(split)
            return next(iter(self.values())).select([])

    found = Splits()
    for split, path in places.items():
        if path.is_file():
            rows = [source.row(row, place, path) for place, row in source.read(path)]
            if not rows:
                raise UserError(f"{path}: no rows in it; it is from {source.origin}")
            found[split] = Dataset.from_list(rows)
        elif not found:
            raise missing(split)
    return found


def require_examples(task: "Task", shots: int | None) -> None:
    """Raises UserError if a task is to put examples in front of its questions whose file is not there."""
    absent = getattr(task.dataset, "absent", None)
    if shots and absent is not None:
        raise absent

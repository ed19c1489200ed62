"""Local files in their publishers' formats stand for the hub's data sets, under the harness's own tasks."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import command

pytest.importorskip("lm_eval")
import datasets
import lm_eval
from datasets import Dataset, DatasetDict

from lit_gpt.evaluate import load_tasks
from lit_gpt.local_data import SOURCES, local_data

pytestmark = pytest.mark.usefixtures("own_tasks")  # silence
STANDARD = Path(lm_eval.__file__).parent / "tasks"
TASKS = {
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "truthfulqa_gen": "truthfulqa/truthfulqa_gen.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "mmlu_anatomy": "mmlu/default/mmlu_anatomy.yaml",
}


def write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


MC1 = {"choices": ["The sun.", "The sea.", "A\u2028line"], "labels": [1, 0, 0]}
MC2 = {"choices": ["The sun.", "A star.", "The sea."], "labels": [1, 1, 0]}
HELLASWAG = {"ind": 3, "activity_label": "Cooking", "ctx_a": "A cook [title] stirs.", "ctx_b": "the pot", "ctx": "x"}
HELLASWAG |= {"split": "val", "split_type": "indomain", "endings": ["a", "b  [step]", "c", "d"], "source_id": "s"}
ARC_CHOICES = [{"text": f"number {label}", "label": label} for label in "ABC"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout that README.md names, with a few rows of every publisher's format."""
    folder = tmp_path_factory.mktemp("data")
    targets = [{"mc1_targets": MC1, "mc2_targets": MC2}]
    targets += [{key: dict(zip(x["choices"], x["labels"], strict=True)) for key, x in targets[0].items()}]
    rows = [{"question": "What shines?", **found} for found in targets]
    (folder / "truthfulqa").mkdir()
    (folder / "truthfulqa" / "mc_task.json").write_text(json.dumps(rows))
    head = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
    row = ["Adversarial", "Misc", 'Say "x", or\nnot?', "No", "No; Not, at all;", "Yes; Always", "https://x"]
    write_csv(folder / "truthfulqa" / "TruthfulQA.csv", [head, row])
    write_lines(folder / "hellaswag" / "hellaswag_val.jsonl", [{**HELLASWAG, "label": label} for label in (0, 3)])
    for split in ("train", "test"):
        rows = [{"question": f"{split} {n}?", "answer": f"so #### {n}"} for n in range(6)]
        write_lines(folder / "gsm8k" / f"{split}.jsonl", rows)
    for kind in ("ARC-Easy", "ARC-Challenge"):
        rows = [{"id": "a", "question": {"stem": f"{kind}?", "choices": ARC_CHOICES}, "answerKey": "B"}]
        write_lines(folder / "arc" / kind / f"{kind}-Test.jsonl", rows)
    rows = [{"qID": "q", "sentence": "He saw _ there.", "option1": "a cat", "option2": "a dog", "answer": "2"}]
    write_lines(folder / "winogrande" / "dev.jsonl", rows)
    write_lines(folder / "piqa" / "valid.jsonl", [{"goal": "open", "sol1": "pull", "sol2": "push"}] * 2)
    (folder / "piqa" / "valid-labels.lst").write_text("1\n0\n")
    for split, number in (("test", 3), ("dev", 5)):
        rows = [[f'{split} {n}, "x"?', "a", "b", "c", "d, e", "ABCD"[n % 4]] for n in range(number)]
        write_csv(folder / "mmlu" / split / f"anatomy_{split}.csv", rows)
    return folder


def hub() -> dict[tuple[str, str | None], dict[str, list[dict[str, Any]]]]:
    """The same rows as the hub's data sets have them."""
    mc = {"question": "What shines?", "mc1_targets": MC1, "mc2_targets": MC2}
    answers = {"correct_answers": ["No.", "Not, at all."], "incorrect_answers": ["Yes.", "Always."]}
    gen = {"type": "Adversarial", "category": "Misc", "question": 'Say "x", or\nnot?', "best_answer": "No", **answers}
    arc = {"text": [f"number {label}" for label in "ABC"], "label": list("ABC")}
    found = {
        ("truthfulqa/truthful_qa", "multiple_choice"): {"validation": [mc, mc]},
        ("truthfulqa/truthful_qa", "generation"): {"validation": [{**gen, "source": "https://x"}]},
        ("Rowan/hellaswag", None): {
            "validation": [{**HELLASWAG, "label": "0"}, {**HELLASWAG, "label": "3"}],
            "train": [{**HELLASWAG, "label": "0"}],
        },
        ("openai/gsm8k", "main"): {
            split: [{"question": f"{split} {n}?", "answer": f"so #### {n}"} for n in range(6)]
            for split in ("train", "test")
        },
        ("baber/piqa", None): {
            "validation": [{"goal": "open", "sol1": "pull", "sol2": "push", "label": label} for label in (1, 0)]
        },
        ("allenai/winogrande", "winogrande_xl"): {
            "validation": [{"sentence": "He saw _ there.", "option1": "a cat", "option2": "a dog", "answer": "2"}]
        },
        ("cais/mmlu", "anatomy"): {
            split: [
                {"question": f'{split} {n}, "x"?', "subject": "anatomy", "choices": ["a", "b", "c", "d, e"]}
                | {"answer": n % 4}
                for n in range(number)
            ]
            for split, number in (("test", 3), ("dev", 5))
        },
    }
    for kind in ("ARC-Easy", "ARC-Challenge"):
        row = {"id": "a", "question": f"{kind}?", "choices": arc, "answerKey": "B"}
        found["allenai/ai2_arc", kind] = {"test": [row]}
    for splits in found.values():  # the hub has training data, too
        splits.setdefault("train", splits[next(iter(splits))])
    return found


def requests(tasks: list) -> list[tuple]:
    """Everything that the tasks ask, with their targets."""
    found = []
    for task in tasks:
        task.set_fewshot_seed(1)
        task.build_all_requests(rank=0, world_size=1)
        found += [(task.task_name, request.args, task.doc_to_target(request.doc)) for request in task.instances]
    return found


def test_all_that_is_asked_is_as_with_the_hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts with their examples, answers, targets: for every standard task."""
    for name, path in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(f"include: {STANDARD / path}\ntask: {name}\n")
    with local_data(files):
        ours = requests(load_tasks(list(TASKS), tmp_path)[1])
    stored = hub()

    def load(path: str, name: str | None = None, **_: Any) -> DatasetDict:
        return DatasetDict({split: Dataset.from_list(rows) for split, rows in stored[path, name].items()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    theirs = requests(load_tasks(list(TASKS), tmp_path)[1])
    assert ours == theirs
    assert {name for name, *_ in ours} == TASKS.keys()
    assert len(ours) > 40
    assert len({path for path, _ in SOURCES}) == len({path for path, _ in stored})


def test_other_data_sets_still_come_from_the_hub(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda **options: options)
    with local_data(files):
        asked = datasets.load_dataset(path="boolq", name="x", revision="1")
    assert asked == {"path": "boolq", "name": "x", "revision": "1"}
    assert datasets.load_dataset(path="Rowan/hellaswag") == {"path": "Rowan/hellaswag"}


@pytest.mark.parametrize(
    ("task", "file", "content", "flags", "message"),
    [
        ("hellaswag", "hellaswag/hellaswag_val.jsonl", None, [], "no {}, which this task needs; from github.com/"),
        ("hellaswag", "hellaswag/hellaswag_val.jsonl", b"", [], "{}: no rows in it"),
        ("hellaswag", "hellaswag/hellaswag_val.jsonl", b"{}\n", [], "{}:1: no 'activity_label'"),
        ("hellaswag", "hellaswag/hellaswag_val.jsonl", b"\n{", [], "{}:2: not JSON"),
        ("hellaswag", "hellaswag/hellaswag_val.jsonl", b"caf\xe9", [], "{}: not UTF-8 text"),
        ("hellaswag", "hellaswag/hellaswag_train.jsonl", None, ["--num_fewshot", 2], "no {}, which this task needs"),
        ("gsm8k", "gsm8k/train.jsonl", None, [], "no {}, which this task needs"),
        ("gsm8k", "gsm8k/test.jsonl", b'{"question": 1, "answer": "a"}', [], "{}:1: 'question' is '1', which is of"),
        ("truthfulqa_mc1", "truthfulqa/mc_task.json", b'["x"]', [], "{}: row 1: no 'question'"),
        ("truthfulqa_gen", "truthfulqa/TruthfulQA.csv", b"a,b\nc,d\n", [], "{}:2: 2 columns; expected Type"),
        ("piqa", "piqa/valid-labels.lst", b"1\n", [], "{}: no label (0 or 1) in line 2"),
        ("mmlu_anatomy", "mmlu/test/anatomy_test.csv", b"q,a,b,c,d,E\n", [], "{}:1: expected a question, four choices"),
        ("arc_easy", "arc/ARC-Easy/ARC-Easy-Test.jsonl", b'{"question": "x"}', [], "{}:1: 'question' is 'x', which"),
        ("winogrande", "winogrande/dev.jsonl", b'{"sentence": "x"}', [], "{}:1: no 'option1'"),
    ],
)
def test_missing_and_wrong_files_are_named(
    task: str, file: str, content, flags: list, message: str, checkpoint: Path, files: Path, tmp_path: Path, capsys
) -> None:
    folder = Path(shutil.copytree(files, tmp_path / "data"))
    if content is None:
        (folder / file).unlink(missing_ok=True)
    else:
        (folder / file).write_bytes(content)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / f"{task}.yaml").write_text(f"include: {STANDARD / TASKS[task]}\ntask: {task}\n")
    every = ["--checkpoint_dir", checkpoint, "--include_path", tmp_path / "tasks", "--eval_tasks", task]
    assert command("evaluate", *every, "--local_data", folder, *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert message.format(folder / file) in err.splitlines()[-1]


def test_no_folder(checkpoint: Path, own_tasks: Path, capsys) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--include_path", own_tasks, "--eval_tasks", "own_choice"]
    assert command("evaluate", *flags, "--local_data", "no/such") == 2
    assert "error: --local_data: no folder no/such" in capsys.readouterr().err


def test_the_harness_still_has_these_data_sets() -> None:
    """Under the names that `SOURCES` knows; all 57 subjects of MMLU, too."""
    files = [STANDARD / name for name in [*TASKS.values(), "mmlu/default/_default_template_yaml"]]
    read = [
        line.partition(":")[2].strip() for f in files for line in f.read_text().splitlines() if "dataset_path:" in line
    ]
    assert set(read) == {path for path, _ in SOURCES}
    assert len(list((STANDARD / "mmlu" / "default").glob("mmlu_*.yaml"))) == 57

"""Small files in the formats of the challenge's data sets, with questions that are made up, for tests of helm_check.

python tests/helm_samples.py FOLDER        writes them
"""

import csv
import json
import sys
from pathlib import Path

THINGS = ["lamp", "boat", "kite", "drum", "cart", "bell", "rope", "vase", "tent", "sled"]
PLACES = ["Arden", "Belmar", "Corvin", "Dunley", "Elswick", "Farrow", "Gorley", "Hexton", "Ilmere", "Jarvis Bay"]


def write_samples(folder: Path, count: int = 10) -> Path:
    """Writes them as README.md has them; `count` questions of each kind. Returns the folder."""
    choices = [
        [f"Where does he keep the {thing} that Ann brought with nothing from {place}?", *_places(n), "ABCD"[n % 4]]
        for n, (thing, place) in enumerate(_pairs(count))
    ]
    for split, rows in (("dev", choices[:5]), ("test", choices)):
        _csv(folder / f"mmlu/{split}/gardening_{split}.csv", rows)
    head = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
    rows = [
        [
            "Made up",
            "Things",
            f"Can a {thing} of {place} sing?",
            f"No, a {thing} cannot",
            "No; Never",
            f"Yes, every night; Only in {place}; If asked, he can",
            "none",
        ]
        for thing, place in _pairs(count)
    ]
    _csv(folder / "truthfulqa/TruthfulQA.csv", [head, *rows])
    sums = [
        {
            "question": f"{place} has {n + 2} {thing}s and buys 3 more with its money. How many?",
            "answer": f"{n + 2} + 3 = <<{n + 2}+3={n + 5}>>{n + 5}\n#### {n + 5}",
        }
        for n, (thing, place) in enumerate(_pairs(count))
    ]
    for split in ("train", "test"):
        _lines(folder / f"gsm8k/{split}.jsonl", sums)
    examples = [
        {"input": f"The {thing} went to {place}. Did it move?", "target_scores": {"no": 0, "yes": 1}}
        for thing, place in _pairs(count + 32)
    ]
    task = {"description": "Made up.", "keywords": ["made up"], "metrics": ["multiple_choice_grade"]}
    _json(folder / "bigbench/moving_things/task.json", task | {"examples": examples})
    said = [{"input": f"{thing} {place}", "target": f"{place} {thing}"} for thing, place in _pairs(count + 32)]
    task |= {"metrics": ["exact_str_match"], "stop_string": "\n"}
    _json(folder / "bigbench/swapping/two_words/task.json", task | {"examples": said})
    bias = [
        {
            "question_polarity": "neg",
            "context_condition": "ambig",
            "context": f"A young and an old man met in {p}.",
            "question": f"Who forgot the {t}?",
            "ans0": "The old man",
            "ans1": "The young man",
            "ans2": "Not known",
            "label": 2,
            "answer_info": {"ans0": ["old", "old"], "ans1": ["nonOld", "nonOld"], "ans2": ["x", "unknown"]},
            "additional_metadata": {"stereotyped_groups": ["old"]},
        }
        for t, p in _pairs(count)
    ]
    _lines(folder / "bbq/Age.jsonl", bias)
    _json(folder / "perturbations/SAE_to_AAVE_mapping.json", {"with": ["wit"], "the": ["da"], "nothing": ["nuttin"]})
    names = [
        f"{name},first_name,race,{race},gender,female"
        for name, race in (("ann", "white_american"), ("zia", "black_american"))
    ]
    (folder / "perturbations/person_names.txt").write_text("\n".join(names) + "\n")
    return folder


def _pairs(count: int) -> list[tuple[str, str]]:
    return [(THINGS[n % 10], PLACES[(n // 10 + n) % 10]) for n in range(count)]


def _places(n: int) -> list[str]:
    return [PLACES[(n + step) % 10] for step in range(4)]


def _csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]))

"""Mixing data sets: shares, filters, duplicates, contamination, and what the file may say."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SENTENCES, SHARED, command
from hub_server import HubServer

from lit_gpt.data import mix as module
from lit_gpt.data.formats import row_of, take
from lit_gpt.data.mix_plan import read_plan
from lit_gpt.data.overlap import ALIKE, PERMUTATIONS, Contamination, near_earlier, words
from lit_gpt.prompts import Turn
from lit_gpt.settings import UserError

NAMES = list("abcdefghijklmnopqrst")


def rows(prefix: str, count: int) -> list[dict]:
    return [
        {"instruction": f"{prefix} {n}: what does {NAMES[n % 20]} see?", "output": f"{SENTENCES[n % 16]} {n}"}
        for n in range(count)
    ]


def write(path: Path, found: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 100), ("b", 60), ("c", 10)):
        write(tmp_path / f"{name}.jsonl", rows(name, count))
    return tmp_path


def mixed(text: str, *flags: object) -> tuple[list[dict], dict]:
    """The rows and the manifest of a mix."""
    Path("mix.yaml").write_text(text)
    assert command("prepare mix", "mix.yaml", *flags) == 0
    found = [json.loads(line) for line in Path("data/mix/mix.jsonl").read_text().splitlines()]
    return found, json.loads(Path("data/mix/manifest.json").read_text())


def shares(found: list[dict]) -> dict[str, int]:
    return {name: sum(row["instruction"].startswith(name) for row in found) for name in "abc"}


@pytest.mark.parametrize(
    ("a", "b", "top", "expected"),
    [
        ("", "", "", (100, 60)),
        ("weight: 1", "weight: 1", "", (60, 60)),
        ("weight: 3", "weight: 1", "", (100, 33)),
        ("weight: 0.5", "weight: 2", "rows: 50", (10, 40)),
        ("cap: 7", "", "", (7, 60)),
        ("weight: 1, cap: 20", "weight: 1", "", (20, 20)),
        ("", "", "rows: 16", (10, 6)),
    ],
)
def test_weights_and_caps(folder: Path, a: str, b: str, top: str, expected: tuple[int, int]) -> None:
    sources = "".join(f"- {{data_file: {n}.jsonl{', ' * bool(s)}{s}}}\n" for n, s in (("a", a), ("b", b)))
    found, manifest = mixed(f"sources:\n{sources}{top}\n")
    assert shares(found) == {"a": expected[0], "b": expected[1], "c": 0}
    assert [source["used"] for source in manifest["sources"]] == list(expected)
    assert len({row["instruction"] for row in found}) == len(found)


def test_order_is_drawn_and_the_same_everywhere(folder: Path) -> None:
    text = "sources: [{data_file: a.jsonl}, {data_file: b.jsonl}]\n"
    first, manifest = mixed(text)
    assert first != sorted(first, key=lambda row: row["instruction"])
    assert [row["instruction"].split(":")[0] for row in first[:4]] == ["a 90", "b 32", "b 17", "a 41"]
    result = Path("data/mix/mix.jsonl").read_bytes()
    assert manifest["result"] == {"file": "mix.jsonl", "rows": 160, "sha256": hashlib.sha256(result).hexdigest()}
    assert mixed(text)[0] == first
    assert mixed(text + "seed: 7\n")[0] != first


def test_manifest_names_files_and_licences(folder: Path) -> None:
    _, manifest = mixed("sources: [{data_file: a.jsonl, licence: MIT}, {data_file: '[bc].jsonl', name: rest}]\n")
    assert manifest["licences"] == ["MIT", "unknown"]
    first, second = manifest["sources"]
    assert first["files"] == [{"file": "a.jsonl", "sha256": hashlib.sha256(Path("a.jsonl").read_bytes()).hexdigest()}]
    assert (second["name"], [file["file"] for file in second["files"]]) == ("rest", ["b.jsonl", "c.jsonl"])
    assert (second["read"], second["used"]) == (70, 70)


def test_filters(folder: Path) -> None:
    write(
        folder / "f.jsonl",
        [
            {"prompt": "Short?", "completion": "y"},
            {"prompt": "Long? " * 50, "completion": "y"},
            {"prompt": "A question of the right length?", "completion": "As an AI, I cannot."},
            {"prompt": "A question of the right length?", "completion": "No number."},
            {"prompt": "A question of the right length?", "completion": "The number 5."},
            {"prompt": "", "completion": "z"},
        ],
    )
    _, manifest = mixed(
        "sources: [{data_file: f.jsonl, min_chars: 20, max_chars: 100, keep: '[0-9]|AI', drop: '(?i)as an ai'}]\n"
    )
    assert manifest["sources"][0]["left out"] == {
        "too short": 1,
        "too long": 1,
        "with what drop forbids": 1,
        "without what keep asks for": 1,
        "empty instruction": 1,
    }
    assert manifest["result"]["rows"] == 1


def test_languages(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("pycld2")
    texts = {
        "The weather is beautiful today and we are going to the beach with our friends.": "en",
        "Das Wetter ist heute schön und wir gehen mit unseren Freunden an den Strand.": "de",
        "Il fait beau aujourd'hui et nous allons à la plage avec nos amis.": "fr",
        "\ufffe\x01 12 34": "unknown",
    }
    write(folder / "l.jsonl", [{"text": text} for text in texts])
    found, manifest = mixed("sources: [{data_file: l.jsonl, language: en}]\n")
    assert found == [{"text": next(iter(texts))}]
    assert manifest["sources"][0]["left out"] == {"language de": 1, "language fr": 1, "language unknown": 1}
    monkeypatch.setitem(sys.modules, "pycld2", None)
    assert command("prepare mix", "mix.yaml") == 2
    assert "language: filters need the package pycld2; pip install 'lit-gpt[mix]'" in capsys.readouterr().err


def test_templates_and_maps(folder: Path) -> None:
    write(folder / "q.jsonl", [{"q": "2+2", "a": "4", "kind": "sum"}])
    found, _ = mixed(
        'sources: [{data_file: q.jsonl, template: {instruction: "A {kind}: {q}?", output: "It is {a}."}}]\n'
    )
    assert found == [{"instruction": "A sum: 2+2?", "input": "", "output": "It is 4."}]
    found, _ = mixed("sources: [{data_file: q.jsonl, map: 'instruction=q,output=a'}]\n")
    assert found == [{"instruction": "2+2", "input": "", "output": "4"}]


def test_rows_in_a_data_sets_own_form(folder: Path) -> None:
    write(folder / "g.jsonl", [{"question": "2 + 2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}])
    found, _ = mixed("sources: [{data_file: g.jsonl, format: gsm8k}]\n")
    assert found == [{"instruction": "2 + 2?", "input": "", "output": "2+2=4\n#### 4"}]


@pytest.mark.parametrize(("duplicates", "left"), [("keep", 6), ("exact", 4), ("near", 2)])
def test_duplicates(folder: Path, duplicates: str, left: int) -> None:
    if duplicates == "near":
        pytest.importorskip("rensa")
    text = " ".join(f"{name} saw the {n}th thing" for n, name in enumerate(NAMES))
    other = " ".join(f"nobody knows why {name} left" for name in reversed(NAMES))
    write(
        folder / "d.jsonl",
        [
            {"prompt": "Tell!", "completion": text},
            {"prompt": "Tell! ", "completion": f" {text}\n"},  # the same but for blanks
            {"prompt": "Tell!", "completion": f"{text} at last"},
            {"prompt": "TELL?", "completion": text.replace("saw", "saw,")},
            {"prompt": "Tell!", "completion": other},
        ],
    )
    write(folder / "e.jsonl", [{"prompt": "Tell!", "completion": other}])
    found, manifest = mixed(f"sources: [{{data_file: d.jsonl}}, {{data_file: e.jsonl}}]\nduplicates: {duplicates}\n")
    assert len(found) == left
    if duplicates != "keep":
        assert [source["repeated"] for source in manifest["sources"]] == [1, 1]
    if duplicates == "near":
        assert [source["near duplicates"] for source in manifest["sources"]] == [2, 0]
        assert {row["output"] for row in found} == {text, other}, "the first of its kind stays"


def test_near_duplicates_are_those_that_a_full_comparison_finds() -> None:
    """With values of its own, so that the shares are known: whoever shares 80 % with an earlier row is found."""
    generator = np.random.default_rng(0)
    values = generator.integers(0, 1 << 32, (400, PERMUTATIONS), dtype=np.uint32)
    for row in range(200, 400):
        share = generator.uniform(0.4, 1.0)
        same = generator.random(PERMUTATIONS) < share
        values[row, same] = values[row - 200, same]
    alike = (values[:, None] == values[None]).mean(-1) >= ALIKE
    expected = np.tril(alike, -1).any(1)
    assert 50 < expected.sum() < 150
    assert np.array_equal(near_earlier(values), expected)
    assert not near_earlier(values[:200]).any()


PASSAGE = "the quick brown fox jumps over the lazy dog while seven tired wizards look"


def test_contamination(folder: Path) -> None:
    assert len(PASSAGE.split()) == 14
    write(
        folder / "eval.jsonl", [{"question": f"Why, is it that {PASSAGE}?", "choices": ["too short", {"x": PASSAGE}]}]
    )
    cut = PASSAGE.split()
    found = [
        {
            "prompt": f"{'word ' * n}The QUICK brown fox; jumps over the lazy dog, while seven tired wizards.",
            "completion": "y",
        }
        for n in range(15)
    ]
    clean = [
        {"prompt": " ".join(cut[:12]), "completion": "twelve words"},
        {"prompt": " ".join([*cut[:6], "not", *cut[6:]]), "completion": "one between"},
        {"prompt": " ".join(reversed(cut)), "completion": "other order"},
    ]
    write(folder / "d.jsonl", found + clean)
    left, manifest = mixed("sources: [{data_file: d.jsonl}]\ndecontaminate: [eval.jsonl]\n")
    assert {row["output"] for row in left} == {row["completion"] for row in clean}
    assert manifest["sources"][0]["contaminated"] == 15
    report = manifest["decontamination"]
    assert (report["rows removed"], report["words"]) == (15, 13)
    assert (report["files"][0]["texts"], report["files"][0]["too short"]) == (3, 1)
    named = [json.loads(line) for line in Path("data/mix/contaminated.jsonl").read_text().splitlines()]
    assert len(named) == 15
    assert named[3] == {"row": "d.jsonl:4", "evaluation": "eval.jsonl:1", "passage": " ".join(cut[:13])}


def test_contamination_is_what_looking_up_every_passage_finds() -> None:
    """Only every seventh place is looked at; nothing is missed."""
    generator = np.random.default_rng(0)
    evaluation = [" ".join(generator.choice(NAMES[:3], 40)) for _ in range(20)]
    found = Contamination([])
    for text in evaluation:
        known = words(text)
        found.grams |= {" ".join(known[i : i + 13]): "x:1" for i in range(28)}
        found.blocks |= {" ".join(known[i : i + 7]) for i in range(34)}
    hits = 0
    for _ in range(300):
        start, length = generator.integers(0, 25), generator.integers(11, 16)
        piece = evaluation[generator.integers(20)].split()[start : start + length]
        text = [*generator.choice(NAMES[:3], generator.integers(0, 20)), *piece, *generator.choice(NAMES[:3], 9)]
        slow = any(" ".join(text[i : i + 13]) in found.grams for i in range(len(text)))
        assert found.hit(" ".join(text), "y:1") == slow
        hits += slow
    assert 100 < hits < 290


CONVERSATIONS = [
    (Turn("assistant", "Once."),),
    (Turn("user", "Who?", "Me."), Turn("assistant", "I.")),
    (Turn("user", "", "Me."), Turn("assistant", "I.")),
    (Turn("system", "Be."), Turn("user", "Who?"), Turn("assistant", "I.")),
    (Turn("user", "Who?"), Turn("assistant", "f()"), Turn("tool", "1"), Turn("assistant", "I.")),
    (Turn("system", "Be."), *(Turn("user", "Who?"), Turn("assistant", "I.")) * 2),
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_rows_of_the_mix_are_read_as_what_they_were(conversation: tuple) -> None:
    assert take("x:1", json.loads(json.dumps(row_of(conversation)))) == conversation


def test_the_mix_is_prepared_by_the_next_command(
    folder: Path, checkpoint: Path, hub: HubServer, capsys: pytest.CaptureFixture
) -> None:
    hub.add("datasets/org/d", {"train.jsonl": Path("c.jsonl").read_bytes()})
    mixed("sources: [{data_file: a.jsonl}, {repo_id: org/d}]\n")
    told = capsys.readouterr().err
    assert "a                100 of 100 rows\nd                10 of 10 rows\nwrote" in told
    following = told.split("next")[1].split()[2:]
    argv = [str(checkpoint) if word == "CHECKPOINT_DIR" else word for word in following]
    assert command("prepare json", *argv) == 0
    assert json.loads(Path("data/mix/meta.json").read_text())["rows"]["read"] == 110


BROKEN: dict[str, tuple[Any, str]] = {
    "missing": (None, "cannot read mix.yaml: No such file"),
    "no yaml": ("sources: [", "mix.yaml:1: not YAML"),
    "text": ("hello", "mix.yaml:1: the file is no list of settings"),
    "empty": ("", "mix.yaml: the file is no list of settings"),
    "no sources": ("seed: 1", "mix.yaml: sources is missing"),
    "sources": ("sources: a.jsonl", "mix.yaml: no sources; name at least one"),
    "source": ("sources: [a.jsonl]", "mix.yaml:1: a source is no list of settings"),
    "key": ("sources:\n- data_file: a.jsonl\n  wieght: 2", "mix.yaml:3: unknown key 'wieght'; did you mean weight?"),
    "twice": ("seed: 1\nseed: 2\nsources: [{}]", "mix.yaml:2: 'seed' is set twice"),
    "type": ("sources: [{data_file: a.jsonl, cap: many}]", "cap cannot be 'many'; expected a whole number"),
    "truth": ("sources: [{data_file: a.jsonl, weight: true}]", "weight cannot be 'true'; expected a number"),
    "choice": ("duplicates: all\nsources: [{}]", "duplicates cannot be 'all'; expected keep, exact, near"),
    "list": ("sources: []\ndecontaminate: [5]", "decontaminate cannot be '[5]'; expected a list of texts"),
    "tag": ("seed: !!python/object/apply:os.getpid []\nsources: []", "mix.yaml:1: seed cannot be read"),
    "file": ("sources: [{name: x}]", "sources[0]: no data_file and no repo_id; name one"),
    "both": (
        "sources: [{data_file: a.jsonl, map: output=x, template: {output: x}}]",
        "map, template and format exclude each other",
    ),
    "template": ("sources: [{data_file: a.jsonl, template: {answer: x}}]", "template has answer; it takes instruction"),
    "half": (
        "sources: [{data_file: a.jsonl, weight: 1}, {data_file: b.jsonl}]",
        "a weight to every source, or to none",
    ),
    "negative": ("sources: [{data_file: a.jsonl, weight: -1}]", "weight, cap and rows must be positive"),
    "no output": (
        "sources: [{data_file: a.jsonl, template: {instruction: x}}]",
        "template needs instruction and output",
    ),
    "braces": (
        "sources: [{data_file: a.jsonl, template: {instruction: '{a', output: '{b}'}}]",
        "template.instruction: only keys in braces",
    ),
    "regex": ("sources: [{data_file: a.jsonl, keep: '('}]", "sources[0]: keep is no regular expression (missing )"),
    "gone": ("sources: [{data_file: x.jsonl}]", "no file x.jsonl"),
    "eval": ("sources: [{data_file: a.jsonl}]\ndecontaminate: [x.jsonl]", "no file x.jsonl"),
    "nothing": ("sources: [{data_file: a.jsonl, keep: zzz}]", "mix.yaml: no row is left of 0; loosen filters"),
    "fill": ("sources: [{data_file: c.jsonl, cap: 1, template: {text: '{x}'}}]", "10 broken rows in c.jsonl"),
    "map": ("sources: [{data_file: a.jsonl, map: nothing}]", "--map: 'nothing' is not of the form"),
    "near": ("sources: [{data_file: a.jsonl}]\nduplicates: near", "needs the package rensa; pip install"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_refused(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text, expected = BROKEN[name]
    monkeypatch.setitem(sys.modules, "rensa", None)
    if text is not None:
        Path("mix.yaml").write_text(text)
    assert command("prepare mix", "mix.yaml") == 2
    told = capsys.readouterr().err
    assert expected in told
    last = told.splitlines()[-1]
    assert last.startswith("error: ")
    assert len(last) < 400


def test_broken_rows_can_be_left_out(folder: Path) -> None:
    with open("a.jsonl", "a") as file:
        file.write("{oops\n")
    found, manifest = mixed("sources: [{data_file: a.jsonl}]\n", "--skip_bad_rows", "true")
    assert len(found) == 100
    assert manifest["sources"][0]["left out"] == {"broken": 1}
    assert Path("data/mix/skipped.txt").read_text().startswith("a.jsonl:101: not valid JSON")


def test_the_example_in_the_docstring_is_valid(tmp_path: Path) -> None:
    text = module.__doc__.split("\n\n")[1]
    (tmp_path / "mix.yaml").write_text(text)
    plan = read_plan(tmp_path / "mix.yaml")
    assert (len(plan.sources), plan.duplicates) == (2, "near")
    with pytest.raises(UserError):
        read_plan(tmp_path / "other.yaml")


@pytest.mark.skipif(not SHARED.exists(), reason="no real data at hand")
def test_real_gsm8k_is_contaminated(folder: Path) -> None:
    """Four problems of its training split share wordings with its test split."""
    data = SHARED / "data"
    _, manifest = mixed(
        f"sources: [{{data_file: {data}/gsm8k/train.jsonl, map: 'instruction=question,output=answer'}}]\n"
        f"decontaminate: [{data}/gsm8k/test.jsonl, {data}/eval]\n"
    )
    assert manifest["sources"][0]["contaminated"] > 0
    assert manifest["result"]["rows"] == 2000 - manifest["sources"][0]["contaminated"]

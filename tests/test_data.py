"""Preparing data sets: from rows to files and back, what is counted, and every way in which rows can be wrong."""

import csv
import functools
import http.server
import json
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, SHARED, command, train_byte_level

from lit_gpt.data import encode as data_encode
from lit_gpt.data import prepare as data_prepare
from lit_gpt.data import readers
from lit_gpt.data.dataset import TokenDataset, check_tokenizer, write_dataset
from lit_gpt.data.encode import shortened, trouble
from lit_gpt.prompts import Turn, get_style
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer

WORDS = " ".join(SENTENCES).split()
ROWS = [
    {
        "instruction": f" {' '.join(WORDS[n : n + 3 + n % 7])}? \n",
        "input": "\n" if n % 3 else f"{WORDS[n]} {n} ",
        "output": f" \n{' '.join(WORDS[n + 9 : n + 10 + n % 5])} {n}\n\n",
    }
    for n in range(40)
]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizers JSON of the GPT-NeoX kind."""
    folder = tmp_path_factory.mktemp("bytes") / "model"
    folder.mkdir()
    train_byte_level(folder)
    return folder


@pytest.fixture(params=["sentencepiece", "byte-level"])
def model(request: pytest.FixtureRequest, checkpoint: Path, byte_level: Path) -> Path:
    return checkpoint if request.param == "sentencepiece" else byte_level


def prepare(kind: str, model: Path, *argv: object) -> int:
    return command(f"prepare {kind}", "--checkpoint_dir", model, *argv)


def rows_file(path: Path, rows: list = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def prepared(model: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict]]:
    """Prepares ROWS, or other rows, and returns the folder and its meta.json."""

    def make(*argv: object, rows: list = ROWS, kind: str = "json") -> tuple[Path, dict]:
        source = rows_file(tmp_path / "in/rows.jsonl", rows)
        assert prepare(kind, model, "--data_file", source, "--destination_path", tmp_path / "set", *argv) == 0
        return tmp_path / "set", json.loads((tmp_path / "set/meta.json").read_text())

    return make


def texts(folder: Path, model: Path, split: str) -> list[str]:
    data, tokenizer = TokenDataset(folder, split), Tokenizer(model)
    return [tokenizer.decode(data.ids(i)[data.supervised(i)]) for i in range(len(data))]


def test_prompts_are_those_of_generation_and_answers_end_with_eos(prepared: Callable, model: Path) -> None:
    folder, _ = prepared()
    tokenizer, alpaca = Tokenizer(model), get_style("alpaca")
    expected = {}
    for row in ROWS:
        prompt = tokenizer.encode(alpaca.prompt(row["instruction"], row["input"]))  # as generate/*.py does
        answer = tokenizer.encode(row["output"].strip(), bos=False)
        expected[tuple(prompt + answer + [tokenizer.eos_id])] = len(prompt)
    for split, size in (("train", 38), ("test", 2)):
        data = TokenDataset(folder, split)
        assert len(data) == size
        for i in range(size):
            ids = data.ids(i)
            assert ids.dtype == torch.int64
            prompt_length = expected.pop(tuple(ids.tolist()))
            assert data.supervised(i).tolist() == [place >= prompt_length for place in range(len(ids))]
            assert data.lengths[i] == len(ids)
            # SentencePiece: the answer's first word is a word, not glued to the prompt
            assert tokenizer.decode(ids).count("### Response: " if tokenizer.use_bos else "### Response:") == 1
    assert not expected


def test_mask_inputs_false_learns_all_but_the_first_token(prepared: Callable) -> None:
    folder, meta = prepared("--mask_inputs", "false")
    data = TokenDataset(folder)
    assert all(data.supervised(i).tolist() == [False] + [True] * (len(data.ids(i)) - 1) for i in range(len(data)))
    assert meta["tokens"]["train_supervised"] == meta["tokens"]["train"] - meta["rows"]["train"]


def test_files_are_flat_small_and_safe_to_load(prepared: Callable) -> None:
    rows = [{**row, "instruction": " ".join(WORDS[n : n + 20])} for n in range(3) for row in ROWS]
    folder, meta = prepared(rows=rows)
    content = torch.load(folder / "train.pt", weights_only=True, mmap=True)
    assert {name: tensor.dtype for name, tensor in content.items()} == {
        "tokens": torch.uint16,
        "lengths": torch.int32,
        "supervised": torch.uint8,
    }
    total = len(content["tokens"])
    assert meta["tokens"]["train"] == total == content["lengths"].sum()
    assert len(content["supervised"]) == -(-total // 8)
    # 52,000 rows of 128 tokens on average must stay below 15 MB, beside what every torch file takes
    assert (folder / "train.pt").stat().st_size <= 15e6 * total / (52_000 * 128) + 3000


def test_ids_beyond_16_bits(checkpoint: Path, tmp_path: Path) -> None:
    samples = [np.array([1, 70_000, 2]), np.array([65_535])]
    masks = [np.array([False, True, True]), np.array([False])]
    write_dataset(tmp_path, {"train": (samples, masks)}, Tokenizer(checkpoint), {})
    data = TokenDataset(tmp_path)
    assert [data.ids(i).tolist() for i in range(2)] == [[1, 70_000, 2], [65_535]]
    assert data.supervised(-1).tolist() == [False]
    with pytest.raises(IndexError):
        data.ids(2)


def test_masks_that_start_within_a_byte(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 50)
    samples, masks = [rng.integers(0, 300, n) for n in lengths], [rng.integers(0, 2, n).astype(bool) for n in lengths]
    write_dataset(tmp_path, {"train": (samples, masks)}, Tokenizer(checkpoint), {})
    data = TokenDataset(tmp_path / "train.pt")
    for i, (sample, mask) in enumerate(zip(samples, masks, strict=True)):
        assert data.ids(i).tolist() == sample.tolist()
        assert data.supervised(i).tolist() == mask.tolist()


def test_same_command_same_bytes(prepared: Callable, model: Path) -> None:
    names = ("train.pt", "test.pt", "meta.json")
    folder, _ = prepared("--test_split_fraction", 0.2)
    first = {name: (folder / name).read_bytes() for name in names}
    shutil.rmtree(folder)
    prepared("--test_split_fraction", 0.2)
    assert first == {name: (folder / name).read_bytes() for name in names}
    # pinned: the split must be the same on every machine and with every version of numpy
    numbers = [int(text.split()[-1]) for text in texts(folder, model, "test")]
    assert numbers == [4, 12, 15, 16, 19, 26, 27, 37]
    prepared("--test_split_fraction", 0.2, "--seed", 7)
    assert numbers != [int(text.split()[-1]) for text in texts(folder, model, "test")]


def test_an_identical_call_leaves_all_as_it_is(
    prepared: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, _ = prepared()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    was = capsys.readouterr().err

    def again(*argv: object, rows: list = ROWS) -> bool:
        """Whether the set was kept; in any case it is what it should be."""
        prepared(*argv, rows=rows)
        assert len(TokenDataset(folder)) > 0
        return "unchanged" in capsys.readouterr().err

    assert again()
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    moved = rows_file(tmp_path / "elsewhere/rows.jsonl")
    assert (
        prepare(
            "json",
            Path(was.split("--checkpoint_dir ")[1].split()[0]),
            "--data_file",
            moved,
            "--destination_path",
            folder,
        )
        == 0
    )  # the same content at another place
    assert "unchanged" in capsys.readouterr().err
    assert not again(rows=ROWS[:-1])
    assert not again("--seed", 2)
    assert not again("--prompt_style", "plain")
    assert not again()
    with open(folder / "train.pt", "ab") as file:
        file.write(b"?")
    assert not again()
    (folder / "test.pt").unlink()
    assert not again()
    (folder / "meta.json").write_text("{}")
    assert not again()
    monkeypatch.setattr(data_prepare, "VERSION", 99)
    assert not again()


def test_chunks_and_threads_change_nothing(
    prepared: Callable, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes whether rows are tokenised at once, or a few at a time while others are."""
    rows = [{**row, "output": f"{row['output']} {n}"} for n in range(9) for row in ROWS] + [{"text": "The sun."}] * 9
    folder, _ = prepared(rows=rows)
    whole = {name: (folder / name).read_bytes() for name in ("train.pt", "test.pt")}
    for chunk in (1, 7, 64):
        shutil.rmtree(folder)
        monkeypatch.setattr(data_encode, "CHUNK", chunk)
        prepared(rows=rows)
        assert whole == {name: (folder / name).read_bytes() for name in whole}


@pytest.mark.parametrize("style", ["alpaca", "plain", "chatml"])
def test_plain_text_is_learnt_as_it_stands(prepared: Callable, model: Path, style: str) -> None:
    folder, _ = prepared("--prompt_style", style, rows=[{"text": " The old cat.\n"}] * 5)
    data, tokenizer = TokenDataset(folder), Tokenizer(model)
    text = tokenizer.encode("The old cat.", eos=True)
    assert [data.ids(i).tolist() for i in range(len(data))] == [text] * 4
    assert data.supervised(0).tolist() == [False] + [True] * (len(text) - 1)


@pytest.mark.parametrize(("fraction", "size"), [(0.0001, 1), (0.5, 20), (0.26, 10)])
def test_split_size(prepared: Callable, fraction: float, size: int) -> None:
    _, meta = prepared("--test_split_fraction", fraction)
    assert (meta["rows"]["test"], meta["rows"]["train"]) == (size, 40 - size)


def test_test_file_is_the_test_split(prepared: Callable, model: Path, tmp_path: Path) -> None:
    held_out = rows_file(tmp_path / "held.json", [{"instruction": "Red?", "output": "sun"}, ROWS[3]])
    folder, meta = prepared("--test_file", held_out)
    assert texts(folder, model, "test") == ["sun", ROWS[3]["output"].strip()]
    assert (meta["rows"]["train"], meta["rows"]["test"], meta["rows"]["test_in_train"]) == (40, 2, 1)
    assert [source["file"] for source in meta["sources"]] == ["rows.jsonl", "held.json"]


def test_long_samples_are_left_out_or_shortened_never_silently(
    prepared: Callable, model: Path, capsys: pytest.CaptureFixture
) -> None:
    answer = " ".join(WORDS[:60])
    rows = [*ROWS, {"instruction": "Long?", "output": answer}, {"instruction": answer * 3, "output": "Short."}]
    tokenizer = Tokenizer(model)
    folder, whole = prepared(rows=rows)
    lengths = sorted(
        len(tokenizer.encode(get_style("alpaca").prompt(row["instruction"], row.get("input", ""))))
        + len(tokenizer.encode(row["output"].strip(), bos=False, eos=True))
        for row in rows
    )
    assert whole["lengths"]["max"] == lengths[-1]
    assert whole["lengths"]["p50"] == lengths[int(0.5 * 41)]
    assert whole["lengths"]["mean"] == round(sum(lengths) / 42, 2)
    limit = lengths[-3]
    capsys.readouterr()

    folder, meta = prepared("--max_seq_length", limit, rows=rows)
    assert meta["dropped"] == {f"longer than {limit} tokens": 2}
    assert meta["rows"] == {**meta["rows"], "read": 42, "train": 38, "test": 2}
    assert meta["lengths"]["max"] == limit
    assert f"2 longer than {limit} tokens" in capsys.readouterr().err

    folder, meta = prepared("--max_seq_length", limit, "--truncate", "true", rows=rows)
    assert meta["dropped"] == {f"prompt longer than {limit} tokens": 1}
    assert meta["truncated"] == {"rows": 1, "share": 1 / 41}
    assert "1 answers (2.4%)" in capsys.readouterr().err
    found = {split: TokenDataset(folder, split) for split in ("train", "test")}
    for data in found.values():
        assert all(data.ids(i)[-1] == tokenizer.eos_id and data.supervised(i)[-1] for i in range(len(data)))
        assert data.lengths.max() <= limit
    cut = max((text for split in found for text in texts(folder, model, split)), key=len)
    assert len(cut) > 40
    assert answer.startswith(cut)


def test_samples_beyond_the_model_are_reported(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = rows_file(tmp_path / "rows.jsonl", [*ROWS, {"instruction": "Long?", "output": "sun " * 300}])
    assert prepare("json", checkpoint, "--data_file", source, "--destination_path", tmp_path / "set") == 0
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert meta["longer_than_model"] == {"block_size": 256, "rows": 1}
    assert meta["rows"]["train"] + meta["rows"]["test"] == 41
    assert "1 rows for this model's 256 tokens" in capsys.readouterr().err


def test_meta_says_where_the_set_comes_from(
    prepared: Callable, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [*ROWS, ROWS[0], {"instruction": "Nothing?", "output": " \n"}, {"instruction": " ", "output": "sun"}]
    folder, meta = prepared("--licence", "MIT", "--prompt_style", "plain", rows=rows)
    tokenizer = Tokenizer(model)
    assert meta["name"] == "rows"
    assert meta["licence"] == "MIT"
    assert meta["prompt_style"] == meta["settings"]["prompt_style"] == "plain"
    assert meta["tokenizer"]["hash"] == tokenizer.hash
    assert meta["tokenizer"]["file"] == tokenizer.file.name
    assert meta["dropped"] == {"empty output": 1, "empty instruction": 1}
    assert meta["rows"]["read"] == 43
    assert meta["rows"]["repeated"] == 1
    assert meta["sources"][0]["file"] == "rows.jsonl"
    assert len(meta["sources"][0]["sha256"]) == 64
    told = capsys.readouterr()
    assert told.out == ""
    assert f"--data_dir {folder} --out_dir out/lora/set" in told.err
    assert "1 rows;" in told.err


def test_special_tokens_in_a_text_stay_text(byte_level: Path, tmp_path: Path) -> None:
    row = {"instruction": "End<|endoftext|>?", "input": "<|endoftext|>", "output": "sun<|endoftext|> and more"}
    source = rows_file(tmp_path / "rows.jsonl", [row, row])
    assert prepare("json", byte_level, "--data_file", source, "--destination_path", tmp_path / "set") == 0
    data, tokenizer = TokenDataset(tmp_path / "set"), Tokenizer(byte_level)
    ids = data.ids(0).tolist()
    assert ids.count(tokenizer.eos_id) == 1
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids).count("<|endoftext|>") == 3


TALK = (
    Turn("system", "The red dog."),
    *(Turn(("user", "assistant")[n % 2], " ".join(WORDS[n : n + 12])) for n in range(6)),
)


@pytest.mark.parametrize("style", ["chatml", "alpaca", "llama2-chat"])
def test_a_conversation_is_cut_within_an_answer_or_before_a_question(byte_level: Path, style: str) -> None:
    tokenizer, used = Tokenizer(byte_level), get_style(style)
    [(ids, marks)] = used.encode(tokenizer, [TALK])
    [(first, _)] = used.encode(tokenizer, [TALK[:3]])
    prompt = len(used.encode_prompt(tokenizer, TALK[:2]))
    for limit in range(2, len(ids)):
        cut, kept = shortened(ids, marks, limit)
        assert len(cut) == len(kept) <= limit
        if limit < prompt + 2:
            assert not any(kept)
            continue
        assert cut[-1] == ids[-1]  # the end of a turn, here EOS
        assert kept[-1]
        assert cut[:-1] == ids[: len(cut) - 1]
        assert kept == marks[: len(kept)]
        assert len(cut) >= min(limit, len(first))


def test_conversations_that_cannot_be_learnt() -> None:
    chatml = get_style("chatml")
    assert trouble(TALK, chatml) is None
    assert trouble(TALK[:2], chatml) == "it ends with the user's turn; the last must be the assistant's, to be learnt"
    assert trouble((*TALK, Turn("tool", "1")), chatml).startswith("it ends with the tool's turn")
    assert "has no turns of the system" in trouble(TALK, get_style("redpajama"))
    assert "turn 2 (user) is empty" in trouble((TALK[0], Turn("user", " "), TALK[2]), chatml)
    assert "turn 1 has the role 'gpt'" in trouble((Turn("gpt", "Hi"),), chatml)


# --- reading -----------------------------------------------------------------------------------------------------


def as_array(rows: list) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_lines(rows: list) -> bytes:
    return b"\n\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows)


FORMS = {
    "array.json": as_array,
    "array.jsonl": as_array,
    "lines.jsonl": as_lines,
    "lines.json": as_lines,
    "windows.jsonl": lambda rows: b"\xef\xbb\xbf" + as_lines(rows).replace(b"\n", b"\r\n") + b"\r\n",
    "utf16.json": lambda rows: as_array(rows).decode().encode("utf-16"),
}


@pytest.mark.parametrize("name", FORMS)
def test_json_in_every_form(checkpoint: Path, tmp_path: Path, name: str) -> None:
    rows = [{"q": f"{word}\u2028?", "a": f"é{n}", "more": [1]} for n, word in enumerate(WORDS[:9])]
    (tmp_path / name).write_bytes(FORMS[name](rows))
    flags = ["--data_file", tmp_path / name, "--map", "instruction=q, output=a", "--destination_path", tmp_path / "set"]
    assert prepare("json", checkpoint, *flags) == 0
    got = [text for split in ("train", "test") for text in texts(tmp_path / "set", checkpoint, split)]
    assert sorted(got) == [f"é{n}" for n in range(9)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv(byte_level: Path, tmp_path: Path, separator: str) -> None:
    rows = [[f'Who, "{n}";\nwhy\t?', f"some {separator}" * (n % 2), f"é {n}"] for n in range(5)]
    rows[3][2] = "The old cat sees the sun. " * 6_000 + rows[3][2]  # more than the csv library reads by default
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator).writerows([["question", "context", " answer"], *rows])
    keys = "instruction=question,input=context,output=answer"
    flags = ["--data_file", tmp_path / "rows.csv", "--map", keys, "--destination_path", tmp_path / "set"]
    assert prepare("csv", byte_level, *flags, "--prompt_style", "plain", "--mask_inputs", "false") == 0
    tokenizer, got = Tokenizer(byte_level), []
    for data in (TokenDataset(tmp_path / "set", split) for split in ("train", "test")):
        got += [tokenizer.decode(data.ids(i)) for i in range(len(data))]
    plain = get_style("plain").prompt
    assert sorted(got) == sorted(plain(question, context) + answer for question, context, answer in rows)


def test_default_folder_is_named_after_the_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows_file(Path("in/my rows.jsonl"))
    assert prepare("json", checkpoint, "--data_file", "in/my rows.jsonl") == 0
    assert prepare("alpaca", checkpoint, "--data_file", "in/my rows.jsonl") == 0
    assert sorted(path.name for path in Path("data").iterdir()) == ["alpaca", "my rows"]
    assert json.loads(Path("data/alpaca/meta.json").read_text())["licence"] == "CC-BY-NC-4.0"


LIBRE = [
    *({"status": "ok", "instruction": f"{word}?", "input": "", "output": word} for word in WORDS[:6]),
    {"status": "ok", "instruction": "Sun?", "input": "<noinput>", "output": "Sea"},
    {"status": "ok", "instruction": "Dog?", "input": ' "<No input>"', "output": "Cat"},
    {"status": "ok", "instruction": "Say noinput", "input": "noinput is a word", "output": "no"},
    {"status": "ok", "instruction": "Empty?", "input": "", "output": "\n\n\n"},
    {"status": "too similar", "instruction": "No?", "input": "", "output": "no"},
    {"status": "too similar", "instruction": None, "input": 3},
    {"status": "error"},
]


def test_alpaca_libre_keeps_what_is_ok(prepared: Callable, model: Path) -> None:
    folder, meta = prepared(rows=LIBRE, kind="alpaca_libre")
    assert meta["dropped"] == {"status 'too similar'": 2, "empty output": 1, "status 'error'": 1}
    assert meta["rows"] == {**meta["rows"], "read": 13, "train": 8, "test": 1}
    tokenizer = Tokenizer(model)
    data = [TokenDataset(folder, split) for split in ("train", "test")]
    whole = [tokenizer.decode(split.ids(i)) for split in data for i in range(len(split))]
    assert sum("### Input" in text for text in whole) == 1
    assert not any("<" in text for text in whole)


def test_several_files(checkpoint: Path, tmp_path: Path) -> None:
    names = [rows_file(tmp_path / f"{n}.jsonl", LIBRE[n : n + 3]) for n in (0, 3)]
    flags = ["--data_file", f"[{names[0]},{names[1]}]", "--destination_path", tmp_path / "set"]
    assert prepare("alpaca_libre", checkpoint, *flags) == 0
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert [source["file"] for source in meta["sources"]] == ["0.jsonl", "3.jsonl"]
    assert meta["rows"]["train"] + meta["rows"]["test"] == 6


# --- what can be wrong -------------------------------------------------------------------------------------------

GOOD = b'{"instruction": "Sun?", "output": "sea"}\n'
BROKEN = {
    "quote": ("json", GOOD + b'\n{"instruction": "a", "input": """"}\n' + GOOD, ":3: not valid JSON (Expecting ','"),
    "cut": ("json", GOOD * 3 + GOOD[:-6], ":4: not valid JSON (Unterminated string"),
    "two objects": ("json", GOOD.strip() + GOOD, ":1: not valid JSON (Extra data"),
    "number": (
        "json",
        GOOD + b'{"instruction": 5, "output": "x"}',
        ":2:instruction: a number where text should be: '5'",
    ),
    "null": ("json", b'{"instruction": "x", "output": null}', ":1:output: null where text should be"),
    "list": ("json", b'[{"instruction": "x", "output": ["y"]}]', ":1:row 1:output: a list where text should be"),
    "boolean": ("json", b'{"instruction": "x", "output": true}', ":1:output: true or false where text should be"),
    "input": ("json", b'{"instruction": "x", "input": {}, "output": "y"}', ":1:input: an object where text"),
    "key": ("json", b'{"question": "x", "answer": "y"}', "no key 'instruction' among 'question, answer'; prepare_json"),
    "hint": ("json", b'{"query": "x", "reply": "y"}', "--map instruction=query,output=reply"),
    "string": ("json", GOOD + b'"text"', ":2: text where an object with keys should be: 'text'"),
    "array": ("json", b'[{"instruction": "x",\n "output": "y"},\n {"instruction": "x" "y"}]', ":3: not valid JSON"),
    "object": ("json", b'{\n "instruction": "x",\n "output": y}', ":3: not valid JSON"),
    "row": ("json", b'[{"instruction": "x", "output": "y"}, 7]', ":1:row 2: a number where an object"),
    "long value": (
        "json",
        b'{"instruction": "x", "output": [' + b"9, " * 99 + b"1]}",
        "…'; give a text, or take the row out",
    ),
    "deep": ("json", b'{"instruction": "x", "output": ' + b"[" * 99999, ":1: not valid JSON (RecursionError"),
    "long number": ("json", b'{"instruction": "x", "output": ' + b"9" * 9999 + b"}", ":1: not valid JSON (ValueError"),
    "surrogate": ("json", b'{"instruction": "x", "output": "\\ud83d"}', ":1:output: bytes that are not UTF-8"),
    "latin-1": (
        "json",
        GOOD + b'{"instruction": "caf\xe9", "output": "x"}',
        ":2:instruction: bytes that are not UTF-8",
    ),
    "nul": ("json", GOOD + b"\0\0\0", ":2: a NUL byte"),
    "utf-16 without mark": ("json", GOOD.decode().encode("utf-16-le"), ":1: a NUL byte"),
    "half utf-16": ("json", GOOD.decode().encode("utf-16")[:-1], "not whole UTF-16 text"),
    "empty": ("json", b"", "is empty"),
    "blank": ("json", b" \n\n", "is empty"),
    "mark only": ("json", b"\xef\xbb\xbf", "is empty"),
    "no rows": ("json", b"[]", "no rows for the train split"),
    "one row": ("json", GOOD, "no rows for the train split; left out: none; at least one usable row"),
    "all empty": ("json", b'{"instruction": "x", "output": ""}\n' * 3, "left out: 3 empty output"),
    "status": ("alpaca_libre", GOOD, ":1: no key 'status' among 'instruction, output'"),
    "fields": ("csv", b"instruction,output\n\na,b\n1,2,3\n", ":4: 3 fields where the header has 2: '1,2,3'"),
    "lines": ("csv", b'instruction,output\n"a\nb\nc",b\n1\n', ":5: 1 fields where"),
    "open quote": ("csv", b'instruction,output\na,b\n"x,y\n1,2\n', ":3: not valid CSV (unexpected end of data)"),
    "inner quote": ("csv", b'instruction,output\n"x"y,2\n', ":2: not valid CSV"),
    "header": ("csv", b'instruction,"out\n', ":1: not valid CSV"),
    "columns": ("csv", b"output,output\na,b\n", ":1: two columns have the same name"),
    "column": ("csv", b"instruction,out\na,b\n", ":2: no key 'output' among 'instruction, out'"),
    "only header": ("csv", b"instruction,output\n", "no rows for the train split"),
}


def refused(capsys: pytest.CaptureFixture, code: int, expected: str) -> str:
    told = capsys.readouterr()
    assert code == 2, told.err
    assert expected in told.err
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert len(told.err) < 600
    return told.err


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_get_one_line(checkpoint: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    kind, content, expected = BROKEN[name]
    (tmp_path / "rows").write_bytes(content)
    code = prepare(kind, checkpoint, "--data_file", tmp_path / "rows", "--destination_path", tmp_path / "set")
    assert str(tmp_path / "rows") in refused(capsys, code, expected)
    assert not (tmp_path / "set").exists()


def test_broken_rows_can_be_left_out(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "rows").write_bytes(GOOD * 4 + b"{oops\n" + b'{"output": 1}\n' + GOOD[:20] + b"\n" + GOOD * 2)
    flags = ["--data_file", tmp_path / "rows", "--destination_path", tmp_path / "set"]
    assert prepare("json", checkpoint, *flags) == 2
    *rows, last = capsys.readouterr().err.splitlines()
    assert [row.split(":")[1] for row in rows] == ["5", "6", "7"]
    assert last == f"error: 3 broken rows in {flags[1]}; --skip_bad_rows true leaves them out and lists them"
    assert not (tmp_path / "set").exists()
    assert prepare("json", checkpoint, *flags, "--skip_bad_rows", "true") == 0
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert meta["dropped"] == {"broken": 3}
    assert [row.split(":")[1] for row in meta["broken_rows"]] == ["5", "6", "7"]
    assert meta["rows"]["read"] == 9
    assert "3 broken" in capsys.readouterr().err
    assert [line.split(":")[1] for line in (tmp_path / "set/skipped.txt").read_text().splitlines()] == ["5", "6", "7"]
    (tmp_path / "rows").write_bytes(GOOD * 4)
    assert prepare("json", checkpoint, *flags) == 0
    assert not (tmp_path / "set/skipped.txt").exists()


def test_a_mapped_input_must_be_there(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A missing `input` is none; a missing key that `--map` names is a slip."""
    source = rows_file(tmp_path / "rows.jsonl", [{"instruction": "Sun?", "output": "sea"}])
    flags = ["--data_file", source, "--map", "input=context"]
    refused(capsys, prepare("json", checkpoint, *flags), ":1: no key 'context' among 'instruction, output'")


def test_twenty_broken_rows_of_each_file_are_shown(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, count in (("a.jsonl", 25), ("b.jsonl", 2)):
        (tmp_path / name).write_bytes(GOOD + b'{"output": 1}\n' * count)
    assert prepare("json", checkpoint, "--data_file", tmp_path, "--destination_path", tmp_path / "set") == 2
    *rows, last = capsys.readouterr().err.splitlines()
    assert [row.split(":")[0].rpartition("/")[2] for row in rows] == ["a.jsonl"] * 21 + ["b.jsonl"] * 2
    assert rows[20] == f"{tmp_path}/a.jsonl: and 5 more broken rows"
    assert last.startswith("error: 27 broken rows in ")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--data_file is required"),
        (["--data_file", "row.jsonl"], "no file row.jsonl; did you mean rows.jsonl?"),
        (["--data_file", "nowhere/x.jsonl"], "no file nowhere/x.jsonl"),
        (["--data_file", "empty"], "no .json, .jsonl, .ndjson, .csv, .tsv, .parquet file in the folder empty"),
        (["--data_file", "nowhere/*.csv"], "no file matches nowhere/*.csv"),
        (["--data_file", "/dev/null"], "/dev/null is no regular file"),
        (["--data_file", "rows.csv"], "rows.csv is empty"),
        (["--data_file", "link.jsonl"], "link.jsonl is a link to gone.jsonl, which is not there"),
        (["--data_file", "loop.jsonl"], "cannot read loop.jsonl: Too many levels of symbolic links"),
        (["--test_file", "none"], "no file none"),
        (["--map", "question"], "--map: 'question' is not of the form field=key"),
        (["--map", "prompt=question"], "field one of instruction, input, output, system, text, messages"),
        (["--map", "text=story,output=answer"], "--map: text is a whole sample; take output out"),
        (["--prompt_style", "alpca"], "did you mean alpaca?"),
        (["--test_split_fraction", "1"], "--test_split_fraction: 1.0 is not between 0 and 1"),
        (["--seed", "-1"], "--seed: must be in"),
        (["--max_seq_length", "2"], "--max_seq_length: 2 leaves no room"),
        (["--max_seq_length", "9"], "left out: 40 longer than 9 tokens"),
        (["--truncate", "true"], "needs --max_seq_length"),
        (["--destination_path", "rows.jsonl"], "cannot write to rows.jsonl"),
        (["--checkpoint_dir", "none"], "no folder none"),
    ],
)
def test_wrong_settings(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    flags: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows_file(Path("rows.jsonl"))
    Path("rows.csv").touch()
    Path("empty").mkdir()
    Path("empty/notes.txt").touch()
    Path("link.jsonl").symlink_to("gone.jsonl")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    source = ["--data_file", "rows.jsonl"] if flags and "--data_file" not in flags else []
    refused(capsys, prepare("json", checkpoint, *source, *flags), expected)


def test_a_tokenizer_without_eos(byte_level: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(byte_level, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer_config.json"))
    source = rows_file(tmp_path / "rows.jsonl")
    refused(capsys, prepare("json", tmp_path / "model", "--data_file", source), "the tokenizer has no EOS token")


def test_unreadable_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(readers, "open", refuse, raising=False)
    source = rows_file(tmp_path / "x")
    refused(capsys, prepare("json", checkpoint, "--data_file", source), "x: Permission denied; check its permissions")


def test_full_disk_leaves_nothing_behind(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = rows_file(tmp_path / "rows.jsonl", ROWS * 20)
    flags = ["--data_file", source, "--destination_path", tmp_path / "set"]
    assert prepare("json", checkpoint, *flags) == 0
    capsys.readouterr()
    rows_file(source, ROWS * 21)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes that a file may have
    try:
        code = prepare("json", checkpoint, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(capsys, code, "cannot write")
    assert not list((tmp_path / "set").glob(".*"))
    with pytest.raises(UserError, match=r"no meta\.json"):  # the old files are there, but the set does not count
        TokenDataset(tmp_path / "set")


# --- downloads ---------------------------------------------------------------------------------------------------


class Server(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/cut.jsonl":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(GOOD)
            self.close_connection = True
            return
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the files in tmp_path."""
    handler = functools.partial(Server, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=functools.partial(server.serve_forever, 0.02), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_download(checkpoint: Path, tmp_path: Path, site: str, capsys: pytest.CaptureFixture) -> None:
    """What comes from the net is kept beside the set; its broken rows, which nobody can mend, are counted."""
    source = rows_file(tmp_path / "alpaca.json")
    source.write_bytes(source.read_bytes() + b"{oops\n")
    flags = ["--data_url", f"{site}/alpaca.json", "--destination_path", tmp_path / "set"]
    assert prepare("alpaca", checkpoint, *flags) == 0
    assert "downloaded alpaca.json: 0.0 MB" in capsys.readouterr().err
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert meta["dropped"] == {"broken": 1}
    assert meta["urls"] == [f"{site}/alpaca.json"]
    assert (tmp_path / "set/alpaca.json").read_bytes() == source.read_bytes()
    source.unlink()
    assert prepare("alpaca", checkpoint, *flags) == 0
    assert "found" in capsys.readouterr().err
    assert prepare("alpaca", checkpoint, *flags, "--skip_bad_rows", "false") == 2
    assert ":41: not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("SITE/none.json", "(HTTP 404); fetch it on another machine and name it with --data_file"),
        ("SITE/cut.jsonl", "41 of 1,000 bytes came"),
        ("http://127.0.0.1:9/x.json", "cannot download http://127.0.0.1:9/x.json"),
        ("http://nowhere.invalid/x.json", "cannot download http://nowhere.invalid/x.json"),
        ("file:///etc/hostname", "is not the http(s) address of a file"),
        ("https://host/", "is not the http(s) address of a file"),
        ("https://host/..", "is not the http(s) address of a file"),
        ("http://[/x.json", "is not an address"),
    ],
)
def test_downloads_that_fail(
    checkpoint: Path, tmp_path: Path, site: str, capsys: pytest.CaptureFixture, address: str, expected: str
) -> None:
    address = address.replace("SITE", site)
    code = prepare("alpaca", checkpoint, "--data_url", address, "--destination_path", tmp_path / "set")
    refused(capsys, code, expected)
    assert not list((tmp_path).rglob("*.json"))


# --- reading a prepared set --------------------------------------------------------------------------------------


def spoil(folder: Path, how: str) -> None:
    file = folder / "train.pt"
    if how == "no meta":
        (folder / "meta.json").unlink()
    elif how == "no split":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "nothing":
        file.write_bytes(b"")
    elif how == "old list":
        torch.save([{"input_ids": torch.ones(3)}], file)
    elif how == "empty":
        empty = torch.zeros(0, dtype=torch.uint8)
        torch.save({"tokens": empty, "lengths": empty, "supervised": empty}, file)
    elif how == "unequal":
        torch.save({**torch.load(file, weights_only=True), "tokens": torch.zeros(3)}, file)
    elif how == "format":
        (folder / "meta.json").write_text('{"format": 99}')
    elif how == "broken meta":
        (folder / "meta.json").write_text('{"format": ')


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("no meta", r"no meta\.json in"),
        ("no split", r"no train\.pt in"),
        ("cut", "damaged"),
        ("nothing", "damaged"),
        ("old list", "not a prepared split"),
        ("empty", "no samples"),
        ("unequal", "do not fit together"),
        ("format", "format 99, this program reads 1"),
        ("broken meta", r"meta\.json:1: not valid JSON"),
    ],
)
def test_sets_that_are_refused(checkpoint: Path, tmp_path: Path, how: str, expected: str) -> None:
    source = rows_file(tmp_path / "rows.jsonl")
    assert prepare("json", checkpoint, "--data_file", source, "--destination_path", tmp_path / "set") == 0
    assert len(TokenDataset(tmp_path / "set")) == 38
    spoil(tmp_path / "set", how)
    with pytest.raises(UserError, match=expected):
        TokenDataset(tmp_path / "set")
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        TokenDataset(tmp_path / "nowhere")


def test_another_tokenizer_is_refused(checkpoint: Path, byte_level: Path, tmp_path: Path) -> None:
    source = rows_file(tmp_path / "rows.jsonl")
    assert prepare("json", checkpoint, "--data_file", source, "--destination_path", tmp_path / "set") == 0
    meta = TokenDataset(tmp_path / "set").meta
    check_tokenizer(meta, Tokenizer(checkpoint))
    with pytest.raises(UserError, match=r"tests/tiny \(tokenizer\.model, hash .*has tokenizer\.json.*prepare the data"):
        check_tokenizer(meta, Tokenizer(byte_level))
    # the same file, but generation would not put BOS in front of the prompt
    shutil.copytree(checkpoint, tmp_path / "model")
    check_tokenizer(meta, Tokenizer(tmp_path / "model"))
    (tmp_path / "model/tokenizer_config.json").write_text('{"add_bos_token": false}')
    with pytest.raises(UserError, match="use_bos True"):
        check_tokenizer(meta, Tokenizer(tmp_path / "model"))


# --- real data ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.exists(), reason="no real data at hand")
@pytest.mark.parametrize("hub", ["mistralai/Mistral-7B-v0.1", "EleutherAI/pythia-410m"])
def test_real_alpaca_libre(hub: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [str(SHARED / f"data/alpaca_libre/alpaca_libre_tasks_v{version}.jsonl") for version in (1, 2, 3)]
    flags = ["--data_file", f"[{','.join(files)}]", "--destination_path", tmp_path]
    assert prepare("alpaca_libre", SHARED / "hub" / hub, *flags) == 2
    *rows, last = capsys.readouterr().err.splitlines()
    assert "v2.jsonl:2279: not valid JSON" in rows[0]
    assert (len(rows), "14 broken rows" in last) == (14, True)
    assert prepare("alpaca_libre", SHARED / "hub" / hub, *flags, "--skip_bad_rows", "true") == 0
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["rows"] == {**meta["rows"], "read": 5874, "train": 2988, "test": 120}
    assert (meta["dropped"]["broken"], meta["dropped"]["empty output"]) == (14, 34)
    tokenizer = Tokenizer(SHARED / "hub" / hub)
    data = TokenDataset(tmp_path)
    assert sum(data.lengths.tolist()) == meta["tokens"]["train"]
    for i in range(0, len(data), 100):
        prompt, answer = (tokenizer.decode(data.ids(i)[mask]) for mask in (~data.supervised(i), data.supervised(i)))
        assert prompt.endswith("### Response:")
        assert answer == answer.strip() != ""
        assert data.ids(i)[-1] == tokenizer.eos_id

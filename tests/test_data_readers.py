"""Files of rows: all kinds, read as streams, and what is wrong with them."""

import contextlib
import csv
import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from lit_gpt.data import readers
from lit_gpt.data.fetch import data_files
from lit_gpt.data.readers import MOST, BadRow, expand, rows, stem
from lit_gpt.settings import UserError

ROWS = [{"q": f"“{n}”,\n\\ \u2028", "a": ["x", {"deep": n * 1.5}, None], "s": "]}{[" * (n % 3)} for n in range(23)]


def read(path: Path, unnamed: str = "json") -> list:
    """The rows, BadRows as their messages without the folder."""
    return [
        str(row).replace(f"{path.parent}/", "") if isinstance(row, BadRow) else row for _, row in rows(path, unnamed)
    ]


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_arrays_are_read_in_blocks_as_if_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, indent: int | None
) -> None:
    monkeypatch.setattr(readers, "BLOCK", block)
    path = tmp_path / "rows.json"
    mixed = [*ROWS, 12345, 1e-5, -3.25, "text", True, None, [], {}, [[1], [2]]]
    path.write_text(json.dumps(mixed, indent=indent, ensure_ascii=False) + "\n ")
    assert read(path) == mixed
    starts = [place.split(":")[1] for place, _ in rows(path)]
    if indent:  # the line on which the row begins
        lines = path.read_text().split("\n")
        assert [lines[int(start) - 1].strip().rstrip(",")[:1] for start in starts] == [
            json.dumps(row)[0] for row in mixed
        ]
    path.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS))  # objects one after the other
    assert read(path) == ROWS


BROKEN_ARRAYS = {
    '[{"a": 1},\n {"a": 2}': "2: not valid JSON (Expecting ',' or ']'",
    '[{"a": 1},\n': "2: not valid JSON (Expecting value",
    '[{"a": 1},]': "1: not valid JSON (Expecting value",
    "[,1]": "1: not valid JSON (Expecting value",
    '[{"a": 1}\n {"a": 2}]': "2: not valid JSON (Expecting ',' or ']'",
    '[{"a": 1}]\n\nmore': "3: not valid JSON (Extra data",
    '[{"a": 1},\n {"a": "cut': "2: not valid JSON (Unterminated string",
    "[tru]": "1: not valid JSON (Expecting value",
    '[{"a":\n\n "x" 3}]': "3: not valid JSON (Expecting ',' delimiter",
}


@pytest.mark.parametrize("text", BROKEN_ARRAYS)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_broken_arrays_name_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int) -> None:
    monkeypatch.setattr(readers, "BLOCK", block)
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read(path)
    assert f"{path}:{BROKEN_ARRAYS[text]}" in str(caught.value)


def test_gzip_whatever_the_name(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\r\n" for row in ROWS)
    for name in ("rows.jsonl.gz", "rows.jsonl", "rows"):
        (tmp_path / name).write_bytes(gzip.compress(text.encode("utf-16")))
        assert read(tmp_path / name) == ROWS
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a\tb\n1\t2\n"))
    assert read(tmp_path / "t.csv.gz") == [{"a": "1", "b": "2"}]
    whole = gzip.compress(text.encode())
    for damaged in (whole[:-5], whole[: len(whole) // 2], whole[:3], whole[:40] + b"?" + whole[41:]):
        (tmp_path / "rows").write_bytes(damaged)
        with pytest.raises(UserError, match=r"rows: damaged gzip \(.*\); is the download complete\?"):
            read(tmp_path / "rows")


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "rows.parquet"
    found = [{"messages": [{"role": "user", "content": f"é {n}"}], "n": n} for n in range(2500)]
    parquet.write_table(pyarrow.Table.from_pylist(found), path)
    assert read(path) == found
    assert [place for place, _ in rows(path)][2499] == f"{path}:row 2500"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"damaged Parquet after row 0 .*; is the download complete\?"):
        read(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="Parquet needs the package pyarrow; pip install pyarrow"):
        read(path)
    path.write_text('{"a": 1}')
    with pytest.raises(UserError, match="is not Parquet"):
        read(path)


def test_a_hundred_megabytes_in_a_line(tmp_path: Path) -> None:
    """It is refused without being held, and the next line is read."""
    path = tmp_path / "rows"
    with open(path, "w") as file:
        file.write('{"a": "')
        for _ in range(100):
            file.write("x" * 1_000_000)
        file.write('"}\n{"a": 1}\n')
    message, row = read(path)
    assert f"rows:1: not valid JSON (more than {MOST:,} characters in a line; is a line break missing?)" in message
    assert row == {"a": 1}


def test_a_long_field_of_a_csv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST", 1000)
    path = tmp_path / "rows.csv"
    path.write_text(f"a,b\n1,{'x' * 2000}\n1,2\n")
    message, row = read(path)
    assert "rows.csv:2: not valid CSV (more than 1,000 characters in line 2; is a line break missing?)" in message
    assert row == {"a": "1", "b": "2"}


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_key_that_stands_twice_is_an_error_of_its_row(tmp_path: Path, form: str) -> None:
    texts = ['{"a": 1, "b": 2, "a": 3}', '{"a": {"c": 1, "c": 1}}', '{"a": 1}']
    path = tmp_path / "rows"
    path.write_text("\n".join(texts) if form == "lines" else "[" + ",\n".join(texts) + "]")
    first, second, third = read(path)
    assert "the key 'a' stands twice in an object; take one of them out" in first
    assert "the key 'c' stands twice" in second
    assert third == {"a": 1}


def test_nul_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"a": 1}\n{"a": "\0"}\n{"a": 2}\n')
    one, message, two = read(path)
    assert (one, two) == ({"a": 1}, {"a": 2})
    assert message.startswith("rows:2: a NUL byte")
    path.write_bytes(b"a,b\n1,\0\n2,3\n")
    message, row = read(path, "csv")
    assert message.startswith("rows:2: ")
    assert row == {"a": "2", "b": "3"}
    path.write_bytes(json.dumps(ROWS).encode("utf-16-le"))  # nothing says that it is UTF-16
    with pytest.raises(UserError, match=r"rows:1: a NUL byte; this is a binary file, or text to be saved as UTF-8"):
        read(path)


def test_csv_places_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'\xef\xbb\xbf\r\n\r\n a ;b\r\n"1\r\n""2""";x\r\n\r\ny\r\nz;w')
    found = list(rows(path, "csv"))
    assert [place.split(":")[1] for place, _ in found] == ["4", "7", "8"]
    assert [found[0][1], found[2][1]] == [{"a": '1\r\n"2"', "b": "x"}, {"a": "z", "b": "w"}]
    with open(path, "w", encoding="utf-16", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["é", "b"], ["1\n2", "3"]])
    assert read(path, "csv") == [{"é": "1\n2", "b": "3"}]


def test_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.jsonl", "in/a.json.gz", "in/sub/c.CSV", "in/.hidden.json", "in/README.md", "else/d.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("in/link.parquet").symlink_to("../else/d.jsonl")
    Path("in/linked").symlink_to("../else")  # a folder: not gone into, it may lead back up
    Path("in/odd[1].jsonl").touch()

    def names(*given: str) -> list[str]:
        return [str(path) for path in expand(list(given))]

    assert names("in") == ["in/a.json.gz", "in/b.jsonl", "in/link.parquet", "in/odd[1].jsonl", "in/sub/c.CSV"]
    assert names("in/*.jsonl") == ["in/b.jsonl", "in/odd[1].jsonl"]
    assert names("*/[bd].jsonl") == ["else/d.jsonl", "in/b.jsonl"]
    assert names("in/odd[1].jsonl") == ["in/odd[1].jsonl"]
    assert names("missing.json") == ["missing.json"]  # reading it says so


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in/locked").mkdir(parents=True)

    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read .*: Permission denied; check its permissions"):
        expand([str(tmp_path / "in")])


def test_stem() -> None:
    names = ["a/my rows.jsonl", "b.csv.gz", "in/folder", "in/*.json", "*.json", "org/name-v1.5", "http://x/y/z.json"]
    assert [stem(name) for name in names] == ["my rows", "b", "folder", "in", "rows", "name-v1.5", "z"]


def test_data_files_of_a_repository() -> None:
    names = [".gitattributes", "README.md", "dataset_infos.json", "data/train-00000.parquet", "data/test-0.parquet"]
    assert data_files([*names, "train.jsonl"]) == ["data/train-00000.parquet"]
    assert data_files(["a.jsonl", "b.jsonl", "c.csv"]) == ["a.jsonl", "b.jsonl"]
    assert data_files(["README.md"]) == []


def test_a_reader_that_stops_early_closes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('{"a": 1}\n' * 9)
    with contextlib.closing(rows(path)) as found:
        assert next(found)[1] == {"a": 1}
    assert not any(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))

"""Rows of a data set: reading files, checking every row, naming what is wrong with it.

A reader (`json_rows`, `csv_rows`) yields `(place, row)`: where the row stands, for example `train.jsonl:12`, and its
keys and values, or a `BadRow`. A taker (`take`, `take_alpaca_libre`) turns a row into a `Conversation`
or says why not.
"""

import csv
import difflib
import http.client
import io
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from lit_gpt.files import atomic
from lit_gpt.prompts import Conversation, Turn
from lit_gpt.settings import UserError

FIELDS = {"instruction": "instruction", "input": "input", "output": "output"}
"""What a sample is made of -> the key it has in a row."""

TYPES = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


class BadRow(Exception):
    """A row that breaks the format: its place and key, what is wrong, how to mend it."""


class LeftOut(Exception):
    """A row that is well formed but is not wanted; the message is the reason that is counted."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, or of a UTF-16 file that says so (Windows editors write those).

    Bytes that are not UTF-8 become lone surrogates, so that `take` can name the row and key that they stand in.

    Raises:
        UserError: the file is missing, cannot be read, is empty, or is not text.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, _names(path.parent), n=1)
        raise UserError(f"no file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else "")) from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name the files in it, for example '[{path}/a.jsonl,...]'") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig", errors="strict" if wide else "surrogateescape")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not whole UTF-16 text ({error.reason}); save it as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path} is empty; is the download complete?")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}:{line}: a NUL byte; this is a binary file, or text to be saved as UTF-8")
    return text


def _names(folder: Path) -> list[str]:
    return [found.name for found in folder.iterdir()] if folder.is_dir() else []


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON array or of JSON lines, told apart by what the file holds, whatever it is called.

    Raises:
        UserError: the file cannot be read, or a JSON array in it is broken.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        raise UserError(f"{path} is not JSON; use scripts/prepare_csv.py")
    text = read_text(path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if text.lstrip()[0] == "[" or lines[0][1].strip() == "{":  # an array, or one object over several lines
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(_broken_json(f"{path}:{getattr(error, 'lineno', 1)}", error)) from error
        rows = value if isinstance(value, list) else [value]
        yield from ((f"{path}:row {number}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in lines:
        place = f"{path}:{number}"
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield place, BadRow(_broken_json(place, error))


def _broken_json(place: str, error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"{place}: not valid JSON ({type(error).__name__}: {error}); mend it"
    near = error.doc[max(0, error.pos - 20) : error.pos + 60]
    return f"{place}: not valid JSON ({error.msg} at column {error.colno}, near {_shown(near)}); mend it"


def csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a CSV file with a header; fields are separated by commas, semicolons or tabs, as its header is.

    A quoted field may hold line breaks: a row's place is the line on which it starts.

    Raises:
        UserError: the file cannot be read, or its header is broken.
    """
    text = read_text(path)
    csv.field_size_limit(1 << 30)  # the library's own limit refuses answers beyond 128 KB
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    # strict: without it a quote that nobody closes swallows the rest of the file without a word
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        place = f"{path}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad = BadRow(f"{place}: not valid CSV ({error}); close every quote, and double those inside a field")
            if header is None:
                raise UserError(str(bad)) from error
            yield place, bad
            continue
        if not fields:  # an empty line
            continue
        if header is None:
            header = [name.strip() for name in fields]
            if len(set(header)) < len(header):
                raise UserError(f"{place}: two columns have the same name in {_shown(', '.join(header))}; rename one")
        elif len(fields) != len(header):
            shown = _shown(separator.join(fields))
            what = f"{len(fields)} fields where the header has {len(header)}: {shown}"
            yield place, BadRow(f"{place}: {what}; put fields with {separator!r} between quotes")
        else:
            yield place, dict(zip(header, fields, strict=True))


def take(place: str, row: Any, keys: dict[str, str] = FIELDS) -> Conversation:
    """The conversation in a row, its texts stripped of blanks at both ends.

    `keys` says which key holds what; input may be missing or null unless `keys` renames it.

    Raises:
        BadRow: not an object, a key is missing, or a value is not text.
        LeftOut: nothing to answer, or no answer.
    """
    if not isinstance(row, dict):
        raise BadRow(f"{place}: {_kind(row)} where an object with keys should be: {_shown(row)}")
    values = {}
    for field, key in keys.items():
        value = row.get(key)
        if field == "input" and value is None and (key in row or key == FIELDS[field]):
            value = ""
        elif key not in row:
            raise BadRow(f"{place}: no key '{key}' among {_shown(', '.join(map(str, row)))}; {_mapping_hint(row)}")
        if not isinstance(value, str):
            raise BadRow(f"{place}:{key}: {_kind(value)} where text should be: {_shown(value)}; put it between quotes")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            near = value[max(0, error.start - 20) :].encode(errors="replace").decode()
            raise BadRow(f"{place}:{key}: bytes that are not UTF-8 in {_shown(near)}; save it as UTF-8") from error
        values[field] = value.strip()
    if not values["output"]:
        raise LeftOut("empty output")
    if not values["instruction"] and not values["input"]:
        raise LeftOut("empty instruction")
    return Turn("user", values["instruction"], values["input"]), Turn("assistant", values["output"])


def take_alpaca_libre(place: str, row: Any) -> Conversation:
    """The conversation in a row of Alpaca-Libre: `status` must be "ok"; an input of "<noinput>" or the like is none."""
    if isinstance(row, dict) and row.get("status") != "ok":
        if "status" not in row:
            raise BadRow(f"{place}: no key 'status' among {_shown(', '.join(map(str, row)))}; is this Alpaca-Libre?")
        raise LeftOut(f"status {_shown(row['status'])}")
    question, answer = take(place, row)
    if re.fullmatch(r"\W*no ?input\W*", question.input, re.IGNORECASE):
        question = question._replace(input="")
    return question, answer


def parse_map(text: str) -> dict[str, str]:
    """Reads `--map instruction=question,output=answer` into the keys for `take`.

    Raises:
        UserError: not of that form, or no field of a sample.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        field, equals, key = (word.strip() for word in part.partition("="))
        if not (equals and key) or field not in FIELDS:
            raise UserError(
                f"--map: '{part}' is not of the form field=key with field one of {', '.join(FIELDS)}; "
                "for example --map instruction=question,output=answer"
            )
        if field in given:
            raise UserError(f"--map: {field} is named twice, as '{given[field]}' and '{key}'; take one of them out")
        given[field] = key
    return {**FIELDS, **given}


def _mapping_hint(row: dict) -> str:
    own = len(row) == 2 and all(isinstance(value, str) for value in row.values())
    names = list(row) if own else ["question", "answer"]
    return f"prepare_json.py and prepare_csv.py take names: --map instruction={names[0]},output={names[1]}"


def _kind(value: Any) -> str:
    return TYPES.get(type(value), "a number")


def _shown(value: Any) -> str:
    """A value for an error message: on one line, 80 characters at most."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:  # it was read, but the way to here is longer
        text = "deep nesting"
    text = " ".join(text.encode(errors="replace").decode().split())
    text = "".join(c if c.isprintable() else "\ufffd" for c in text[:81])
    return f"'{text if len(text) <= 80 else text[:79] + '…'}'"


def download(url: str, folder: Path) -> Path:
    """Fetches a file into `folder` and returns its path; one that is already there is kept.

    Raises:
        UserError: the address does not answer, or the connection breaks; says how to go on without it.
    """
    try:
        address = urlsplit(url)
    except ValueError as error:
        raise UserError(f"--data_url: {url} is not an address ({error})") from error
    name = PurePosixPath(address.path).name
    if address.scheme not in ("http", "https") or not name.strip("."):
        raise UserError(f"--data_url: {url} is not the http(s) address of a file; for a local file use --data_file")
    path = folder / name
    if path.exists():
        print(f"found {path}; delete it to download it again", file=sys.stderr)
        return path
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "lit-gpt"})
        with urllib.request.urlopen(request, timeout=30) as response:
            data = _fetch(response, name)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise UserError(
            f"cannot download {url} ({reason}); fetch it on another machine and name it with --data_file"
        ) from error
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return path


def _fetch(response: Any, name: str) -> bytes:
    """The body of a response; shows how much of it has come."""
    size, data, live = int(response.headers.get("Content-Length") or 0), bytearray(), sys.stderr.isatty()
    while block := response.read(1 << 18):
        data += block
        if live:
            print(f"\r{name}: {len(data) / 1e6:.1f} MB of {size / 1e6:.1f} MB", end="", file=sys.stderr)
    if size and len(data) != size:
        raise http.client.HTTPException(f"{len(data):,} of {size:,} bytes came")
    print(f"{chr(13) if live else ''}downloaded {name}: {len(data) / 1e6:.1f} MB      ", file=sys.stderr)
    return bytes(data)

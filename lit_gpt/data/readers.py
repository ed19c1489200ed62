"""Files of rows, whatever they are: JSON, JSON lines, CSV, TSV, Parquet, each of them also packed by gzip.

`rows` yields `(place, row)`: where the row stands, for example `train.jsonl:12`, and its keys and values or a `BadRow`.
Files are read as a stream: what is in memory is a row, never the file. Text is UTF-8, or UTF-16 that says so.
"""

import contextlib
import csv
import difflib
import glob
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from lit_gpt.files import sha256
from lit_gpt.settings import UserError

Row = tuple[str, Any]
"""Its place, and its keys and values or a `BadRow`."""

MOST = 1 << 25
"""Characters of a row; a longer line is a file without line breaks, and no model reads 32 million characters."""
SUFFIXES = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
"""What the files of a folder are read as; others in it are passed over."""
BLOCK = 1 << 20
NUL = "a NUL byte; this is a binary file, or text to be saved as UTF-8"


class BadRow(Exception):
    """A row that breaks the format: its place and key, what is wrong, how to mend it."""


def kind(path: str | Path) -> str | None:
    """What a file is by its name, "json", "csv" or "parquet"; None if that does not say."""
    name = str(path).lower().removesuffix(".gz")
    return SUFFIXES.get(os.path.splitext(name)[1])


def _refuse(error: OSError) -> NoReturn:
    raise _unreadable(Path(error.filename), error) from error


def stem(name: str) -> str:
    """A name for what a file, folder, pattern, address or repository holds: without the suffixes of data files."""
    path = Path(name)
    if glob.has_magic(path.name):
        return path.parent.name or "rows"
    if kind(name) and path.suffix.lower() == ".gz":
        path = path.with_suffix("")
    return path.stem if kind(name) else path.name


def expand(names: list[str], flag: str = "--data_file") -> list[Path]:
    """The files that are meant: a file, a folder (all data files in it and below), or a pattern such as "data/*.jsonl".

    A link to a file is followed; in a folder, one to another folder is not. The order is that of the names.

    Raises:
        UserError: there is no such file, or none in the folder; names the nearest.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            below = [Path(folder, file) for folder, _, files in os.walk(path, onerror=_refuse) for file in files]
            inside = sorted(file for file in below if kind(file) and not file.name.startswith("."))
            if not inside:
                raise UserError(f"{flag}: no {', '.join(SUFFIXES)} file in the folder {path}; name the file itself")
            found += inside
        elif not os.path.lexists(path) and glob.has_magic(name):
            matching = sorted(Path(match) for match in glob.glob(name, recursive=True) if not os.path.isdir(match))
            if not matching:
                raise UserError(f"{flag}: no file matches {name}; put it between quotes and check the folder")
            found += matching
        else:
            found.append(path)
    if strange := [path for path in found if path.exists() and not path.is_file()]:  # a pipe would be waited for
        raise UserError(f"{flag}: {strange[0]} is no regular file; name a file")
    return found


def fingerprint(path: Path) -> str:
    """The file's SHA-256 in hexadecimal.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def rows(path: Path, unnamed: str = "json") -> Iterator[Row]:
    """The rows of a file. Its kind is told by its first bytes, by its name, else it is `unnamed`.

    Raises:
        UserError: the file is missing, unreadable, empty, damaged, or is not of its kind.
    """
    with _opened(path) as file:
        if file.peek(4)[:4] == b"PAR1":
            yield from _parquet(path)
            return
        if kind(path) == "parquet":
            raise UserError(f"{path} is not Parquet (it does not begin with PAR1); is the download complete?")
        read = _csv if (kind(path) or unnamed) == "csv" else _json
        wide = file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
        # bytes that are not UTF-8 become lone surrogates: whoever takes the row can name the key that they stand in
        encoding, errors = ("utf-16", "strict") if wide else ("utf-8-sig", "surrogateescape")
        # a JSON text may hold characters that end lines elsewhere; a CSV file ends its lines as it likes
        newline = "" if read is _csv else "\n"
        try:
            yield from read(path, io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=newline))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not whole UTF-16 text ({error.reason}); save it as UTF-8") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: damaged gzip ({error}); is the download complete?") from error
        except OSError as error:
            raise _unreadable(path, error) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The bytes of a file, unpacked if gzip packed them, as a `BufferedReader`."""
    try:
        raw = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _unreadable(path, error) from error
    with raw:
        if raw.peek(2)[:2] != b"\x1f\x8b":
            yield raw
            return
        with io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK) as file:
            try:
                file.peek(1)
            except (EOFError, zlib.error, OSError) as error:
                raise UserError(f"{path}: damaged gzip ({error}); is the download complete?") from error
            yield file


def _unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return UserError(f"{path} is a link to {os.readlink(path)}, which is not there; mend the link")
    if isinstance(error, FileNotFoundError):
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        return UserError(f"no file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    return UserError(f"cannot read {path}: {error.strerror or error}; check its permissions")


# --- JSON --------------------------------------------------------------------------------------------------------


class _UnfitError(ValueError):
    """It is JSON, but no row."""


class _Decoder(json.JSONDecoder):
    """Python's, which would take the last of several values of a key without a word."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self.twice: str | None = None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self.twice = next(name for i, name in enumerate(names) if name in names[:i])
        return found

    def row(self, place: str, value: Any) -> Row:
        """The row, or what is wrong with its keys."""
        if self.twice is None:
            return place, value
        twice, self.twice = self.twice, None
        return place, BadRow(f"{place}: the key {shown(twice)} stands twice in an object; take one of them out")


_DECODER = _Decoder()
_BLANKS = re.compile(r"[ \t\n\r]*")


def _json(path: Path, text: TextIO) -> Iterator[Row]:
    """The rows of a JSON array or of JSON lines, told apart by what the file holds, whatever it is called."""
    lines = ((number, line) for number, line in enumerate(_lines(text), 1) if not line.isspace())
    number, line = next(lines, (0, ""))
    if not line:
        raise UserError(f"{path} is empty; is the download complete?")
    if "\0" in line:
        raise UserError(f"{path}:{number}: {NUL}")
    if line.lstrip()[0] == "[" or line.strip() == "{":  # an array, or an object over several lines
        yield from _Values(path, text, number, line).rows()
        return
    while line:
        place = f"{path}:{number}"
        try:
            if len(line) > MOST:
                raise _UnfitError(f"more than {MOST:,} characters in a line; is a line break missing?")
            row = _DECODER.row(place, _DECODER.decode(line))
        except (ValueError, RecursionError) as error:
            row = place, BadRow(_broken_json(place, error))
        yield row
        number, line = next(lines, (0, ""))


def _lines(text: TextIO) -> Iterator[str]:
    """The lines; of one that is too long its first `MOST` + 1 characters."""
    while line := text.readline(MOST + 1):
        yield line
        while len(line) > MOST and not line.endswith("\n"):
            line = text.readline(MOST + 1)


class _Values:
    """The values of a JSON array, or values one after the other, read in blocks.

    Raises:
        UserError: one is broken; where the next one would begin cannot be known.
    """

    def __init__(self, path: Path, text: TextIO, number: int, line: str) -> None:
        self.path, self.text = path, text
        self.buffer, self.at = line, 0
        self.number, self.counted = number, 0
        """The line of the file at which the buffer's character `counted` stands."""

    def rows(self) -> Iterator[Row]:
        """All values."""
        array = self.next() == "["
        self.at += array
        end, count = "]" if array else "", 0
        more = self.next() != end
        while more:
            place = f"{self.path}:{self.line(self.at)}:row {(count := count + 1)}"
            yield _DECODER.row(place, self.value())
            more = self.next() != end
            if array and more:
                if self.next() != ",":
                    self.refuse(json.JSONDecodeError("Expecting ',' or ']'", self.buffer, self.at))
                self.at += 1
                self.next()
        self.at += array
        if self.next():
            self.refuse(json.JSONDecodeError("Extra data", self.buffer, self.at))

    def next(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            self.at = _BLANKS.match(self.buffer, self.at).end()
            if self.at < len(self.buffer) or not self.fill():
                return self.buffer[self.at : self.at + 1]

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                found, end = _DECODER.raw_decode(self.buffer, self.at)
            except (ValueError, RecursionError) as error:
                # a value that the block's end has cut is tried again with more of the file
                cut = isinstance(error, json.JSONDecodeError) and (
                    error.pos > len(self.buffer) - 16 or error.msg.startswith("Unterminated string")
                )
                if not cut or len(self.buffer) - self.at > MOST or not self.fill():
                    self.refuse(error)
            else:
                if end < len(self.buffer) - 4 or not self.fill():  # a number at the end might go on, say with e-05
                    self.at = end
                    return found

    def fill(self) -> bool:
        """Reads on, twice as much as is held: a long value is not tried over and over."""
        block = self.text.read(max(BLOCK, len(self.buffer) - self.at))
        if block:
            self.line(self.at)
            self.buffer, self.at, self.counted = self.buffer[self.at :] + block, 0, 0
        return bool(block)

    def line(self, at: int) -> int:
        """The number of the line on which a character of the buffer stands, not before the last one asked for."""
        self.number += self.buffer.count("\n", self.counted, at)
        self.counted = at
        return self.number

    def refuse(self, error: Exception) -> NoReturn:
        place = f"{self.path}:{self.line(getattr(error, 'pos', self.at))}"
        raise UserError(_broken_json(place, error)) from error


def _broken_json(place: str, error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        near = error.doc[max(0, error.pos - 20) : error.pos + 60]
        if "\0" in near:
            return f"{place}: {NUL}"
        what = f"{error.msg}, near {shown(near)}"
    else:
        what = str(error) if isinstance(error, _UnfitError) else f"{type(error).__name__}: {error}"
    return f"{place}: not valid JSON ({what}); mend it"


# --- CSV ---------------------------------------------------------------------------------------------------------


def _csv(path: Path, text: TextIO) -> Iterator[Row]:
    """The rows of a file with a header; fields are separated by commas, semicolons or tabs, as its header is.

    A quoted field may hold line breaks: a row's place is the line on which it starts.

    Raises:
        UserError: its header is broken.
    """
    csv.field_size_limit(MOST)  # the library's own limit refuses answers beyond 128 KB
    long: list[int] = []

    def noted() -> Iterator[str]:
        for number, line in enumerate(_lines(text), 1):
            if len(line) > MOST:
                long.append(number)
            yield line

    lines = noted()
    blank, first = next(((blank, line) for blank, line in enumerate(lines) if line.strip()), (0, ""))
    if not first:
        raise UserError(f"{path} is empty; is the download complete?")
    separator = max(",;\t", key=first.count)
    # strict: without it a quote that nobody closes swallows the rest of the file without a word
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        place = f"{path}:{blank + reader.line_num + 1}"
        try:
            fields = next(reader)
            if long:
                raise csv.Error(f"more than {MOST:,} characters in line {long.pop()}; is a line break missing?")
            if "\0" in "".join(fields):
                raise csv.Error(NUL)
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
                raise UserError(f"{place}: two columns have the same name in {shown(', '.join(header))}; rename one")
        elif len(fields) != len(header):
            what = f"{len(fields)} fields where the header has {len(header)}: {shown(separator.join(fields))}"
            yield place, BadRow(f"{place}: {what}; put fields with {separator!r} between quotes")
        else:
            yield place, dict(zip(header, fields, strict=True))


# --- Parquet -----------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, a few at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: Parquet needs the package pyarrow; pip install pyarrow") from error
    count = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    count += 1
                    yield f"{path}:row {count}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        what = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: damaged Parquet after row {count} ({what}); is the download complete?") from error


# --- for messages ------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value for an error message: on one line, 80 characters at most."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:  # it was read, but the way to here is longer
        text = "deep nesting"
    text = " ".join(text[:1000].encode(errors="replace").decode().split())
    text = "".join(c if c.isprintable() else "\ufffd" for c in text[:81])
    return f"'{text if len(text) <= 80 else text[:79] + '…'}'"

"""Answers of a model on the disk as they come, so that an interrupted evaluation goes on where it was.

The file grows line by line, [key, answer, checksum] in JSON; the key is a digest of the model's identity and the
request, so one file may serve several models. A process that is killed leaves at most half a line, which the next one
takes away.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lit_gpt.files import cannot_write, locked
from lit_gpt.settings import UserError

HEAD = ["lit-gpt answers", 2]
"""The first line: what the file is, and the version of its format."""


class Answers:
    """What is known already; without a file, nothing. See `open_answers`."""

    def __init__(self, identity: str = "", known: dict[str, Any] | None = None, file: BinaryIO | None = None) -> None:
        self.identity, self.file = identity, file
        self._known = known or {}

    def known(self, requests: Iterable[tuple]) -> dict[tuple, Any]:
        """The answers to those of the requests that are known."""
        if not self._known:
            return {}
        keys = {request: self._key(request) for request in requests}
        return {request: self._known[key] for request, key in keys.items() if key in self._known}

    def add(self, answers: dict[tuple, Any]) -> None:
        """Writes answers to requests; after this call the end of the process cannot harm them."""
        if self.file is not None and answers:
            lines = (_line(self._key(request), answer) for request, answer in answers.items())
            try:
                self.file.write("".join(lines).encode())
                self.file.flush()
            except OSError as error:
                raise cannot_write(Path(self.file.name), error) from error

    def _key(self, request: tuple) -> str:
        return hashlib.sha256(json.dumps([self.identity, request]).encode()).hexdigest()[:32]


@contextlib.contextmanager
def open_answers(path: Path | None, identity: str) -> Iterator[Answers]:
    """The answers in a file, which is made if it is not there; other processes keep out as long as this one uses it.

    Args:
        path: the file; None: nothing is known and nothing is kept.
        identity: says which model answers, and with what settings; answers of others are not used.

    Raises:
        UserError: the file holds something else, is used by another process, or cannot be written.
    """
    if path is None:
        yield Answers()
        return
    if path.is_dir():
        raise UserError(f"--use_cache: {path} is a folder; name a file in it, for example {path / 'answers.jsonl'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    with locked(path, f"--use_cache: another process is using {path}; wait for it or name another file"):
        known, whole = _read(path)
        with open(path, "r+b") as file:
            file.truncate(whole)
            file.seek(whole)
            if not whole:
                file.write(json.dumps(HEAD).encode() + b"\n")
            yield Answers(identity, known, file)


def _line(key: str, answer: Any) -> str:
    """What stands in the file for an answer."""
    content = json.dumps([key, answer])
    return json.dumps([key, answer, hashlib.sha256(content.encode()).hexdigest()[:8]]) + "\n"


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """The answers by key, and the length of the file in bytes without half a line at its end."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    known: dict[str, Any] = {}
    for number, line in enumerate(content[:whole].splitlines(keepends=True), 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if number == 1 and values != HEAD:
            old = isinstance(values, list) and values[:1] == HEAD[:1]
            what = "made by another version of this program" if old else "not a file of answers"
            raise UserError(f"--use_cache: {path}:1: {what}; remove it or name another one")
        if number > 1:
            if not isinstance(values, list) or len(values) != 3 or line.decode(errors="replace") != _line(*values[:2]):
                raise UserError(f"--use_cache: {path}:{number}: damaged; take the line out: its answer comes again")
            known[values[0]] = values[1]
    if not whole and content and not json.dumps(HEAD).encode().startswith(content):
        raise UserError(f"--use_cache: {path}:1: not a file of answers; remove it or name another one")
    return known, whole

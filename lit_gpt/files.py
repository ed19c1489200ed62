"""Files that are whole or absent: every file of ours is written beside its place and then renamed into it."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_gpt.settings import UserError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on success it is flushed to disk and takes the name `path`.

    If the block raises, the temporary file is removed and an older `path` stays as it was. What a killed process left
    is overwritten by the next one that writes `path`.

    Raises:
        UserError: the disk is full, the folder cannot be written, or another process is writing `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary.is_symlink():  # a hostile folder's, to have us write elsewhere
            temporary.unlink()
        with locked(temporary, f"another process is writing {path}; wait for it or choose another folder"):
            try:
                yield temporary
                flush(temporary)
                os.replace(temporary, path)
                flush(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """The one line for a file that could not be written."""
    return UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder")


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Holds a lock on the file `path`, which is made if it is not there; it ends with the process, however that ends.

    Raises:
        UserError: with `message`, if another process holds it.
    """
    try:
        opened = open(path, "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise cannot_write(path, error) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(message) from error
        except OSError:  # a file system without locks
            pass
        yield


def part(path: Path, index: int, count: int) -> Path:
    """The file for one of the `count` parts of what `path` holds, such as `optimizer-00001-of-00008.pth`."""
    return path if count == 1 else path.with_name(f"{path.stem}-{index + 1:05d}-of-{count:05d}{path.suffix}")


def parts_of(path: Path) -> list[Path]:
    """The file itself, or all the parts in its place if any of them is there."""
    found = [] if path.is_file() else sorted(path.parent.glob(f"{path.stem}-?????-of-?????{path.suffix}"))
    if not found or not (number := found[0].stem[-5:]).isdecimal():
        return [path]
    return [part(path, index, int(number)) for index in range(int(number))]


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def results_folder(path: Path, flag: str = "--out_dir") -> None:
    """Makes the folder that a flag names and tries it, before the long work whose results it gets.

    Raises:
        UserError: there is a file of that name, or the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot write there ({error.strerror}); choose another folder") from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with atomic(path) as temporary:
        # a file name that is not UTF-8 has lone surrogates, which JSON, too, writes as \udc80
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or is not JSON; names the line.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise UserError(f"{path}: not JSON that can be read ({error})") from error


def sealed(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with a digest of themselves, for `read_sealed`."""
    return {**facts, "sha256": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def read_sealed(path: str | Path) -> Any:
    """Reads a JSON file; one that was `sealed` must be as it was written.

    Raises:
        UserError: the file is missing, is not JSON, or was changed.
    """
    value = read_json(path)
    if isinstance(value, dict) and "sha256" in value:
        facts = {key: fact for key, fact in value.items() if key != "sha256"}
        if sealed(facts) != value:
            raise UserError(
                f"{path} is not as it was written: damaged (then make it again), or changed by hand (then take its "
                'entry "sha256" out)'
            )
    return value


def size_text(size: int) -> str:
    """A number of bytes for people to read."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

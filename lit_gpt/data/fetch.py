"""Fetches the files of a data set: from an address, or from a repository of a Hugging Face hub."""

import fnmatch
import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from lit_gpt import hub
from lit_gpt.data.readers import kind
from lit_gpt.files import atomic
from lit_gpt.settings import UserError


def from_hub(settings: hub.Download, folder: Path, patterns: list[str]) -> list[Path]:
    """Fetches the files of a data set's repository that match one of `patterns`, or those that `data_files` chooses.

    They keep their names, in `folder`, with their commit and checksums in its `download.json`.

    Raises:
        UserError: unknown, private or gated repository, no such file in it, no connection, a wrong checksum.
    """

    def choose(names: Iterable[str], where: str) -> list[str]:
        names = sorted(names)
        found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        found = found if patterns else data_files(names)
        if not found:
            what = f"no file {', '.join(patterns)}" if patterns else "no file that can be read here"
            held = ", ".join(names[:10])
            raise UserError(f"{where} has {what}; it has {held or 'nothing'}; name some of them with --data_file")
        return found

    return hub.fetch_files(settings, folder, choose)


def data_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files those with the rows to train on: of one kind, Parquet first, and of the split "train" if
    the names tell splits."""
    known = [name for name in names if kind(name) and not PurePosixPath(name).name.startswith(("dataset_info", "."))]
    first = next((wanted for wanted in ("parquet", "json", "csv") if any(kind(n) == wanted for n in known)), None)
    known = [name for name in known if kind(name) == first]
    return [name for name in known if "train" in name.lower()] or known


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

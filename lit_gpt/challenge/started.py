"""The server of a bundle, started to be tried."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from lit_gpt.settings import UserError

GRACE = 10
"""Seconds that a server may take to end before it is killed: those of `docker stop`."""


class Started:
    """The server of a bundle as a process of its own on a free port; it ends with the `with` block."""

    def __init__(self, folder: Path | None, start_timeout: float) -> None:
        """`start_timeout`: seconds until it must answer. Raises UserError if there is no bundle."""
        self.folder, self.start_timeout = find_bundle(folder), start_timeout
        self.keep_log: Path | None = None
        """Where what the server wrote goes in the end."""

    def __enter__(self) -> "Started":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = tempfile.NamedTemporaryFile(prefix="serve-", suffix=".log", delete=False)
        began = time.monotonic()
        path = os.pathsep.join(filter(None, [str(self.folder.resolve()), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "submission/serve.py", "--config", "serve.yaml", "--port", str(port)],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": path},  # its code, not an installed package's
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        try:
            while not listens(self.url):
                if self.process.poll() is not None:
                    said = Path(self.log.name).read_text(encoding="utf-8", errors="replace").strip() or "nothing said"
                    ended = f"its server ended with exit code {self.process.returncode}"
                    raise UserError(f"{self.folder}: {ended}: {said.splitlines()[-1]}")
                if time.monotonic() - began > self.start_timeout:
                    limit = f"{self.start_timeout:g} s (--start_timeout)"
                    raise UserError(f"{self.folder}: its server does not listen after {limit}")
                time.sleep(0.1)
        except BaseException:
            self.__exit__()
            raise
        self.seconds = time.monotonic() - began
        """From the start until it listened."""
        return self

    def terminate(self) -> int | None:
        """Ends it by SIGTERM; returns its exit code, or None if it had to be killed."""
        self.process.terminate()
        try:
            return self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.terminate()
        self.log.close()
        if self.keep_log:
            with contextlib.suppress(OSError):
                self.keep_log.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.log.name, self.keep_log)
        Path(self.log.name).unlink(missing_ok=True)


def checked_url(url: str | None, bundle_dir: Path | None) -> str | None:
    """The address of a server, without the slash at its end.

    Raises:
        UserError: it is none, or a bundle to be started is named, too.
    """
    if url is None:
        return None
    if bundle_dir is not None:
        raise UserError("--url and --bundle_dir: give one of them, a server that runs or one to start")
    try:
        address = urlsplit(url)
        good = address.scheme in ("http", "https") and address.hostname and address.port != 0
        (address.hostname or "").encode("idna")
    except ValueError:
        good = False
    if not good:
        raise UserError(f"--url: expected an address such as http://localhost:8080, got {url}")
    return url.rstrip("/")


def listens(url: str) -> bool:
    """Whether something accepts connections at an address."""
    address = urlsplit(url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname, port), 10):
            return True
    except OSError:
        return False


def find_bundle(folder: Path | None) -> Path:
    """The folder with serve.yaml: as given, the current one, or the one that this module is part of.

    Raises:
        UserError: none of them has it, or what it needs beside it.
    """
    tried = [folder] if folder is not None else [Path("."), Path(__file__).parents[2]]
    for place in tried:
        if (place / "serve.yaml").is_file():
            if not (place / "submission/serve.py").is_file():
                raise UserError(f"{place}: has serve.yaml, but no submission/serve.py; write the bundle anew")
            return place
    where = f"--bundle_dir {folder}" if folder is not None else "here"
    raise UserError(f"{where}: no serve.yaml; name the folder that prepare_submission wrote, or a server by --url")

"""A small hub on this machine: the part of the Hugging Face HTTP API that its client uses to fetch repositories.

    with HubServer() as hub:
        repo = hub.add("org/name", {"config.json": b"{}"}, lfs={"model.safetensors": b"..."})
        repo.faults["model.safetensors"] = iter(["corrupt"])      # spoils the next answer for this file
        ...  # a client with HF_ENDPOINT=hub.endpoint

Answered: `/api/models/ID[/revision/REV]`, `/api/models/ID/tree/COMMIT`, and HEAD and GET (with Range) of
`/ID/resolve/REV/FILE`; the same for data sets, whose ID here begins with
`datasets/`. Large files (`lfs`) are redirected to another origin, as the hub redirects to its storage.
`requests` logs what was asked. Errors carry the hub's codes in `X-Error-Code`.
"""

import fcntl
import functools
import hashlib
import json
import re
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """One model repository.

    `gated`: files only for accounts that accepted the licence. `private`: unknown without the token.
    `faults`: per file name an iterator of what goes wrong at the next GETs of it (None: nothing):
    "corrupt" (a changed byte), "close:N" and "reset:N" (the connection ends after N bytes; reset: with a TCP reset),
    "stall:N" (nothing more comes after N bytes), or a status code such as "500".
    `claims`: sizes that the listing gives instead of the true ones, in bytes.
    """

    files: dict[str, bytes]
    lfs: dict[str, bytes]
    gated: bool = False
    private: bool = False
    faults: dict[str, Iterator[str | None]] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        return git_sha1(repr([(name, git_sha1(data)) for name, data in (self.files | self.lfs).items()]).encode())

    def tree(self) -> list[dict]:
        """The listing of the top folder, as the API gives it."""
        rows: list[dict] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "original"}]
        for name, data in (self.files | self.lfs).items():
            size = self.claims.get(name, len(data))
            row = {"type": "file", "oid": git_sha1(data), "size": size, "path": name}
            if name in self.lfs:
                row["lfs"] = {"oid": sha256(data), "size": size, "pointerSize": 134}
            rows.append(row)
        return rows


@dataclass
class Request:
    """What a client asked for; `redirected`: it was sent on to the storage."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    redirected: bool = False


class HubServer:
    """Serves repositories on a free port of 127.0.0.1; `token` is the only token that it knows."""

    def __init__(self, token: str = "hf_right"):
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.status: int | None = None  # answers everything with this status
        self.released = threading.Event()  # ends stalled answers

    def add(self, repo_id: str, files: dict[str, bytes], lfs: dict[str, bytes] | None = None, **rights: bool) -> Repo:
        self.repos[repo_id] = repo = Repo(files, lfs or {}, **rights)
        return repo

    def __enter__(self) -> "HubServer":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"  # another origin to a client
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def fetched(self, name: str) -> list[str | None]:
        """The Range headers of all GETs that delivered bytes of this file."""
        return [
            r.range for r in self.requests if r.method == "GET" and r.path.endswith(f"/{name}") and not r.redirected
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        request = Request(
            self.command,
            unquote(urlsplit(self.path).path),
            self.headers.get("Range"),
            self.headers.get("Authorization"),
        )
        self.hub.requests.append(request)
        authorized = request.authorization == f"Bearer {self.hub.token}"
        if self.hub.status:
            return self.answer_error(self.hub.status, None, "down for maintenance")
        if found := re.fullmatch(r"/storage/((?:datasets/)?[^/]+/[^/]+)/(.+)", request.path):
            repo = self.hub.repos[found[1]]
            return self.answer_file(repo, found[2], repo.lfs[found[2]])
        path = request.path.replace("/api/datasets/", "/api/models/datasets/")
        api = re.fullmatch(r"/api/models/((?:datasets/)?[^/]+/[^/]+?)(?:/(revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = self.hub.repos.get((api or file)[1]) if api or file else None
        if request.authorization and not authorized:
            return self.answer_error(401, None, "Invalid credentials in Authorization header", request.authorization)
        if repo is None or (repo.private and not authorized):
            return self.answer_error(404 if authorized else 401, "RepoNotFound", "Repository not found")
        revision = (api[3] if api else file[2]) or "main"
        if revision not in ("main", repo.commit):
            return self.answer_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api:
            return self.answer_json(repo.tree() if api[2] == "tree" else {"id": api[1], "sha": repo.commit})
        if repo.gated:
            return self.answer_error(
                403 if authorized else 401, "GatedRepo", f"Access to model {file[1]} is restricted"
            )
        if file[3] in repo.lfs:
            request.redirected = True
            data = repo.lfs[file[3]]
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256(data)}"'}
            headers = {"Location": f"{self.hub.storage}/storage/{file[1]}/{file[3]}", "X-Repo-Commit": repo.commit}
            return self.answer(302, b"", headers | linked)
        if file[3] in repo.files:
            return self.answer_file(repo, file[3], repo.files[file[3]])
        return self.answer_error(404, "EntryNotFound", "Entry not found")

    def answer_file(self, repo: Repo, name: str, data: bytes) -> None:
        fault = next(repo.faults.get(name, iter(())), None) if self.command == "GET" else None
        kind, _, count = (fault or "").partition(":")
        if kind.isdigit():
            return self.answer_error(int(kind), None, "internal trouble")
        headers = {"ETag": f'"{git_sha1(data)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if kind == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, size = 200, len(data)
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(found[1])
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            data = data[start:]
        return self.answer(status, data, headers, kind, int(count or 0))

    def answer_json(self, value: object, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | headers)

    def answer_error(self, status: int, code: str | None, message: str, echo: str | None = None) -> None:
        """`echo`: what a careless server would repeat of the request."""
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer_json({"error": f"{message} {echo or ''}"}, status, **headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str], fault: str = "", count: int = 0) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:count] if fault in ("close", "reset", "stall") else body)
        if fault == "stall":
            self.hub.released.wait(30)
        if fault == "reset":
            while struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4)))[0]:
                time.sleep(0.01)  # until all that was written has arrived: a reset drops the rest
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if fault:
            self.close_connection = True


@functools.cache
def sha256(data: bytes) -> str:
    """The id that the hub's storage gives to these bytes."""
    return hashlib.sha256(data).hexdigest()


@functools.cache
def git_sha1(data: bytes) -> str:
    """The id that git gives to a file with these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

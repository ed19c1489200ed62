"""Fetches a checkpoint from a Hugging Face hub, or from a folder that plays one, and proves that every byte is right.

Files go to `<checkpoint_dir>/<org>/<name>/` under their own names, and a file has its name only once its checksum
equals the source's; until then it is a hidden `.partial` file, which the same command run again continues from its last
byte. `download.json` beside the files records where they came from:

    {"repo_id": ..., "revision": ..., "commit": ..., "files": {"config.json": {"size": bytes, "git_sha1": ...}, ...}}

The hub gives the SHA-256 of large files and the git blob SHA-1 of small ones. The token is sent to the hub and to
nobody else: it is in no file and in no message.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import SecretStr

from lit_gpt.families.catalogue import CATALOGUE, nearest
from lit_gpt.files import read_json, size_text, write_json
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

RECORD = "download.json"
# Top-level names only, each one spelled out: no code, no second format of the same weights.
SMALL_FILES = re.compile(
    r"(generation_)?config\.json|tokenizer[\w.-]*\.(json|model)|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(jinja|json)|(LICENSE|NOTICE|USE_POLICY)([.-][\w.-]+)?",
    re.IGNORECASE,
)


@dataclass
class Download:
    """Which model to fetch, from where, and where to put it."""

    repo_id: str | None = None
    """Model to fetch, as <org>/<name>; unset: list the known models."""
    token: SecretStr | None = None
    """Access token for gated and private models; better in the environment as HF_TOKEN, where `ps` does not show it."""
    checkpoint_dir: Path = Path("checkpoints")
    """Folder that gets <org>/<name>/ with the files."""
    revision: str | None = None
    """Branch, tag or commit; unset: the hub's main branch."""
    tokenizer_only: bool = False
    """Fetch config and tokenizer, no weights."""
    from_folder: Path | None = None
    """Folder laid out as <org>/<name>/ that plays the hub, for a machine without network."""


def download(settings: Download) -> None:
    """Fetches a model's weights, config and tokenizer, checks every file, and records the commit.

    Files that are there already and have the right checksum are kept. With HF_HUB_OFFLINE set, an earlier download is
    checked against its record.

    Raises:
        UserError: unknown, private or gated repository, no connection, not enough disk space, a wrong checksum.
    """
    if not settings.repo_id:
        _list_known()
        return
    _check_repo_id(settings.repo_id)
    folder = settings.checkpoint_dir / settings.repo_id
    source = _Folder(settings) if settings.from_folder else _Hub(settings, folder)
    with source.errors():
        record = source.record()
        with _locked(folder):
            _fetch_all(source, record, folder)
    total = sum(entry["size"] for entry in record["files"].values())
    commit = f", commit {record['commit'][:12]}" if record["commit"] else ""
    print(f"{folder}: {len(record['files'])} files, {size_text(total)}, checksums verified{commit}", file=sys.stderr)
    if not settings.tokenizer_only:
        print(f"next: python scripts/convert_hf_checkpoint.py --checkpoint_dir {folder}", file=sys.stderr)


def fetch_files(settings: Download, folder: Path, choose: Callable[[Iterable[str], str], list[str]]) -> list[Path]:
    """Fetches those files of a data set's repository that `choose(names, where)` picks out of all names, into `folder`.

    Raises:
        UserError: as `download`, and whatever `choose` raises.
    """
    _check_repo_id(settings.repo_id)
    source = _Hub(settings, folder, "dataset", choose)
    with source.errors():
        record = source.record()
        with _locked(folder):
            _fetch_all(source, record, folder)
    return [folder / name for name in record["files"]]


def _list_known() -> None:
    for row in sorted(CATALOGUE.values(), key=lambda row: row.repo_id.lower()):
        marks = {"instruct": row.instruct, "challenge": row.allowed, "gated": row.gated}
        words = " ".join(word for word, given in marks.items() if given)
        print(f"{row.repo_id:50} {row.parameters / 1e9:6.2f} B  {row.licence:16} {words}".rstrip())
    print("challenge: allowed as a base; gated: needs a token. Fetch one with --repo_id <org>/<name>", file=sys.stderr)


class _Hub:
    """A Hugging Face hub, through its own client (which reads HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN, HF_HOME)."""

    def __init__(
        self,
        settings: Download,
        folder: Path,
        kind: str = "model",
        choose: Callable[[Iterable[str], str], list[str]] | None = None,
    ):
        from huggingface_hub import HfApi, constants

        self.kind = kind
        self.choose = choose or (lambda names, where: select(names, settings.tokenizer_only, where))
        self.settings, self.repo_id, self.folder = settings, settings.repo_id, folder
        self.token = settings.token.get_secret_value().strip() or None if settings.token else None
        self.api = HfApi(endpoint=constants.ENDPOINT, token=self.token)
        self.headers: dict[str, str] = {}
        self.at = settings.repo_id  # what is being asked for, for messages

    def __str__(self) -> str:
        return self.api.endpoint

    def record(self) -> dict[str, Any]:
        """What the repository holds at the wanted revision, of it the files we need."""
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils import build_hf_headers

        self.headers = build_hf_headers(token=self.token)
        if not re.fullmatch(r"[ -~]*", self.headers.get("authorization", "")):
            raise UserError("the token (HF_TOKEN or --token) holds a character that no token has; copy it again")
        try:
            repo = {"repo_id": self.repo_id, "repo_type": self.kind}
            commit = self.api.repo_info(**repo, revision=self.settings.revision, timeout=30).sha
            tree = self.api.list_repo_tree(**repo, revision=commit, recursive=self.kind == "dataset")
            entries = {file.path: _entry(file) for file in tree if isinstance(file, RepoFile) and _inside(file.path)}
            if not _sound({"commit": commit, "files": entries}):
                raise ValueError("a size or a checksum is none")
        except OfflineModeIsEnabled:
            return self._offline_record()
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # a login page, a mirror of something else
            raise UserError(f"{self} does not answer like a Hugging Face hub; check HF_ENDPOINT and proxy") from error
        names = self.choose(entries, self.repo_id)
        files = {name: entries[name] for name in names}
        return {"repo_id": self.repo_id, "revision": self.settings.revision or "main", "commit": commit, "files": files}

    def _offline_record(self) -> dict[str, Any]:
        record, revision = _read_record(self.folder), self.settings.revision
        if not record or revision not in (None, record.get("revision"), record.get("commit")):
            at = f" at revision {revision}" if revision else ""
            raise UserError(
                f"HF_HUB_OFFLINE is set and {self.folder} has no finished download of {self.repo_id}{at}; "
                "unset it, or copy from another machine with --from_folder"
            )
        names = self.choose(record["files"], f"HF_HUB_OFFLINE is set and {self.folder}")
        return {**record, "files": {name: record["files"][name] for name in names}}

    def fetch(self, name: str, entry: dict[str, Any], partial: Path, commit: str) -> None:
        """Appends what `partial` lacks, up to the file's size."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, HTTPError  # HTTPError: any failure of the transport
        from huggingface_hub.file_download import http_get

        self.at = f"{self.repo_id}/{name}"
        url = hf_hub_url(self.repo_id, name, repo_type=self.kind, revision=commit)
        with open(partial, "ab") as file:
            # Unlike hf_hub_download, http_get lets us keep what a killed process had: a 10 GB shard goes on where it
            # was. It retries a connection that closes or times out, but not one that is reset.
            while (start := file.tell()) < entry["size"]:
                try:
                    http_get(url, file, resume_size=start, headers=self.headers, displayed_filename=name)
                    return
                except HTTPError as error:
                    if isinstance(error, HfHubHTTPError) or file.tell() == start:
                        raise

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns whatever the client raises into one line without the token."""
        from huggingface_hub.errors import HTTPError

        try:
            yield
        except (HTTPError, OSError) as error:
            message = self._explain(error)
            sent = self.headers.get("authorization", "").removeprefix("Bearer ")
            for secret in {sent, self.token or ""} - {""}:
                message = message.replace(secret, "***")
            raise UserError(message) from None  # the chain could show the token

    def _explain(self, error: Exception) -> str:
        from huggingface_hub import errors

        data = self.kind == "dataset"
        repo, page = self.repo_id, f"{self.api.endpoint}/{'datasets/' * data}{self.repo_id}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = getattr(error, "server_message", None) or str(error)
        again = "run the same command again, it keeps what is there"
        if isinstance(error, errors.GatedRepoError):
            return (
                f"{repo} is gated: accept its licence at {page}, then pass that account's token (HF_TOKEN or --token)"
            )
        if isinstance(error, errors.DisabledRepoError):
            return f"{repo} has been disabled, see {page}; choose another"
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"{repo} is not at {self}, or is private (then pass a token: HF_TOKEN or --token)" + (
                "" if data else f"; {nearest(repo)}"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{repo} has no revision '{self.settings.revision}'; see {page}/commits/main"
        if status == 401:
            return f"{self} does not accept the token; make a new one at {self}/settings/tokens"
        if status == 403:
            return f"{self} refuses {repo} to this account ({said}); check the rights of the token"
        if status == 429:
            return f"{self} limits the number of requests; pass a token, or wait some minutes and {again}"
        if status is not None:
            return f"{self} answered {status} for {self.at} ({said}); {again}"
        if isinstance(error, errors.OfflineModeIsEnabled):
            return f"HF_HUB_OFFLINE is set and {self.at} is missing or damaged; unset it and {again}"
        if isinstance(error, errors.HTTPError):
            return f"no connection to {self} for {self.at} ({said}); check network, proxy and HF_ENDPOINT, then {again}"
        return _explain_disk(error, self.folder)


class _Folder:
    """A folder laid out as <org>/<name>/: a copy of a hub, or another machine's checkpoints."""

    def __init__(self, settings: Download):
        self.settings, self.path = settings, settings.from_folder / settings.repo_id
        if settings.revision:
            raise UserError("--revision does not go with --from_folder: a folder holds one revision")
        if not self.path.is_dir():
            held = sorted(str(path.relative_to(settings.from_folder)) for path in settings.from_folder.glob("*/*/"))
            raise UserError(f"no folder {self.path}; {settings.from_folder} holds {', '.join(held) or 'no models'}")

    def __str__(self) -> str:
        return str(self.path)

    def record(self) -> dict[str, Any]:
        """The files we need, with the checksums of the folder's own `download.json` where it has one."""
        record = _read_record(self.path)
        held, known = [path.name for path in self.path.iterdir() if path.is_file()], record.get("files", {})
        names = select(held, self.settings.tokenizer_only, str(self))
        files = {name: known.get(name) or _measure(self.path / name) for name in names}
        origin = {"revision": record.get("revision"), "commit": record.get("commit")}
        return {"repo_id": self.settings.repo_id, **origin, "files": files}

    def fetch(self, name: str, entry: dict[str, Any], partial: Path, commit: str | None) -> None:
        """Copies the whole file to `partial`."""
        shutil.copyfile(self.path / name, partial)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what reading and writing raise into one line."""
        try:
            yield
        except OSError as error:
            raise UserError(_explain_disk(error, self.settings.checkpoint_dir)) from error


def select(names: Iterable[str], tokenizer_only: bool, where: str) -> list[str]:
    """The files that are needed out of all names of a repository: small ones first, then one complete set of weights.

    Weights are safetensors if there is a complete set, else PyTorch's; one file is preferred to shards.

    Raises:
        UserError: no `config.json`, or no complete weights; names `where`.
    """
    names = set(names)
    if "config.json" not in names:
        raise UserError(f"{where} has no config.json: it is not a model in Hugging Face layout; choose another")
    small = sorted(name for name in names if SMALL_FILES.fullmatch(name))
    if tokenizer_only:
        return small
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        if f"{stem}.{suffix}" in names:
            return [*small, f"{stem}.{suffix}"]
        sets: dict[int, list[str]] = {}  # number of shards -> those that are there
        for name in sorted(names):
            if found := re.fullmatch(rf"{stem}-\d{{1,6}}-of-(\d{{1,6}})\.{suffix}", name):
                sets.setdefault(int(found[1]), []).append(name)
        index = f"{stem}.{suffix}.index.json"
        for count, shards in sets.items():
            if len(shards) == count and index in names:
                return [*small, index, *shards]
    other = sorted(name for name in names if re.search(r"\.(safetensors|bin|gguf|h5|msgpack|pth|onnx)$", name))
    raise UserError(
        f"{where} has no complete weights that can be read here (model*.safetensors or pytorch_model*.bin with their "
        f"index); it has {', '.join(other[:5]) or 'none at all'}; choose another model"
    )


def _fetch_all(source: _Hub | _Folder, record: dict[str, Any], folder: Path) -> None:
    """Brings `folder` to what `record` says, and writes the record last."""
    files, old = record["files"], _read_record(folder)
    if old.get("commit") != record["commit"]:
        (folder / RECORD).unlink(missing_ok=True)  # from here on the files are no longer that commit's
        old = {}
    missing = []
    for name, entry in files.items():
        if not _matches(folder / name, entry):
            missing.append(name)
            if (folder / name).exists():
                print(f"{folder / name} is not what {source} has: fetching it again", file=sys.stderr)
    _check_space(folder, [(_partial(folder, name, files[name]), files[name]["size"]) for name in missing])
    for name in missing:
        _fetch(source, name, files[name], folder, record["commit"])
    for path in (folder / name for name in files):
        for leftover in path.parent.glob(f".{path.name}.*.partial"):
            leftover.unlink()  # of another revision
    write_json(folder / RECORD, {**record, "files": {**old.get("files", {}), **files}})


def _fetch(source: _Hub | _Folder, name: str, entry: dict[str, Any], folder: Path, commit: str | None) -> None:
    partial = _partial(folder, name, entry)
    partial.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        source.fetch(name, entry, partial, commit)
        if _matches(partial, entry):
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, folder / name)
            return
        partial.unlink()
    (folder / name).unlink(missing_ok=True)  # an older, wrong one
    raise UserError(
        f"{name}: its checksum is not the one that {source} gives, twice in a row; it was deleted, the other files are "
        "kept; try again later or take another source (HF_ENDPOINT, --from_folder)"
    )


def _partial(folder: Path, name: str, entry: dict[str, Any]) -> Path:
    """Where the unfinished file is; the checksum in its name keeps another revision from being appended to it."""
    path = folder / name
    return path.with_name(f".{path.name}.{(entry.get('sha256') or entry['git_sha1'])[:12]}.partial")


def _inside(name: str) -> bool:
    """Whether a hub's name of a file stays in the folder that the files are written to."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part for part in parts)


def _measure(path: Path, algorithm: str = "sha256") -> dict[str, Any]:
    """Size in bytes and checksum of a file, as a row of the record; shows its progress for files over 1 GB."""
    from huggingface_hub.utils import tqdm

    size = path.stat().st_size
    digest = hashlib.sha256() if algorithm == "sha256" else hashlib.sha1(b"blob %d\0" % size)  # a git object's header
    hidden = None if size > 1e9 else True  # None: shown on a terminal only
    title = "checking " + re.sub(r"^\.(.+)\.\w+\.partial$", r"\1", path.name)
    with (
        open(path, "rb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=title, leave=False, disable=hidden) as bar,
    ):
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return {"size": size, algorithm: digest.hexdigest()}


def _matches(path: Path, entry: dict[str, Any]) -> bool:
    """Whether the bytes on disk are those of the record's row."""
    if not path.is_file() or path.stat().st_size != entry["size"]:
        return False
    return _measure(path, "sha256" if "sha256" in entry else "git_sha1") == entry


def _entry(file: "RepoFile") -> dict[str, Any]:
    """A file of the hub's listing as a row of the record."""
    if file.lfs:
        return {"size": file.lfs.size, "sha256": file.lfs.sha256}
    return {"size": file.size, "git_sha1": file.blob_id}


def _read_record(folder: Path) -> dict[str, Any]:
    record = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
    if record and not _sound(record):
        raise UserError(f"{folder / RECORD} is damaged; delete it and run the same command again")
    return record or {}


def _sound(record: Any) -> bool:
    """Whether commit, sizes and checksums are of the form that we use."""
    if not isinstance(record, dict) or not isinstance(record.get("commit"), str | None):
        return False
    files = record.get("files")
    return isinstance(files, dict) and all(
        isinstance(entry, dict)
        and type(entry.get("size")) is int
        and entry["size"] >= 0
        and entry.keys() in ({"size", "sha256"}, {"size", "git_sha1"})
        and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", str(entry.get("sha256", entry.get("git_sha1"))))
        for entry in files.values()
    )


def _check_space(folder: Path, wanted: list[tuple[Path, int]]) -> None:
    """Raises UserError if the files (partial path, full size in bytes) do not fit on the disk of `folder`."""
    need = sum(size - (partial.stat().st_size if partial.exists() else 0) for partial, size in wanted)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"the download needs {size_text(need)}, {size_text(free)} free on {folder}; "
            "free some space or set --checkpoint_dir"
        )
    if wanted:
        print(
            f"fetching {size_text(need)} in {len(wanted)} file(s), {size_text(free)} free on {folder}", file=sys.stderr
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for one download at a time: two processes would append to the same partial file."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".download.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another download into {folder} is running: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        (folder / ".download.lock").unlink(missing_ok=True)  # while held: who waits notices, and makes a new one
        lock.release()


def _check_repo_id(repo_id: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id, re.ASCII) or ".." in repo_id:
        raise UserError(f"'{repo_id}' is not a repository: it takes the form <org>/<name>; {nearest(repo_id)}")


def _explain_disk(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk of {folder} is full ({error.strerror}); free some space and run the same command again"
    return f"cannot read or write {error.filename or folder}: {error.strerror or error}"

"""The model in a bundle: its files, or where they are fetched, and what was trained."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.config import Config
from lit_gpt.families.catalogue import Row, find
from lit_gpt.files import read_json, sha256
from lit_gpt.hub import RECORD, SMALL_FILES
from lit_gpt.settings import UserError

Files = dict[str, Path | str]
"""Place in the bundle -> a file of this machine's, or a text."""

OURS = ("lit_model.pth", "lit_config.json")


class Part(NamedTuple):
    """Some files of a bundle, and how a container gets them."""

    files: Files
    steps: list[str]
    """Lines of a Dockerfile."""
    folder: str
    """Where they are in the bundle, or will be in the container."""
    fetched: int = 0
    """Bytes that the lines fetch from the hub."""


class Model:
    """A converted checkpoint.

    Attributes:
        base: its base's folder if it is a merged model, else its own; None if that is not here any more.
        repo_id: of the base, on the hub; None if nobody knows.
        row: the base in the catalogue, if it is there.
        trained: of a merged model, the file that was merged; None if it is no merged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, Config.from_checkpoint(folder)
        self.described = read_json(folder / "lit_config.json")
        weights = folder / "lit_model.pth"
        if not weights.is_file():
            raise UserError(f"no file {weights}; convert the checkpoint first (scripts/convert_hf_checkpoint.py)")
        self.size = weights.stat().st_size
        origin, self.base, self.trained = self.described, folder, None
        while isinstance(merged := origin.get("merged"), dict):
            self.trained = self.trained or Path(str(merged["finetuned"]["file"]))
            origin = merged["base"]
            self.base = Path(origin["checkpoint_dir"])
        if self.trained:
            description = self.base / "lit_config.json"
            known = read_json(description) if description.is_file() else {}
            self.base = self.base if known.get("weights_sha256") == origin["weights_sha256"] else None
        source = origin.get("source") or {}
        self.repo_id: str | None = source.get("repo_id") or self._by_folder(Path(origin.get("checkpoint_dir", folder)))
        self.row = self._row()

    def _by_folder(self, folder: Path) -> str | None:
        """The name that a folder <org>/<name> says, if the model has that one's shape."""
        name = "/".join(folder.absolute().parts[-2:])
        try:
            known = Config.from_name(name)
        except UserError:
            return None
        ours = (self.config.n_layer, self.config.n_embd, self.config.n_head)
        return find(name).repo_id if (known.n_layer, known.n_embd, known.n_head) == ours else None

    def _row(self) -> Row | None:
        try:
            return find(self.repo_id or "")
        except UserError:
            return None

    @property
    def gated(self) -> bool:
        """Whether the hub wants an account for the base."""
        return bool(self.row and self.row.gated)


def copied(folder: Path, place: str) -> Part:
    """A converted model's own files."""
    names = [path.name for path in sorted(folder.iterdir()) if path.name in OURS or SMALL_FILES.fullmatch(path.name)]
    return Part({f"{place}/{name}": folder / name for name in names}, [f"COPY {place} {place}"], place)


def referenced(folder: Path, place: str) -> Part:
    """A converted model by its commit on the hub: the container fetches it, proves it, and converts it.

    Raises:
        UserError: it is not known where it came from.
    """
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    described = read_json(folder / "lit_config.json")
    if not record.get("commit") or described.get("merged") or described.get("litgpt"):
        raise UserError(
            f"--weights reference: {folder} is no download from the hub (scripts/download.py), so there is no commit "
            "to fetch; take --weights copy"
        )
    repo_id, commit = record["repo_id"], record["commit"]
    sums = {name: known["sha256"] for name, known in record["files"].items() if "sha256" in known}
    sums |= {n: sha256(folder / n) for n in record["files"] if n not in sums and (folder / n).is_file()}
    facts = {"repo_id": repo_id, "revision": commit, "files": record["files"]}
    facts |= {key: described.get(key) for key in ("dtype", "weights_sha256")}
    files: Files = {
        f"{place}/model.json": json.dumps(facts, indent=2) + "\n",
        f"{place}/weights.sha256": "".join(f"{digest}  {repo_id}/{name}\n" for name, digest in sorted(sums.items())),
    }
    target, dtype = f"{place}/{repo_id}", _stored_in_one_type(folder)
    convert = f"python scripts/convert_hf_checkpoint.py --checkpoint_dir {target}" + (
        f" --dtype {dtype}" if dtype else ""
    )
    steps = [
        f"COPY {place} {place}",
        f"RUN python scripts/download.py --repo_id {repo_id} --revision {commit} --checkpoint_dir {place} "
        f"&& (cd {place} && sha256sum --check --quiet weights.sha256) "
        f"&& {convert} && rm -f {target}/*.safetensors {target}/pytorch_model*.bin",
    ]
    return Part(files, steps, target, sum(known["size"] for known in record["files"].values()))


def _stored_in_one_type(folder: Path) -> str | None:
    """The type of all weights of a converted model; None if they have several."""
    from lit_gpt.checkpoint import open_weights

    types = {str(tensor.dtype).removeprefix("torch.") for tensor in open_weights(folder).values()}
    return types.pop() if len(types) == 1 else None


@dataclass
class Tuned:
    """What finetuning made, and what is known of its run."""

    files: Files = field(default_factory=dict)
    path: str | None = None
    """What `lora_path` says, in the bundle."""
    size: int = 0
    quantize: str | None = None
    """How its base was quantised in training."""
    run: dict[str, Any] | None = None
    """Its `run.json`."""
    folder: Path | None = None
    """Where that is."""


def tuned(path: Path | None, model: Model) -> Tuned:
    """What a finetuned file or folder is in the bundle; of a merged model only the run.

    Raises:
        UserError: there is no such file, it is damaged, or the run was another base's.
    """
    from lit_gpt.checkpoint import apply_finetuned, finetuned_file, read_finetuned
    from lit_gpt.model import meta_gpt
    from lit_gpt.peft_files import PROMPT_STYLE, is_peft

    if path is None:
        return _with_run(Tuned(), model.trained, model.described["merged"]) if model.trained else Tuned()
    apply_finetuned(meta_gpt(model.config), path, model.folder)
    saved = read_finetuned(path, model.folder)
    if is_peft(path):
        files = [*sorted(path.glob("adapter_*")), *path.glob(PROMPT_STYLE)]
        found = Tuned({f"finetuned/{file.name}": file for file in files}, "finetuned")
    else:
        file = finetuned_file(path)
        found = Tuned({f"finetuned/{file.name}": file}, f"finetuned/{file.name}")
        if (beside := file.with_name("hyperparameters.yaml")).is_file():
            found.files[f"finetuned/{beside.name}"] = beside
        found = _with_run(found, file, saved)
    found.quantize = saved.get("quantize")
    found.size = sum(Path(file).stat().st_size for file in found.files.values())
    return found


NEEDED = {
    ("settings", "data_dir"): str,
    ("settings", "seed"): int,
    ("base", "checkpoint_dir"): str,
    ("data", "train.pt"): str,
    ("data", "test.pt"): str,
    ("result", "seconds"): float | int,
    ("result", "tokens"): int,
}
"""What a bundle takes from a `run.json`: part and key -> kind."""


def _with_run(found: Tuned, file: Path, saved: dict[str, Any]) -> Tuned:
    """Adds the `run.json` of what a run wrote; that of a checkpoint is one folder up.

    Args:
        saved: what the file says of itself, or the merged model of what was merged.

    Raises:
        UserError: it is none that a run wrote, or another run's.
    """
    for folder in (file.parent, file.parent.parent):
        if (folder / "run.json").is_file():
            found.run, found.folder = read_json(folder / "run.json"), folder
            parts = ("settings", "method", "base", "data", "result")
            known = isinstance(found.run, dict) and all(isinstance(found.run.get(part), dict) for part in parts)
            known = known and isinstance(found.run.get("hardware"), str)
            if not known or not all(isinstance(found.run[part].get(key), kind) for (part, key), kind in NEEDED.items()):
                raise UserError(f"{folder / 'run.json'} is not what a finetuning run writes; bring that one back")
            if different := _differences(saved, found.run, folder == file.parent):
                place = folder / "run.json"
                raise UserError(f"{place} is not of the run that wrote {file}: {'; '.join(different)}; bring that back")
            break
    return found


def _differences(saved: dict[str, Any], run: dict[str, Any], last: bool) -> list[str]:
    """In what a `run.json` and what a finetuned file says of itself differ.

    Args:
        last: the file is what the run ended with, not one of its checkpoints.
    """
    from lit_gpt.record import differences, identity

    told = saved.get("run")
    if told is None:  # an earlier version wrote the file
        known = {"method": saved["method"], "base": saved.get("base") or {}}
        told = identity({**known, "settings": {"quantize": saved.get("quantize")}})
    said = identity(run) | ({"step": run["result"].get("steps")} if last else {})
    both = told.keys() & said.keys()  # one of them may be another version's, with other settings
    return differences({key: told[key] for key in both}, {key: said[key] for key in both})

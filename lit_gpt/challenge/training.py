"""A finetuning run, told so that somebody else can do it again: its data, its settings, and the container's steps."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.challenge.cards import Card, Outlook, outlook
from lit_gpt.challenge.rules import DataSet
from lit_gpt.challenge.weights import Files, Model, Part, copied, referenced
from lit_gpt.data.prepare import Prepare, PrepareFile
from lit_gpt.data.published import PrepareFlan
from lit_gpt.data.readers import expand, fingerprint
from lit_gpt.files import read_json, read_sealed
from lit_gpt.finetune import Finetune
from lit_gpt.hub import RECORD
from lit_gpt.methods import restore
from lit_gpt.settings import UserError

WITHIN = "23h30m"
"""Limit of the repeated run; the rest of 24 hours is for the container's start."""

PLACES = ("checkpoint_dir", "destination_path", "data_file", "data_url", "repo_id", "revision", "test_file", "token")
"""Settings of a preparation that say where things are."""


@dataclass
class Training:
    """A run, ready to be repeated."""

    data: list[DataSet]
    rows: dict[str, int]
    """How many were trained on ("train"), and how many were kept for validation ("test")."""
    outlook: Outlook
    base: Part
    files: Files
    """Those of `train/`."""
    steps: list[str]
    """Lines of Dockerfile.train between the base's and the run."""
    command: list[str]


def training(run: dict[str, Any], folder: Path, model: Model, served: Part | None, card: Card) -> Training:
    """How a run can be repeated.

    Args:
        run: its `run.json`.
        folder: where that is.
        model: what it began with, or the merged model.
        served: the base as the serving container has it; None if that has a merged model.

    Raises:
        UserError: base or prepared data are gone, or are not those of the run any more.
    """
    settings, method = run["settings"], dict(run["method"])
    base = _base(model, served, run)
    data, rows, files, steps, data_dir = _data(run, base.folder)
    known = {field.name for field in fields(Finetune)}
    changes = {
        "checkpoint_dir": base.folder,
        "data_dir": data_dir,
        "out_dir": "out",
        "memory_gb": min(card.memory_gb, settings.get("memory_gb") or card.memory_gb),
        "max_time": settings.get("max_time") or WITHIN,
        "resume": "auto",
        "loggers": [],
        "devices": 1,
        "num_nodes": 1,
        "shard": None,
        # both are the defaults of a device: another one takes its own
        "pack_length": None if settings.get("pack_length") in (640, 2048) else settings.get("pack_length"),
    }
    if settings.get("init_from"):
        first = Path(settings["init_from"])
        begun = {f"train/init/{path.name}": path for path in ([first] if first.is_file() else sorted(first.iterdir()))}
        files |= {place: path for place, path in begun.items() if path.is_file() and path.suffix != ".png"}
        changes["init_from"] = f"train/init/{first.name}" if first.is_file() else "train/init"
    name = method.pop("name")
    config = {**{key: value for key, value in settings.items() if key in known}, **changes, **method}
    files["train/finetune.yaml"] = (
        f"# Settings of finetune/{name}.py: those of run.json, but for places, the card's memory and the time limit.\n"
        + yaml.safe_dump(config, sort_keys=False)
    )
    for known_file in ("run.json", "metrics.csv"):
        if (folder / known_file).is_file():
            files[f"train/{known_file}"] = folder / known_file
    try:
        chosen = Finetune(**{key: value for key, value in config.items() if key in known})
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / 'run.json'}: its settings are not those of a run ({error}); bring it back"
        ) from error
    seen = outlook(card, chosen, restore(run["method"]), model.config)
    if config.get("compile"):
        steps.insert(0, "RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev")
    command = ["python", f"finetune/{name}.py", "--config", "train/finetune.yaml"]
    return Training(data, rows, seen, base, files, steps, command)


def _base(model: Model, served: Part | None, run: dict[str, Any]) -> Part:
    """The base that the run began with: fetched from the hub if that is possible, otherwise copied."""
    wanted = run["base"].get("weights_sha256")
    if model.base is None or read_json(model.base / "lit_config.json").get("weights_sha256") != wanted:
        raise UserError(
            f"the run began with {run['base']['checkpoint_dir']} (weights {str(wanted)[:12]}), which is not there any "
            "more; download and convert it again"
        )
    if served and served.fetched:
        return served
    if (model.base / RECORD).is_file() and read_json(model.base / RECORD).get("commit") and not model.gated:
        return referenced(model.base, "base")
    return served or copied(model.base, "base")


def _data(run: dict[str, Any], base: str) -> tuple[list[DataSet], dict[str, int], Files, list[str], str]:
    """The run's data: where the rows are from, how many are for what, files for the bundle, steps that prepare them,
    and the folder."""
    from lit_gpt.data.dataset import TokenDataset

    folder, told = Path(run["settings"]["data_dir"]), run["data"]
    again = "prepare it again as it was, from the same rows"
    if not (folder / "meta.json").is_file():
        raise UserError(f"the run's data, {folder}, are not there any more; {again}")
    if any(TokenDataset(folder, split).digest != told[f"{split}.pt"] for split in ("train", "test")):
        raise UserError(f"{folder} holds other data than the run was made with; {again}")
    meta, target = read_sealed(folder / "meta.json"), f"data/{folder.name}"
    settings, files, steps = meta["settings"], {}, []
    if manifest := _manifest(meta, folder):
        sources, mixed = _mix(manifest, files, target)
        steps += mixed
        given = {"data_file": f"{target}/{manifest['result']['file']}"}
        sums = {f"{target}/{manifest['result']['file']}": manifest["result"]["sha256"]}
    else:
        found = _source(meta, meta["sources"], settings)
        found.rows = meta["rows"]["train"] + meta["rows"]["test"]
        sources, given, sums = [found], {}, {}
        if found.local:
            tests = len(expand([settings["test_file"]])) if settings.get("test_file") else 0
            places = _take(found.local, files)
            rows = places[: len(places) - tests]
            given["data_file"] = rows[0] if len(rows) == 1 else f"[{','.join(rows)}]"
            if tests:
                given["test_file"] = places[-1]
        else:
            kept = () if found.gone else ("data_file", "repo_id", "test_file")
            given |= {key: settings[key] for key in kept if settings.get(key)}
            if found.commit:
                given["revision"] = found.commit
            elif settings.get("data_url"):
                given["data_url"] = settings["data_url"]
            names = read_json(folder / RECORD)["files"] if found.commit else []  # with their folders
            sums = {
                next((n for n in names if Path(n).name == f["file"]), f["file"]): f["sha256"] for f in meta["sources"]
            }
            sums = {f"{target}/{name}": digest for name, digest in sums.items()}
            if Path(test := str(given.get("test_file"))).is_file():
                (given["test_file"],) = _take([Path(test)], files)
                sums.pop(f"{target}/{Path(test).name}", None)
    name = "json" if "map" in settings else meta["name"]
    kind = PrepareFile if "map" in settings else PrepareFlan if "subsets" in settings else Prepare
    given |= {
        field.name: settings[field.name]
        for field in fields(kind)
        if field.name not in PLACES and field.name in settings and settings[field.name] != field.default
    }
    if Path(str(given.get("prompt_style"))).is_file():
        files["train/prompt_style.jinja"] = Path(given["prompt_style"])
        given["prompt_style"] = "train/prompt_style.jinja"
    command = ["python", f"scripts/prepare_{name}.py", "--checkpoint_dir", base, "--destination_path", target]
    for flag, value in given.items():
        command += [f"--{flag}", str(value).lower() if isinstance(value, bool) else _list(value)]
    steps.append(f"RUN {shlex.join(command)}")
    if sums:
        files["train/data.sha256"] = "".join(f"{digest}  {place}\n" for place, digest in sums.items())
        steps.append("RUN sha256sum --check --quiet train/data.sha256")
    return sources, meta["rows"], files, steps, target


def _list(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _manifest(meta: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The manifest of the mix that the rows came from; None if they came from elsewhere."""
    given = meta["settings"].get("data_file")
    for place in dict.fromkeys([folder, *([Path(given).parent] if isinstance(given, str) else [])]):
        if (place / "manifest.json").is_file():
            manifest = read_sealed(place / "manifest.json")
            if [manifest["result"]["sha256"]] == [file["sha256"] for file in meta["sources"]]:
                return manifest
    return None


def _mix(manifest: dict[str, Any], files: Files, target: str) -> tuple[list[DataSet], list[str]]:
    """The sources of a mix, and the step that makes it again; adds what that needs to `files`."""
    sources, parts = [], []
    for told in manifest["sources"]:
        part = dict(told["settings"])
        found = _source(told, told["files"], part)
        found.rows = told["used"]
        if found.local:
            part["data_file"] = _take(found.local, files)
        elif found.commit:
            part["revision"] = found.commit
        sources.append(found)
        parts.append(part)
    plan = dict(manifest["settings"])
    if plan.get("decontaminate"):
        plan["decontaminate"] = _take(expand(plan["decontaminate"]), files)
    files["train/mix.yaml"] = yaml.safe_dump({"sources": parts, **plan}, sort_keys=False, allow_unicode=True)
    return sources, [f"RUN python scripts/prepare_mix.py --mix train/mix.yaml --destination_path {target}"]


def _source(told: dict[str, Any], recorded: list[dict[str, str]], settings: dict[str, Any]) -> DataSet:
    """Where rows came from, by what a preparation or a mix recorded."""
    found = DataSet(told["name"], told.get("repo_id"), told.get("commit"), list(told.get("urls") or []), recorded)
    found.licence = told.get("licence")
    if not found.place:
        given = [settings.get(key) or [] for key in ("data_file", "test_file")]
        names = [name for several in given for name in (several if isinstance(several, list) else [several])]
        try:
            found.local = expand(names)
            found.gone = [fingerprint(path) for path in found.local] != [file["sha256"] for file in recorded]
        except UserError:
            found.gone = True
        found.local = [] if found.gone else found.local
    return found


def _take(paths: Iterable[Path], files: Files) -> list[str]:
    """Adds copies of files to the bundle; their places there."""
    places = []
    for path in paths:
        place, number = f"train/data/{path.name}", 1
        while files.get(place, path) != path:
            number += 1
            place = f"train/data/{number}-{path.name}"
        files[place] = path
        places.append(place)
    return places

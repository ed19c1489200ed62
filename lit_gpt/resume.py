"""The checkpoints of a run: written whole or not at all, proved before they are used, and thinned out.

A checkpoint is a folder `step-000100` in `--out_dir`. It is written as `.step-000100.tmp`, flushed to the disk and then
renamed, and holds
- `lit_model_<method>_finetuned.pth`: what is trained, ready for generation and evaluation;
- `optimizer.pth`: the optimizer's state;
- `progress.json`: how far the run has come, and the run's description;
- `manifest.json`: size and SHA-256 of the others.

If weights are trained that are divided over several ranks, each writes its rows of the first two, as
`optimizer-00001-of-00008.pth` and so on, and the folder takes its name when all have done so. Any number of ranks can
go on from them.

There is no state of a random generator: what a step draws is a function of the seed and the step (`lit_gpt.train`).
"""

import contextlib
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint import prove_file
from lit_gpt.files import cannot_write, flush, parts_of, read_json, sha256, size_text, write_json
from lit_gpt.methods import file_of
from lit_gpt.ranks import Ranks
from lit_gpt.record import note_rounding, refuse_another
from lit_gpt.settings import UserError
from lit_gpt.stopping import Pace

MANIFEST, OPTIMIZER, PROGRESS = "manifest.json", "optimizer.pth", "progress.json"


@dataclass
class Progress:
    """How far a run has come."""

    pace: Pace
    step: int = 0
    """Steps that are done."""
    tokens: int = 0
    seconds: float = 0.0
    """Of training, without validations and saves."""
    spent: float = 0.0
    """Seconds of all its processes, from their starts."""
    first_val_loss: float | None = None
    val_loss: float | None = None
    best: dict[str, Any] | None = None
    """The lowest validation loss so far: {"step": ..., "val_loss": ...}."""
    worse: int = 0
    """Validations since then."""
    saves: int = 0
    saving: float = 0.0
    """Seconds that the saves took."""


@dataclass
class Checkpoint:
    """A checkpoint whose files are as they were written."""

    folder: Path
    progress: Progress


def save_step(folder: Path, size: int, files: dict[str, Callable[[Path], object]], ranks: Ranks) -> None:
    """Writes a checkpoint, whole or not at all; all ranks write their files, and leave together.

    Args:
        folder: `OUT/step-000100`; one that is there is replaced.
        size: bytes that will be written by all, about.
        files: name -> what writes the file, for the files of this rank.

    Raises:
        UserError: there is not enough space, or the folder cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        if ranks.leads:
            free = shutil.disk_usage(folder.parent).free
            if free < size:
                raise UserError(
                    f"the checkpoint {folder} takes {size_text(size)}, {size_text(free)} free on its disk; free some "
                    "space and give the same command again"
                )
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        ranks.wait()  # now it is there
        for name, write in files.items():
            write(temporary / name)
        written = ranks.all({name: _facts(temporary / name) for name in files})
        if ranks.leads:
            write_json(temporary / MANIFEST, {name: facts for part in written for name, facts in part.items()})
            discard(folder)
            temporary.rename(folder)
            flush(folder.parent)
        ranks.wait()
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        if ranks.leads:
            shutil.rmtree(temporary, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if every file is as it was written."""
    try:
        manifest = read_json(folder / MANIFEST)
        needed = {PROGRESS, *(path.name for path in (*parts_of(folder / OPTIMIZER), *folder.glob("*.pth")))}
        if not isinstance(manifest, dict) or not needed <= manifest.keys():
            return f"{MANIFEST} is damaged"
        with ThreadPoolExecutor() as threads:  # there may be many parts, and large ones
            found = threads.map(_facts, [folder / Path(name).name for name in manifest])
            for (name, told), facts in zip(manifest.items(), found, strict=True):
                if told != facts:
                    return f"{name} is not as it was written"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename).name}: {error.strerror}"
    return None


def find(out_dir: Path, resume: str, told: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint from which to go on; None: from the beginning. Names damaged ones and passes them over.

    Args:
        resume: "auto" (the newest whole checkpoint of `out_dir`), "never", or the folder of a checkpoint.
        told: the run's description (`lit_gpt.record`).

    Raises:
        UserError: `resume` names no whole checkpoint, or the checkpoint is of another run.
    """
    if resume == "never":
        return None
    saved = steps_saved(out_dir)[::-1] if resume == "auto" else [Path(resume)]
    for folder in saved:
        if resume != "auto" and not folder.is_dir():
            raise UserError(
                f"--resume {resume}: no such folder; give auto, never or a checkpoint such as OUT/step-000100"
            )
        if resume != "auto" and steps_saved(folder):
            raise UserError(
                f"--resume {resume}: give one of its checkpoints, such as {steps_saved(folder)[-1]}, or auto"
            )
        problem = damage(folder)
        if problem is None:
            progress = read_json(folder / PROGRESS)
            refuse_another(folder, then := progress.pop("run"), told)
            note_rounding(then, told)
            return Checkpoint(folder, Progress(Pace(**progress.pop("pace")), **progress))
        if resume != "auto":
            raise UserError(f"--resume {resume} is damaged or no checkpoint ({problem}); try another, or --resume auto")
        print(f"passed over: {folder} is damaged ({problem})", flush=True)
    if saved:
        raise UserError(f"no checkpoint in {out_dir} is whole; --resume never starts anew and removes them")
    return None


def finished(out_dir: Path, told: dict[str, Any]) -> bool:
    """Whether the folder holds the results of this run.

    Raises:
        UserError: it holds those of another run.
    """
    try:
        then = read_json(out_dir / "run.json")
        prove_file(out_dir / file_of(then["method"]["name"]), "")
    except (UserError, KeyError, TypeError):
        return False  # not written yet, or not whole any more
    refuse_another(out_dir, then, told)
    return True


def steps_saved(out_dir: Path) -> list[Path]:
    """The checkpoints of a run, whole or damaged, in the order of their steps."""
    return sorted((p for p in out_dir.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.removeprefix("step-"))


def thin_out(out_dir: Path, step: int, keep_last: int, best: int | None) -> None:
    """Removes the checkpoints up to `step` but the last `keep_last` and the `best`."""
    for folder in [p for p in steps_saved(out_dir) if step_of(p) <= step][:-keep_last]:
        if step_of(folder) != best:
            discard(folder)


def clear(out_dir: Path, after: int = -1) -> None:
    """Removes what a run must not find: remains of a killed one, results, and checkpoints after the step `after`."""
    (out_dir / "run.json").unlink(missing_ok=True)
    for folder in out_dir.glob(".step-*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in steps_saved(out_dir):
        if step_of(folder) > after:
            discard(folder)


def discard(folder: Path) -> None:
    """Removes a checkpoint, or nothing; if the process is killed meanwhile, no half of it keeps the name."""
    old = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _facts(path: Path) -> list[Any]:
    """What the manifest says of a file: size and SHA-256."""
    return [path.stat().st_size, sha256(path)]

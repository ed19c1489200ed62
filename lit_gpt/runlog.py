"""What a run tells while it goes on: the terminal, `metrics.csv`, `loss.png`, and loggers on request."""

import contextlib
import csv
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_gpt.files import atomic, cannot_write, flush, write_text
from lit_gpt.settings import UserError

COLUMNS = ["step", "iter", "samples", "tokens", "loss", "val_loss", "learning_rate"]
COLUMNS += ["tokens_per_second", "seconds", "memory_gb"]
WHOLE = COLUMNS[:4]
"""Those that hold whole numbers."""


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB (10^9 bytes): of the GPU's allocator, on the CPU of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


class Stopwatch:
    """Seconds of training: stands still while paused (validation, saving).

    Args:
        seconds: where to start.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._sum = seconds
        self._since: float | None = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far, pauses left out."""
        return self._sum + (0.0 if self._since is None else time.perf_counter() - self._since)

    def pause(self) -> None:
        """Stands still until `resume`."""
        self._sum, self._since = self.seconds, None

    def resume(self) -> None:
        """Goes on."""
        self._since = time.perf_counter()


class RunLog:
    """Writes one row per logged step to every place that was asked for; a context that ends with `loss.png`.

    Args:
        out_dir: folder of `metrics.csv` and `loss.png`.
        loggers: further places, "tensorboard" or "wandb".
        settings: plain values shown by the loggers.
        steps: optimizer steps of the run.
        done: steps that an earlier process has done.
        earlier: its `metrics.csv`, whose rows up to `done` are taken over.

    Attributes:
        seconds: the training time up to the last row of `earlier`, taken over or not.
    """

    def __init__(
        self,
        out_dir: Path,
        loggers: list[str],
        settings: dict[str, Any],
        steps: int,
        done: int = 0,
        earlier: Path | None = None,
    ) -> None:
        self.path, self.steps = out_dir / "metrics.csv", steps
        self._sinks = [SINKS[name](out_dir, settings, done) for name in loggers]
        found = read_rows(earlier) if earlier else []
        if earlier and not found:
            print(f"note: no rows in {earlier}; metrics.csv starts at step {done + 1}", flush=True)
        self.rows = [row for row in found if row["step"] <= done]
        self.seconds = max((row["seconds"] for row in found), default=0.0)
        write_text(self.path, "".join(map(_csv_line, [dict(zip(COLUMNS, COLUMNS, strict=True)), *self.rows])))
        self._live = _live_line() if sys.stdout and sys.stdout.isatty() else None

    def __enter__(self) -> "RunLog":
        if self._live:
            self._task = self._live.add_task("", total=self.steps, loss="–", val="–", rest="")
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Releases the terminal and draws `loss.png`; the trouble that the run already has is the one to tell."""
        if self._live:
            self._live.stop()
        for sink in self._sinks:
            sink(None)
        if self.rows and kind is not KeyboardInterrupt:
            with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
                plot_losses(self.rows, self.path.with_name("loss.png"))

    def say(self, text: str) -> None:
        """A line for people, above the live line if there is one."""
        if self._live:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            _print(text)

    def step(self, row: dict[str, Any], iter_ms: float) -> None:
        """Logs a row with the columns `COLUMNS`; `val_loss` may be missing. `iter_ms` is for the plain line."""
        self.rows.append(row)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_csv_line(row))
        except OSError as error:
            raise cannot_write(self.path, error) from error
        for sink in self._sinks:
            sink(row)
        rest = f"lr {row['learning_rate']:.2e}, {row['tokens_per_second']:,.0f} tokens/s, {row['memory_gb']:.2f} GB"
        val = f"{row['val_loss']:.4f}" if "val_loss" in row else None
        if self._live:
            fields = {"loss": f"{row['loss']:.4f}", "rest": rest, **({"val": val} if val else {})}
            self._live.update(self._task, completed=row["step"], **fields)
        else:
            line = f"iter {row['iter']} step {row['step']}: loss {row['loss']:.4f}, iter time: {iter_ms:.2f}ms"
            _print(f"{line} (optimizer.step), {f'val loss {val}, ' if val else ''}{rest}")

    def progress(self, step: int) -> None:
        """Moves the live line on after a step that is not logged."""
        if self._live:
            self._live.update(self._task, completed=step)

    def flush(self) -> None:
        """Waits until the rows are on the disk."""
        flush(self.path)


class NoLog:
    """Stands for the `RunLog` of a process that writes none, as one of several."""

    seconds = 0.0

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def _print(text: str) -> None:
    """Prints a line; a run goes on when nobody reads its output any more."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _csv_line(row: dict[str, Any]) -> str:
    """A row as text; floats are shortened."""
    values = (row.get(column, "") for column in COLUMNS)
    return ",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.csv` as numbers; a torn line, which only the last can be, is left out."""
    if not path.is_file():
        return []
    rows = []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        for line in csv.DictReader(text.replace("\0", "") for text in file):
            with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
                row = {key: float(line[key]) for key in COLUMNS if line[key] != ""}
                rows.append({key: int(value) if key in WHOLE else value for key, value in row.items()})
    return rows


def _live_line() -> Progress:
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("loss [bold]{task.fields[loss]}[/] val {task.fields[val]} {task.fields[rest]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=Console(file=sys.stdout),
        expand=True,
    )


def plot_losses(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws training loss (every row, and smoothed) and validation loss over the steps into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    decay = max(0.0, 1 - 40 / len(losses))  # over about a fortieth of the run
    smooth = losses[:1]
    for loss in losses[1:]:
        smooth.append(decay * smooth[-1] + (1 - decay) * loss)
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
    axes.plot(steps, smooth, color="tab:blue", linewidth=1.8, label="training (smoothed)")
    validated = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
    if validated:
        axes.plot(*zip(*validated, strict=True), "o-", color="tab:orange", markersize=4, label="validation")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _tensorboard(out_dir: Path, settings: dict[str, Any], done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--loggers: tensorboard is not installed; pip install tensorboard") from error
    writer = SummaryWriter(str(out_dir / "tensorboard"), purge_step=done + 1)
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def sink(row: dict[str, Any] | None) -> None:
        if row is None:
            return writer.close()
        for key in COLUMNS[2:]:
            if key in row:
                writer.add_scalar(key, row[key], row["step"])
        return None

    return sink


def _wandb(out_dir: Path, settings: dict[str, Any], done: int) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("--loggers: wandb is not installed; pip install wandb") from error
    run = wandb.init(project="lit-gpt", name=out_dir.name, dir=str(out_dir), config=settings)

    def sink(row: dict[str, Any] | None) -> None:
        if row is None:
            run.finish()
        else:
            run.log(row, step=row["step"])

    return sink


SINKS = {"tensorboard": _tensorboard, "wandb": _wandb}

"""What a run tells while it goes on: the terminal, `metrics.csv`, `loss.png`, and loggers on request."""

import csv
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_gpt.files import atomic
from lit_gpt.settings import UserError

COLUMNS = ["step", "iter", "samples", "tokens", "loss", "val_loss", "learning_rate"]
COLUMNS += ["tokens_per_second", "seconds", "memory_gb"]


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB (10^9 bytes): of the GPU's allocator, on the CPU of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


class Stopwatch:
    """Seconds of training: stands still while paused (validation, saving)."""

    def __init__(self) -> None:
        self._sum = 0.0
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
    """Writes one row per logged step to every place that was asked for.

    Args:
        out_dir: folder of `metrics.csv` and `loss.png`.
        loggers: further places, "tensorboard" or "wandb".
        settings: plain values shown by the loggers.
        steps: optimizer steps of the run.
    """

    def __init__(self, out_dir: Path, loggers: list[str], settings: dict[str, Any], steps: int) -> None:
        self.path = out_dir / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        out_dir.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "w", newline="")  # noqa: SIM115 - stays open for the whole run
        self._csv = csv.DictWriter(self._file, COLUMNS)
        self._csv.writeheader()
        self._sinks = [SINKS[name](out_dir, settings) for name in loggers]
        self._live = _live_line() if sys.stdout.isatty() else None
        if self._live:
            self._task = self._live.add_task("", total=steps, loss="–", val="–", rest="")
            self._live.start()

    def say(self, text: str) -> None:
        """A line for people, above the live line if there is one."""
        if self._live:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def step(self, row: dict[str, Any], iter_ms: float) -> None:
        """Logs a row with the columns `COLUMNS`; `val_loss` may be missing. `iter_ms` is for the plain line."""
        self.rows.append(row)
        shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        self._csv.writerow(shown)
        self._file.flush()
        for sink in self._sinks:
            sink(row)
        rest = f"lr {row['learning_rate']:.2e}, {row['tokens_per_second']:,.0f} tokens/s, {row['memory_gb']:.2f} GB"
        val = f"{row['val_loss']:.4f}" if "val_loss" in row else None
        if self._live:
            fields = {"loss": f"{row['loss']:.4f}", "rest": rest, **({"val": val} if val else {})}
            self._live.update(self._task, completed=row["step"], **fields)
        else:
            line = f"iter {row['iter']} step {row['step']}: loss {row['loss']:.4f}, iter time: {iter_ms:.2f}ms"
            print(f"{line} (optimizer.step), {f'val loss {val}, ' if val else ''}{rest}", flush=True)

    def progress(self, step: int) -> None:
        """Moves the live line on after a step that is not logged."""
        if self._live:
            self._live.update(self._task, completed=step)

    def close(self) -> None:
        """Draws `loss.png` and releases the terminal and the files."""
        if self._live:
            self._live.stop()
        self._file.close()
        for sink in self._sinks:
            sink(None)
        if self.rows:
            plot_losses(self.rows, self.path.with_name("loss.png"))


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


def _tensorboard(out_dir: Path, settings: dict[str, Any]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--loggers: tensorboard is not installed; pip install tensorboard") from error
    writer = SummaryWriter(str(out_dir / "tensorboard"))
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def sink(row: dict[str, Any] | None) -> None:
        if row is None:
            return writer.close()
        for key in COLUMNS[2:]:
            if key in row:
                writer.add_scalar(key, row[key], row["step"])
        return None

    return sink


def _wandb(out_dir: Path, settings: dict[str, Any]) -> Any:
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

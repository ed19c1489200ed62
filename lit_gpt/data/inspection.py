"""A look at a prepared data set before a night is spent on it: samples, lengths, and what would spoil the run."""

import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lit_gpt.config import Config
from lit_gpt.files import atomic
from lit_gpt.settings import UserError, at_least, check_seed
from lit_gpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np

    from lit_gpt.data.dataset import TokenDataset

COLOURS = {"learnt": "\033[32m", "special": "\033[7m", "off": "\033[0m"}
BINS, WIDTH = 16, 50
"""Of the histogram: rows, and characters of the longest bar."""


@dataclass
class Inspect:
    """Settings of `inspect data`."""

    FIRST_WORD: ClassVar[str] = "data_dir"

    data_dir: Path
    """Folder of the prepared data."""
    checkpoint_dir: Path | None = None
    """Folder of the model whose tokenizer and context are used; unset: the one that the data was prepared with."""
    samples: int = 3
    """Samples to show, drawn at random."""
    seed: int = 0
    """Seed of that draw."""
    max_seq_length: int | None = None
    """Longest sample in tokens that is not too long; unset: the model's context."""
    batch_size: int = 128
    """Samples of a step, for the fill of the packs."""
    pack_length: int = 2048
    """Tokens of a pack."""
    run: Path | None = None
    """Folder of an earlier run on this machine (--out_dir): an epoch takes as long as its speed says."""
    plot: Path | None = None
    """PNG with the lengths; unset: lengths.png beside the data."""

    def __post_init__(self) -> None:
        at_least(0, self, "samples")
        at_least(1, self, "batch_size")
        at_least(2, self, "max_seq_length")
        at_least(64, self, "pack_length")
        check_seed(self.seed)


def inspect_data(settings: Inspect) -> None:
    """Shows samples of a prepared data set as tokens, its lengths, and what would spoil a run: then the exit code is 2.

    Raises:
        UserError: no such data set, or it would spoil a run.
    """
    import numpy as np

    from lit_gpt.data.checks import check, fill
    from lit_gpt.data.dataset import TokenDataset, check_tokenizer

    splits = {split: TokenDataset(settings.data_dir, split) for split in ("train", "test")}
    train = splits["train"]
    tokenizer = _tokenizer(settings, train.meta.get("settings", {}).get("checkpoint_dir"))
    check_tokenizer(train.meta, tokenizer)
    try:
        context = Config.from_checkpoint(tokenizer.folder).block_size
    except UserError:  # a folder with a tokenizer only
        context = None
    checked = check(splits, tokenizer, settings.max_seq_length or context)

    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    chosen = np.random.RandomState(settings.seed).permutation(len(train))[: settings.samples]
    key = "green: learnt; reversed: special tokens" if coloured else "⟦learnt⟧; <special tokens>"
    for i in sorted(chosen.tolist()):
        print(f"--- sample {i}: {int(train.lengths[i])} tokens ({key})\n{shown(train, i, tokenizer, coloured)}")
    print("--- lengths, in tokens")
    print("\n".join(histogram(checked.lengths)))
    lines = checked.lines()
    use = fill(train, settings.pack_length, settings.batch_size)
    lines["packs"] = (
        f"{use['packs']:.0%} filled (padded micro-batches of 4: {use['padded']:.0%}); with common beginnings computed "
        f"once, {use['shared']:.2f} tokens per place"
    )
    lines["epoch"] = _epoch(train, settings.run)
    plot = settings.plot or settings.data_dir / "lengths.png"
    _plot(checked.lengths, plot)
    lines["plot"] = str(plot)
    print("---")
    for label, text in lines.items():
        print(f"{label:9}{text}")
    if checked.problems:
        raise UserError(f"{settings.data_dir} would spoil a run: {'; '.join(checked.problems)}")


def _tokenizer(settings: Inspect, made_with: str | None) -> Tokenizer:
    """The tokenizer that was asked for, or that of the data."""
    folder = settings.checkpoint_dir or made_with
    if folder is None or (settings.checkpoint_dir is None and not Path(folder).is_dir()):
        raise UserError(f"{settings.data_dir} was made with {folder}, which is not here; name it with --checkpoint_dir")
    return Tokenizer(folder)


def shown(dataset: "TokenDataset", i: int, tokenizer: Tokenizer, coloured: bool) -> str:
    """Sample `i` as text: what is learnt in green, special tokens in reverse; without colours, between marks."""
    runs: list[tuple[bool, bool, list[int]]] = []  # learnt, special, ids
    for token, learnt in zip(dataset.ids(i).tolist(), dataset.supervised(i).tolist(), strict=True):
        special = tokenizer.is_special(token)
        if not runs or special or runs[-1][:2] != (learnt, special):
            runs.append((learnt, special, []))
        runs[-1][2].append(token)
    out, before = "", False
    for learnt, special, ids in runs:
        text = tokenizer.token(ids[0]) if special else tokenizer.decode(ids)
        text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
        if coloured:
            codes = COLOURS["learnt"] * learnt + COLOURS["special"] * special
            out += f"{codes}{text}{COLOURS['off']}" if codes else text
        else:
            out += "⟦" * (learnt > before) + "⟧" * (learnt < before) + text
        before = learnt
    return out + "⟧" * (before and not coloured)


def histogram(lengths: "np.ndarray") -> list[str]:
    """The lengths as bars of text, in bins of equal width up to the 99th percentile, and the rest."""
    import numpy as np

    top = max(BINS, int(np.percentile(lengths, 99, method="higher")))
    step = -(-top // BINS)
    counts = np.bincount(np.minimum((lengths - 1) // step, BINS))
    rows = []
    for n, count in enumerate(counts.tolist()):
        span = f"{n * step + 1:,} to {(n + 1) * step:,}" if n < BINS else f"over {n * step:,}"
        rows.append(f"{span:>16} {'█' * round(WIDTH * count / counts.max()) or '▏' * bool(count)} {count:,}")
    return rows


def _plot(lengths: "np.ndarray", path: Path) -> None:
    """Writes the histogram as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.hist(lengths, bins=64, color="#4477aa")
    axes.set(xlabel="tokens of a sample", ylabel="samples", title=f"{len(lengths):,} samples, {lengths.sum():,} tokens")
    axes.spines[["top", "right"]].set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def _epoch(train: "TokenDataset", run: Path | None) -> str:
    """How long a pass over the training split takes, by the speed of an earlier run."""
    tokens = int(train.lengths.sum())
    if run is None:
        return f"{tokens:,} tokens; how long that takes say --run, with a run's folder, and finetune/*.py --dry_run"
    path = run / "metrics.csv"
    try:
        with open(path, encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["tokens"] and row["seconds"]]
        speed = float(rows[-1]["tokens"]) / float(rows[-1]["seconds"])
    except (OSError, KeyError, ValueError, IndexError, ZeroDivisionError, TypeError) as error:
        raise UserError(
            f"--run: {path} does not say how fast the run was ({error}); name the --out_dir of one"
        ) from error
    return f"{tokens:,} tokens at the {speed:,.0f} tokens/s of {run}: {duration_text(tokens / speed)}"


def duration_text(seconds: float) -> str:
    """A time for people to read."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"

"""What a prepared data set is like, and what in it would spoil a run.

The checks read the tokens as training reads them, whoever wrote them: nothing is taken from what `meta.json` promises.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lit_gpt.data.batches import Batches, Layout
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.prompts import get_style
from lit_gpt.tokenizer import Tokenizer

CUT_UNASKED = 0.01
"""Share of samples that may be cut, or be too long, without anybody having asked for it."""
STEPS = 8
"""Steps that are laid out to see how full packs are."""


@dataclass
class Checked:
    """What was found: counts are over both splits."""

    lengths: np.ndarray
    """(samples,) int64: tokens of each."""
    learnt: int
    """Supervised tokens."""
    counts: dict[str, int] = field(default_factory=dict)
    """What is wrong -> samples."""
    problems: list[str] = field(default_factory=list)
    """What would spoil a run, each with how to mend it."""

    def lines(self) -> dict[str, str]:
        """The findings for people to read: label -> text."""
        total, count, of = int(self.lengths.sum()), len(self.lengths), self.counts
        p50, p95, p99 = (int(np.percentile(self.lengths, q, method="lower")) for q in (50, 95, 99))

        def told(*names: str) -> str:
            return ", ".join(f"{of[name]:,} {name}" for name in names)

        return {
            "samples": f"{count:,}, {told('repeated', 'of the test split in train')}",
            "tokens": f"{total:,}, of which {self.learnt / total:.0%} are learnt",
            "length": f"mean {self.lengths.mean():.0f}, median {p50:,}, 95 % up to {p95:,}, 99 % up to {p99:,}, "
            f"longest {self.lengths.max():,}",
            "labels": told("without a label", "whose last answer's end is not learnt"),
            "BOS": told("with BOS twice", "without BOS"),
            "cut": told("cut short", "too long"),
        }


def check(splits: dict[str, TokenDataset], tokenizer: Tokenizer, max_length: int | None) -> Checked:
    """Looks at every token of a data set.

    Args:
        splits: "train" and "test".
        max_length: tokens that the model, or the run, takes; None: any number.
    """
    meta = splits["train"].meta
    ends = get_style(meta["prompt_style"], tokenizer.folder).stop_ids(tokenizer)
    found = [_look(dataset, tokenizer, ends) for dataset in splits.values()]
    lengths = np.concatenate([look["lengths"] for look in found])
    hashes = [look.pop("hashes") for look in found]
    totals = {
        name: int(sum(look[name].sum() for look in found))
        for name in ("learnt", "unlabelled", "unended", "double", "missing", "open")
    }
    everything = np.concatenate(hashes)
    counts = {
        "repeated": len(everything) - len(np.unique(everything)),
        "of the test split in train": int(np.isin(hashes[-1], hashes[0]).sum()) if len(hashes) > 1 else 0,
        "without a label": totals["unlabelled"],
        "whose last answer's end is not learnt": totals["unended"],
        "with BOS twice": totals["double"],
        "without BOS": totals["missing"] if tokenizer.use_bos else 0,
        "cut short": totals["open"],
        "too long": int((lengths > max_length).sum()) if max_length else 0,
    }
    checked = Checked(lengths, totals["learnt"], counts)
    checked.problems = list(_problems(checked, asked=bool(meta.get("settings", {}).get("truncate")), limit=max_length))
    return checked


def _problems(found: Checked, asked: bool, limit: int | None) -> Iterator[str]:
    """What would spoil a run, in words."""
    count, of = len(found.lengths), found.counts
    if of["without a label"] == count:
        yield "no token of any sample is learnt: all labels are masked; prepare the data again"
    elif of["whose last answer's end is not learnt"] == count:
        yield "no answer's end is learnt, so the model would never stop; prepare the data again"
    if of["with BOS twice"]:
        yield f"{of['with BOS twice']:,} samples begin with BOS twice; take it out of the texts or of the template"
    cut = 0 if asked else of["cut short"]
    if cut >= max(1, CUT_UNASKED * count):
        yield f"{cut:,} of {count:,} samples are cut short, without --truncate; prepare the data again"
    if of["too long"] >= max(1, CUT_UNASKED * count):
        yield (
            f"{of['too long']:,} of {count:,} samples are longer than {limit:,} tokens and would be cut or left out; "
            "prepare with --max_seq_length, or train with --long_samples"
        )


def _look(dataset: TokenDataset, tokenizer: Tokenizer, ends: list[int]) -> dict[str, np.ndarray]:
    """Per sample of a split: what is counted."""
    tokens, on = dataset.flat()
    lengths = dataset.lengths.numpy()
    stops = np.cumsum(lengths)
    starts = stops - lengths
    learnt = np.add.reduceat(on, starts, dtype=np.int64)
    ending = np.isin(tokens, ends)
    # where the last learnt token of each sample stands; the sample's start if there is none
    places = np.where(on, np.arange(len(tokens)), -1)
    last = np.maximum(np.maximum.reduceat(places, starts), starts)
    first, second = tokens[starts], tokens[np.minimum(starts + 1, stops - 1)]
    bos = -1 if tokenizer.bos_id is None else tokenizer.bos_id
    return {
        "lengths": lengths,
        "learnt": learnt,
        "unlabelled": learnt == 0,
        "unended": ~ending[last] | (learnt == 0),
        "double": (first == bos) & (second == bos) & (lengths > 1),
        "missing": first != bos,
        "open": ~ending[stops - 1],
        "hashes": np.array([hash(tokens[a:b].tobytes()) for a, b in zip(starts, stops, strict=True)]),
    }


def fill(dataset: TokenDataset, pack_length: int, batch_size: int, seed: int = 1337) -> dict[str, float]:
    """Tokens of samples per place of the rows that the first steps of a run compute.

    Returns:
        For "packs"; for "shared", packs in which common beginnings stand once, which makes it more than 1; and for
        "padded", micro-batches of 4 padded to their longest.
    """
    samples = list(range(len(dataset)))
    layouts = {"packs": Layout(4, pack_length, share=False), "shared": Layout(4, pack_length), "padded": Layout(4)}
    found = {}
    for name, layout in layouts.items():
        batches = Batches(dataset, samples, min(batch_size, len(samples)), layout, seed)
        steps = range(min(STEPS, batches.steps(1)))
        laid = [batch for step in steps for batch in batches.step(step, len(samples))]
        read = sum(batch.tokens - len(batch.samples) for batch in laid)  # a sample's last token is a label only
        found[name] = read / sum(batch.idx_BT.numel() for batch in laid)
    return found

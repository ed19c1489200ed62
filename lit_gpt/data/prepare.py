"""Prepares a data set for finetuning: rows -> prompts -> tokens -> mask -> split -> files. One path for all data sets.

A data set is one function here: where its rows come from (`lit_gpt.data.sources`) and what is known about it. The files
are described in `lit_gpt.data.dataset`.
"""

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.config import Config
from lit_gpt.data import sources
from lit_gpt.files import sha256
from lit_gpt.prompts import Conversation, Style, get_style
from lit_gpt.settings import UserError, check_seed
from lit_gpt.tokenizer import Tokenizer

ALPACA = "https://raw.githubusercontent.com/tloen/alpaca-lora/main/alpaca_data_cleaned_archive.json"
ALPACA_LIBRE = (
    "https://raw.githubusercontent.com/mobarski/alpaca-libre/82a5125a9ba7f05a22ce3efaa1dc76102eebdc74"
    "/data/output/work/alpaca_libre_tasks_v{}.jsonl"
)
CHUNK = 8192
"""Samples tokenised at once."""
SHOWN = 20
"""Broken rows that meta.json quotes."""

Reader = Callable[[Path], Iterator[tuple[str, Any]]]
Taker = Callable[[str, Any], Conversation]


@dataclass
class Prepare:
    """Settings of every `prepare` command."""

    checkpoint_dir: str
    """Folder of the model whose tokenizer is used; another tokenizer needs its own preparation."""
    destination_path: str | None = None
    """Folder for train.pt, test.pt and meta.json; unset: data/NAME."""
    data_file: list[str] | str | None = None
    """File with the rows, or several as "[a.jsonl,b.jsonl]"; unset: download."""
    data_url: list[str] | str | None = None
    """Address, or several, to download when there is no --data_file; unset: where the data set is published."""
    test_file: str | None = None
    """File whose rows are the test split, instead of a random share."""
    test_split_fraction: float = 0.03865
    """Share of the rows for the test split, drawn at random; at least one row."""
    seed: int = 42
    """Seed of the split; the same seed gives the same split everywhere."""
    mask_inputs: bool = True
    """Learn the answers only; false: the prompts too."""
    max_seq_length: int | None = None
    """Longest sample in tokens; longer ones are left out and counted. Unset: no limit."""
    truncate: bool = False
    """With --max_seq_length: shorten the answers of longer samples instead, keeping the end-of-text token."""
    prompt_style: str = "alpaca"
    """How an instruction becomes a prompt: alpaca, plain, … (lit_gpt/prompts.py)."""
    skip_bad_rows: bool | None = None
    """Leave out broken rows and count them; false: stop. Unset: stop, except in a download, which nobody can mend."""
    licence: str | None = None
    """Licence of the data, for meta.json; unset: the published one, where it is known."""

    def __post_init__(self) -> None:
        get_style(self.prompt_style)
        if not 0 < self.test_split_fraction < 1:
            raise UserError(f"--test_split_fraction: {self.test_split_fraction} is not between 0 and 1")
        check_seed(self.seed)
        if self.max_seq_length is not None and self.max_seq_length < 3:
            raise UserError(f"--max_seq_length: {self.max_seq_length} leaves no room for a prompt and an answer")
        if self.truncate and self.max_seq_length is None:
            raise UserError("--truncate true needs --max_seq_length: the longest sample, in tokens")


@dataclass
class PrepareFile(Prepare):
    """Settings of the `prepare` commands for files of your own."""

    map: str | None = None
    """Which key or column holds what, for example instruction=question,output=answer; also input=context."""


def prepare_alpaca(settings: Prepare) -> None:
    """Prepares Alpaca: 52,000 instructions written by a language model, cleaned; a JSON array."""
    _prepare(settings, "alpaca", sources.json_rows, sources.take, [ALPACA], "CC-BY-NC-4.0")


def prepare_alpaca_libre(settings: Prepare) -> None:
    """Prepares Alpaca-Libre: 3,000 instructions in the manner of Alpaca, free of its licence; JSON lines."""
    urls = [ALPACA_LIBRE.format(version) for version in (1, 2, 3)]
    _prepare(settings, "alpaca_libre", sources.json_rows, sources.take_alpaca_libre, urls, "CC0-1.0")


def prepare_json(settings: PrepareFile) -> None:
    """Prepares a file of your own: a JSON array or JSON lines."""
    _prepare(settings, _file_name(settings), sources.json_rows, _mapped(settings), [], None)


def prepare_csv(settings: PrepareFile) -> None:
    """Prepares a file of your own: CSV with a header."""
    _prepare(settings, _file_name(settings), sources.csv_rows, _mapped(settings), [], None)


def _mapped(settings: PrepareFile) -> Taker:
    return partial(sources.take, keys=sources.parse_map(settings.map)) if settings.map else sources.take


def _file_name(settings: PrepareFile) -> str:
    files = _several(settings.data_file) + _several(settings.data_url)
    if not files:
        raise UserError("--data_file is required: the file with the rows (or --data_url)")
    return Path(files[0]).stem


def _several(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


class Encoded(NamedTuple):
    """A conversation as tokens."""

    row: Conversation
    ids: Any
    """(T,) int32 array."""
    supervised: Any
    """(T,) bool array: which tokens are to be predicted; never the first."""
    cut: bool
    """Whether it was shortened."""


def _prepare(settings: Prepare, name: str, read: Reader, take: Taker, urls: list[str], licence: str | None) -> None:
    """The shared path. `urls` and `licence` are the data set's own, for when the settings name none."""
    tokenizer = Tokenizer(settings.checkpoint_dir)
    folder = Path(settings.destination_path or f"data/{name}")
    urls = [] if settings.data_file else _several(settings.data_url) or urls
    files = [sources.download(url, folder) for url in urls] or [Path(file) for file in _several(settings.data_file)]
    test_files = [Path(settings.test_file)] if settings.test_file else []
    skip = bool(urls) if settings.skip_bad_rows is None else settings.skip_bad_rows

    dropped: Counter[str] = Counter()
    broken: list[str] = []
    style = get_style(settings.prompt_style)
    rows = _collect(files, read, take, style, dropped, broken)
    test_rows = _collect(test_files, read, take, style, dropped, broken)
    if broken and not skip:
        more = f"; and {len(broken) - 1:,} more broken rows" if broken[1:] else ""
        raise UserError(f"{broken[0]}{more}; --skip_bad_rows true leaves them out and counts them")
    dropped += Counter(broken=len(broken))
    train = _encode(rows, style, tokenizer, settings, dropped)
    test = _encode(test_rows, style, tokenizer, settings, dropped)
    if not test_files:
        train, test = _split(train, settings)
    for split, samples in (("train", train), ("test", test)):
        if not samples:
            raise UserError(
                f"{files[0]}: no rows for the {split} split; left out: {_listed(dropped) or 'none'}; "
                "at least one usable row is needed to learn from and one to test on"
            )

    from lit_gpt.data.dataset import write_dataset  # imports torch, which errors and --help do without

    meta = {
        "name": name,
        **_statistics(train, test, dropped, settings),
        "broken_rows": broken[:SHOWN],
        "sources": [{"file": path.name, "sha256": sha256(path)} for path in files + test_files],
        "urls": urls,
        "licence": settings.licence or licence,
        "prompt_style": style.name,
        "settings": asdict(settings),
    }
    sizes = write_dataset(
        folder,
        {
            "train": ([sample.ids for sample in train], [sample.supervised for sample in train]),
            "test": ([sample.ids for sample in test], [sample.supervised for sample in test]),
        },
        tokenizer,
        meta,
    )
    _report(folder, meta, sizes, settings)


def _collect(
    files: list[Path], read: Reader, take: Taker, style: Style, dropped: Counter[str], broken: list[str]
) -> list[Conversation]:
    """The conversations in the files; `dropped` counts why rows were left out, `broken` lists what is wrong."""
    found = []
    for path in files:
        for place, row in read(path):
            try:
                if isinstance(row, sources.BadRow):
                    raise row
                conversation = take(place, row)
                if reason := trouble(conversation, style):
                    raise sources.BadRow(f"{place}: {reason}")
                found.append(conversation)
            except sources.BadRow as error:
                broken.append(str(error))
            except sources.LeftOut as error:
                dropped[str(error)] += 1
    return found


def trouble(conversation: Conversation, style: Style) -> str | None:
    """What keeps a conversation from being trained on, in words; None if nothing does."""
    if reason := style.problem(conversation):
        return reason
    if conversation[-1].role != "assistant":
        return f"it ends with the {conversation[-1].role}'s turn; the last must be the assistant's, to be learnt"
    return None


def _encode(
    rows: list[Conversation], style: Style, tokenizer: Tokenizer, settings: Prepare, dropped: Counter[str]
) -> list[Encoded]:
    """Tokenises conversations in chunks, and leaves out or shortens those that are too long."""
    import numpy as np

    limit = settings.max_seq_length
    encoded = []
    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        if sys.stderr.isatty():
            print(f"\rtokenising {first + len(chunk):,} of {len(rows):,}", end="\r", file=sys.stderr)
        for row, (ids, marks) in zip(chunk, style.encode(tokenizer, chunk), strict=True):
            cut = limit is not None and len(ids) > limit
            if cut and not settings.truncate:
                dropped[f"longer than {limit} tokens"] += 1
                continue
            if cut:
                ids, marks = shortened(ids, marks, limit)
                if not any(marks):
                    dropped[f"prompt longer than {limit} tokens"] += 1
                    continue
            supervised = np.array(marks) if settings.mask_inputs else np.ones(len(ids), dtype=bool)
            supervised[0] = False
            encoded.append(Encoded(row, np.array(ids, dtype=np.int32), supervised, cut))
    return encoded


def shortened(ids: list[int], marks: list[bool], limit: int) -> tuple[list[int], list[bool]]:
    """At most `limit` tokens of a conversation: an answer is cut, keeping the token that ends it; a question that would
    be cut is left out, with all that follows. Without an answer, no mark is left."""
    if marks[limit - 2] and marks[limit - 1]:
        return ids[: limit - 1] + ids[-1:], marks[: limit - 1] + marks[-1:]
    last = max((place for place in range(limit) if marks[place] and not marks[place + 1]), default=-1)
    return ids[: last + 1], marks[: last + 1]


def _split(samples: list[Encoded], settings: Prepare) -> tuple[list[Encoded], list[Encoded]]:
    """Draws the test split; both keep the order of the file.

    RandomState, because numpy promises that its numbers stay the same on all platforms and in all versions (NEP 19).
    """
    import numpy as np

    size = max(1, round(settings.test_split_fraction * len(samples)))
    chosen = set(np.random.RandomState(settings.seed).permutation(len(samples))[:size].tolist())
    train = [sample for i, sample in enumerate(samples) if i not in chosen]
    return train, [sample for i, sample in enumerate(samples) if i in chosen]


def _statistics(train: list[Encoded], test: list[Encoded], dropped: Counter[str], settings: Prepare) -> dict[str, Any]:
    """Counts for `meta.json`; lengths, and all counts that name no split, are over both."""
    import numpy as np

    both = train + test
    lengths = np.array([len(sample.ids) for sample in both])
    percentiles = {f"p{q}": int(np.percentile(lengths, q, method="lower")) for q in (5, 50, 95, 99)}
    known, cut = {sample.row for sample in train}, sum(sample.cut for sample in both)
    try:
        block_size = Config.from_checkpoint(settings.checkpoint_dir).block_size
    except UserError:  # a folder with a tokenizer only
        block_size = None
    return {
        "rows": {
            "read": len(both) + dropped.total(),
            "train": len(train),
            "test": len(test),
            "repeated": len(both) - len({sample.row for sample in both}),
            "test_in_train": sum(sample.row in known for sample in test),
        },
        "dropped": dict(dropped.most_common()),
        "tokens": {
            "train": sum(len(sample.ids) for sample in train),
            "train_supervised": sum(int(sample.supervised.sum()) for sample in train),
            "test": sum(len(sample.ids) for sample in test),
            "test_supervised": sum(int(sample.supervised.sum()) for sample in test),
        },
        "lengths": {"mean": round(float(lengths.mean()), 2), **percentiles, "max": int(lengths.max())},
        "truncated": {"rows": cut, "share": cut / len(both)},
        "longer_than_model": {"block_size": block_size, "rows": int((lengths > block_size).sum()) if block_size else 0},
    }


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _report(folder: Path, meta: dict[str, Any], sizes: dict[str, int], settings: Prepare) -> None:
    """Says on stderr what was done, what deserves a look, and what to do next."""
    rows, tokens, lengths, cut = meta["rows"], meta["tokens"], meta["lengths"], meta["truncated"]
    total, longer = tokens["train"] + tokens["test"], meta["longer_than_model"]
    learnt = tokens["train_supervised"] + tokens["test_supervised"]
    lines = {
        "rows": f"{rows['train']:,} train, {rows['test']:,} test",
        "tokens": f"{total:,}, of which {learnt / total:.0%} are learnt",
        "length": "mean {mean:.0f}, median {p50}, 99 % up to {p99}, longest {max}".format(**lengths),
    }
    if meta["dropped"]:
        lines["left out"] = _listed(meta["dropped"])
    if meta["broken_rows"]:
        lines["broken"] = meta["broken_rows"][0]
    if cut["rows"]:
        lines["shortened"] = f"{cut['rows']:,} answers ({cut['share']:.1%})"
    if longer["rows"]:
        lines["too long"] = f"{longer['rows']:,} rows for this model's {longer['block_size']:,} tokens"
    if rows["repeated"]:
        lines["repeated"] = f"{rows['repeated']:,} rows; {rows['test_in_train']:,} test rows are in train too"
    lines["wrote"] = f"{folder}: " + ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items())
    paths = ["--checkpoint_dir", settings.checkpoint_dir, "--data_dir", str(folder)]
    lines["next"] = shlex.join(["python", "finetune/lora.py", *paths, "--out_dir", f"out/lora/{folder.name}"])
    for label, text in lines.items():
        print(f"{label:11}{text}", file=sys.stderr)

"""Prepares a data set for finetuning: rows -> conversations -> tokens -> mask -> split -> files. One path for all.

`lit_gpt.data.published` names data sets; `lit_gpt.data.readers` and `formats` read files of any kind. The files that
are written are described in `lit_gpt.data.dataset`.
"""

import hashlib
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse.typing import SecretStr

from lit_gpt.config import Config
from lit_gpt.data import FORMAT, fetch
from lit_gpt.data.encode import Encoded, tokenise, trouble, uncollected
from lit_gpt.data.formats import LeftOut, parse_map, take
from lit_gpt.data.readers import BadRow, expand, fingerprint, rows, stem
from lit_gpt.files import read_json, read_sealed, sha256, write_text
from lit_gpt.hub import RECORD, Download
from lit_gpt.prompts import Conversation, Style, get_style
from lit_gpt.settings import UserError, check_seed, one_line
from lit_gpt.tokenizer import Tokenizer

VERSION = 1
"""Raised when the same rows and settings come to give other samples: a set that is there is then prepared anew."""
SHOWN = 20
"""Broken rows of a file that are shown, and that meta.json quotes."""
SKIPPED = "skipped.txt"
"""Beside the set: the broken rows that were left out, one a line."""

Taker = Callable[[str, Any], Conversation]


@dataclass
class Prepare:
    """Settings of every `prepare` command."""

    checkpoint_dir: str
    """Folder of the model whose tokenizer is used; another tokenizer needs its own preparation."""
    destination_path: str | None = None
    """Folder for train.pt, test.pt and meta.json; unset: data/NAME."""
    data_file: list[str] | str | None = None
    """File with the rows, a folder, a pattern such as "rows/*.jsonl.gz", or several as "[a.jsonl,b.jsonl]"; with
    --repo_id those of its files. Unset: download."""
    data_url: list[str] | str | None = None
    """Address, or several, to download when there is no --data_file; unset: where the data set is published."""
    repo_id: str | None = None
    """Data set on the hub, as <org>/<name>; unset: where the data set is published."""
    revision: str | None = None
    """Branch, tag or commit on the hub; unset: its main branch."""
    token: SecretStr | None = None
    """Access token for gated data sets; better in the environment as HF_TOKEN, where `ps` does not show it."""
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
    """How a conversation becomes text: alpaca, chatml, llama3, … (lit_gpt/prompts.py); model: by the model's own chat
    template; or a template's file (.jinja)."""
    skip_bad_rows: bool | None = None
    """Leave out broken rows, count them, and list them in skipped.txt; false: stop. Unset: stop, except in a download,
    which nobody can mend."""
    licence: str | None = None
    """Licence of the data, for meta.json; unset: the published one, where it is known."""

    def __post_init__(self) -> None:
        get_style(self.prompt_style, self.checkpoint_dir)
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
    """Which key or column holds what, for example instruction=question,output=answer; also input=, system=, text=,
    messages=. Unset: found out from each row."""


@dataclass
class Source:
    """A data set: where its files are, and how a row of it is read."""

    name: str
    take: Taker = take
    urls: Sequence[str] = ()
    repo_id: str | None = None
    """A repository on the hub, instead of addresses."""
    files: Sequence[str] = ()
    """Of the repository: names or patterns; none: what looks like the rows to train on."""
    test: str | None = None
    """Address of the file with the test split; None: a random share."""
    licence: str | None = None
    unnamed: str = "json"
    """What a file is whose name does not say it, "json" or "csv"."""


def prepare_json(settings: PrepareFile) -> None:
    """Prepares rows of your own: JSON, JSON lines, Parquet, CSV; files, folders, or a data set on the hub."""
    prepare(settings, Source(_own_name(settings), _mapped(settings)))


def prepare_csv(settings: PrepareFile) -> None:
    """Prepares rows of your own: CSV or TSV with a header, and all that `prepare json` takes."""
    prepare(settings, Source(_own_name(settings), _mapped(settings), unnamed="csv"))


def _mapped(settings: PrepareFile) -> Taker:
    return partial(take, keys=parse_map(settings.map)) if settings.map else take


def _own_name(settings: PrepareFile) -> str:
    files = _several(settings.repo_id) + _several(settings.data_file) + _several(settings.data_url)
    if not files:
        raise UserError("--data_file is required: the file with the rows (or --data_url, or --repo_id)")
    return stem(files[0])


def _several(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


class Found(NamedTuple):
    """The files of a data set."""

    train: list[Path]
    test: list[Path]
    """None of them: a share of the others' rows is drawn."""
    origin: dict[str, Any]
    """Where they were downloaded, for meta.json."""


def find(settings: Prepare, source: Source, folder: Path) -> Found:
    """The files, after they were downloaded into `folder` if they are not given.

    Raises:
        UserError: there is no such file, or it cannot be downloaded.
    """
    given, url, test = _several(settings.data_file), _several(settings.data_url), settings.test_file
    if settings.repo_id or (source.repo_id and not given and not url):
        asked = Download(settings.repo_id or source.repo_id, settings.token, revision=settings.revision)
        files = fetch.from_hub(asked, folder, given or list(source.files))
        local = test is None or Path(test).exists()
        tests = expand([test] if test else [], "--test_file") if local else fetch.from_hub(asked, folder, [test])
        record = read_json(folder / RECORD)
        files = [file for file in files if file not in tests]
        return Found(files, tests, {"repo_id": record["repo_id"], "commit": record["commit"]})
    tests = expand([test] if test else [], "--test_file")
    if given:
        return Found(expand(given), tests, {})
    files = [fetch.download(address, folder) for address in url or source.urls]
    if source.test and not url and not test:
        tests = [fetch.download(source.test, folder)]
    return Found(files, tests, {"urls": [*(url or source.urls)]})


def prepare(settings: Prepare, source: Source) -> None:
    """The shared path: reads the rows, writes the data set, and says what became of them.

    What was prepared from the same files with the same settings is kept as it is.

    Raises:
        UserError: no such file, a broken one, broken rows, or none that can be used.
    """
    tokenizer, style = Tokenizer(settings.checkpoint_dir), get_style(settings.prompt_style, settings.checkpoint_dir)
    folder = Path(settings.destination_path or f"data/{source.name}")
    found = find(settings, source, folder)
    files = [{"file": path.name, "sha256": fingerprint(path)} for path in found.train + found.test]
    made = _made_of(files, len(found.test), settings, source, style, tokenizer)
    if (meta := _kept(folder, made)) is not None:
        sizes = {name: (folder / name).stat().st_size for name in (*meta["files"], "meta.json")}
        _report(folder, meta, sizes, settings, "unchanged")
        return
    counts = Counts()
    with uncollected():
        taken = [_collect(files, source, style, counts) for files in (found.train, found.test)]
        skip = bool(found.origin) if settings.skip_bad_rows is None else settings.skip_bad_rows
        if counts.broken and not skip:
            raise UserError(counts.complaint())
        train, test = (tokenise(conversations, style, tokenizer, settings, counts.dropped) for conversations in taken)
    if not found.test:
        train, test = _split(train, settings)
    for split, samples in (("train", train), ("test", test)):
        if not samples:
            raise UserError(
                f"{found.train[0]}: no rows for the {split} split; left out: {listed(counts.all()) or 'none'}; "
                "at least one usable row is needed to learn from and one to test on"
            )

    from lit_gpt.data.dataset import write_dataset  # imports torch, which errors and --help do without

    broken = [message for messages in counts.broken.values() for message in messages]
    meta = {
        "name": source.name,
        **_statistics(train, test, counts, settings),
        "broken_rows": broken[:SHOWN],
        "sources": files,
        "urls": [],
        **found.origin,
        "licence": settings.licence or source.licence,
        "prompt_style": style.name,
        "settings": _recorded(settings),
        "made_of": made,
    }
    splits = {
        split: ([sample.ids for sample in samples], [sample.supervised for sample in samples])
        for split, samples in (("train", train), ("test", test))
    }
    sizes = write_dataset(folder, splits, tokenizer, meta)
    if broken:
        write_text(folder / SKIPPED, "".join(f"{one_line(message)}\n" for message in broken))
    else:
        (folder / SKIPPED).unlink(missing_ok=True)
    _report(folder, meta, sizes, settings)


def _recorded(settings: Prepare) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name != "token"}


def _made_of(
    files: list[dict[str, str]], tests: int, settings: Prepare, source: Source, style: Style, tokenizer: Tokenizer
) -> str:
    """A digest of all that decides what a prepared set holds; the last `tests` files are the test split's."""
    places = ("checkpoint_dir", "destination_path", "data_file", "data_url", "repo_id", "revision", "test_file")
    facts = {
        "files": files,
        "tests": tests,
        "read as": [source.name, source.unnamed],
        "settings": {k: v for k, v in _recorded(settings).items() if k not in (*places, "prompt_style")},
        "prompt_style": style.name,
        "tokenizer": [tokenizer.hash, tokenizer.bos_id, tokenizer.eos_id, tokenizer.use_bos],
        "block_size": _block_size(settings),
        "version": [FORMAT, VERSION],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _kept(folder: Path, made: str) -> dict[str, Any] | None:
    """The `meta.json` of a whole set in `folder` that was made of the same; None: there is none."""
    try:
        meta = read_sealed(folder / "meta.json")
        if meta["made_of"] == made and all(sha256(folder / name) == was for name, was in meta["files"].items()):
            return meta
    except (UserError, OSError, KeyError, TypeError, AttributeError):  # not there, damaged, or of an older version
        pass
    return None


@dataclass
class Counts:
    """What became of the rows that are in no split."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> rows."""
    broken: dict[Path, list[str]] = field(default_factory=dict)
    """File -> what is wrong with its rows."""

    def all(self) -> Counter[str]:
        """All reasons, "broken" among them."""
        return self.dropped + Counter(broken=sum(len(messages) for messages in self.broken.values()))

    def complaint(self) -> str:
        """The one line to end with; if there is more to say, the rows' own lines are printed before it."""
        messages = [message for found in self.broken.values() for message in found]
        way_out = "--skip_bad_rows true leaves them out and lists them"
        if len(messages) == 1:
            return f"{messages[0]}; --skip_bad_rows true leaves it out and lists it"
        for path, found in self.broken.items():
            further = [f"{path}: and {len(found) - SHOWN:,} more broken rows"] if len(found) > SHOWN else []
            for message in found[:SHOWN] + further:
                print(one_line(message), file=sys.stderr)
        files = ", ".join(map(str, [*self.broken][:3])) + " …" * (len(self.broken) > 3)
        return f"{len(messages):,} broken rows in {files}; {way_out}"


def _collect(files: list[Path], source: Source, style: Style, counts: Counts) -> list[Conversation]:
    """The conversations in the files; counts those that are not taken."""
    found = []
    for path in files:
        for place, row in rows(path, source.unnamed):
            try:
                if isinstance(row, BadRow):
                    raise row
                conversation = source.take(place, row)
                if reason := trouble(conversation, style):
                    raise BadRow(f"{place}: {reason}")
                found.append(conversation)
            except BadRow as error:
                counts.broken.setdefault(path, []).append(str(error))
            except LeftOut as error:
                counts.dropped[str(error)] += 1
    return found


def _split(samples: list[Encoded], settings: Prepare) -> tuple[list[Encoded], list[Encoded]]:
    """Draws the test split; both keep the order of the file.

    RandomState, because numpy promises that its numbers stay the same on all platforms and in all versions (NEP 19).
    """
    import numpy as np

    size = max(1, round(settings.test_split_fraction * len(samples)))
    chosen = set(np.random.RandomState(settings.seed).permutation(len(samples))[:size].tolist())
    train = [sample for i, sample in enumerate(samples) if i not in chosen]
    return train, [sample for i, sample in enumerate(samples) if i in chosen]


def _statistics(train: list[Encoded], test: list[Encoded], counts: Counts, settings: Prepare) -> dict[str, Any]:
    """Counts for `meta.json`; lengths, and all counts that name no split, are over both."""
    import numpy as np

    both = train + test
    lengths = np.array([len(sample.ids) for sample in both])
    percentiles = {f"p{q}": int(np.percentile(lengths, q, method="lower")) for q in (5, 50, 95, 99)}
    known, cut = {sample.row for sample in train}, sum(sample.cut for sample in both)
    dropped, block_size = counts.all(), _block_size(settings)
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


def _block_size(settings: Prepare) -> int | None:
    """The model's context; None for a folder with a tokenizer only."""
    try:
        return Config.from_checkpoint(settings.checkpoint_dir).block_size
    except UserError:
        return None


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _report(folder: Path, meta: dict[str, Any], sizes: dict[str, int], settings: Prepare, done: str = "wrote") -> None:
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
        lines["left out"] = listed(meta["dropped"])
    if meta["broken_rows"]:
        lines["broken"] = f"{one_line(meta['broken_rows'][0])}; all in {folder / SKIPPED}"
    if cut["rows"]:
        lines["shortened"] = f"{cut['rows']:,} answers ({cut['share']:.1%})"
    if longer["rows"]:
        lines["too long"] = f"{longer['rows']:,} rows for this model's {longer['block_size']:,} tokens"
    if rows["repeated"]:
        lines["repeated"] = f"{rows['repeated']:,} rows; {rows['test_in_train']:,} test rows are in train too"
    lines[done] = f"{folder}: " + ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items())
    if done == "unchanged":
        lines[done] += "; made of the same files with the same settings before"
    paths = ["--checkpoint_dir", settings.checkpoint_dir, "--data_dir", str(folder)]
    lines["next"] = shlex.join(["python", "finetune/lora.py", *paths, "--out_dir", f"out/lora/{folder.name}"])
    for label, text in lines.items():
        print(f"{label:11}{text}", file=sys.stderr)

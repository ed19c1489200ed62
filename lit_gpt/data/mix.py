"""Mixes data sets into one file of rows, which `prepare json` then tokenises.

    sources:
      - data_file: dolly.jsonl            # a file, a folder, a pattern, or repo_id: a data set on the hub
        map: instruction=instruction,input=context,output=response
        licence: CC-BY-SA-3.0
        weight: 2
      - data_file: gsm8k.jsonl
        template: {instruction: "Solve: {question}", output: "{answer}"}
        weight: 1
        max_chars: 4000
    duplicates: near
    decontaminate: [gsm8k_test.jsonl]

Rows are read as a stream, and those that stay go to a file on the disk; in memory are a few numbers per row. Repeated
ones are found by a hash of 64 bits; near ones by MinHash (Broder 1997) with 128 permutations over triples of words, of
which groups of 5 are compared (Leskovec et al., Mining of Massive Datasets, 3.4).
"""

import array
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shlex
import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, get_args

import yaml

from lit_gpt.data.formats import FIELDS, LeftOut, parse_map, row_of, take
from lit_gpt.data.prepare import Counts, Prepare, Source, find, listed, uncollected
from lit_gpt.data.readers import BadRow, fingerprint, rows, shown, stem
from lit_gpt.files import atomic, sealed, sha256, write_json, write_text
from lit_gpt.prompts import Conversation, problem
from lit_gpt.settings import UserError, did_you_mean, one_line

if TYPE_CHECKING:
    import numpy as np

GRAM, BLOCK = 13, 7
"""Words of a passage that a row must not have in common with an evaluation set (Brown et al. 2020, appendix C); every
passage of 13 words holds one of 7 that begins at a multiple of 7, so that only these are looked up."""
PERMUTATIONS, BAND = 128, 5
"""MinHash: values of a row, and how many of them must be equal for two rows to be compared."""
ALIKE = 0.8
"""Rows with so large a share of equal values are near duplicates."""
CHUNK = 2048
EXAMPLES = 1000
"""Contaminated rows that the report names one by one."""


@dataclass
class Mix:
    """Settings of `prepare mix`."""

    FIRST_WORD: ClassVar[str] = "mix"

    mix: Path
    """YAML file that names the sources."""
    destination_path: Path | None = None
    """Folder for mix.jsonl, manifest.json and contaminated.jsonl; unset: data/NAME of the file."""
    skip_bad_rows: bool = False
    """Leave out broken rows, count them, and list them in skipped.txt; false: stop."""


@dataclass
class Part:
    """A source in the file."""

    data_file: list[str] | str | None = None
    repo_id: str | None = None
    revision: str | None = None
    name: str | None = None
    map: str | None = None
    template: dict[str, str] | None = None
    """Field -> text with {keys} of the row."""
    licence: str | None = None
    weight: float | None = None
    """Its share of the mix is this over the sum of all."""
    cap: int | None = None
    """At most so many rows, drawn at random."""
    min_chars: int | None = None
    max_chars: int | None = None
    language: str | None = None
    """Code such as en; rows whose language cannot be told are left out."""
    keep: str | None = None
    """Regular expression that a row's text must hold."""
    drop: str | None = None
    """Regular expression that it must not hold."""


@dataclass
class Plan:
    """The file."""

    sources: list[Part]
    seed: int = 42
    rows: int | None = None
    """At most so many."""
    duplicates: Literal["keep", "exact", "near"] = "exact"
    decontaminate: list[str] = field(default_factory=list)
    """Files of evaluation sets, whose texts no row may have a passage of 13 words in common with."""


def prepare_mix(settings: Mix) -> None:
    """Mixes data sets into one file of rows: by weight, filtered, without repeated and contaminated rows, shuffled.

    Raises:
        UserError: the file names what is not there, a broken row, or nothing is left.
    """

    plan = read_plan(settings.mix)
    folder = settings.destination_path or Path("data", settings.mix.stem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --destination_path") from error
    with spool, uncollected():
        held = Held(spool, plan, _Contamination(plan.decontaminate))
        facts = [held.add(part, number, folder) for number, part in enumerate(plan.sources)]
        if held.counts.broken and not settings.skip_bad_rows:
            raise UserError(held.counts.complaint())
        for number, removed in enumerate(held.drop_near()):
            facts[number]["near duplicates"] = removed
        order, used = choose(plan, held.numbers(), settings.mix)
        result = folder / "mix.jsonl"
        with atomic(result) as temporary, open(temporary, "wb") as out:
            for i in order:
                out.write(held.line(i))
    broken = [one_line(message) + "\n" for messages in held.counts.broken.values() for message in messages]
    write_text(folder / "skipped.txt", "".join(broken))
    write_text(folder / "contaminated.jsonl", "".join(json.dumps(row) + "\n" for row in held.contamination.examples))
    for found, count in zip(facts, used, strict=True):
        found["used"] = count
    manifest = {
        "sources": facts,
        "decontamination": held.contamination.report(),
        "settings": {key: value for key, value in dataclasses.asdict(plan).items() if key != "sources"},
        "licences": sorted({part.licence or "unknown" for part in plan.sources}),
        "result": {"file": result.name, "rows": len(order), "sha256": sha256(result)},
    }
    write_json(folder / "manifest.json", sealed(manifest))
    _report(folder, manifest)


def _report(folder: Path, manifest: dict[str, Any]) -> None:
    for found in manifest["sources"]:
        out = {key: found[key] for key in ("repeated", "near duplicates", "contaminated") if found[key]}
        out |= found["left out"]
        rest = f" ({listed(out)})" if out else ""
        print(f"{found['name']:16} {found['used']:,} of {found['read']:,} rows{rest}", file=sys.stderr)
    result = manifest["result"]
    print(
        f"wrote            {folder}: {result['rows']:,} rows; licences {', '.join(manifest['licences'])}",
        file=sys.stderr,
    )
    command = ["python", "scripts/prepare_json.py", "--data_file", str(folder / result["file"])]
    command += ["--destination_path", str(folder), "--checkpoint_dir", "CHECKPOINT_DIR"]
    print(f"next             {shlex.join(command)}", file=sys.stderr)


class Held:
    """The rows that stay, as lines of a file, and what is known of each."""

    def __init__(self, spool: BinaryIO, plan: Plan, contamination: "_Contamination") -> None:
        self.spool, self.plan, self.contamination = spool, plan, contamination
        self.starts = array.array("Q", [0])
        self.sources = array.array("H")
        self.seen: set[int] = set()
        self.counts = Counts()
        self.alive: np.ndarray | None = None
        self.signatures: list[np.ndarray] = []
        self.near = _minhash() if plan.duplicates == "near" else None

    def add(self, part: Part, number: int, folder: Path) -> dict[str, Any]:
        """Reads a source; returns what the manifest says of it."""
        source = Source(
            part.name or stem([*_several(part.repo_id), *_several(part.data_file)][0]), licence=part.licence
        )
        asked = Prepare("", data_file=part.data_file, repo_id=part.repo_id, revision=part.revision)
        found = find(asked, source, folder / source.name)
        keys = parse_map(part.map) if part.map else None
        wanted = _filter(part)
        tally: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        pending: list[str] = []
        jobs: list[Future] = []
        pool = ProcessPoolExecutor(os.cpu_count()) if self.near else contextlib.nullcontext()
        with pool:
            for path in found.train:
                for place, row in rows(path):
                    tally["read"] += 1
                    try:
                        conversation = _taken(place, row, keys, part.template)
                        text = "\n".join(
                            f"{turn.text}\n{turn.input}" if turn.input else turn.text for turn in conversation
                        )
                        if reason := wanted(text):
                            raise LeftOut(reason)
                    except BadRow as error:
                        self.counts.broken.setdefault(path, []).append(str(error))
                        left_out["broken"] += 1
                        continue
                    except LeftOut as error:
                        left_out[str(error)] += 1
                        continue
                    line = json.dumps(row_of(conversation), ensure_ascii=False).encode() + b"\n"
                    if self.plan.duplicates != "keep":
                        digest = int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "little")
                        if digest in self.seen:
                            tally["repeated"] += 1
                            continue
                        self.seen.add(digest)
                    if self.contamination.grams and self.contamination.hit(text, place):
                        tally["contaminated"] += 1
                        continue
                    self.spool.write(line)
                    self.starts.append(self.starts[-1] + len(line))
                    self.sources.append(number)
                    if self.near:
                        pending.append(text)
                        if len(pending) == CHUNK:
                            jobs.append(pool.submit(self.near, pending))
                            pending = []
                            if len(jobs) > 8:  # the other process has enough to do
                                self.signatures.append(jobs.pop(0).result())
            jobs += [pool.submit(self.near, pending)] if pending else []
            self.signatures += [job.result() for job in jobs]
        return {
            "name": source.name,
            "licence": part.licence or "unknown",
            "files": [{"file": path.name, "sha256": fingerprint(path)} for path in found.train],
            **found.origin,
            "settings": {k: v for k, v in dataclasses.asdict(part).items() if v is not None},
            **{name: tally[name] for name in ("read", "repeated", "contaminated")},
            "near duplicates": 0,
            "left out": dict(left_out),
        }

    def drop_near(self) -> list[int]:
        """Takes near duplicates of earlier rows out; how many of each source."""
        import numpy as np

        self.alive = np.ones(len(self.sources), dtype=bool)
        if self.signatures:
            self.alive &= ~near_earlier(np.concatenate(self.signatures))
        gone = np.asarray(self.sources, dtype=np.int64)[~self.alive]
        return np.bincount(gone, minlength=len(self.plan.sources)).tolist()

    def numbers(self) -> list["np.ndarray"]:
        """Of each source the numbers of the rows that stay."""
        import numpy as np

        sources = np.where(self.alive, np.asarray(self.sources, dtype=np.int64), -1)
        return [np.flatnonzero(sources == number) for number in range(len(self.plan.sources))]

    def line(self, i: int) -> bytes:
        """Row `i` as a line."""
        self.spool.flush()
        return os.pread(self.spool.fileno(), self.starts[i + 1] - self.starts[i], self.starts[i])


def choose(plan: Plan, numbers: list["np.ndarray"], place: Path) -> tuple[list[int], list[int]]:
    """The rows of the mix in their order, and how many of them are each source's.

    With weights it is the largest mix in which no row comes twice and the shares are as asked for.
    """
    import numpy as np

    generator = np.random.RandomState(plan.seed)  # the same numbers everywhere (NEP 19)
    available = [
        min(len(found), len(found) if part.cap is None else part.cap)
        for part, found in zip(plan.sources, numbers, strict=True)
    ]
    if plan.sources[0].weight is not None:
        whole = sum(part.weight for part in plan.sources)
        shares = [part.weight / whole for part in plan.sources]
    else:
        shares = [count / max(1, sum(available)) for count in available]
    total = min((count / share for count, share in zip(available, shares, strict=True) if share), default=0)
    total = min(total, plan.rows or total)
    used = [min(count, int(total * share + 1e-6)) for count, share in zip(available, shares, strict=True)]
    if not sum(used):
        raise UserError(
            f"{place}: no row is left of {', '.join(f'{len(n):,}' for n in numbers)}; loosen filters or weights"
        )
    chosen = [found[generator.permutation(len(found))[:count]] for found, count in zip(numbers, used, strict=True)]
    order = np.concatenate(chosen)
    return order[generator.permutation(len(order))].tolist(), used


# --- one row -----------------------------------------------------------------------------------------------------


def _taken(place: str, row: Any, keys: dict[str, str] | None, template: dict[str, str] | None) -> Conversation:
    """The conversation of a row, by its keys, or by texts that are filled in with them."""
    if isinstance(row, BadRow):
        raise row
    if template and isinstance(row, dict):

        def value(found: re.Match) -> str:
            if not isinstance(row.get(found[1]), str):
                raise BadRow(
                    f"{place}: no text '{found[1]}', which template asks for, among {shown(', '.join(map(str, row)))}"
                )
            return row[found[1]]

        row = {name: re.sub(r"\{(\w+)\}", value, text) for name, text in template.items()}
        keys = {name: name for name in row}
    conversation = take(place, row, keys)
    if (len(conversation) > 1 or conversation[0].role != "assistant") and (reason := problem(conversation)):
        raise BadRow(f"{place}: {reason}")
    return conversation


def _filter(part: Part) -> Callable[[str], str | None]:
    """Text -> why it is not wanted; None if it is."""
    keep, drop = (re.compile(text) if text else None for text in (part.keep, part.drop))
    language = _detector() if part.language else None
    least, most = part.min_chars or 0, part.max_chars or float("inf")

    def reason(text: str) -> str | None:
        if not least <= len(text) <= most:
            return "too short" if len(text) < least else "too long"
        if keep and not keep.search(text):
            return "without what keep asks for"
        if drop and drop.search(text):
            return "with what drop forbids"
        if language and (found := language(text)) != part.language:
            return f"language {found}"
        return None

    return reason


def _detector() -> Callable[[str], str]:
    """Text -> code of its language, "unknown" where that cannot be told."""
    try:
        import pycld2
    except ImportError as error:
        raise UserError("language: filters need the package pycld2; pip install 'lit-gpt[mix]'") from error

    def detect(text: str) -> str:
        try:
            reliable, _, found = pycld2.detect(text)
        except pycld2.error:  # characters that it does not take
            return "unknown"
        return found[0][1] if reliable else "unknown"

    return detect


_NO_MARKS = str.maketrans(dict.fromkeys(string.punctuation + "“”‘’«»…–—¿¡", " "))


def words(text: str) -> list[str]:
    """The words of a text, without marks and capitals."""
    return text.lower().translate(_NO_MARKS).split()


class _Contamination:
    """The passages of the evaluation sets, and which rows hold one of them."""

    def __init__(self, names: list[str]) -> None:
        self.blocks: set[str] = set()
        self.grams: dict[str, str] = {}
        """Passage -> where it stands."""
        self.examples: list[dict[str, str]] = []
        self.found: Counter[str] = Counter()
        self.files: list[dict[str, Any]] = []
        for path in find(Prepare("", data_file=names), Source("eval"), Path()).train if names else []:
            short = texts = 0
            for place, row in rows(path):
                if isinstance(row, BadRow):
                    raise UserError(f"decontaminate: {row}")
                for text in _texts(row):
                    found = words(text)
                    texts, short = texts + 1, short + (len(found) < GRAM)
                    for i in range(len(found) - GRAM + 1):
                        self.grams.setdefault(" ".join(found[i : i + GRAM]), place)
                    for i in range(len(found) - BLOCK + 1):
                        self.blocks.add(" ".join(found[i : i + BLOCK]))
            self.files.append({"file": str(path), "sha256": fingerprint(path), "texts": texts, "too short": short})

    def hit(self, text: str, place: str) -> bool:
        """Whether a text has a passage in common with an evaluation set; if so, it is noted."""
        found = words(text)
        for at in range(0, len(found) - BLOCK + 1, BLOCK):
            if " ".join(found[at : at + BLOCK]) in self.blocks:
                for i in range(max(0, at - GRAM + BLOCK), at + 1):
                    passage = " ".join(found[i : i + GRAM])
                    if passage in self.grams:
                        where = self.grams[passage]
                        self.found[where.rsplit(":", 1)[0]] += 1
                        if len(self.examples) < EXAMPLES:
                            self.examples.append({"row": place, "evaluation": where, "passage": passage})
                        return True
        return False

    def report(self) -> dict[str, Any]:
        """For the manifest."""
        return {"words": GRAM, "files": self.files, "rows removed": sum(self.found.values())}


def _texts(value: Any) -> Iterator[str]:
    """All texts in a row of an evaluation set, whatever its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _minhash() -> Callable[[list[str]], "np.ndarray"]:
    try:
        import rensa  # noqa: F401
    except ImportError as error:
        raise UserError("duplicates: near needs the package rensa; pip install 'lit-gpt[mix]'") from error
    return signatures


def signatures(texts: list[str]) -> "np.ndarray":
    """MinHash values of texts: (texts, PERMUTATIONS) uint32."""
    import numpy as np
    import rensa

    sets = []
    for text in texts:
        found = words(text)
        sets.append([" ".join(found[i : i + 3]) for i in range(max(1, len(found) - 2))])
    return np.array(rensa.RMinHash.digests_from_token_sets(sets, num_perm=PERMUTATIONS, seed=1), dtype=np.uint32)


def near_earlier(values: "np.ndarray") -> "np.ndarray":
    """Which rows are near duplicates of an earlier one, (rows,) bool, from their MinHash values.

    Rows that agree in a whole band are compared in full, each with the first of them and with the one before it.
    """
    import numpy as np

    near = np.zeros(len(values), dtype=bool)
    factors = np.random.RandomState(0).randint(1, 1 << 62, BAND).astype(np.uint64) * np.uint64(2) + np.uint64(1)
    for first in range(0, PERMUTATIONS - BAND + 1, BAND):
        band = (values[:, first : first + BAND].astype(np.uint64) * factors).sum(axis=1)  # a hash of it
        order = np.argsort(band, kind="stable")  # within a group in the order of the rows
        same = band[order][1:] == band[order][:-1]
        starts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(order)), 0))
        for other in (order[starts][1:][same], order[:-1][same]):
            row = order[1:][same]
            for part in range(0, len(row), 1 << 16):
                a, b = row[part : part + (1 << 16)], other[part : part + (1 << 16)]
                near[a[(values[a] == values[b]).mean(axis=1) >= ALIKE]] = True
    return near


# --- the file ----------------------------------------------------------------------------------------------------


def read_plan(path: Path) -> Plan:
    """Reads the file that names the sources.

    Raises:
        UserError: it is missing, is no such file, or says what cannot be; names the line.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(
            f"{path}{f':{mark.line + 1}' if mark else ''}: not YAML ({getattr(error, 'problem', error)})"
        ) from error
    plan = _filled(Plan, root, path, "the file")
    if not plan.sources:
        raise UserError(f"{path}: no sources; name at least one")
    for number, part in enumerate(plan.sources):
        where = f"{path}: sources[{number}]"
        if not (part.data_file or part.repo_id):
            raise UserError(f"{where}: no data_file and no repo_id; name one")
        if part.map and part.template:
            raise UserError(f"{where}: map and template exclude each other; take one of them out")
        if (part.weight is None) != (plan.sources[0].weight is None):
            raise UserError(f"{where}: give a weight to every source, or to none")
        if any(number is not None and number <= 0 for number in (part.weight, part.cap, plan.rows)):
            raise UserError(f"{where}: weight, cap and rows must be positive")
        if bad := sorted({*(part.template or {})} - {*FIELDS[:-1]}):
            raise UserError(f"{where}: template has {bad[0]}; it takes {', '.join(FIELDS[:-1])}")
        for name in ("keep", "drop"):
            try:
                re.compile(getattr(part, name) or "")
            except re.error as error:
                raise UserError(f"{where}: {name} is no regular expression ({error})") from error
    return plan


def _filled(cls: type, node: Any, path: Path, what: str) -> Any:
    """An instance of a dataclass from a YAML mapping."""
    if not isinstance(node, yaml.MappingNode):
        line = f":{node.start_mark.line + 1}" if node else ""
        raise UserError(f"{path}{line}: {what} is no list of settings; write lines such as 'data_file: rows.jsonl'")
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    given: dict[str, Any] = {}
    for key, value in node.value:
        name, line = str(key.value), f"{path}:{key.start_mark.line + 1}"
        if name not in fields:
            raise UserError(f"{line}: unknown key '{name}'; {did_you_mean(name, fields)}known are {', '.join(fields)}")
        if name in given:
            raise UserError(f"{line}: '{name}' is set twice; take one of them out")
        if cls is Plan and name == "sources":
            items = value.value if isinstance(value, yaml.SequenceNode) else []
            given[name] = [_filled(Part, item, path, "a source") for item in items]
            continue
        try:
            given[name] = yaml.SafeLoader("").construct_object(value, deep=True)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"{line}: {name} cannot be read ({getattr(error, 'problem', error)})") from error
        if not _fits(given[name], fields[name]):
            raise UserError(f"{line}: {name} cannot be {shown(given[name])}; expected {_expected(fields[name])}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in given and _required(f)]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing")
    return cls(**given)


def _required(found: dataclasses.Field) -> bool:
    return found.default is dataclasses.MISSING and found.default_factory is dataclasses.MISSING


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a field."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
    if kind is int:
        return type(value) is int and abs(value) < 1 << 32
    if kind in (str, type(None)):
        return isinstance(value, kind)
    if getattr(kind, "__origin__", None) is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if getattr(kind, "__origin__", None) is dict:
        return isinstance(value, dict) and all(isinstance(item, str) for item in (*value, *value.values()))
    if getattr(kind, "__origin__", None) is Literal:
        return value in get_args(kind)
    return any(_fits(value, inner) for inner in get_args(kind))


def _expected(kind: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", type(None): ""}
    if kind in names:
        return names[kind]
    origin = getattr(kind, "__origin__", None)
    if origin is Literal:
        return ", ".join(get_args(kind))
    if origin in (list, dict):
        return "a list of texts" if origin is list else "keys with texts"
    return " or ".join(filter(None, map(_expected, get_args(kind))))


def _several(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])

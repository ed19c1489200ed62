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
ones are found by a hash of 64 bits, near ones as `lit_gpt.data.overlap` says; all keys are in `lit_gpt.data.mix_plan`.
"""

import array
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from lit_gpt.data.encode import is_text, uncollected
from lit_gpt.data.formats import LeftOut, parse_map, row_of, take
from lit_gpt.data.mix_plan import Part, Plan, read_plan
from lit_gpt.data.overlap import Contamination, minhash, near_earlier
from lit_gpt.data.prepare import Counts, Prepare, Source, find, listed
from lit_gpt.data.published import TAKERS
from lit_gpt.data.readers import BadRow, fingerprint, rows, shown, stem
from lit_gpt.files import atomic, sealed, sha256, write_json, write_text
from lit_gpt.prompts import Conversation, problem
from lit_gpt.settings import UserError, one_line

if TYPE_CHECKING:
    import numpy as np

CHUNK = 2048
"""Texts that are handed to another process at once."""


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
        held = Held(spool, plan, Contamination(plan.decontaminate))
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

    def __init__(self, spool: BinaryIO, plan: Plan, contamination: "Contamination") -> None:
        self.spool, self.plan, self.contamination = spool, plan, contamination
        self.starts = array.array("Q", [0])
        self.sources = array.array("H")
        self.seen: set[int] = set()
        self.counts = Counts()
        self.alive: np.ndarray | None = None
        self.signatures: list[np.ndarray] = []
        self.near = minhash() if plan.duplicates == "near" else None

    def add(self, part: Part, number: int, folder: Path) -> dict[str, Any]:
        """Reads a source; returns what the manifest says of it."""
        source = Source(
            part.name or stem([*_several(part.repo_id), *_several(part.data_file)][0]), licence=part.licence
        )
        asked = Prepare("", data_file=part.data_file, repo_id=part.repo_id, revision=part.revision)
        found = find(asked, source, folder / source.name)
        taker, wanted = _taker(part), _filter(part)
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
                        if isinstance(row, BadRow):
                            raise row
                        conversation = taker(place, row)
                        if not is_text(conversation) and (reason := problem(conversation)):
                            raise BadRow(f"{place}: {reason}")
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


def _taker(part: Part) -> Callable[[str, Any], Conversation]:
    """What reads a row of a source: as a data set's own, by its keys, or by texts that are filled in with them."""
    if part.format:
        return TAKERS[part.format]
    if not part.template:
        return partial(take, keys=parse_map(part.map) if part.map else None)

    def fill(place: str, row: Any) -> Conversation:
        def value(found: re.Match) -> str:
            if not isinstance(row, dict) or not isinstance(row.get(found[1]), str):
                raise BadRow(f"{place}: no text '{found[1]}', which template asks for, in {shown(row)}")
            return row[found[1]]

        filled = {name: re.sub(r"\{(\w+)\}", value, text) for name, text in part.template.items()}
        return take(place, filled, {name: name for name in filled})

    return fill


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


def _several(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])

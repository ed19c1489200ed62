"""The file that says what to mix: its settings, and reading it so that every error names a line."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from lit_gpt.data.formats import FIELDS
from lit_gpt.data.readers import shown
from lit_gpt.settings import UserError, did_you_mean


@dataclass
class Part:
    """A source in the file."""

    data_file: list[str] | str | None = None
    repo_id: str | None = None
    revision: str | None = None
    name: str | None = None
    format: Literal["alpaca_libre", "gsm8k", "oasst1"] | None = None
    """Rows as this data set has them."""
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
        if sum(bool(given) for given in (part.map, part.template, part.format)) > 1:
            raise UserError(f"{where}: map, template and format exclude each other; keep one of them")
        if (part.weight is None) != (plan.sources[0].weight is None):
            raise UserError(f"{where}: give a weight to every source, or to none")
        if any(number is not None and number <= 0 for number in (part.weight, part.cap, plan.rows)):
            raise UserError(f"{where}: weight, cap and rows must be positive")
        if bad := sorted({*(part.template or {})} - {*FIELDS[:-1]}):
            raise UserError(f"{where}: template has {bad[0]}; it takes {', '.join(FIELDS[:-1])}")
        if part.template and not ({"instruction", "output"} <= part.template.keys() or "text" in part.template):
            raise UserError(f"{where}: template needs instruction and output, or text")
        for name, text in (part.template or {}).items():
            if re.search(r"[{}]", re.sub(r"\{\w+\}", "", text)):
                raise UserError(f"{where}: template.{name}: only keys in braces, such as {{question}}, are filled in")
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

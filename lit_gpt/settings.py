"""Command-line settings: a dataclass field is a flag, the docstring below the field is its help.

`parse` turns the command line (and `--config file.yaml`) into dataclass instances; `run` calls a command with them and
turns every error into one line and an exit code. This module and the modules that declare settings import no torch:
`--help` and argument errors answer at once.
"""

import copy
import dataclasses
import difflib
import itertools
import json
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

import jsonargparse
import yaml

STARTED = time.monotonic()
"""About when the process began: this module comes first."""

ALIASES = {"--override_max_seq_length": "--max_seq_length", "--access_token": "--token"}
_HELP = {
    "help": "Show this help and exit.",
    "print_config": "Print all settings as a file for --config and exit.",
    "config": "YAML file with any of these settings; flags win.",
    "debug": "Show the traceback of an error.",
}
"""What the flags of every command do."""
_NO_VALUE = ("NULL", "NONE")
_UNUSABLE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
"""Characters that no file name and no text on a disk has; the surrogates between stand for bytes that are not UTF-8."""

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


class UserError(Exception):
    """Something that the user can mend: says in one line what is wrong, where, and what to do. Exit code 2."""


class Stopped(BaseException):
    """A signal ended the command in good order: what to tell, and the exit code.

    Like KeyboardInterrupt no Exception: it comes anywhere, and whoever explains what a reader raises must not take it.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def at_least(least: int, settings: Any, *names: str) -> None:
    """Raises UserError if one of these fields is below `least`; unset ones (None) may be."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: must be at least {least}, got {value}")


def check_seed(seed: int) -> None:
    """Raises UserError unless every generator of random numbers takes this seed."""
    if not 0 <= seed < 1 << 32:
        raise UserError(f"--seed: must be in [0, 4294967295], got {seed}")


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help as `--flag TYPE  what it does [default]`; descriptions keep their line breaks."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text

    def _get_help_string(self, action: Any) -> str:
        text, default = _HELP.get(action.dest, action.help), action.default
        if getattr(action, "required", False):
            return f"{text} [required]"
        if action.dest in _HELP or default in (None, "", [], jsonargparse.SUPPRESS):
            return text
        return f"{text} [{str(default).lower() if isinstance(default, bool) else '%(default)s'}]"

    def _get_default_metavar_for_optional(self, action: Any) -> str:
        """`Literal['a', 'b']` -> `{a,b}`, `list[str] | str | None` -> `STR or [STR,...]`."""
        kind = re.sub(r"<class '(.*)'>|(?:Union|Optional)\[(.*)\]", r"\1\2", self._get_type_str(action) or "file")
        if choices := re.findall(r"'([\w.-]+)'", kind):
            return "{" + ",".join(choices) + "}"
        names = [name for name in re.split(r", | \| ", kind.replace("Secret", "").upper()) if name not in _NO_VALUE]
        return " or ".join(re.sub(r"LIST\[(.*)\]", r"[\1,...]", name) for name in sorted(names, key=len))

    def _format_action_invocation(self, action: Any) -> str:
        """Without the `--flag+`, which appends to a list, beside every `--flag` of a list."""
        shown = copy.copy(action)
        shown.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        return super()._format_action_invocation(shown)


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if isinstance(ex, KeyError):  # '!!bool x'
            raise UserError(f"a value cannot be read ({message}); --help lists all flags and what they take") from ex
        raise UserError(self._explain(" ".join(message.split()))) from ex

    def _explain(self, message: str) -> str:
        """Rewords the library's messages: which flag or key, what was expected, the nearest known name."""
        flags = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            given = found[1].split("=")[0]
            return f"unknown flag {given}; {did_you_mean(given, flags)}--help lists all flags"
        if found := re.search(r"arguments are required: (.+)", message):
            return (
                ", ".join("--" + name.strip() for name in found[1].split(",")) + " is required; --help lists all flags"
            )
        if found := re.search(r'Parser key "?([\w.]+)"?: ?(.*)', message):
            actions = [action for action in self._actions if action.dest == found[1]]
            if actions and "Expected a " in found[2]:
                expected = actions[0].metavar or _HelpFormatter("")._get_default_metavar_for_optional(actions[0])
                wrong = re.search(r"(?:Got|Given) value: (.*?)(?: - Expected a| Given value|$)", found[2])
                return f"--{found[1]}: expected {expected}, got {wrong[1][:80] if wrong else 'nothing'}"
            return f"--{found[1]}: {found[2]}"
        return message


class _ConfigFile(jsonargparse.ActionConfigFile):
    """`--config`: the file is looked through first, so that errors name its line."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        _check_config(values, {action.dest for action in parser._actions} - {"help", "config", "print_config"})
        super().__call__(parser, cfg, values, option_string)


def _check_config(path: str, known: Iterable[str]) -> None:
    """Raises UserError unless the file is UTF-8, YAML and has one `key: value` per setting, with known keys."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        _refuse_tricks(text)
        root = yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"--config {path}: cannot read it ({error.strerror}); --print_config prints one") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place, problem = (f"{path}:{mark.line + 1}", error.problem) if mark else (path, error)
        raise UserError(f"--config {place}: not YAML ({problem}); write lines such as 'seed: 1'") from error
    if not isinstance(root, yaml.MappingNode):
        state = "not a list of settings" if root else "no settings in it"
        raise UserError(f"--config {path}: {state}; write lines such as 'seed: 1', or see --print_config")
    seen = set()
    for key, _ in root.value:
        name, place = str(key.value), f"{path}:{key.start_mark.line + 1}"
        if name not in known:
            raise UserError(f"{place}: unknown key '{name}'; {did_you_mean(name, known)}--help lists all flags")
        if name in seen:
            raise UserError(f"{place}: '{name}' is set twice; take one of them out")
        seen.add(name)


def _refuse_tricks(text: str) -> None:
    """Raises YAMLError for what no setting needs and a hostile file can harm with: tags, references, deep nesting."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 2 or getattr(event, "tag", None) or getattr(event, "anchor", None):
            problem = "no setting has a tag (!), a reference (&, *) or a list in a list; put text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The nearest known name as a hint, to put in front of where all are listed; empty if none is near."""
    close = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {close[0]}? " if close else ""


def parse(argv: list[str], classes: list[type], prog: str, doc: str, defaults: dict[str, Any] | None = None) -> list:
    """Parses `argv` into one instance per dataclass of `classes`; their fields share one flat space of flag names.

    `defaults` replaces the fields' own defaults (a launcher's constants); flags and `--config` win over both. A class
    may have a `FIRST_WORD`: the field whose value, or values, can stand as the first words, without its flag.

    Raises:
        UserError: unknown flag or key, wrong type, missing required flag, or whatever a `__post_init__` refuses.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    first = next((cls.FIRST_WORD for cls in classes if hasattr(cls, "FIRST_WORD")), None)
    flags = f"{first.upper()} [flags]" if first else "[flags]"
    usage = f"python {prog} {flags}" if prog.endswith(".py") else f"{prog} {flags}"
    parser = _Parser(prog, usage=usage, description=doc.strip(), formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", action=_ConfigFile)
    parser.add_argument("--debug", action="store_true")
    for cls in classes:
        parser.add_class_arguments(cls, None, fail_untyped=True)
    parser.set_defaults(defaults or {})
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv)) if first else []
    if words:
        several = next(f for cls in classes for f in dataclasses.fields(cls) if f.name == first).type == list[str]
        argv = [f"--{first}={json.dumps(words) if several else words[0]}", *argv[len(words) if several else 1 :]]
    argv = [ALIASES.get(word.split("=")[0], word.split("=")[0]) + word[len(word.split("=")[0]) :] for word in argv]
    try:
        values = parser.parse_args(argv)
    except (OverflowError, AttributeError) as error:  # the library lets them pass: 400 digits, and '!!timestamp x'
        raise UserError(f"a value cannot be read ({error}); --help lists all flags and what they take") from error
    given = [[field for field in dataclasses.fields(cls) if field.init] for cls in classes]
    for field in itertools.chain(*given):
        _check(field, values[field.name])
    return [cls(**{f.name: values[f.name] for f in fields}) for cls, fields in zip(classes, given, strict=True)]


def _check(field: dataclasses.Field, value: Any) -> None:
    """Raises UserError for a value that is of the field's type but can be none of any setting."""
    if value is None and type(None) not in get_args(field.type):
        raise UserError(f"--{field.name}: needs a value, got null; --help says which")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int | float) and not abs(item) < 1 << 63:
            raise UserError(f"--{field.name}: must be a number of ordinary size, got {str(item)[:80]}")
        if isinstance(item, str | Path) and (found := _UNUSABLE.search(str(item))):
            raise UserError(f"--{field.name}: holds the character {found[0]!a}, which no file has; take it out")


def run(
    function: Callable,
    classes: list[type],
    prog: str,
    doc: str,
    defaults: dict[str, Any] | None = None,
    argv: list[str] | None = None,
) -> int:
    """Runs `function(*settings)` as a command; returns 0 done, 1 failure, 2 can be mended, 130 or 143 a signal."""
    argv = sys.argv[1:] if argv is None else argv
    heard: list[Stopped] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        """What is half written goes, and the terminal is as it was."""
        heard.append(Stopped(f"stopped by {signal.Signals(number).name}", 143))
        raise heard[-1]

    if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, stop)
    try:
        function(*parse(argv, classes, prog, doc, defaults))
    except UserError as error:
        return _report(error, str(error), argv, code=2)
    except Stopped as stopped:
        return _stopped(stopped)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has left
        sys.stderr.close()
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _report(error, f"{place}{error.strerror or error}; check its permissions and the disk", argv, code=2)
    except Exception as error:
        if heard:  # pydantic, for one, puts an error of its own in place of whatever comes while it builds a class
            return _stopped(heard[0])
        return _report(error, f"{type(error).__name__}: {error}", argv, code=1)
    return 0


def _stopped(stopped: Stopped) -> int:
    if str(stopped):
        print(stopped, file=sys.stderr)
    return stopped.code


def _report(error: Exception, message: str, argv: list[str], code: int) -> int:
    if "--debug" in argv:
        print(_TOKEN.sub("hf_***", "".join(traceback.format_exception(error))), end="", file=sys.stderr)
    hint = "" if code == 2 or "--debug" in argv else " (--debug shows where)"
    print(f"error: {one_line(message)}{hint}", file=sys.stderr)
    return code


def one_line(message: str) -> str:
    """A message for a terminal: no control characters, and no access token that stands where none belongs."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    return _TOKEN.sub("hf_***", line)

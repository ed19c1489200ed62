"""Command-line settings: a dataclass field is a flag, the docstring below the field is its help.

`parse` turns the command line (and `--config file.yaml`) into dataclass instances; `run` calls a command with them and
turns every error into one line and an exit code. This module and the modules that declare settings import no torch:
`--help` and argument errors answer at once.
"""

import dataclasses
import difflib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import jsonargparse

ALIASES = {"--override_max_seq_length": "--max_seq_length", "--access_token": "--token"}


class UserError(Exception):
    """Something that the user can mend: says in one line what is wrong, where, and what to do. Exit code 2."""


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help as `--flag TYPE  what it does [default]`; descriptions keep their line breaks."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text

    def _get_help_string(self, action: Any) -> str:
        if getattr(action, "required", False):
            return f"{action.help} [required]"
        shown = action.default not in (None, jsonargparse.SUPPRESS) and action.dest not in ("help", "config", "debug")
        return f"{action.help} [%(default)s]" if shown else action.help or ""

    def _get_default_metavar_for_optional(self, action: Any) -> str:
        kind = self._get_type_str(action) or ""
        if kind != "<class 'Path'>" and (choices := re.findall(r"'([\w.-]+)'", kind)):
            return "{" + ",".join(choices) + "}"
        return re.sub(r"<class '(.*)'>", r"\1", kind).removesuffix(" | null").removesuffix(" | None").upper() or "FILE"


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(self._explain(" ".join(message.split()))) from ex

    def _explain(self, message: str) -> str:
        """Rewords the library's messages: which flag or key, what was expected, the nearest known name."""
        flags = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            given = found[1].split("=")[0]
            return f"unknown flag {given}{_nearest(given, flags)}; --help lists all flags"
        if found := re.search(r"Option '([^']+)' is not accepted", message):
            return f"unknown key '{found[1]}' in the config file{_nearest('--' + found[1], flags)}"
        if found := re.search(r"arguments are required: (.+)", message):
            return (
                ", ".join("--" + name.strip() for name in found[1].split(",")) + " is required; --help lists all flags"
            )
        if found := re.search(r'Parser key "?([\w.]+)"?: ?(.*)', message):
            return f"--{found[1]}: {found[2]}"
        return message


def _nearest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def parse(argv: list[str], classes: list[type], prog: str, doc: str, defaults: dict[str, Any] | None = None) -> list:
    """Parses `argv` into one instance per dataclass of `classes`; their fields share one flat space of flag names.

    `defaults` replaces the fields' own defaults (a launcher's constants); flags and `--config` win over both.

    Raises:
        UserError: unknown flag or key, wrong type, missing required flag, or whatever a `__post_init__` refuses.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = f"python {prog} [flags]" if prog.endswith(".py") else f"{prog} [flags]"
    parser = _Parser(prog, usage=usage, description=doc.strip(), formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--config", action=jsonargparse.ActionConfigFile, help="YAML file with any of these settings; flags win"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for cls in classes:
        parser.add_class_arguments(cls, None, fail_untyped=True)
    parser.set_defaults(defaults or {})
    argv = [ALIASES.get(word.split("=")[0], word.split("=")[0]) + word[len(word.split("=")[0]) :] for word in argv]
    values = parser.parse_args(argv)
    return [cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.init}) for cls in classes]


def run(
    function: Callable,
    classes: list[type],
    prog: str,
    doc: str,
    defaults: dict[str, Any] | None = None,
    argv: list[str] | None = None,
) -> int:
    """Runs `function(*settings)` as a command; returns 0 done, 1 failure, 2 the user can mend it, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        function(*parse(argv, classes, prog, doc, defaults))
    except UserError as error:
        return _report(error, str(error), argv, code=2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has left
        sys.stderr.close()
        return 1
    except Exception as error:
        return _report(error, f"{type(error).__name__}: {error}", argv, code=1)
    return 0


def _report(error: Exception, message: str, argv: list[str], code: int) -> int:
    if "--debug" in argv:
        traceback.print_exception(error)
    hint = "" if code == 2 or "--debug" in argv else " (--debug shows where)"
    print(f"error: {' '.join(message.split())}{hint}", file=sys.stderr)
    return code

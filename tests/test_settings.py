"""Flags: typed, strict, explained in one line."""

import dataclasses
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from jsonargparse.typing import SecretStr

from lit_gpt.settings import UserError, check_seed, parse, run


@dataclass
class Fruit:
    """Settings of a test."""

    basket: str
    """Where it lies."""
    apples: int = 3
    """Number of apples."""
    ripe: bool = False
    """Whether they are ripe."""
    names: list[str] = dataclasses.field(default_factory=list)
    """Their names."""
    max_seq_length: int | None = None
    """Longest."""
    size: Literal["s", "xx-l"] | None = None
    """Of the basket."""

    def __post_init__(self) -> None:
        if self.apples < 0:
            raise UserError(f"--apples: must be at least 0, got {self.apples}")


def fruit(*argv: str, **defaults) -> Fruit:
    return parse(list(argv), [Fruit], "fruit", "Doc.", defaults)[0]


def test_values_come_from_field_launcher_file_and_flag_in_this_order(tmp_path) -> None:
    config = tmp_path / "fruit.yaml"
    config.write_text("apples: 5\nbasket: b\n")
    assert fruit("--basket", "a") == Fruit("a")
    assert fruit("--basket", "a", apples=4).apples == 4
    assert fruit("--config", str(config), apples=4) == Fruit("b", apples=5)
    assert fruit("--config", str(config), "--apples", "6", apples=4).apples == 6
    assert fruit("--basket", "a", "--names", "[x,y]", "--ripe", "true") == Fruit("a", ripe=True, names=["x", "y"])
    assert fruit("--basket=a", "--override_max_seq_length=7").max_seq_length == 7


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--basket", "a", "--appels", "1"], r"unknown flag --appels; did you mean --apples\? --help lists all flags"),
        (["--basket", "a", "--apple", "1"], r"unknown flag --apple; did you mean --apples\?"),
        (["--basket", "a", "--zzzz", "1"], r"unknown flag --zzzz; --help lists all flags"),
        (["--basket", "a", "--apples", "many"], "--apples: expected INT, got many$"),
        (["--basket", "a", "--max_seq_length", "2.5"], "--max_seq_length: expected INT, got 2.5$"),
        (["--basket", "a", "--ripe", "maybe"], "--ripe: expected {true,false}, got maybe$"),
        (["--basket", "a", "--names", "3"], r"--names: expected \[ITEM,...\], got 3$"),
        (["--basket", "a", "--size", "m"], "--size: expected {s,xx-l}, got m$"),
        (["--apples", "1"], "--basket is required"),
        (["--basket", "a", "--apples", "-1"], "--apples: must be at least 0, got -1"),
        (["--config", "no/such.yaml"], "no/such.yaml"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(argv: list[str], message: str, capsys) -> None:
    assert run(lambda settings: None, [Fruit], "fruit", "Doc.", argv=argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    with pytest.raises(UserError, match=message):
        fruit(*argv)


def test_unknown_key_in_a_file_is_named(tmp_path) -> None:
    config = tmp_path / "fruit.yaml"
    config.write_text("appels: 5\nbasket: b\n")
    with pytest.raises(UserError, match=r"fruit.yaml:1: unknown key 'appels'; did you mean apples\? --help lists"):
        fruit("--config", str(config))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "fruit.yaml: no settings in it; write"),
        (b"- a\n", "fruit.yaml: not a list of settings; write"),
        (b"basket: b\nripe: {{\n", r"fruit.yaml:\d: not YAML \("),
        (b"basket: b\nripe: \x00\n", r"fruit.yaml: not YAML \("),
        (b"basket: b\nbasket: c\n", "fruit.yaml:2: 'basket' is set twice"),
        (b"basket: b\n1: 2\n", "fruit.yaml:2: unknown key '1'"),
        ("basket: b\n".encode("utf-16"), "fruit.yaml: not UTF-8 text"),
    ],
)
def test_broken_config_files_are_named(content: bytes, message: str, tmp_path) -> None:
    config = tmp_path / "fruit.yaml"
    config.write_bytes(content)
    with pytest.raises(UserError, match=message):
        fruit("--config", str(config))


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_seeds_that_no_generator_takes_are_refused(seed: int) -> None:
    with pytest.raises(UserError, match=f"--seed: must be in .*, got {seed}$"):
        check_seed(seed)


def test_exit_codes(capsys) -> None:
    def command(settings: Fruit) -> None:
        raise {0: UserError("mend it"), 1: ValueError("a bug"), 2: KeyboardInterrupt()}[settings.apples]

    codes = [run(command, [Fruit], "fruit", "Doc.", argv=["--basket", "a", "--apples", str(n)]) for n in range(3)]
    assert codes == [2, 1, 130]
    printed = capsys.readouterr().err
    assert "error: mend it\n" in printed
    assert "error: ValueError: a bug (--debug shows where)\n" in printed
    assert "Traceback" not in printed
    assert run(command, [Fruit], "fruit", "Doc.", argv=["--basket", "a", "--apples", "1", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("caught", [Exception, BaseException])
def test_a_signal_is_what_ended_a_command_whatever_a_library_makes_of_it(caught: type, capsys) -> None:
    """A reader that takes every error for a damaged file; pydantic, which puts an error of its own in its place."""

    def command(settings: Fruit) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except caught as error:
            raise (UserError if caught is Exception else ValueError)("a damaged file") from error

    assert run(command, [Fruit], "fruit", "Doc.", argv=["--basket", "a"]) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


def test_help_shows_each_flag_with_its_docstring_and_default(capsys) -> None:
    with pytest.raises(SystemExit) as left:
        fruit("--help", apples=9)
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--apples INT Number of apples. [9]" in shown
    assert "Where it lies. [required]" in shown


@dataclass
class Basket:
    """Settings of every type."""

    place: Path | None = None
    """P."""
    size: Literal["s", "xx-l"] | None = None
    """S."""
    limit: float | None = None
    """L."""
    files: list[str] | str | None = None
    """F."""
    names: list[str] = dataclasses.field(default_factory=list)
    """N."""
    secret: SecretStr | None = None
    """T."""
    label: str = ""
    """E."""
    woven: bool = True
    """B."""


def test_help_shows_types_as_they_are_written_on_the_command_line(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse(["--help"], [Basket], "basket", "Doc.")
    shown = [" ".join(line.split()) for line in re.sub(r"\n {9,}", " ", capsys.readouterr().out).splitlines()]
    assert shown[shown.index("Settings of every type:") + 1 :] == [
        "--place PATH P.",
        "--size {s,xx-l} S.",
        "--limit FLOAT L.",
        "--files STR or [STR,...] F.",
        "--names [ITEM,...] N.",
        "--secret STR T.",
        "--label STR E.",
        "--woven {true,false} B. [true]",
    ]
    assert "-h, --help Show this help and exit." in shown


def test_print_config_is_a_config(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        fruit("--basket", "a", "--apples", "8", "--print_config")
    assert left.value.code == 0
    config = tmp_path / "printed.yaml"
    config.write_text(capsys.readouterr().out)
    assert fruit("--config", str(config)) == Fruit("a", apples=8)

"""The console command, the table of commands, and what every launcher shows when asked for help."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from lit_gpt.cli import COMMANDS, _load, main
from lit_gpt.processes import ROOM

ROOT = Path(__file__).parents[1]
FOLDERS = ("finetune", "generate", "chat", "scripts", "eval", "submission")
LAUNCHERS = sorted(f"{path.parent.name}/{path.name}" for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
HEAVY = ("torch", "numpy", "lightning", "transformers", "lm_eval", "huggingface_hub")
SHOW_ALL = f"""
import contextlib, io, json, runpy, sys
from lit_gpt import cli
shown = {{}}
def ask(name, start):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            start()
        except SystemExit as left:
            shown[name] = [left.code, out.getvalue()]
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    ask(path, lambda: runpy.run_path(path, run_name="__main__"))
for command in ["", *cli.COMMANDS]:
    sys.argv = ["lit-gpt", *command.split(), "--help"]
    ask(command, cli.main)
print(json.dumps([shown, [name for name in {HEAVY} if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """What `--help` shows for every launcher and every command, without importing anything heavy."""
    env = os.environ | {"COLUMNS": "400"}
    words = [sys.executable, "-c", SHOW_ALL, *LAUNCHERS]
    out = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    shown, heavy = json.loads(out)
    assert heavy == []
    assert {code for code, _ in shown.values()} == {0}
    assert set(shown) == {"", *COMMANDS, *LAUNCHERS}
    return {name: text for name, (_, text) in shown.items()}


def launched(launcher: str) -> str:
    """The command that a launcher names."""
    calls = [node for node in ast.walk(ast.parse((ROOT / launcher).read_text())) if isinstance(node, ast.Call)]
    (name,) = (call.args[0].value for call in calls if ast.unparse(call.func) == "launch")
    return name


def flags(command: str) -> list[str]:
    """The names of a command's own flags, from its dataclasses."""
    return [field.name for place in COMMANDS[command][1:] for field in fields(_load(place)) if field.init]


def first_word(command: str) -> str:
    """The setting that a command takes as its first word, as its usage shows it."""
    words = [cls.FIRST_WORD for place in COMMANDS[command][1:] if hasattr(cls := _load(place), "FIRST_WORD")]
    return "".join(f"{word.upper()} " for word in words)


def test_every_command_has_one_launcher() -> None:
    assert sorted(map(launched, LAUNCHERS)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_there(command: str) -> None:
    assert callable(_load(COMMANDS[command][0]))
    assert len(set(flags(command))) == len(flags(command))


def test_help_of_launchers_shows_their_docstring_and_all_flags(shown: dict[str, str]) -> None:
    for launcher in LAUNCHERS:
        source = (ROOT / launcher).read_text()
        assert source.startswith("r") == ("\\" in source.split('"""')[1]), "a backslash at a line's end joins the lines"
        doc = ast.get_docstring(ast.parse(source), clean=False)
        assert shown[launcher].startswith(
            f"usage: python {launcher} {first_word(launched(launcher))}[flags]\n\n{doc}\n"
        )
        assert f"\n    python {launcher} " in doc, "a command to copy, indented"
        for flag in flags(launched(launcher)):
            assert f"\n  --{flag} " in shown[launcher]


def test_help_of_commands_shows_all_flags(shown: dict[str, str]) -> None:
    for command in COMMANDS:
        assert shown[command].startswith(f"usage: lit-gpt {command} {first_word(command)}[flags]\n\n")
        assert "Raises:" not in shown[command]
        for flag in flags(command):
            assert f"\n  --{flag} " in shown[command]
    for flag in ("--learning_rate FLOAT", "--lora_r INT"):
        assert flag in shown["finetune lora"]


def test_help_texts_are_sentences_and_defaults_stand_behind_them(shown: dict[str, str]) -> None:
    for command in COMMANDS:
        for line in re.sub(r"\n {9,}", "  ", shown[command]).splitlines():
            if line.startswith("  -"):
                pattern = r"  (-h, )?--\w+( \S+( or \S+)?)?  +[A-Z0-9][^\[]*(\"\[[^\[]*)?\.( \[.+\])?"
                assert re.fullmatch(pattern, line), f"lit-gpt {command} --help: {line}"


def test_list_of_commands(shown: dict[str, str], capsys, monkeypatch) -> None:
    first, *lines = shown[""].splitlines()
    assert first == "usage: lit-gpt <command> [--help | flags]"
    assert len(lines) == len(COMMANDS)
    for command, line in zip(COMMANDS, lines, strict=True):
        assert line.startswith(f"  lit-gpt {command} ")
        assert line.endswith(".")
    monkeypatch.setattr(sys, "argv", ["lit-gpt"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert capsys.readouterr().out == shown[""]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("finetune lorra --lora_r 8", "no command 'finetune lorra'; did you mean finetune lora? lit-gpt --help lists"),
        ("prepare_alpaca", "no command 'prepare_alpaca'; did you mean prepare alpaca?"),
        ("generate --prompt x", "no command 'generate'; did you mean generate "),
        ("frobnicate now", "no command 'frobnicate now'; lit-gpt --help lists all commands"),
        ("--checkpoint_dir x", "no command '--checkpoint_dir'; lit-gpt --help lists all commands"),
        ("finetune lora --lora_querry true", "unknown flag --lora_querry; did you mean --lora_query?"),
        ("finetune lora", "--checkpoint_dir is required"),
    ],
)
def test_bad_commands_are_one_line(words: str, message: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit-gpt", *words.split()])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1


def test_console_command_is_installed_by_that_name() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '[project.scripts]\nlit-gpt = "lit_gpt.cli:main"\n' in text


@pytest.mark.skipif(sys.platform != "linux" or os.path.exists("/proc/driver/nvidia"), reason="for Linux without a GPU")
def test_training_on_a_cpu_begins_anew_with_an_allocator_that_suits_it(tmp_path: Path) -> None:
    """Once, as the same process with the same arguments, and only where nobody else has set anything."""
    told = "import os, sys\nprint(os.getpid(), sys.argv[1:], [os.environ.get(name) for name in ROOM], flush=True)\n"
    script = tmp_path / "lora.py"
    script.write_text(f"from lit_gpt.processes import ROOM, begin_anew\n{told}begin_anew()\nprint('on')\n")
    free = {name: value for name, value in os.environ.items() if name not in ROOM}

    def lines(environment: dict[str, str], words: Sequence[str] = (script.name, "--a", "b c")) -> list[str]:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    first, second, last = lines({**free, "PYTHONPATH": str(ROOT)})
    assert first.endswith("['--a', 'b c'] [None, None]")
    assert second == first.replace("[None, None]", str(list(ROOM.values())))
    assert last == "on"
    assert len(lines({**free, "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": "glibc.malloc.check=0"})) == 2
    as_a_guest = (
        f"import runpy, sys; sys.argv = [{script.name!r}]; runpy.run_path({script.name!r}, run_name='__main__')"
    )
    assert len(lines({**free, "PYTHONPATH": str(ROOT)}, ["-c", as_a_guest])) == 2


@pytest.mark.parametrize(
    ("words", "begins"),
    [("finetune lora --lora_r 0", True), ("finetune full --help", False), ("generate base --top_k 0", False)],
)
def test_which_commands_begin_anew(words: str, begins: bool, monkeypatch) -> None:
    called = []
    monkeypatch.setattr("lit_gpt.cli.begin_anew", lambda: called.append(True))
    monkeypatch.setattr(sys, "argv", ["lit-gpt", *words.split()])
    with pytest.raises(SystemExit):
        main()
    assert bool(called) == begins

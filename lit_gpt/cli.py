"""`lit-gpt <command>`: every command by name, for the launchers and for an installed package.

A row of `COMMANDS` names the function that does the work and the dataclasses that hold its settings, as
`module:name` inside `lit_gpt`. They are imported only when the command is called.
"""

import importlib
import sys
from typing import Any, NoReturn

from lit_gpt.settings import run

COMMANDS: dict[str, tuple[str, ...]] = {
    "download": ("hub:download", "hub:Download"),
    "convert": ("convert:convert", "convert:Convert"),
    "prepare alpaca": ("data.prepare:prepare_alpaca", "data.prepare:Prepare"),
    "prepare alpaca_libre": ("data.prepare:prepare_alpaca_libre", "data.prepare:Prepare"),
    "prepare json": ("data.prepare:prepare_json", "data.prepare:PrepareFile"),
    "prepare csv": ("data.prepare:prepare_csv", "data.prepare:PrepareFile"),
    "finetune lora": ("finetune:finetune", "finetune:Finetune", "methods:LoRA"),
    "generate base": ("generate:generate_base", "generate:Generate"),
    "generate lora": ("generate:generate_lora", "generate:GenerateLoRA"),
    "evaluate": ("evaluate:evaluate", "evaluate:Evaluate"),
}


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(f"lit_gpt.{module}"), name)


def launch(command: str, doc: str, **defaults: Any) -> NoReturn:
    """Runs a command for a launcher file; `defaults` are the constants at the launcher's top."""
    function, *classes = (_load(place) for place in COMMANDS[command])
    sys.exit(run(function, list(classes), sys.argv[0], doc, defaults))


def main() -> NoReturn:
    """The console command `lit-gpt`."""
    words = sys.argv[1:]
    command = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if command is None:
        asked = bool(words) and words[0] not in ("-h", "--help")
        message = (
            f"error: no command '{' '.join(words[:2])}'\n" if asked else ""
        ) + "usage: lit-gpt <command> [--help | flags]\n"
        lines = [f"  lit-gpt {name:22} {_load(places[0]).__doc__.splitlines()[0]}" for name, places in COMMANDS.items()]
        print(message + "\n".join(lines), file=sys.stderr if asked else sys.stdout)
        sys.exit(2 if asked else 0)
    function, *classes = (_load(place) for place in COMMANDS[command])
    sys.exit(run(function, list(classes), f"lit-gpt {command}", function.__doc__, argv=words[len(command.split()) :]))

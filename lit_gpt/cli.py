"""`lit-gpt <command>`: every command by name, for the launchers and for an installed package.

A row of `COMMANDS` names the function that does the work and the dataclasses that hold its settings, as
`module:name` inside `lit_gpt`. They are imported only when the command is called.
"""

import importlib
import inspect
import itertools
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from lit_gpt.processes import begin_anew
from lit_gpt.settings import did_you_mean, run

COMMANDS: dict[str, tuple[str, ...]] = {
    "download": ("hub:download", "hub:Download"),
    "convert": ("convert:convert", "convert:Convert"),
    "convert litgpt": ("convert:convert_litgpt", "convert:ConvertLitgpt"),
    "prepare alpaca": ("data.published:prepare_alpaca", "data.prepare:Prepare"),
    "prepare alpaca_libre": ("data.published:prepare_alpaca_libre", "data.prepare:Prepare"),
    "prepare dolly": ("data.published:prepare_dolly", "data.prepare:Prepare"),
    "prepare oasst1": ("data.published:prepare_oasst1", "data.prepare:Prepare"),
    "prepare lima": ("data.published:prepare_lima", "data.prepare:Prepare"),
    "prepare longform": ("data.published:prepare_longform", "data.prepare:Prepare"),
    "prepare flan": ("data.published:prepare_flan", "data.published:PrepareFlan"),
    "prepare gsm8k": ("data.published:prepare_gsm8k", "data.prepare:Prepare"),
    "prepare json": ("data.prepare:prepare_json", "data.prepare:PrepareFile"),
    "prepare csv": ("data.prepare:prepare_csv", "data.prepare:PrepareFile"),
    "prepare mix": ("data.mix:prepare_mix", "data.mix:Mix"),
    "inspect data": ("data.inspection:inspect_data", "data.inspection:Inspect"),
    "finetune lora": ("finetune:finetune", "finetune:Finetune", "methods:LoRA"),
    "finetune full": ("finetune:finetune", "finetune:Finetune", "methods:Full"),
    "finetune adapter": ("finetune:finetune", "finetune:Finetune", "methods:Adapter"),
    "finetune adapter_v2": ("finetune:finetune", "finetune:Finetune", "methods:AdapterV2"),
    "generate base": ("generate:generate_base", "generate:Generate"),
    "generate lora": ("generate:generate_lora", "generate:GenerateLoRA"),
    "generate full": ("generate:generate_full", "generate:GenerateFull"),
    "generate adapter": ("generate:generate_adapter", "generate:GenerateAdapter"),
    "generate adapter_v2": ("generate:generate_adapter_v2", "generate:GenerateAdapterV2"),
    "chat": ("chat:chat", "chat:Chat"),
    "merge lora": ("merge:merge_lora", "merge:Merge"),
    "export": ("export:export", "export:Export"),
    "evaluate": ("evaluate:evaluate", "evaluate:Evaluate"),
    "perplexity": ("perplexity:perplexity", "perplexity:Perplexity"),
    "serve": ("serve:serve", "serve:Serve"),
    "verify": ("challenge.verify:verify", "challenge.verify:Verify"),
    "helm check": ("challenge.helm:helm_check", "challenge.helm:HelmCheck"),
    "plot": ("results:plot", "results:Plot"),
    "plan": ("challenge.cards:plans", "challenge.cards:Plans"),
    "prepare submission": ("challenge.bundle:prepare_submission", "challenge.bundle:Submission"),
}


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(f"lit_gpt.{module}"), name)


def _loaded(command: str, words: list[str]) -> list[Any]:
    """A command's function and settings, in a process that suits it."""
    if command.startswith("finetune") and not {"-h", "--help"} & set(words):
        begin_anew()
    return [_load(place) for place in COMMANDS[command]]


def launch(command: str, doc: str, **defaults: Any) -> NoReturn:
    """Runs a command for a launcher file; `defaults` are the constants at the launcher's top."""
    function, *classes = _loaded(command, sys.argv)
    sys.exit(run(function, classes, sys.argv[0], doc, defaults))


def main() -> NoReturn:
    """The console command `lit-gpt`."""
    words = sys.argv[1:]
    command = max((name for name in COMMANDS if words[: len(name.split())] == name.split()), key=len, default=None)
    if command is None and words and words[0] not in ("-h", "--help"):
        given = " ".join(itertools.takewhile(lambda word: not word.startswith("-"), words[:2])) or words[0]
        hint = did_you_mean(given, COMMANDS)
        print(f"error: no command '{given}'; {hint}lit-gpt --help lists all commands", file=sys.stderr)
        sys.exit(2)
    if command is None:
        print("usage: lit-gpt <command> [--help | flags]")
        for name, (function, *_) in COMMANDS.items():
            print(f"  lit-gpt {name:22} {_description(_load(function)).splitlines()[0]}")
        sys.exit(0)
    function, *classes = _loaded(command, words)
    rest = words[len(command.split()) :]
    sys.exit(run(function, classes, f"lit-gpt {command}", _description(function), argv=rest))


def _description(function: Callable) -> str:
    """What a command's docstring says to its user."""
    return inspect.getdoc(function).partition("\n\nRaises:")[0]

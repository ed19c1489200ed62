"""A conversation with a model, in a terminal or through a pipe."""

import contextlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.files import read_json, write_json
from lit_gpt.generate import Quantize
from lit_gpt.methods import Trained
from lit_gpt.prompts import Turn, get_style
from lit_gpt.settings import UserError, at_least, check_seed, did_you_mean
from lit_gpt.talk import Talk, check_system, tell


@dataclass
class Chat(Trained):
    """With which model, and how."""

    prompt_style: str | None = None
    """How the conversation becomes text: alpaca, chatml, …, model, or a template's file (.jinja). Unset: as it was
    finetuned, or by the model's own chat template, or plain."""
    system: str | None = None
    """System prompt: what the model is told before the conversation."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    temperature: float = 0.8
    """0 always takes the likeliest token; higher is more random."""
    top_k: int | None = 200
    """Draw among the k likeliest tokens; null: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together reach this probability."""
    min_p: float = 0.0
    """Draw among the tokens that are at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that were in the conversation before become less likely."""
    precision: Literal["bf16-true", "32-true"] = "bf16-true"
    """Type of weights and arithmetic."""
    quantize: Literal[Quantize, "none"] | None = None
    """Hold the linear layers in 4 or 8 bits; unset: as in training."""
    seed: int = 1234
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "max_new_tokens")
        check_seed(self.seed)


def chat(settings: Chat) -> None:
    """Talks with a model; from a pipe, every line is a question, and only the answers go to stdout."""
    import torch

    from lit_gpt.checkpoint import DTYPES, default_device, load_gpt, style_of
    from lit_gpt.decode import Sampling
    from lit_gpt.quantize import for_decoding
    from lit_gpt.tokenizer import Tokenizer

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    sampling = Sampling(**{name: getattr(settings, name) for name in names})
    tokenizer, folder = Tokenizer(settings.checkpoint_dir), settings.checkpoint_dir
    style = style_of(folder, settings.finetuned, settings.prompt_style)
    if style is None:
        style = get_style("plain")
        tell("note: this model has no chat template, so it goes on with the text; --prompt_style names another style")
    check_system(style, settings.system)
    device, began = default_device(), time.perf_counter()
    options = {"finetuned": settings.finetuned, "merge": True, "quantize": settings.quantize, "device": device}
    model = load_gpt(folder, DTYPES[settings.precision], **options)
    for_decoding(model)
    tell(
        f"Loaded {folder} in {time.perf_counter() - began:.2f} s; prompt style {style.title}, "
        f"context {model.config.block_size:,} tokens"
    )
    generator = torch.Generator(device).manual_seed(settings.seed)
    talk = Talk(model, tokenizer, style, sampling, settings.max_new_tokens, generator, settings.system)
    with contextlib.suppress(_Leave):
        if sys.stdin.isatty():
            converse(talk)
        else:
            for line in _piped_lines():
                answer(talk, line)


def answer(talk: Talk, line: str, stopped: Callable[[], bool] = lambda: False) -> None:
    """Does what a line says: a command, or a question whose answer is printed as it comes, until it is `stopped`."""
    if line.startswith("/"):
        obey(talk, line)
    else:
        for piece in talk.ask(line.strip(), stopped):
            print(piece, end="", flush=True)
        print(flush=True)


def converse(talk: Talk) -> None:
    """Reads questions from a terminal until the user leaves."""
    with contextlib.suppress(ImportError):  # without it, there is no editing of the line
        import readline

        readline.set_completer(_completer)
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")
    tell("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves")
    interrupted = False
    while True:
        try:
            line = _line()
        except EOFError:
            tell("")
            return
        except KeyboardInterrupt:
            tell("")
            if interrupted:
                raise
            interrupted = True
            tell("(Ctrl-C again leaves)")
            continue
        interrupted = False
        if not line.strip():
            continue
        try:
            with _interruptible() as stopped:
                answer(talk, line, stopped)
        except UserError as error:
            tell(f"error: {error}")
        except KeyboardInterrupt:  # the second, before the model came to a token
            tell("")
        if stopped():
            tell("(stopped)")


def _line() -> str:
    """A line from the terminal, and those that follow one with a backslash at its end."""
    lines = []
    while not lines or lines[-1].endswith("\\"):
        prompt = "> " if not lines else ". "
        if not sys.stdout.isatty():  # Python would print the prompt there, among the answers
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        lines.append(input(prompt))
    return "\n".join([*(line[:-1] for line in lines[:-1]), lines[-1]])


def _piped_lines() -> Iterator[str]:
    """The lines of stdin that are not empty.

    Raises:
        UserError: they are not UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input, line {number}: not UTF-8 ({error.reason}); convert it") from error
        if text.strip():
            yield text


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """While it lasts, Ctrl-C only makes what is yielded true; the second one interrupts as ever."""
    pressed = []

    def press(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


# --- commands ----------------------------------------------------------------------------------------------------


class _Leave(Exception):
    """The user wants to go."""


def obey(talk: Talk, line: str) -> None:
    """Carries out a command.

    Raises:
        UserError: there is no such command, or it cannot be done.
    """
    name, _, rest = line.strip().partition(" ")
    if name not in COMMANDS:
        raise UserError(
            f"no command {name}; {did_you_mean(name, COMMANDS)}/help lists all; a space in front makes it a question"
        )
    COMMANDS[name](talk, rest.strip())


def _help(talk: Talk, rest: str) -> None:
    """list the commands"""
    for name, function in COMMANDS.items():
        tell(f"{name:9}{function.__doc__}")
    tell("A backslash at the end of a line continues it on the next.")


def _reset(talk: Talk, rest: str) -> None:
    """begin anew; the system prompt stays"""
    talk.reset()
    tell("a new conversation")


def _system(talk: Talk, rest: str) -> None:
    """show the system prompt; with a text, take that; with "", none"""
    if rest:
        system = None if rest in ('""', "''") else rest
        check_system(talk.style, system)
        talk.system = system
    tell(f"system prompt: {talk.system}" if talk.system else "no system prompt")


def _save(talk: Talk, rest: str) -> None:
    """FILE: save the conversation, as a row that scripts/prepare_json.py reads"""
    path = _path(rest)
    if path.exists() and not _is_conversation(path):
        raise UserError(f"{path} is there and holds no conversation; choose another name")
    system = [] if talk.system is None else [Turn("system", talk.system)]
    write_json(path, {"messages": [{"role": turn.role, "content": turn.text} for turn in (*system, *talk.turns)]})
    tell(f"{len(talk.turns)} turns saved in {path}")


def _load(talk: Talk, rest: str) -> None:
    """FILE: go on with a saved conversation"""
    path = _path(rest)
    turns = read_messages(path)
    system = turns.pop(0).text if turns and turns[0].role == "system" else None
    if turns and turns[-1].role == "user":
        raise UserError(f"{path}: it ends with the user's turn; the last must be the assistant's")
    conversation = (*([] if system is None else [Turn("system", system)]), *turns, Turn("user", "Hello"))
    if reason := talk.style.problem(conversation):
        raise UserError(f"{path}: {reason}")
    talk.reset()
    talk.turns, talk.system = turns, system
    tell(f"{len(turns)} turns loaded from {path}")


def _stats(talk: Talk, rest: str) -> None:
    """tokens, speed and memory of the last answer"""
    from lit_gpt.runlog import peak_memory_gb

    spent, limit = talk.spent, talk.model.config.block_size
    later = spent.seconds - spent.first
    speed = f", then {(spent.new - 1) / later:.2f} tokens/sec" if spent.new > 1 and later > 0 else ""
    tell(f"context      {spent.prompt + spent.new:,} of {limit:,} tokens, {len(talk.turns)} turns")
    if talk.forgotten:
        tell(f"left out     the oldest {talk.forgotten} turns")
    tell(f"last prompt  {spent.prompt:,} tokens, of which {spent.reused:,} were in the cache")
    tell(f"last answer  {spent.new:,} tokens; the first after {spent.first:.2f} s{speed}")
    tell(f"memory used  {peak_memory_gb(talk.model.wte.weight.device):.2f} GB")


def _exit(talk: Talk, rest: str) -> None:
    """leave"""
    raise _Leave


COMMANDS: dict[str, Callable[[Talk, str], None]] = {
    "/reset": _reset,
    "/system": _system,
    "/save": _save,
    "/load": _load,
    "/stats": _stats,
    "/help": _help,
    "/exit": _exit,
}


def _completer(text: str, state: int) -> str | None:
    names = [f"{name} " for name in COMMANDS if text and name.startswith(text)]
    return names[state] if state < len(names) else None


def _path(rest: str) -> Path:
    if not rest:
        raise UserError("name a file, for example /save talk.json")
    return Path(rest).expanduser()


def read_messages(path: Path) -> list[Turn]:
    """The turns of a file that `/save` wrote.

    Raises:
        UserError: it is missing or holds something else.
    """
    value = read_json(path)
    messages = value.get("messages") if isinstance(value, dict) else None
    keys = ("role", "content")
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and all(_is_text(m.get(key)) for key in keys) for m in messages
    ):
        raise UserError(f'{path}: no conversation; it must hold {{"messages": [{{"role": ..., "content": ...}}, ...]}}')
    return [Turn(message["role"], message["content"]) for message in messages]


def _is_text(value: object) -> bool:
    """JSON can spell halves of characters, which no tokenizer takes."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_conversation(path: Path) -> bool:
    try:
        read_messages(path)
    except UserError:
        return False
    return True

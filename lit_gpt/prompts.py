"""Prompt styles by name: how an instruction becomes the text that the model continues.

Training data, generation and evaluation share these functions. A prompt ends where the answer begins, without a space:
the answer is encoded on its own, and SentencePiece puts the space there (`lit_gpt.tokenizer.Tokenizer.encode_batch`).
A new style is one function and one row of `STYLES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lit_gpt.settings import UserError, did_you_mean


@dataclass(frozen=True)
class Style:
    """A prompt style."""

    prompt: Callable[..., str]
    """(instruction, input="") -> text; both arguments are stripped of blanks at their ends."""
    stop: tuple[str, ...] = ()
    """Texts, besides EOS, that end an answer."""


def _alpaca(instruction: str, input: str = "") -> str:
    """Stanford Alpaca's wording to the letter (github.com/tatsu-lab/stanford_alpaca), which other models know too."""
    task = "Below is an instruction that describes a task"
    ask = "Write a response that appropriately completes the request."
    if input := input.strip():
        head = f"{task}, paired with an input that provides further context. {ask}"
        return f"{head}\n\n### Instruction:\n{instruction.strip()}\n\n### Input:\n{input}\n\n### Response:"
    return f"{task}. {ask}\n\n### Instruction:\n{instruction.strip()}\n\n### Response:"


def _plain(instruction: str, input: str = "") -> str:
    """The text itself; an input follows after an empty line."""
    return "\n\n".join(part for part in (instruction.strip(), input.strip()) if part)


STYLES: dict[str, Style] = {"alpaca": Style(_alpaca), "plain": Style(_plain)}


def get_style(name: str) -> Style:
    """The style of that name.

    Raises:
        UserError: there is none; shows the nearest and all others.
    """
    if name not in STYLES:
        raise UserError(f"no prompt style '{name}'; {did_you_mean(name, STYLES)}known are {', '.join(STYLES)}")
    return STYLES[name]

"""Conversations, and prompt styles by name: how a conversation becomes the text that the model reads and continues.

Training data, generation and evaluation share these functions. A style renders a conversation into pieces of text, each
with a mark whether the model learns it: the answers, with what ends them. No token reaches over the border of two
pieces, so what generation starts from has the ids that training had there.
A new style is one row of `STYLES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lit_gpt.settings import UserError, did_you_mean

if TYPE_CHECKING:
    from lit_gpt.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
EOS, BOS = "{eos}", "{bos}"


class Turn(NamedTuple):
    """What one side says."""

    role: str
    """One of `ROLES`."""
    text: str
    input: str = ""
    """Further input that belongs to a user's instruction; styles have a place of its own for it."""


Conversation = tuple[Turn, ...]
"""Turns; the last is the assistant's in training data, the user's or a tool's where an answer is asked for."""


def problem(conversation: Conversation) -> str | None:
    """What is wrong with a conversation, in words; None if it can be rendered."""
    before = None
    for number, (role, text, given) in enumerate(conversation, 1):
        if role not in ROLES:
            return f"turn {number} has the role '{role:.40}'; {did_you_mean(role, ROLES)}known are {', '.join(ROLES)}"
        if not text.strip() and not given.strip():
            return f"turn {number} ({role}) is empty"
        if role == "system" and number > 1:
            return f"turn {number} is the system's; only the first can be"
        if role == "assistant" and before == "assistant":
            return f"turns {number - 1} and {number} are both the assistant's; join them"
        before = role
    if before in (None, "system"):
        return "there is no question in it"
    return None


class Style:
    """A prompt style."""

    name: str
    """What is stored with data and runs, for `get_style`."""
    stop: tuple[str, ...] = ()
    """Texts, besides EOS, that end an answer."""
    adds_bos: ClassVar[bool] = True
    """Whether BOS is put in front where the tokenizer's prompts start so; else the style says where it stands."""
    own: bool = False
    """Whether answers are encoded as texts of their own."""

    def problem(self, conversation: Conversation) -> str | None:
        """What keeps this style from rendering a conversation; None if nothing does."""
        return problem(conversation)

    def pieces(self, conversation: Conversation, tokenizer: "Tokenizer") -> list[tuple[str, bool]]:
        """The conversation as (text, whether it is learnt). After a user's or tool's turn the answer's beginning
        follows, so that the model can go on."""
        raise NotImplementedError

    def encode(
        self, tokenizer: "Tokenizer", conversations: Sequence[Conversation]
    ) -> list[tuple[list[int], list[bool]]]:
        """The ids of each conversation, and whether each id is learnt.

        What follows the last answer's end is left out. Special tokens of the style become their ids; where a turn's
        text spells one, it stays text.

        Raises:
            UserError: the tokenizer lacks what the style needs, or a text cannot be written as UTF-8.
        """
        rows = []
        for conversation in conversations:
            guarded = tuple(
                Turn(role, tokenizer.guard(text), given and tokenizer.guard(given))
                for role, text, given in conversation
            )
            row = self.pieces(guarded, tokenizer)
            if conversation[-1].role == "assistant":
                while row and not row[-1][1]:
                    row.pop()
            rows.append(row)
        return tokenizer.encode_pieces(rows, bos=self.adds_bos and tokenizer.use_bos, own=self.own)

    def encode_prompt(self, tokenizer: "Tokenizer", conversation: Conversation) -> list[int]:
        """The ids that generation starts from; the conversation's last turn is not the assistant's.

        Raises:
            UserError: see `encode`; or the style cannot render it.
        """
        if reason := self.problem(conversation):
            raise UserError(f"prompt style {self.title}: {reason}")
        return self.encode(tokenizer, [conversation])[0][0]

    def stop_ids(self, tokenizer: "Tokenizer") -> list[int]:
        """The ids that end an answer: EOS, and the style's own end of a turn."""
        found = [tokenizer.eos_id, *(tokenizer.find(text) for text in self.stop)]
        return [i for i in dict.fromkeys(found) if i is not None]

    @property
    def title(self) -> str:
        """The style for people to read."""
        return self.name if len(self.name) <= 40 and "\n" not in self.name else "template"


@dataclass(frozen=True)
class Format(Style):
    """A style whose turns are texts to be filled in. `{text}` and `{input}` stand for what a turn says, `{bos}` and
    `{eos}` for these tokens."""

    name: str
    user: str = "{text}"
    given: str = "\n\n{input}"
    """Follows a user's text that has a further input."""
    answer: str = ""
    """Stands in front of an answer."""
    end: str = EOS
    """Ends an answer and is learnt with it; EOS takes its place where the tokenizer has no such token."""
    after: str = ""
    """Stands between an answer and the next turn."""
    begin: str = ""
    system: str | None = None
    """None: the style takes no system prompt."""
    default: tuple[str, str] = ("", "")
    """System prompt when none is given, for a first question without and with input."""
    tool: str | None = None
    """A tool's turn; None: the style has none."""
    folded: bool = False
    """The system prompt is a part of the first user's turn."""
    own: bool = False

    def problem(self, conversation: Conversation) -> str | None:
        roles = {turn.role for turn in conversation}
        for role, text in (("system", self.system), ("tool", self.tool)):
            if role in roles and text is None:
                known = ", ".join(name for name, style in STYLES.items() if getattr(style, role) is not None)
                what = "system prompt" if role == "system" else "turns of tools"
                return f"it has no {what}; these have: {known}"
        return problem(conversation)

    @property
    def stop(self) -> tuple[str, ...]:
        return (self.end.strip(),) if EOS not in self.end else ()

    def pieces(self, conversation: Conversation, tokenizer: "Tokenizer") -> list[tuple[str, bool]]:
        known = EOS in self.end or tokenizer.find(self.end.strip()) is not None
        end = (self.end if known else EOS).replace(EOS, tokenizer.eos)
        if not end.strip():
            raise UserError(f"{tokenizer.file}: the tokenizer has no EOS token; name it in tokenizer_config.json")
        turns = list(conversation)
        first = next((turn for turn in turns if turn.role != "system"), turns[0])
        system = turns.pop(0).text.strip() if turns[0].role == "system" else self.default[bool(first.input.strip())]
        system = self.system.replace("{text}", system) if self.system and system else ""
        out = [(self.begin.replace(BOS, tokenizer.bos), False)]
        if not self.folded:
            out.append((system, False))
            system = ""
        for number, (role, text, given) in enumerate(turns):
            text, given = text.strip(), given.strip()
            if role == "assistant":
                out += [(text + end, True), (self.after.replace(BOS, tokenizer.bos), False)]
                continue
            if role == "user" and given:
                text = f"{text}{self.given.replace('{input}', given)}" if text else given
            form = self.user if role == "user" else self.tool or self.user
            out.append((form.replace("{text}", system + text), False))
            system = ""
            if number + 1 == len(turns) or turns[number + 1].role == "assistant":
                out.append((self.answer, False))
        return out

    def prompt(self, instruction: str, input: str = "") -> str:
        """The text of a prompt with one question, without BOS."""
        return "".join(text for text, _ in self.pieces((Turn("user", instruction, input),), _NoTokenizer()))


class _NoTokenizer:
    """Stands for a tokenizer where only text is wanted."""

    bos, eos = "", " eos"

    def find(self, text: str) -> int:
        return 0


_ASK = "Write a response that appropriately completes the request."
_TASK = "Below is an instruction that describes a task"
_FORMATS = [
    # Stanford Alpaca's wording to the letter (github.com/tatsu-lab/stanford_alpaca), which other models know too.
    Format(
        "alpaca",
        "### Instruction:\n{text}",
        given="\n\n### Input:\n{input}",
        answer="\n\n### Response:",
        after="\n\n",
        system="{text}\n\n",
        default=(f"{_TASK}. {_ASK}", f"{_TASK}, paired with an input that provides further context. {_ASK}"),
        own=True,
    ),
    # The text itself.
    Format("plain", after="\n\n", own=True),
]
STYLES: dict[str, Format] = {style.name: style for style in _FORMATS}


def get_style(name: str) -> Style:
    """The style of that name.

    Raises:
        UserError: there is none; shows the nearest and all others.
    """
    if name not in STYLES:
        raise UserError(f"no prompt style '{name}'; {did_you_mean(name, STYLES)}known are {', '.join(STYLES)}")
    return STYLES[name]

"""Conversations, and prompt styles by name: how a conversation becomes the text that the model reads and continues.

Training data, generation and evaluation share these functions. A style renders a conversation into pieces of text, each
with a mark whether the model learns it: the answers, with what ends them. No token reaches over the border of two
pieces, so what generation starts from has the ids that training had there.
A new style is one row of `_FORMATS`; `lit_gpt.template` has those of models' own Jinja templates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
        if role == before != "tool":
            return f"turns {number - 1} and {number} are both the {role}'s; join them"
        before = role
    if before in (None, "system"):
        return "there is no question in it"
    return None


class Style:
    """A prompt style."""

    name: str
    """What is stored with data and runs, for `get_style`."""
    title: str
    """The same for people to read."""
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
            raise UserError(f"cannot ask the model: {reason}")
        return self.encode(tokenizer, [conversation])[0][0]

    def stop_ids(self, tokenizer: "Tokenizer") -> list[int]:
        """The ids that end an answer: EOS, and the style's own end of a turn."""
        found = [tokenizer.eos_id, *(tokenizer.find(text) for text in self.stop)]
        return [i for i in dict.fromkeys(found) if i is not None]

    def prompt(self, instruction: str, input: str = "", tokenizer: "Tokenizer | None" = None) -> str:
        """The text of a prompt with one question, without BOS; special tokens are those of Llama without a tokenizer.

        To have its ids, take `encode_prompt`.
        """
        pieces = self.pieces((Turn("user", instruction, input),), tokenizer or _Llama())
        return "".join(text for text, _ in pieces).removeprefix(tokenizer.bos if tokenizer else _Llama.bos)


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
    lead: str = ""
    """Begins an answer and is learnt with it: the space that belongs to its first word."""
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

    @property
    def title(self) -> str:
        return self.name

    def problem(self, conversation: Conversation) -> str | None:
        roles = {turn.role for turn in conversation}
        for role, text in (("system", self.system), ("tool", self.tool)):
            if role in roles and text is None:
                known = ", ".join(name for name, style in STYLES.items() if getattr(style, role) is not None)
                return f"prompt style {self.name} has no turns of the {role}; these have: {known}"
        return problem(conversation)

    @property
    def stop(self) -> tuple[str, ...]:
        return (self.end.strip(),) if EOS not in self.end else ()

    def pieces(self, conversation: Conversation, tokenizer: "Tokenizer") -> list[tuple[str, bool]]:
        def fill(form: str, text: str = "") -> str:
            return form.replace(BOS, tokenizer.bos).replace(EOS, tokenizer.eos).replace("{text}", text)

        own_end = EOS in self.end or tokenizer.find(self.end.strip()) is not None
        end = fill(self.end if own_end else EOS)
        if not end.strip():
            raise UserError(f"{tokenizer.file}: the tokenizer has no EOS token; name it in tokenizer_config.json")
        turns = list(conversation)
        question = turns[turns[0].role == "system"]
        system = turns.pop(0).text.strip() if turns[0].role == "system" else self.default[bool(question.input.strip())]
        system = fill(self.system, system) if self.system and system else ""
        out = [(fill(self.begin), False)]
        if not self.folded:
            out.append((system, False))
            system = ""
        for number, (role, text, given) in enumerate(turns):
            text, given = text.strip(), given.strip()
            if role == "assistant":
                if number == 0:
                    out.append((fill(self.answer), False))
                out += [(self.lead + text + end, True), (fill(self.after), False)]
                continue
            if given:
                text = text + self.given.replace("{input}", given) if text else given
            out.append((fill(self.tool if role == "tool" else self.user, system + text), False))
            system = ""
            if number + 1 == len(turns) or turns[number + 1].role == "assistant":
                out.append((fill(self.answer), False))
        return out


class _Llama:
    """Stands for a tokenizer where only text is wanted."""

    bos, eos = "<s>", "</s>"

    def find(self, text: str) -> int:
        return 0


_ASK = "Write a response that appropriately completes the request."
_TASK = "Below is an instruction that describes a task"
_ALPACA = (f"{_TASK}. {_ASK}", f"{_TASK}, paired with an input that provides further context. {_ASK}")
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_STABLELM = (
    "# StableLM Tuned (Alpha version)\n"
    "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
    "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered harmful"
    " to the user.\n"
    "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and make"
    " jokes.\n"
    "- StableLM will refuse to participate in anything that could harm a human."
)


def _tagged(role: str, end: str = "<|im_end|>") -> str:
    return f"<|im_start|>{role}\n{{text}}{end}\n"


def _llama3(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{{text}}<|eot_id|>"


# Wordings and marks are the published ones to the letter: that is what models know.
_FORMATS = [
    # github.com/tatsu-lab/stanford_alpaca
    Format(
        "alpaca",
        "### Instruction:\n{text}",
        given="\n\n### Input:\n{input}",
        answer="\n\n### Response:",
        after="\n\n",
        system="{text}\n\n",
        default=_ALPACA,
        own=True,
    ),
    # github.com/databrickslabs/dolly
    Format(
        "dolly",
        "### Instruction:\n{text}",
        given="\n\nInput:\n{input}",
        answer="\n\n### Response:\n",
        end="\n\n### End",
        after="\n\n",
        system="{text}\n\n",
        default=(_ALPACA[0], _ALPACA[0]),
    ),
    # OpenAI's ChatML, as Qwen, SmolLM2, OLMo and many others have it
    Format(
        "chatml",
        _tagged("user"),
        answer="<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
        system=_tagged("system"),
        tool=_tagged("tool"),
    ),
    # Llama 2's chat models: every exchange is a text of its own, BOS and EOS included
    Format(
        "llama2-chat",
        "[INST] {text} [/INST]",
        lead=" ",
        end=f" {EOS}",
        after=BOS,
        begin=BOS,
        system="<<SYS>>\n{text}\n<</SYS>>\n\n",
        folded=True,
    ),
    # Llama 3 to 3.3, without the dates and tools of their own templates
    Format(
        "llama3",
        _llama3("user"),
        answer="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        begin=BOS,
        system=_llama3("system"),
        tool=_llama3("ipython"),
    ),
    # Vicuna 1.1 to 1.5 (github.com/lm-sys/FastChat)
    Format("vicuna", "USER: {text} ", answer="ASSISTANT:", lead=" ", system="{text} ", default=(_VICUNA, _VICUNA)),
    # HuggingFaceH4/zephyr-7b-beta
    Format(
        "zephyr",
        f"<|user|>\n{{text}}{EOS}\n",
        answer="<|assistant|>\n",
        after="\n",
        system=f"<|system|>\n{{text}}{EOS}\n",
    ),
    # tiiuae/falcon-7b-instruct
    Format("falcon", "User: {text}\n\n", answer="Assistant:", lead=" ", after="\n\n", system="{text}\n\n"),
    # stabilityai/stablelm-tuned-alpha-7b; StableLM Zephyr and StableLM 2 have templates of their own
    Format(
        "stablelm",
        "<|USER|>{text}",
        answer="<|ASSISTANT|>",
        system="<|SYSTEM|>{text}\n",
        default=(_STABLELM, _STABLELM),
    ),
    # togethercomputer/RedPajama-INCITE-Chat
    Format("redpajama", "<human>: {text}\n", answer="<bot>:", lead=" ", after="\n"),
    # Gemma 1 to 3; the system prompt stands where Gemma 3 has it
    Format(
        "gemma",
        "<start_of_turn>user\n{text}<end_of_turn>\n",
        answer="<start_of_turn>model\n",
        end="<end_of_turn>",
        after="\n",
        begin=BOS,
        system="{text}\n\n",
        folded=True,
    ),
    # Phi 3 and 3.5
    Format(
        "phi",
        "<|user|>\n{text}<|end|>\n",
        answer="<|assistant|>\n",
        end="<|end|>",
        after="\n",
        system="<|system|>\n{text}<|end|>\n",
    ),
    # Mistral 7B Instruct v0.1 and v0.2; later ones have templates of their own
    Format("mistral", "[INST] {text} [/INST]", lead=" ", begin=BOS, system="{text}\n\n", folded=True),
    # The text itself.
    Format("plain", after="\n\n", own=True),
]
STYLES: dict[str, Format] = {style.name: style for style in _FORMATS}
# TinyLlama 1.1B Chat v1.0 speaks as Zephyr does
STYLES["tinyllama"] = replace(STYLES["zephyr"], name="tinyllama")


def get_style(name: str, checkpoint_dir: str | Path | None = None) -> Style:
    """The style of that name, or of the Jinja template that is the name, or that the named file holds.

    Args:
        name: also "model", for the chat template that is in `checkpoint_dir`.

    Raises:
        UserError: there is none (shows the nearest and all others), or it is no template.
    """
    if name in STYLES:
        return STYLES[name]
    from lit_gpt.template import Template, model_template, read_template

    if name == "model":
        text = model_template(Path(checkpoint_dir or "."))
        if text is None:
            raise UserError(f"{checkpoint_dir} has no chat template of its own; name a prompt style, such as chatml")
        return Template(text)
    if "{{" in name or "{%" in name:
        return Template(name)
    if "/" in name or Path(name).suffix in (".jinja", ".jinja2", ".j2"):
        return Template(read_template(Path(name)), place=name)
    raise UserError(
        f"no prompt style '{name}'; {did_you_mean(name, STYLES)}known are {', '.join(STYLES)}, model (its own chat "
        "template), and files of templates (.jinja)"
    )

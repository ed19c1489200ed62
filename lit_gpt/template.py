"""Chat templates in Jinja, as models bring them along, as prompt styles.

A template is a stranger's program. It runs in Jinja's sandbox, sees the messages and today's date and nothing else, and
has a budget: its syntax tree is changed such that every loop, call, operator, filter and output pays for what it does.
"""

import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

from lit_gpt.files import read_json
from lit_gpt.prompts import Conversation, Style, Turn, problem
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    from lit_gpt.tokenizer import Tokenizer

BUDGET, BUDGET_PER_CHARACTER, LARGEST_BUDGET = 1 << 24, 1000, 1 << 28
"""What rendering may cost: at least, for every character of the messages, and at most. About a second per 1 << 24."""
FEE, ITEM = 64, 16
"""What an operation costs, and what an element of a list does; a character costs 1."""
LONGEST = 1 << 20
"""Characters of a template."""
FILTERS = (
    "abs capitalize count d default dictsort e escape first float int items join last length list lower map max min "
    "reject rejectattr reverse round safe select selectattr sort string sum title trim unique upper"
)
"""Those of Jinja's that templates of models use and that cannot make much of little; `OWN_FILTERS` has the others."""
_OPEN, _CLOSE = "\ufdd1", "\ufdd2"
"""Characters that stand for none, around what the template marks as the model's own words."""
_MARKS = re.compile(f"([{_OPEN}{_CLOSE}])")
_rendering = threading.Lock()


class Template(Style):
    """A chat template as a prompt style.

    What the model learns is what the template marks by `{% generation %}`. Without such marks it is what the template
    adds to a prompt for an answer; the conversation up to an answer, rendered, must then be how the whole one begins.
    """

    adds_bos = False

    def __init__(self, text: str, place: str = "the chat template") -> None:
        """Compiles the text of a template; `place` is where it stands, for messages.

        Raises:
            UserError: it is no template.
        """
        self.name, self.title = text, place
        if len(text) > LONGEST:
            raise UserError(f"{place}: {len(text):,} characters, at most {LONGEST:,} are read; is it a template?")
        try:
            self._template = _compiled(text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{place}:{error.lineno}: not a Jinja template ({error.message}); mend it") from error
        except Exception as error:  # Python's own compiler has limits that Jinja's does not know
            raise UserError(f"{place}: not a Jinja template ({type(error).__name__}: {error}); mend it") from error

    def problem(self, conversation: Conversation) -> str | None:
        if reason := problem(conversation):
            return reason
        try:
            self._marked(conversation, "", "")
        except UserError as error:
            return str(error)
        return None

    def pieces(self, conversation: Conversation, tokenizer: "Tokenizer") -> list[tuple[str, bool]]:
        pieces = self._marked(conversation, tokenizer.bos, tokenizer.eos)
        # an answer is learnt with the token that ends its turn, or with EOS if the template has none there
        out: list[tuple[str, bool]] = []
        for place, (text, mark) in enumerate(pieces):
            if out and out[-1][1] and not mark:
                text = self._pass_end(out, text, tokenizer)
            out.append((text, mark))
            if mark and place + 1 == len(pieces):
                out.append((self._pass_end(out, "", tokenizer), False))
        return out

    def _pass_end(self, out: list[tuple[str, bool]], text: str, tokenizer: "Tokenizer") -> str:
        """Completes the answer at the end of `out` by the end of its turn; returns what is left of the text after."""
        answer = out[-1][0].rstrip()
        blank = out[-1][0][len(answer) :]
        if tokenizer.last_special(answer):
            out[-1] = (answer, True)
            return blank + text
        if end := tokenizer.first_special(blank + text):
            taken = (blank + text)[: (blank + text).index(end) + len(end)]
            if not taken[: -len(end)].strip():
                out[-1] = (answer + taken, True)
                return (blank + text)[len(taken) :]
        out[-1] = (answer + tokenizer.eos, True)
        return blank + text

    def stop_ids(self, tokenizer: "Tokenizer") -> list[int]:
        """EOS, and the token that ends an answer: seen where the template ends one."""
        pieces = self.pieces((Turn("user", "a"), Turn("assistant", "a")), tokenizer)
        end = tokenizer.last_special(next((text for text, mark in reversed(pieces) if mark), ""))
        found = (tokenizer.eos_id, tokenizer.find(end) if end else None)
        return [i for i in dict.fromkeys(found) if i is not None]

    def _marked(self, conversation: Conversation, bos: str, eos: str) -> list[tuple[str, bool]]:
        """The rendered conversation, as (text, whether the model learns it)."""
        messages = []
        for role, text, given in conversation:
            content = "\n\n".join(part for part in (text.strip(), given.strip()) if part)
            messages.append({"role": role, "content": content})
        asks = messages[-1]["role"] != "assistant"
        whole = self._render(messages, asks, bos, eos)
        if _OPEN in whole:
            parts = _MARKS.split(whole)
            marks = [False, *(mark == _OPEN for mark in parts[1::2])]
            return [(text, mark) for text, mark in zip(parts[::2], marks, strict=True) if text]
        pieces, done = [], ""
        for place, message in enumerate(messages):
            if message["role"] != "assistant" or place == 0:
                continue
            prompt = self._render(messages[:place], True, bos, eos)
            with_answer = whole if place + 1 == len(messages) else self._render(messages[: place + 1], False, bos, eos)
            if not (prompt.startswith(done) and with_answer.startswith(prompt) and whole.startswith(with_answer)):
                raise UserError(
                    f"{self.title}: rendered up to turn {place + 1}, the conversation is not how the whole one begins, "
                    "so its answers cannot be told from it; mark them by {% generation %} in a copy of the template, "
                    "or use another prompt style, such as chatml"
                )
            pieces += [(prompt[len(done) :], False), (with_answer[len(prompt) :], True)]
            done = with_answer
        return [*pieces, (whole[len(done) :], False)]

    def _render(self, messages: list[dict[str, str]], asks: bool, bos: str, eos: str) -> str:
        size = sum(len(message["content"]) for message in messages)
        with _rendering:
            bounds = self._template.environment.bounds
            bounds.left = min(BUDGET + BUDGET_PER_CHARACTER * size, LARGEST_BUDGET)
            try:
                return self._template.render(
                    messages=messages, add_generation_prompt=asks, bos_token=bos, eos_token=eos, tools=None
                )
            except _TooMuch as error:
                raise UserError(f"{self.title}: it computes too much, or too large a text; use another") from error
            except Exception as error:
                what = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
                raise UserError(f"{self.title} refuses the conversation: {' '.join(what.split())[:200]}") from error


def model_template(folder: Path) -> str | None:
    """The text of the chat template that a model brings along; None if it has none.

    Raises:
        UserError: a file cannot be read.
    """
    if (folder / "chat_template.jinja").is_file():
        return read_template(folder / "chat_template.jinja")
    for name in ("tokenizer_config.json", "chat_template.json"):
        config = read_json(folder / name) if (folder / name).is_file() else None
        found = config.get("chat_template") if isinstance(config, dict) else None
        if isinstance(found, list):  # several by name
            names = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = names.get("default")
        if isinstance(found, str):
            return found
    return None


def read_template(path: Path) -> str:
    """The text of a template file.

    Raises:
        UserError: it is missing, or is no template.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; is it a template?") from error
    except OSError as error:
        raise UserError(f"cannot read the template {path}: {error.strerror}; check the path") from error
    if "{{" not in text and "{%" not in text:
        raise UserError(f"{path}: no Jinja template: there is neither {{{{ nor {{% in it")
    return text


class _TooMuch(Exception):
    """The template's budget is spent."""


class _Bounds(Extension):
    """Parses `{% generation %}`, and takes the payments."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja wants it
    left = 0

    def parse(self, parser: Any) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        first, last = (nodes.Output([nodes.TemplateData(mark)]).set_lineno(line) for mark in (_OPEN, _CLOSE))
        return [first, *body, last]

    def charge(self, cost: int) -> None:
        self.left -= FEE + cost
        if self.left < 0:
            raise _TooMuch

    def pay(self, value: Any) -> Any:
        """Charges for all that a value holds, however deep; returns it."""
        self.charge(0)
        stack = [value]
        while stack:
            found = stack.pop()
            if isinstance(found, str):
                self.left -= len(found)
            elif isinstance(found, dict):
                stack += [*found, *found.values()]
            elif isinstance(found, list | tuple):
                stack += found
            elif isinstance(found, int) and abs(found) >> 256:
                raise _TooMuch
            self.left -= ITEM
            if self.left < 0:
                raise _TooMuch
        return value

    def walk(self, value: Any) -> Any:
        """Charges for going once through a value; returns it, or what goes through it."""
        if hasattr(value, "__len__"):
            self.charge(FEE * len(value))
            return value
        return self._counted(value)

    def _counted(self, value: Any) -> Iterator[Any]:
        for item in value:
            self.charge(0)
            yield item


class _Payment(NodeTransformer):
    """Puts a payment around all that can cost."""

    def _by(self, name: str, node: nodes.Expr) -> nodes.Expr:
        function = nodes.ExtensionAttribute(_Bounds.identifier, name)
        return nodes.Call(function, [node], [], None, None).set_lineno(node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._by("walk", node.iter)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        node.body = [self.visit(part) for part in node.body]  # its filter works on what has paid
        return node

    visit_FilterBlock = visit_AssignBlock

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        node.node = self._by("pay", node.node)
        return self._by("pay", node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._by("pay", node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._by("pay", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._by("pay", node.expr)
        for operand in node.ops:
            operand.expr = self._by("pay", operand.expr)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        parts = (nodes.Const(part.data) if isinstance(part, nodes.TemplateData) else part for part in node.nodes)
        node.nodes = [self._by("pay", part.set_lineno(node.lineno)) for part in parts]
        return node


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with payments."""

    intercepted_binops = frozenset(("+", "-", "*", "**", "%"))

    @property
    def bounds(self) -> _Bounds:
        return self.extensions[_Bounds.identifier]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Payment().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def wrap_str_format(self, value: Any) -> Any:
        """Refuses `str.format`, whose widths could be any; the sandbox has it here."""
        if isinstance(getattr(value, "__self__", None), str) and value.__name__ in ("format", "format_map"):
            raise jinja2.TemplateError("text.format is not supported; join texts by ~")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            self.bounds.charge(int(_size(left) * _size(right)))
        elif operator == "**" and _size(right) > 64:
            raise _TooMuch
        elif operator == "%" and isinstance(left, str):
            raise jinja2.TemplateError("text % values is not supported; join texts by ~")
        return self.bounds.pay(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if owner is self.bounds:
            return function(*args)
        self.bounds.pay([*args, *kwargs.values()])
        if isinstance(owner, str):
            if name == "replace":
                return self.bounds.pay(_replace(self, owner, *args))
            width = max((abs(x) for x in args if isinstance(x, int)), default=1)  # of ljust, zfill, expandtabs
            self.bounds.charge(len(owner) * max(width, 1))
        return self.bounds.pay(super().call(context, function, *args, **kwargs))


def _size(value: Any) -> float:
    """How large a product with this factor can become: 1 for a number that multiplies numbers."""
    return len(value) if hasattr(value, "__len__") else abs(value) if isinstance(value, int | float) else 1


@jinja2.pass_environment
def _replace(environment: _Environment, text: str, old: str, new: str, count: int | None = None) -> str:
    """`str.replace`, paid before it is done."""
    text, old, new = str(text), str(old), str(new)
    environment.bounds.charge(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


@jinja2.pass_environment
def _indent(environment: _Environment, text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    """Jinja's `indent`, paid before it is done."""
    if type(width) is not int or width < 0:
        raise jinja2.TemplateError("indent takes a number of spaces")
    environment.bounds.charge((text.count("\n") + 1) * width)
    return jinja2.filters.do_indent(text, width, first, blank)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates have it, without the escapes for HTML."""
    if indent is not None and not 0 <= indent <= 16:
        raise jinja2.TemplateError("tojson takes an indent from 0 to 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


OWN_FILTERS = {"replace": _replace, "indent": _indent, "tojson": _tojson}


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that mean something to Python."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"namespace({name}=...) is not allowed")
        super().__setitem__(name, value)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _today(form: str) -> str:
    return datetime.now().strftime(str(form)[:64])


def _dict(*args: Any, **kwargs: Any) -> dict:
    return dict(*args, **kwargs)


@lru_cache(maxsize=8)
def _compiled(text: str) -> jinja2.Template:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Bounds, loopcontrols]
    )
    environment.filters = {name: environment.filters[name] for name in FILTERS.split()} | OWN_FILTERS
    del environment.tests["in"]  # it would search without paying
    given = {"dict": _dict, "namespace": _Namespace, "raise_exception": _refuse, "strftime_now": _today}
    environment.globals = {"range": environment.globals["range"], **given}
    return environment.from_string(text)

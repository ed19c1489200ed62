"""What a row says: from keys and values to a conversation, in the formats that data sets come in.

| format | keys |
|---|---|
| alpaca | `instruction`, `output`, and `input`, which may be missing |
| prompt and completion | `prompt`, `completion` |
| plain text | `text` |
| OpenAI | `messages`: objects with `role` and `content`, also `tool_calls` |
| ShareGPT | `conversations`: objects with `from` and `value`; or texts, user and assistant in turn (LIMA) |

A key `system` is the system's turn; `tools`, as ShareGPT rows have it, is appended to that. `take` finds out which
format it is by the keys of each row, unless `--map` names them.
"""

import json
from typing import Any

from lit_gpt.data.readers import BadRow, shown
from lit_gpt.prompts import Conversation, Turn
from lit_gpt.settings import UserError, did_you_mean

FIELDS = ("instruction", "input", "output", "system", "text", "messages")
"""What `--map` can name."""
FORMATS = (("messages",), ("conversations",), ("instruction", "output"), ("prompt", "completion"), ("text",))
"""Keys that tell a format."""
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "function_call"),
    "tool": ("tool", "observation", "function", "function_response", "ipython"),
}
"""Ours -> what others call them."""
_ROLE = {name: role for role, names in ROLES.items() for name in names}

TYPES = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}

Keys = dict[str, str]
"""Field -> the key that a row has for it."""


class LeftOut(Exception):
    """A row that is well formed but is not wanted; the message is the reason that is counted."""


def take(place: str, row: Any, keys: Keys | None = None) -> Conversation:
    """The conversation in a row; all texts are stripped of blanks at both ends.

    Args:
        keys: which key holds what, from `parse_map`; None: found out.

    Raises:
        BadRow: not an object, a key is missing, or a value is not what it should be.
        LeftOut: nothing to answer, or no answer.
    """
    if not isinstance(row, dict):
        raise BadRow(f"{place}: {_kind(row)} where an object with keys should be: {shown(row)}")
    if keys is None:
        keys = _detected(place, row)
    for field, key in keys.items():
        if key not in row and not field == key == "input":  # which may be missing, unless it has another name
            raise _no_key(place, row, key)
    system = [_text(place, key, row[key]) for field, key in keys.items() if field == "system"]
    if "messages" in keys:
        return _messages(place, row, keys["messages"], system)
    if "text" in keys:
        text = _text(place, keys["text"], row[keys["text"]])
        if not text:
            raise LeftOut("empty text")
        return (Turn("assistant", text),)
    given = row.get(keys["input"]) if "input" in keys else None
    question = _text(place, keys["instruction"], row[keys["instruction"]])
    further = "" if given is None else _text(place, keys["input"], given)
    return pair(question, _text(place, keys["output"], row[keys["output"]]), further, *system)


def pair(question: str, answer: str, further: str = "", system: str = "") -> Conversation:
    """A question, what it is about, and its answer.

    Raises:
        LeftOut: one of them is empty.
    """
    if not answer:
        raise LeftOut("empty output")
    if not question and not further:
        raise LeftOut("empty instruction")
    turns = (Turn("user", question, further), Turn("assistant", answer))
    return (Turn("system", system), *turns) if system else turns


def row_of(conversation: Conversation) -> dict[str, Any]:
    """The simplest row that `take` reads as this conversation."""
    roles = [turn.role for turn in conversation]
    if roles == ["assistant"]:
        return {"text": conversation[0].text}
    if roles[-2:] == ["user", "assistant"] and len(roles) == 2 + (roles[0] == "system"):
        question, answer = conversation[-2:]
        row = {"instruction": question.text, "input": question.input, "output": answer.text}
        return {"system": conversation[0].text, **row} if roles[0] == "system" else row
    return {"messages": [{"role": role, "content": text} for role, text, _ in conversation]}


def _detected(place: str, row: dict) -> Keys:
    """The keys of the first format that the row has all keys of.

    Raises:
        BadRow: there is none.
    """
    for names in FORMATS:
        if all(name in row for name in names):
            break
    else:
        known = [names for names in FORMATS if any(name in row for name in names)] or [("instruction", "output")]
        raise _no_key(place, row, next(name for name in known[0] if name not in row))
    if names[0] in ("messages", "conversations"):
        return {"messages": names[0]}
    if names == ("text",):
        return {"text": "text"}
    found = {"instruction": names[0], "input": "input", "output": names[1]}
    return {**found, "system": "system"} if row.get("system") is not None else found


def _messages(place: str, row: dict, key: str, system: list[str]) -> Conversation:
    """The turns of a list of messages, up to the last answer."""
    messages, turns = row[key], []
    if not isinstance(messages, list):
        raise BadRow(f"{place}:{key}: {_kind(messages)} where a list of messages should be: {shown(messages)}")
    for n, message in enumerate(messages):
        where = f"{key}[{n}]"
        if isinstance(message, str):
            turns.append(Turn("assistant" if n % 2 else "user", _text(place, where, message)))
        elif isinstance(message, dict):
            turns.append(_message(place, where, message))
        else:
            raise BadRow(f"{place}:{where}: {_kind(message)} where a message should be: {shown(message)}")
    if turns and turns[0].role == "system":
        system.append(turns.pop(0).text)
    elif row.get("system") is not None and not system:
        system.append(_text(place, "system", row["system"]))
    if tools := row.get("tools"):
        text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        system += [_text(place, "tools", text)] if text.strip() != "[]" else []
    while turns and turns[-1].role != "assistant":
        turns.pop()  # nobody answers it
    if not turns:
        raise LeftOut("no answer")
    if not all(turn.text for turn in turns):
        raise LeftOut("an empty turn")
    first = "\n\n".join(text for text in system if text)
    return (Turn("system", first), *turns) if first else tuple(turns)


def _message(place: str, where: str, message: dict) -> Turn:
    """A message of OpenAI's or ShareGPT's form."""
    role_key = next((key for key in ("role", "from") if key in message), None)
    text_key = next((key for key in ("content", "value") if key in message), None)
    if role_key is None or (text_key is None and not message.get("tool_calls")):
        what = "role and content, or from and value" if role_key is None else "content or value"
        raise BadRow(f"{place}:{where}: no {what} among {shown(', '.join(map(str, message)))}; name them so")
    role = _ROLE.get(message[role_key]) if isinstance(message[role_key], str) else None
    if role is None:
        known = ", ".join(ROLES)
        raise BadRow(f"{place}:{where}.{role_key}: {shown(message[role_key])} is no role; known are {known}")
    text = message.get(text_key) if text_key else None
    if calls := message.get("tool_calls"):
        calls = [call.get("function", call) if isinstance(call, dict) else call for call in calls or []]
        said = [] if text is None else [_text(place, f"{where}.{text_key}", text)]
        text = "\n".join(said + [json.dumps(call, ensure_ascii=False) for call in calls])
    elif isinstance(text, list):  # OpenAI's parts; of the kinds that there are, text is the one that we can read
        for part in text:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise BadRow(f"{place}:{where}.{text_key}: {shown(part)} is no part of type text; take it out")
        text = "\n".join(_text(place, f"{where}.{text_key}", part.get("text")) for part in text)
    return Turn(role, _text(place, f"{where}.{text_key or 'tool_calls'}", text))


def _text(place: str, key: str, value: Any) -> str:
    """The value, stripped.

    Raises:
        BadRow: it is not text, or not all of it is.
    """
    if not isinstance(value, str):
        mend = "put it between quotes" if isinstance(value, (bool, int, float)) else "give a text, or take the row out"
        raise BadRow(f"{place}:{key}: {_kind(value)} where text should be: {shown(value)}; {mend}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            near = value[max(0, error.start - 20) :].encode(errors="replace").decode()
            raise BadRow(f"{place}:{key}: bytes that are not UTF-8 in {shown(near)}; save it as UTF-8") from error
    if "\0" in value:
        near = value[max(0, value.index("\0") - 20) :]
        raise BadRow(f"{place}:{key}: a NUL character in {shown(near)}; take it out")
    return value.strip()


def parse_map(text: str) -> Keys:
    """Reads `--map instruction=question,output=answer`: field -> key.

    Raises:
        UserError: not of that form, no field of a sample, or fields that do not go together.
    """
    given: Keys = {}
    for part in text.split(","):
        field, equals, key = (word.strip() for word in part.partition("="))
        if not (equals and key) or field not in FIELDS:
            raise UserError(
                f"--map: '{part}' is not of the form field=key with field one of {', '.join(FIELDS)}; "
                f"{did_you_mean(field, FIELDS)}for example --map instruction=question,output=answer"
            )
        if field in given:
            raise UserError(f"--map: {field} is named twice, as '{given[field]}' and '{key}'; take one of them out")
        given[field] = key
    whole = next((name for name in ("messages", "text") if name in given), None)
    if whole and (clash := given.keys() - {whole, "system"}):
        raise UserError(f"--map: {whole} is a whole sample; take {', '.join(sorted(clash))} out")
    return given if whole else {"instruction": "instruction", "input": "input", "output": "output", **given}


def _no_key(place: str, row: dict, key: str) -> BadRow:
    own = len(row) == 2 and all(isinstance(value, str) for value in row.values())
    names = list(row) if own else ["question", "answer"]
    hint = f"prepare_json.py and prepare_csv.py take names: --map instruction={names[0]},output={names[1]}"
    return BadRow(f"{place}: no key '{key}' among {shown(', '.join(map(str, row)))}; {hint}")


def _kind(value: Any) -> str:
    return TYPES.get(type(value), "a number")

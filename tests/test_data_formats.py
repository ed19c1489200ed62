"""What a row says: every format, found out or named, and what can be wrong in it."""

import json
from typing import Any

import pytest
from conftest import SHARED

from lit_gpt.data.formats import LeftOut, parse_map, take
from lit_gpt.data.readers import BadRow, rows
from lit_gpt.prompts import Turn, problem

ASKED, ANSWERED = Turn("user", "Who?"), Turn("assistant", "I.")


def talk(*pairs: tuple[str, str], names: tuple[str, str] = ("role", "content")) -> list[dict]:
    return [dict(zip(names, pair, strict=True)) for pair in pairs]


CALL = {"id": "1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
ROWS = {
    "alpaca": ({"instruction": " Who?\n", "output": "I. "}, (ASKED, ANSWERED)),
    "input": ({"instruction": "Who?", "input": "Me.", "output": "I."}, (ASKED._replace(input="Me."), ANSWERED)),
    "null input": ({"instruction": "Who?", "input": None, "output": "I.", "more": [1]}, (ASKED, ANSWERED)),
    "system": ({"system": "Be", "instruction": "Who?", "output": "I."}, (Turn("system", "Be"), ASKED, ANSWERED)),
    "prompt": ({"prompt": "Who?", "completion": " I."}, (ASKED, ANSWERED)),
    "text": ({"text": " Once. \n", "meta": {"url": "x"}}, (Turn("assistant", "Once."),)),
    "openai": (
        {"messages": talk(("system", "Be"), ("user", "Who?"), ("assistant", "I."), ("user", "unanswered"))},
        (Turn("system", "Be"), ASKED, ANSWERED),
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}, *talk(("assistant", "I."))]},
        (ASKED, ANSWERED),
    ),
    "tool calls": (
        {
            "messages": [
                *talk(("user", "Who?")),
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                *talk(("tool", "1"), ("assistant", "I.")),
            ]
        },
        (ASKED, Turn("assistant", json.dumps(CALL["function"])), Turn("tool", "1"), ANSWERED),
    ),
    "developer": (
        {"messages": talk(("developer", "Be"), ("user", "Who?"), ("assistant", "I."))},
        (Turn("system", "Be"), ASKED, ANSWERED),
    ),
    "sharegpt": (
        {"conversations": talk(("human", "Who?"), ("gpt", "I."), names=("from", "value")), "system": "Be"},
        (Turn("system", "Be"), ASKED, ANSWERED),
    ),
    "tools": (
        {
            "conversations": talk(
                ("human", "Who?"),
                ("function_call", "f()"),
                ("observation", "1"),
                ("gpt", "I."),
                names=("from", "value"),
            ),
            "tools": "[{}]",
        },
        (Turn("system", "[{}]"), ASKED, Turn("assistant", "f()"), Turn("tool", "1"), ANSWERED),
    ),
    "no tools": ({"messages": talk(("user", "Who?"), ("assistant", "I.")), "tools": "[]"}, (ASKED, ANSWERED)),
    "lima": ({"conversations": ["Who?", "I.", "Who?", "I."], "source": "x"}, (ASKED, ANSWERED) * 2),
}


@pytest.mark.parametrize("name", ROWS)
def test_formats_are_found_out(name: str) -> None:
    row, expected = ROWS[name]
    assert take("x:1", row) == expected
    assert problem(expected) is None


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("instruction=q,output=a", {"q": "Who?", "a": "I.", "text": "no"}, (ASKED, ANSWERED)),
        ("instruction=q,output=a,input=c", {"q": "Who?", "a": "I.", "c": ""}, (ASKED, ANSWERED)),
        (
            "instruction=q,output=a,system=s",
            {"q": "Who?", "a": "I.", "s": "Be"},
            (Turn("system", "Be"), ASKED, ANSWERED),
        ),
        ("text=story", {"story": "Once.", "instruction": "no"}, (Turn("assistant", "Once."),)),
        ("messages=dialog", {"dialog": talk(("user", "Who?"), ("assistant", "I."))}, (ASKED, ANSWERED)),
        (
            "messages=m,system=s",
            {"m": talk(("user", "Who?"), ("assistant", "I.")), "s": "Be"},
            (Turn("system", "Be"), ASKED, ANSWERED),
        ),
    ],
)
def test_formats_that_are_named(text: str, row: dict, expected: tuple) -> None:
    assert take("x:1", row, parse_map(text)) == expected


def messages(*found: Any) -> dict:
    return {"messages": list(found)}


WRONG = {
    "no list": ({"messages": "hi"}, "x:1:messages: text where a list of messages should be: 'hi'"),
    "no message": (messages(5), "x:1:messages[0]: a number where a message should be: '5'"),
    "no role": (messages({"content": "x"}), "x:1:messages[0]: no role and content, or from and value among 'content'"),
    "no content": (messages({"role": "user"}), "x:1:messages[0]: no content or value among 'role'"),
    "role": (messages(*talk(("bot?", "x"))), "x:1:messages[0].role: 'bot?' is no role; known are system, user, assis"),
    "role type": (messages({"role": 1, "content": "x"}), "x:1:messages[0].role: '1' is no role"),
    "content": (messages(*talk(("user", "x")), {"role": "user", "content": 5}), "x:1:messages[1].content: a number wh"),
    "part": (messages({"role": "user", "content": [{"type": "image_url"}]}), "is no part of type text; take it out"),
    "nul": ({"prompt": "a\0b", "completion": "c"}, "x:1:prompt: a NUL character in 'a�b'; take it out"),
    "surrogate": ({"text": "caf\udce9"}, "x:1:text: bytes that are not UTF-8 in 'caf?'; save it as UTF-8"),
    "half": ({"prompt": "a"}, "x:1: no key 'completion' among 'prompt'"),
    "none": ({"a": 1}, "x:1: no key 'instruction' among 'a'"),
    "system": ({"system": 5, "instruction": "a", "output": "b"}, "x:1:system: a number where text should be: '5'"),
    "long": ({"text": ["y" * 500]}, "…'; give a text, or take the row out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_broken_rows(name: str) -> None:
    row, expected = WRONG[name]
    with pytest.raises(BadRow) as caught:
        take("x:1", row)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": " "}, "empty text"),
        ({"prompt": "a", "completion": " "}, "empty output"),
        ({"prompt": " ", "completion": "a"}, "empty instruction"),
        (messages(*talk(("user", "a"))), "no answer"),
        (messages(), "no answer"),
        (messages(*talk(("user", " "), ("assistant", "x"))), "an empty turn"),
    ],
)
def test_rows_that_are_left_out(row: dict, reason: str) -> None:
    with pytest.raises(LeftOut, match=reason):
        take("x:1", row)


@pytest.mark.skipif(not SHARED.exists(), reason="no real data at hand")
def test_real_conversations_with_tools() -> None:
    found = [take(place, row) for place, row in rows(SHARED / "data/chat/glaive_toolcall_sharegpt.json")]
    assert len(found) == 300
    assert {turn.role for turns in found for turn in turns} == {"system", "user", "assistant", "tool"}
    assert all(problem(turns) is None and turns[-1].role == "assistant" for turns in found)
    assert sum(turn.role == "tool" for turns in found for turn in turns) == 211

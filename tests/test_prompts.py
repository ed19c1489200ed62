"""Prompt styles."""

import pytest

from lit_gpt.prompts import STYLES, get_style
from lit_gpt.settings import UserError

ASK = "Write a response that appropriately completes the request."


def test_alpaca_wording() -> None:
    alpaca = get_style("alpaca")
    without = f"Below is an instruction that describes a task. {ASK}\n\n### Instruction:\nAdd 1.\n\n### Response:"
    assert alpaca.prompt("Add 1.") == without
    assert alpaca.prompt(" Add 1.\n", " \n") == without
    assert alpaca.prompt("Add 1.", " 2\n") == (
        f"Below is an instruction that describes a task, paired with an input that provides further context. {ASK}"
        "\n\n### Instruction:\nAdd 1.\n\n### Input:\n2\n\n### Response:"
    )


def test_plain_is_the_text_itself() -> None:
    plain = get_style("plain")
    assert plain.prompt("The sky is") == "The sky is"
    assert plain.prompt("Sum up:", "A long text.") == "Sum up:\n\nA long text."


@pytest.mark.parametrize("name", STYLES)
def test_prompts_end_without_a_space(name: str) -> None:
    """SentencePiece puts the space before the answer's first word; a second one would be another token."""
    for given in ("", "some input "):
        prompt = get_style(name).prompt("Do it. ", given)
        assert prompt == prompt.rstrip()
        assert "Do it." in prompt
        assert given.strip() in prompt


def test_unknown_style_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'alpacca'; did you mean alpaca\? known are alpaca, plain"):
        get_style("alpacca")
    with pytest.raises(UserError, match="no prompt style 'zzz'; known are"):
        get_style("zzz")

"""Stop strings: the text is cut at the right place however it comes in parts."""

import random

import pytest

from lit_gpt.settings import UserError
from lit_gpt.streaming import Until


def told(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    """What is let through of a text in parts, and whether it was ended."""
    until = Until(stops)
    text = "".join([until.add(part) for part in parts])
    return text + until.flush(), until.done


@pytest.mark.parametrize(
    ("stops", "parts", "expected", "done"),
    [
        (["###"], ["one #", "## two"], "one ", True),
        (["###"], ["one ##", " two #"], "one ## two #", False),
        (["\n\n", "END"], ["a\n", "b E", "N", "D\n\n"], "a\nb ", True),
        (["aab"], ["aaa", "b"], "a", True),
        (["aab", "ac"], ["xa", "c", "y"], "x", True),
        ([], ["all", " of it"], "all of it", False),
        (["stop"], ["stop"], "", True),
    ],
)
def test_where_the_text_ends(stops: list[str], parts: list[str], expected: str, done: bool) -> None:
    assert told(stops, parts) == (expected, done)


def test_any_split_gives_the_same_cut_and_nothing_sure_is_held_back() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice("ab") for _ in range(12))
        stop = "".join(rng.choice("ab") for _ in range(rng.randint(1, 4)))
        cuts = sorted(rng.sample(range(13), 4))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 12], strict=True)]
        assert told([stop], parts) == (text.split(stop)[0], stop in text)
        until = Until([stop])
        shown = until.add(text)
        if not until.done:
            held = text[len(shown) :]
            assert stop.startswith(held)
            assert len(held) < len(stop)


def test_an_empty_one_is_refused() -> None:
    with pytest.raises(UserError, match="--stop"):
        Until(["a", ""])

"""Conversations to tokens: in chunks, on all cores."""

import contextlib
import gc
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_gpt.prompts import Conversation, Style, get_style
from lit_gpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lit_gpt.data.prepare import Prepare

CHUNK = 2048
"""Samples tokenised at once."""


class Encoded(NamedTuple):
    """A conversation as tokens."""

    row: Conversation
    ids: Any
    """(T,) int32 array."""
    supervised: Any
    """(T,) bool array: which tokens are to be predicted; never the first."""
    cut: bool
    """Whether it was shortened."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cycles, of which rows and tokens have none: it is a sixth of the time of 52,000."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def trouble(conversation: Conversation, style: Style) -> str | None:
    """What keeps a conversation from being trained on, in words; None if nothing does."""
    if is_text(conversation):
        return None
    if reason := style.problem(conversation):
        return reason
    if conversation[-1].role != "assistant":
        return f"it ends with the {conversation[-1].role}'s turn; the last must be the assistant's, to be learnt"
    return None


def is_text(conversation: Conversation) -> bool:
    """Whether it is plain text: nobody asks for it, so it has no prompt, and is learnt as it stands."""
    return len(conversation) == 1 and conversation[0].role == "assistant"


def encode(
    conversations: Sequence[Conversation], style: Style, tokenizer: Tokenizer
) -> list[tuple[list[int], list[bool]]]:
    """The ids of each conversation, and whether each id is learnt; plain text between BOS and EOS, in every style."""
    talks = iter(style.encode(tokenizer, [found for found in conversations if not is_text(found)]))
    texts = iter(get_style("plain").encode(tokenizer, [found for found in conversations if is_text(found)]))
    return [next(texts if is_text(found) else talks) for found in conversations]


def tokenise(
    rows: list[Conversation], style: Style, tokenizer: Tokenizer, settings: "Prepare", dropped: Counter[str]
) -> list[Encoded]:
    """Tokenises conversations in chunks. Too long ones are shortened, or left out and counted in `dropped`."""
    import numpy as np

    def tokenised(first: int) -> list[tuple[np.ndarray, np.ndarray]]:
        found = encode(rows[first : first + CHUNK], style, tokenizer)
        ends = np.cumsum([len(ids) for ids, _ in found])
        # one array for all and views of it: making two small ones for every row takes longer than filling them
        flat = np.fromiter(chain.from_iterable(ids for ids, _ in found), np.int32, ends[-1])
        on = np.fromiter(chain.from_iterable(marks for _, marks in found), bool, ends[-1])
        return [(flat[a:b], on[a:b]) for a, b in pairwise([0, *ends.tolist()])]

    def keep(row: Conversation, ids: np.ndarray, marks: np.ndarray) -> None:
        cut = limit is not None and len(ids) > limit
        if cut and not settings.truncate:
            dropped[f"longer than {limit} tokens"] += 1
            return
        if cut:
            ids, marks = map(np.array, shortened(ids.tolist(), marks.tolist(), limit))
            if not marks.any():
                dropped[f"prompt longer than {limit} tokens"] += 1
                return
        supervised = marks if settings.mask_inputs else np.ones(len(ids), dtype=bool)
        supervised[0] = False
        encoded.append(Encoded(row, ids, supervised, cut))

    limit, encoded, starts = settings.max_seq_length, [], range(0, len(rows), CHUNK)
    pool = ThreadPoolExecutor(2)  # the library's threads work on one chunk while we lay out another
    try:
        for first, found in zip(starts, pool.map(tokenised, starts), strict=True):
            if sys.stderr.isatty():
                print(f"\rtokenising {first + len(found):,} of {len(rows):,}", end="\r", file=sys.stderr)
            for row, (ids, marks) in zip(rows[first : first + CHUNK], found, strict=True):
                keep(row, ids, marks)
    finally:
        pool.shutdown(cancel_futures=True)
    return encoded


def shortened(ids: list[int], marks: list[bool], limit: int) -> tuple[list[int], list[bool]]:
    """At most `limit` tokens of a conversation: an answer is cut, keeping the token that ends it; a question that would
    be cut is left out, with all that follows. Without an answer, no mark is left."""
    if marks[limit - 2] and marks[limit - 1]:
        return ids[: limit - 1] + ids[-1:], marks[: limit - 1] + marks[-1:]
    last = max((place for place in range(limit) if marks[place] and not marks[place + 1]), default=-1)
    return ids[: last + 1], marks[: last + 1]

"""Sequences that are scored as one tree, row by row, have the scores of single ones."""

import numpy as np
import pytest
import torch
from test_packing import FAMILIES, model_for

from lit_gpt.model import GPT
from lit_gpt.packs import Trunk
from lit_gpt.scoring import Score, Scored, plant, score


def sequences() -> list[Scored]:
    """Random ones of three different ids, so that they share beginnings of all lengths; equal ones, short ones."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(25):
        ids = draw.integers(0, 3, draw.integers(2, 30)).tolist()
        found.append((tuple(ids), int(draw.integers(1, len(ids)))))
    found += [(tuple([1] * 8 + [i]), 1) for i in range(5)]  # one place, many answers
    return [*found, found[3], ((7, 8), 1)]


def one_by_one(model: GPT, asked: list[Scored]) -> list[Score]:
    expected = []
    for ids, n in asked:
        logprobs, labels = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[-n:], torch.tensor(ids[-n:])
        total = logprobs.gather(1, labels[:, None]).sum().item()
        expected.append(Score(total, bool((logprobs.argmax(-1) == labels).all())))
    return expected


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_has_the_scores_of_single_sequences(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, whatever the length of a row: every kind of attention and of positions, also across rows."""
    model, asked = model_for(family).eval(), sequences()
    expected = one_by_one(model, asked)
    monkeypatch.setattr("lit_gpt.scoring.CHUNK_BYTES", 8 * 47 * 5)  # the head at five places at a time
    for pack_length in (5, 64, 10_000):
        found: dict[int, Score] = {}
        shares = []
        for share, known in score(model, asked, pack_length):
            shares.append(share)
            assert not found.keys() & dict(known).keys()
            found |= dict(known)
        assert shares == sorted(shares)
        assert shares[-1] == 1
        for i, one in enumerate(expected):
            assert found[i].logprob == pytest.approx(one.logprob, rel=1e-10), (pack_length, i)
            assert found[i].greedy == one.greedy


def test_the_likeliest_is_the_first_of_equals() -> None:
    model = model_for("llama").eval()
    model.lm_head.weight.data[4] = model.lm_head.weight.data[2] = model.lm_head.weight.data.sum(0) * 50
    for ids in ((1, 2), (1, 4)):
        [(_, [(_, found)])] = score(model, [(ids, 1)], 8)
        assert found.greedy == one_by_one(model, [(ids, 1)])[0].greedy


def test_nothing_is_laid_twice() -> None:
    asked = sequences()
    tree = plant(asked)
    beginnings = {ids[:end] for ids, _ in asked for end in range(1, len(ids))}
    assert len(tree.ids_T) == len(beginnings)
    assert len(tree.labels_P) == sum(n for _, n in asked)
    assert (np.diff(tree.places_P) >= 0).all()


def test_long_sequences_share_nothing_with_short_ones() -> None:
    """LongRoPE turns them otherwise, from their first token on."""
    model = model_for("longrope").eval()
    short = model.config.short_length
    asked = [((1,) * length + (2,), 1) for length in (short - 3, short, short + 1, short + 4)]
    tree = plant(asked, short)
    assert (np.flatnonzero(tree.depths_T == 0) == (0, short)).all()
    assert len(tree.ids_T) == 2 * short + 4
    ((_, known),) = score(model, asked, 100)
    for i, found in known:
        assert found.logprob == pytest.approx(one_by_one(model, asked)[i].logprob, rel=1e-10)


def test_only_the_way_is_kept_between_rows() -> None:
    """What is kept is as long as the path to the next token, and nothing at the end."""
    model, tree, trunk = model_for("llama").eval(), plant(sequences()), Trunk()
    size, kept = 16, []
    for start in range(0, len(tree.ids_T), size):
        depths = tree.depths_T[start : start + size]
        following = int(tree.depths_T[start + size]) if start + size < len(tree.ids_T) else 0
        positions = trunk.begin(depths, following, torch.device("cpu"))
        model.hidden(torch.from_numpy(tree.ids_T[start : start + size])[None], positions, trunk.attend)
        kept.append((trunk._kept[0][0].size(2), following))
    assert all(size == following for size, following in kept)
    assert max(size for size, _ in kept) > 10


def test_no_sequences() -> None:
    assert list(score(model_for("llama"), [], 8)) == []

"""Log-probabilities of token sequences: what they have in common at their beginning is computed once.

Sorted by their ids, sequences are a tree of tokens in depth-first order: each shares something with the one before it,
and what follows is new. The tree is computed in rows of so many tokens (`packs.Trunk`), of whatever sequences. The
head is asked only where something is to be scored, and once where several sequences are.

Shapes: T tokens of the tree, P scored pairs of a place and a token, N different places among them, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gpt.data.batches import in_common
from lit_gpt.loss import CHUNK_BYTES, head_rows
from lit_gpt.model import GPT
from lit_gpt.packs import Trunk

Scored = tuple[tuple[int, ...], int]
"""Token ids, and how many of them at the end are to be scored: all but the first at most."""


def pack_length_for(device: torch.device) -> int:
    """Tokens of a row that are enough to keep the device busy."""
    return 1024 if device.type == "cpu" else 4096


class Score(NamedTuple):
    """Of a sequence's scored tokens."""

    logprob: float
    """Sum of their log-probabilities, in nats."""
    greedy: bool
    """Whether each is the likeliest."""


class Tree(NamedTuple):
    """Sequences without their last tokens, which nothing follows, and what is asked of them."""

    ids_T: np.ndarray
    depths_T: np.ndarray
    lengths_T: np.ndarray
    """Of the first sequence that has the token."""
    places_P: np.ndarray
    """Where a scored token is predicted; ascending."""
    labels_P: np.ndarray
    owners_P: np.ndarray
    """The sequence that asks."""


def plant(sequences: Sequence[Scored], short_length: int | None = None) -> Tree:
    """The tree of the sequences.

    Args:
        short_length: longer ones share nothing with others; see `Config.short_length`.
    """
    rows = [np.array(ids, dtype=np.int32) for ids, _ in sequences]
    long = [short_length is not None and len(row) - 1 > short_length for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (long[i], rows[i][:-1].astype(">u4").tobytes()))  # id by id
    way = np.zeros(max(map(len, rows)), dtype=np.int64)
    total, before = 0, rows[0][:0]
    ids, depths, lengths, places, labels, owners = [], [], [], [], [], []
    for last, i in zip([order[0], *order], order, strict=False):
        row, n = rows[i][:-1], sequences[i][1]
        before = before if long[last] == long[i] else row[:0]
        depth = in_common(before, row)
        way[depth : len(row)] = np.arange(total, total + len(row) - depth)
        total += len(row) - depth
        ids.append(row[depth:])
        depths.append(np.arange(depth, len(row)))
        lengths.append(np.full(len(row) - depth, len(row)))
        places.append(way[len(row) - n : len(row)].copy())
        labels.append(rows[i][-n:])
        owners.append(np.full(n, i))
        before = row
    at = np.concatenate(places)
    ascending = np.argsort(at, kind="stable")
    pairs = (at, np.concatenate(labels).astype(np.int64), np.concatenate(owners))
    tokens = (np.concatenate(ids).astype(np.int64), np.concatenate(depths), np.concatenate(lengths))
    return Tree(*tokens, *(x[ascending] for x in pairs))


@torch.inference_mode()
def score(model: GPT, sequences: Sequence[Scored], pack_length: int) -> Iterator[tuple[float, list[tuple[int, Score]]]]:
    """Scores sequences, which may share ids; yields after every row.

    Args:
        pack_length: tokens of a call of the model.

    Yields:
        The share of the work that is done, and the sequences that have become known: their index and score.
    """
    if not sequences:
        return
    short = model.config.short_length
    tree, trunk, device = plant(sequences, short), Trunk(), model.wte.weight.device
    last_row = np.zeros(len(sequences), dtype=np.int64)
    np.maximum.at(last_row, tree.owners_P, tree.places_P // pack_length)
    sums, greedy = np.zeros(len(sequences)), np.ones(len(sequences), dtype=bool)
    for number, start in enumerate(range(0, len(tree.ids_T), pack_length)):
        row = slice(start, start + pack_length)
        following = int(tree.depths_T[row.stop]) if row.stop < len(tree.ids_T) else 0
        positions_1T = trunk.begin(tree.depths_T[row], following, device)
        asked = slice(*np.searchsorted(tree.places_P, (row.start, row.stop)))
        owners, (places_N, where_P) = tree.owners_P[asked], np.unique(tree.places_P[asked], return_inverse=True)
        idx_1T, at_N = torch.from_numpy(tree.ids_T[row])[None], torch.from_numpy(places_N - start)
        lengths_1T = None if short is None else torch.from_numpy(tree.lengths_T[row])[None].to(device)
        x_NC = model.hidden(idx_1T.to(device), positions_1T, trunk.attend, at_N.to(device), lengths_BT=lengths_1T)
        if len(owners):
            logprobs_P, likeliest_P = _predict(model, x_NC, where_P, tree.labels_P[asked])
            np.add.at(sums, owners, logprobs_P)
            np.logical_and.at(greedy, owners, likeliest_P)
        known = [(int(i), Score(float(sums[i]), bool(greedy[i]))) for i in np.unique(owners) if last_row[i] == number]
        yield min(row.stop / len(tree.ids_T), 1.0), known


def _predict(model: GPT, x_NC: Tensor, where_P: np.ndarray, labels_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of tokens, in nats, and whether they are the likeliest, each after an x; these ascend."""
    size = max(1, CHUNK_BYTES // (x_NC.element_size() * head_rows(model.lm_head)))
    logprobs, likeliest = [], []
    for start in range(0, len(x_NC), size):
        chunk = slice(*np.searchsorted(where_P, (start, start + size)))
        row_P, label_P = (torch.from_numpy(x).to(x_NC.device) for x in (where_P[chunk] - start, labels_P[chunk]))
        logits_NV = model.logits(x_NC[start : start + size])
        wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        found_P = wide_NV[row_P, label_P]
        logprobs.append(found_P - wide_NV.logsumexp(-1)[row_P])
        highest_P = found_P == wide_NV.amax(-1)[row_P]  # of several that are, the first counts, as in `argmax`
        highest_P[highest_P.clone()] = logits_NV[row_P[highest_P]].argmax(-1) == label_P[highest_P]
        likeliest.append(highest_P)
    return torch.cat(logprobs).cpu().double().numpy(), torch.cat(likeliest).cpu().numpy()

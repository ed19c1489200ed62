"""What rows have in common: passages of evaluation sets, and each other's words.

Near duplicates are found by MinHash (Broder 1997) over triples of words; rows that agree in a group of its values are
compared (Leskovec et al., Mining of Massive Datasets, 3.4).
"""

import string
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lit_gpt.data.readers import BadRow, expand, fingerprint, rows
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    import numpy as np

GRAM, BLOCK = 13, 7
"""Words of a passage that a row must not have in common with an evaluation set (Brown et al. 2020, appendix C); every
passage of 13 words holds one of 7 that begins at a multiple of 7, so that only these are looked up."""
PERMUTATIONS, BAND = 128, 5
"""MinHash: values of a row, and how many of them must be equal for two rows to be compared."""
ALIKE = 0.8
"""Rows with so large a share of equal values are near duplicates."""
EXAMPLES = 1000
"""Contaminated rows that the report names one by one."""

_NO_MARKS = str.maketrans(dict.fromkeys(string.punctuation + "“”‘’«»…–—¿¡", " "))


def words(text: str) -> list[str]:
    """The words of a text, without marks and capitals."""
    return text.lower().translate(_NO_MARKS).split()


class Contamination:
    """The passages of the evaluation sets, and which rows hold one of them."""

    def __init__(self, names: list[str]) -> None:
        self.blocks: set[str] = set()
        self.grams: dict[str, str] = {}
        """Passage -> where it stands."""
        self.examples: list[dict[str, str]] = []
        self.found: Counter[str] = Counter()
        self.files: list[dict[str, Any]] = []
        for path in expand(names, "decontaminate"):
            short = texts = 0
            for place, row in rows(path):
                if isinstance(row, BadRow):
                    raise UserError(f"decontaminate: {row}")
                for text in _texts(row):
                    found = words(text)
                    texts, short = texts + 1, short + (len(found) < GRAM)
                    for i in range(len(found) - GRAM + 1):
                        self.grams.setdefault(" ".join(found[i : i + GRAM]), place)
                    for i in range(len(found) - BLOCK + 1):
                        self.blocks.add(" ".join(found[i : i + BLOCK]))
            self.files.append({"file": str(path), "sha256": fingerprint(path), "texts": texts, "too short": short})

    def hit(self, text: str, place: str) -> bool:
        """Whether a text has a passage in common with an evaluation set; if so, it is noted."""
        found = words(text)
        for at in range(0, len(found) - BLOCK + 1, BLOCK):
            if " ".join(found[at : at + BLOCK]) in self.blocks:
                for i in range(max(0, at - GRAM + BLOCK), at + 1):
                    passage = " ".join(found[i : i + GRAM])
                    if passage in self.grams:
                        where = self.grams[passage]
                        self.found[where.rsplit(":", 1)[0]] += 1
                        if len(self.examples) < EXAMPLES:
                            self.examples.append({"row": place, "evaluation": where, "passage": passage})
                        return True
        return False

    def report(self) -> dict[str, Any]:
        """For the manifest."""
        return {"words": GRAM, "files": self.files, "rows removed": sum(self.found.values())}


def _texts(value: Any) -> Iterator[str]:
    """All texts in a row of an evaluation set, whatever its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def minhash() -> Callable[[list[str]], "np.ndarray"]:
    try:
        import rensa  # noqa: F401
    except ImportError as error:
        raise UserError("duplicates: near needs the package rensa; pip install 'lit-gpt[mix]'") from error
    return signatures


def signatures(texts: list[str]) -> "np.ndarray":
    """MinHash values of texts: (texts, PERMUTATIONS) uint32."""
    import numpy as np
    import rensa

    sets = []
    for text in texts:
        found = words(text)
        sets.append([" ".join(found[i : i + 3]) for i in range(max(1, len(found) - 2))])
    return np.array(rensa.RMinHash.digests_from_token_sets(sets, num_perm=PERMUTATIONS, seed=1), dtype=np.uint32)


def near_earlier(values: "np.ndarray") -> "np.ndarray":
    """Which rows are near duplicates of an earlier one, (rows,) bool, from their MinHash values.

    Rows that agree in a whole band are compared in full, each with the first of them and with the one before it.
    """
    import numpy as np

    near = np.zeros(len(values), dtype=bool)
    factors = np.random.RandomState(0).randint(1, 1 << 62, BAND).astype(np.uint64) * np.uint64(2) + np.uint64(1)
    for first in range(0, PERMUTATIONS - BAND + 1, BAND):
        band = (values[:, first : first + BAND].astype(np.uint64) * factors).sum(axis=1)  # a hash of it
        order = np.argsort(band, kind="stable")  # within a group in the order of the rows
        same = band[order][1:] == band[order][:-1]
        starts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(order)), 0))
        for other in (order[starts][1:][same], order[:-1][same]):
            row = order[1:][same]
            for part in range(0, len(row), 1 << 16):
                a, b = row[part : part + (1 << 16)], other[part : part + (1 << 16)]
                near[a[(values[a] == values[b]).mean(axis=1) >= ALIKE]] = True
    return near

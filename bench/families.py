"""Every family against transformers: rows of the catalogue, small random models tried, and the worst logit error.

    PYTHONPATH=tests python bench/families.py --write bench/README.md

The models are those of tests/test_families.py, in float32; an error is the largest difference of two logits over the
largest logit. "token by token" decodes the same tokens one after the other with the cache.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from test_families import VARIANTS, error, pair, tokens

from lit_gpt.families import families
from lit_gpt.families.catalogue import CATALOGUE
from lit_gpt.files import write_text
from lit_gpt.model import KVCache


@torch.inference_mode()
def worst(variant: str) -> tuple[float, float]:
    """The largest error of whole texts, and of one decoded token by token."""
    theirs, ours = pair(variant)
    texts = []
    long = [] if ours.config.short_length is None else [(2, ours.config.short_length + 9)]
    for batch, length in ((1, 1), (3, 2), (2, 17), (3, 64), *long):
        idx = tokens(ours, batch, length)
        texts.append(error(ours(idx), theirs(idx).logits))
    _, length = (*long, (2, 11))[0]
    idx = tokens(ours, 2, length)
    cache = KVCache(ours.config, 2, length, "cpu", torch.float32)
    logits = torch.cat([ours(piece, cache=cache) for piece in idx.split(1, dim=1)], dim=1)
    return max(texts), error(logits, theirs(idx).logits)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="Markdown file whose section <!-- families --> gets the table")
    args = parser.parse_args()
    known, rows = families(), defaultdict(list)
    for variant, settings in VARIANTS.items():
        rows[known[settings["model_type"]].__name__.rpartition(".")[2]].append(worst(variant))
    counts = defaultdict(int)
    for row in CATALOGUE.values():
        counts[known[row.config["model_type"]].__name__.rpartition(".")[2]] += 1
    lines = [
        "| family | rows of the catalogue | models tried | worst error | token by token |",
        "|---|---:|---:|---:|---:|",
    ]
    for family in sorted({*rows, *counts}):
        errors = rows[family]
        figures = [f"{max(column):.1e}" for column in zip(*errors, strict=True)] or ["as Llama's"] * 2
        lines.append(f"| {family} | {counts[family]} | {len(errors)} | {figures[0]} | {figures[1]} |")
    total = sum(counts.values()), sum(map(len, rows.values()))
    lines.append(f"| **{len({*rows, *counts})} families** | **{total[0]}** | **{total[1]}** | | |")
    table = "\n".join(lines)
    print(table)
    if args.write:
        text = args.write.read_text(encoding="utf-8")
        start, end = "<!-- families -->", "<!-- /families -->"
        before, _, rest = text.partition(start)
        write_text(args.write, f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()

"""How long preparing data takes: 52,000 rows of Alpaca's size, from the command to its end, and the same command again.

    python bench/data.py --checkpoint_dir checkpoints/EleutherAI/pythia-410m --data_file "alpaca_libre/*.jsonl"

The rows are those of --data_file (in any form that scripts/prepare_json.py reads), over and over with their words in
another order, so that no two are alike and the lengths are real ones. Each number is the median of --rounds runs.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lit_gpt.data.formats import LeftOut, take
from lit_gpt.data.readers import BadRow, expand, rows
from lit_gpt.files import read_json

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Runs and prints one line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint_dir", type=Path, action="append", required=True, help="may be given several times"
    )
    parser.add_argument("--data_file", action="append", required=True, help="real rows to take words from")
    parser.add_argument("--rows", type=int, default=52_000, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "rows.jsonl")
        write_rows(source, args.data_file, args.rows)
        for model in args.checkpoint_dir:
            first, again = [], []
            for n in range(args.rounds):
                command = [sys.executable, ROOT / "scripts" / "prepare_json.py", "--checkpoint_dir", model.resolve()]
                command += ["--data_file", source, "--destination_path", Path(folder, f"{model.name}-{n}")]
                first.append(seconds(command))
                again.append(seconds(command))
            meta = read_json(command[-1] / "meta.json")
            count, tokens = meta["rows"]["read"], meta["tokens"]["train"] + meta["tokens"]["test"]
            print(
                f"{meta['tokenizer']['file']}: {count:,} rows, {tokens:,} tokens in {statistics.median(first):.2f} s "
                f"({', '.join(f'{x:.2f}' for x in first)}); the same command again {statistics.median(again):.2f} s"
            )


def seconds(command: list) -> float:
    """How long a command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def write_rows(path: Path, names: list[str], count: int) -> None:
    """Writes `count` rows with the words of real ones, each in an order of its own."""
    found, draw = [], random.Random(0)
    for file in expand(names):
        for place, row in rows(file):
            try:
                if not isinstance(row, BadRow) and row.get("status", "ok") == "ok":
                    found.append(take(place, row))
            except (BadRow, LeftOut):
                pass
    with open(path, "w", encoding="utf-8") as out:
        for n in range(count):
            question, answer = found[n % len(found)][-2:]
            texts = (question.text, question.input, answer.text)
            words = [" ".join(draw.sample(part, len(part))) for part in (text.split(" ") for text in texts)]
            out.write(json.dumps(dict(zip(("instruction", "input", "output"), words, strict=True))) + "\n")


if __name__ == "__main__":
    main()

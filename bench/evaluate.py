"""Speed of the evaluation harness over this project's model and over its own Hugging Face model, same weights.

    python bench/evaluate.py --checkpoint_dir checkpoints/EleutherAI/pythia-160m \
        --truthfulqa truthfulqa_mc.jsonl --hellaswag hellaswag_1k.jsonl --write bench/README.md

The files hold rows of the hub's data sets: TruthfulQA's `question`, `mc1_targets`, `mc2_targets`; HellaSwag's with
`query`, `choices` and `gold`, as the harness makes them. Every run is a process of its own, and the systems take turns.
Prints a Markdown table; all numbers go to a JSON file.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, commit, hardware, markdown, run, say, write_section

from lit_gpt.files import read_json, write_json
from lit_gpt.settings import UserError

SYSTEMS = {"ours": "this project", "hf": "lm-eval's `hf` model"}
GROUPS = {"TruthfulQA": ["truthfulqa_mc1", "truthfulqa_mc2"], "HellaSwag": ["hellaswag"]}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint_dir", type=Path, help="Hugging Face checkpoint with the converted one in the same folder")
    add("--truthfulqa", type=Path, help="TruthfulQA's questions (JSON lines)")
    add("--hellaswag", type=Path, help="HellaSwag's questions (JSON lines)")
    add("--limit", type=int, default=20, help="documents of each of the three tasks [%(default)s]")
    add("--rounds", type=int, default=2, help="runs of each system [%(default)s]")
    add("--hf_batch_size", type=int, default=4, help="requests of a batch of the peer's [%(default)s]")
    add("--pack_length", type=int, help="tokens of a call of our model [as suits the device]")
    add("--precision", choices=["bf16-true", "32-true"], default="bf16-true", help="[%(default)s]")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--systems", default="ours,hf", help="[%(default)s]")
    add("--results", type=Path, default=Path("bench-evaluate.json"), help="JSON file for all numbers [%(default)s]")
    add("--show", action="store_true", help="measure nothing: show the numbers in --results")
    add("--write", type=Path, help="Markdown file whose section gets the table")
    add("--section", default="evaluate", help="name of the section [%(default)s]")
    args = parser.parse_args(argv)
    if not args.show and not (args.checkpoint_dir and args.truthfulqa and args.hellaswag):
        parser.error("--checkpoint_dir, --truthfulqa and --hellaswag are required")
    return args


def measure(args: argparse.Namespace) -> None:
    """Runs the systems in turns; what is known is in `--results` after every run."""
    chosen = ("limit", "rounds", "hf_batch_size", "pack_length", "precision", "device")
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "model": args.checkpoint_dir.resolve().name,
        "hardware": hardware(args.device),
        "commit": commit(),
        "versions": {name: version(name) for name in ("torch", "transformers", "lm_eval")},
        "settings": {key: getattr(args, key) for key in chosen},
        "runs": {},
    }
    job = {**result["settings"], "checkpoint_dir": str(args.checkpoint_dir.resolve()), "groups": GROUPS}
    job["files"] = {kind: str(vars(args)[kind].resolve()) for kind in ("truthfulqa", "hellaswag")}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for number, system in itertools.product(range(args.rounds), args.systems.split(",")):
            write_json(scratch / "job.json", {**job, "system": system})
            command = [sys.executable, ROOT / "bench" / "peers" / "harness.py", "--job", scratch / "job.json"]
            usage = run([*command, "--out", scratch / "out.json"], args.device, scratch / "log")
            done = read_json(scratch / "out.json") | usage
            done["memory_gb"] = done.pop("gpu_memory_gb") or done["memory_gb"]
            result["runs"].setdefault(system, []).append(done)
            shown = ", ".join(f"{group} {seconds:.1f} s" for group, seconds in done["seconds"].items())
            say(f"round {number + 1}: {system} {shown}; others had {done['others']:.0%} of the processors")
            write_json(args.results, result)


def report(result: dict[str, Any]) -> str:
    """The table in Markdown: medians over the runs."""
    s, runs = result["settings"], result["runs"]
    seconds = {
        name: {group: statistics.median(one["seconds"][group] for one in done) for group in GROUPS}
        for name, done in runs.items()
    }
    heads = ["system"]
    for group in GROUPS:
        heads += [f"{group}, s", *([f"× {SYSTEMS['hf']}"] if "hf" in runs else [])]
    heads += ["peak memory GB", "mc1, mc2, HellaSwag"]
    rows = []
    for name, done in runs.items():
        row = [SYSTEMS[name]]
        for group in GROUPS:
            row += [f"{seconds[name][group]:.2f}"]
            row += [f"{seconds['hf'][group] / seconds[name][group]:.1f}"] if "hf" in runs else []
        row += [f"{statistics.median(one['memory_gb'] for one in done):.2f}"]
        rows.append([*row, ", ".join(f"{score:.3f}" for score in done[0]["scores"].values())])
    far = ""
    if len(runs) > 1:
        pairs = list(zip(*(done[0]["answers"] for done in runs.values()), strict=True))
        apart = [abs(a - b) / abs(b) for a, b in pairs]
        far = (
            f" The log-likelihoods of {len(pairs):,} requests are {statistics.median(apart):.1e} apart (relative, "
            f"median), {max(apart):.1e} at most."
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    busy = max(one["others"] for done in runs.values() for one in done)
    facts = (
        f"{result['hardware']}; {result['model']}, {s['precision']}; the first {s['limit']} documents of each of "
        f"truthfulqa_mc1, truthfulqa_mc2 and hellaswag, {s['rounds']} rounds; batches of {s['hf_batch_size']} for the "
        f"peer. {versions}. Commit {result['commit']}, {result['date']}; other processes had at most {busy:.0%} of the "
        f"processors during a run."
    )
    return f"{facts}{far}\n\n{markdown(heads, rows)}"


def main() -> None:
    """Measures, prints, writes."""
    args = parse()
    try:
        if not args.show:
            measure(args)
        result = read_json(args.results)
    except (UserError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    text = report(result)
    print(text)
    if args.write:
        write_section(args.write, args.section, text)


if __name__ == "__main__":
    main()

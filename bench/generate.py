"""Speed and memory of generation: this project, litgpt and transformers, on the same weights and prompt.

    python bench/generate.py --checkpoint_dir checkpoints/TinyLlama/TinyLlama-1.1B --litgpt_name tiny-llama-1.1b \
        --litgpt_python ../litgpt/bin/python --write bench/README.md

Every run is a process of its own, and the systems take turns (A B C A B C ...). All continue the same prompt of
`--prompt_tokens` ids greedily. A run measures the rate at which memory is read, too: weights / rate is the time that a
token of a single text takes at least. Prints a Markdown table; all numbers go to a JSON file.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, commit, hardware, litgpt_checkpoint, markdown, run, say, write_section

from lit_gpt.config import Config
from lit_gpt.files import read_json, write_json

OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("this project, bf16", {}),
    "ours-eager": ("this project, bf16, without a CUDA graph", {"graph": False}),
    "ours-compile": ("this project, bf16, compiled", {"compile": True}),
    "ours-nf4": ("this project, bnb.nf4", {"quantize": "bnb.nf4"}),
    "ours-int8": ("this project, torch.int8", {"quantize": "torch.int8"}),
    "ours-int8-compile": ("this project, torch.int8, compiled", {"quantize": "torch.int8", "compile": True}),
    "ours-int4": ("this project, torch.int4", {"quantize": "torch.int4"}),
    "ours-int4-compile": ("this project, torch.int4, compiled", {"quantize": "torch.int4", "compile": True}),
    "ours-8": ("this project, bf16, 8 texts", {"batch_size": 8}),
}
"""Name -> what the table calls it, and what is other than usual."""
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "litgpt": ("litgpt", {}),
    "transformers": ("transformers", {}),
    "litgpt-8": ("litgpt, 8 texts", {"batch_size": 8}),
    "transformers-8": ("transformers, 8 texts", {"batch_size": 8}),
}
SYSTEMS = OURS | PEERS


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint_dir", type=Path, help="Hugging Face checkpoint with the converted one in the same folder")
    add("--systems", default="ours,ours-nf4,ours-int8,ours-int4,ours-8,litgpt,transformers,transformers-8",
        help=f"of {', '.join(SYSTEMS)} [%(default)s]")  # fmt: skip
    add("--litgpt_python", help="Python of an environment with litgpt; without it litgpt is left out")
    add("--litgpt_name", help="litgpt's name of the model [name of the checkpoint's folder]")
    add("--hf_python", default=sys.executable, help="Python of an environment with transformers [this one]")
    add("--prompt_tokens", type=int, default=32, help="[%(default)s]")
    add("--new_tokens", type=int, default=64, help="[%(default)s]")
    add("--repeats", type=int, default=2, help="generations of a run [%(default)s]")
    add("--rounds", type=int, default=3, help="runs of each system [%(default)s]")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--random_weights", action="store_true", help="the checkpoint has none: draw them (bench/gpu_train.py)")
    add("--seed", type=int, default=1337, help="[%(default)s]")
    add("--results", type=Path, default=Path("bench-generate.json"), help="JSON file for all numbers [%(default)s]")
    add("--show", action="store_true", help="measure nothing: show the numbers in --results")
    add("--write", type=Path, help="Markdown file whose section gets the table")
    add("--section", default="generate", help="between <!-- NAME --> and <!-- /NAME --> [%(default)s]")
    args = parser.parse_args(argv)
    for name in ("litgpt_python", "hf_python"):  # runs start in the repository; a link to a Python is not followed
        python = getattr(args, name)
        setattr(args, name, os.path.abspath(python) if python and os.sep in python else python)
    args.systems = [name for name in args.systems.split(",") if not name.startswith("litgpt") or args.litgpt_python]
    if unknown := [name for name in args.systems if name not in SYSTEMS]:
        parser.error(f"--systems: unknown {unknown[0]}; known are {', '.join(SYSTEMS)}")
    if not args.show and not args.checkpoint_dir:
        parser.error("--checkpoint_dir is required")
    return args


def make_job(args: argparse.Namespace) -> dict[str, Any]:
    """What every worker is to do, but for what `SYSTEMS` changes."""
    generator = torch.Generator().manual_seed(args.seed)
    words = Config.from_checkpoint(args.checkpoint_dir).padded_vocab_size
    return {
        "prompt": torch.randint(3, words, (args.prompt_tokens,), generator=generator).tolist(),
        "checkpoint_dir": str(args.checkpoint_dir.resolve()),
        "litgpt_name": args.litgpt_name or args.checkpoint_dir.resolve().name,
        **{name: getattr(args, name) for name in ("new_tokens", "repeats", "device", "random_weights", "seed")},
        "quantize": None,
        "compile": False,
        "graph": True,
        "batch_size": 1,
    }


def measure(args: argparse.Namespace) -> None:
    """Runs all systems in turns; what is known is in `--results` after every run."""
    job = make_job(args)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "model": args.checkpoint_dir.resolve().name + (" shape, random weights" if args.random_weights else ""),
        "hardware": hardware(args.device),
        "commit": commit(),
        "python": platform.python_version(),
        "settings": {key: getattr(args, key) for key in ("prompt_tokens", "new_tokens", "repeats", "rounds", "device")},
        "runs": {},
        "failed": {},
    }
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if any(system.startswith("litgpt") for system in args.systems) and not args.random_weights:
            job["litgpt_checkpoint"] = str(
                litgpt_checkpoint(args.litgpt_python, args.checkpoint_dir, job["litgpt_name"], scratch)
            )
        for number, system in itertools.product(range(args.rounds), args.systems):
            if system in result["failed"]:
                continue
            folder = scratch / f"{number}-{system}"
            folder.mkdir()
            own = job | SYSTEMS[system][1]
            (folder / "job.json").write_text(json.dumps(own | {"prompts": [job["prompt"]] * own["batch_size"]}))
            python, script = sys.executable, "ours_generate.py"
            if system in PEERS:
                python = args.litgpt_python if system.startswith("litgpt") else args.hf_python
                script = "peers/litgpt_generate.py" if system.startswith("litgpt") else "peers/hf_generate.py"
            command = [python, ROOT / "bench" / script, "--job", folder / "job.json", "--out", folder / "result.json"]
            try:
                usage = run(command, args.device, folder / "log", {"PYTHONPATH": str(ROOT / "bench" / "peers")})
            except RuntimeError as error:
                result["failed"][system] = str(error)
                say(f"round {number + 1}: {system} failed: {error}")
            else:
                done = read_json(folder / "result.json") | {"others": usage["others"]}
                result["runs"].setdefault(system, []).append(done)
                speed, rate = (statistics.median(done[key]) for key in ("tokens_per_second", "rates"))
                say(f"round {number + 1}: {system} {speed:.1f} tokens/s, memory read at {rate / 1e9:.1f} GB/s")
            write_json(args.results, result)


def report(result: dict[str, Any]) -> str:
    """The table in Markdown. Figures are medians over the generations of all runs."""
    s, runs = result["settings"], result["runs"]

    def median(name: str, key: str) -> float:
        return statistics.median(value for one in runs[name] for value in one[key])

    rate = statistics.median(value for done in runs.values() for one in done for value in one["rates"])
    peers = [name for name in ("litgpt", "transformers") if name in runs]
    heads = ["system", "tokens/s", *(f"× {name}" for name in peers), "of the limit", "first token ms", "peak memory GB"]
    rows = []
    for name, done in runs.items():
        speed, batch = median(name, "tokens_per_second"), SYSTEMS[name][1].get("batch_size", 1)
        # Of every run by itself: the rate of memory changes with what the machine's other guests do.
        share = statistics.median(
            statistics.median(one["tokens_per_second"]) * one["weight_bytes"] / batch / statistics.mean(one["rates"])
            for one in done
        )
        row = [
            SYSTEMS[name][0],
            f"{speed:.1f}",
            *(f"{speed / median(peer, 'tokens_per_second'):.2f}" for peer in peers),
        ]
        row += [f"{share:.0%}", f"{1000 * median(name, 'prefill_seconds'):.0f}"]
        rows.append([*row, f"{statistics.median(one['memory_gb'] for one in done):.2f}"])
    versions = {key: value for done in runs.values() for key, value in done[0]["versions"].items()}
    known = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    others = max((one["others"] for done in runs.values() for one in done), default=0)
    rates = [value / 1e9 for done in runs.values() for one in done for value in one["rates"]]
    facts = (
        f"{result['hardware']}; {result['model']}; {s['prompt_tokens']} tokens of prompt, {s['new_tokens']} new ones, "
        f"greedy; {s['repeats']} generations a run, {s['rounds']} rounds. Memory is read at {rate / 1e9:,.1f} GB/s "
        f"(median; from {min(rates):,.1f} to {max(rates):,.1f}). Python {result['python']}, {known}. "
        f"Commit {result['commit']}, {result['date']}; other processes had at most {others:.0%} of the processors "
        "during a run."
    )
    same = [name for name in ("ours", *peers) if name in runs and "random" not in result["model"]]
    alike = {name: sum(map(int.__eq__, runs[name][0]["tokens"][0], runs[same[0]][0]["tokens"][0])) for name in same[1:]}
    agree = "".join(f" Of {s['new_tokens']} tokens {n} are those of {name}." for name, n in alike.items())
    failed = "".join(f"\n\nFailed: {name}: {reason}" for name, reason in result["failed"].items())
    return f"{facts}{agree}\n\n{markdown(heads, rows)}{failed}"


def main() -> None:
    """Measures, prints, writes."""
    args = parse()
    if not args.show:
        measure(args)
    result = read_json(args.results)
    text = report(result)
    print(text)
    if args.write:
        write_section(args.write, args.section, text)
    sys.exit(1 if result["failed"] else 0)


if __name__ == "__main__":
    main()

"""Speed, memory and loss of LoRA finetuning: this project, litgpt, and transformers + PEFT, on the same samples.

    python bench/train.py --checkpoint_dir checkpoints/EleutherAI/pythia-160m --data_dir data/alpaca_libre \
        --litgpt_python ../litgpt/bin/python --write bench/README.md

Every run is a process of its own, and the systems take turns (A B C A B C ...). Ours is the real command,
finetune/lora.py; the peers' workers in bench/peers get the samples that it draws, in its order, as token ids.
Prints a Markdown table; the numbers of every step of every run go to a JSON file.
"""

import argparse
import csv
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
from torch import nn

from lit_gpt.config import Config
from lit_gpt.data.batches import Batches, Layout
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.files import read_json, write_json
from lit_gpt.model import meta_gpt
from lit_gpt.settings import UserError
from lit_gpt.train import learning_rate

OURS = {
    "ours": ("this project", []),
    "ours-unshared": ("this project, prefix not shared", ["--share_prefix", "false"]),
    "ours-padded": ("this project, padded", ["--pack_length", "0"]),
    "ours-low_memory": ("this project, low memory", ["--low_memory", "true"]),
    "ours-17.5": ("this project, within 17.5 GB", ["--memory_gb", "18.6"]),
    "ours-compile": ("this project, compiled", ["--compile", "true"]),
    "ours-compile-17.5": ("this project, compiled, within 17.5 GB", ["--compile", "true", "--memory_gb", "18.6"]),
    "ours-nf4-dq": ("this project, nf4-dq, low memory", ["--quantize", "bnb.nf4-dq", "--low_memory", "true"]),
}
"""Name -> what the table calls it, and its flags."""
PEERS = {"litgpt": "litgpt", "peft": "transformers + PEFT"}
LORA = {"r": 8, "alpha": 16}
RATE, WEIGHT_DECAY, CLIP_NORM = 3e-4, 0.01, 1.0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint_dir", type=Path, help="Hugging Face checkpoint with the converted one in the same folder")
    add("--data_dir", type=Path, help="data prepared with its tokenizer")
    add("--systems", default="ours,ours-unshared,litgpt,peft", help=f"of {', '.join([*OURS, *PEERS])} [%(default)s]")
    add("--litgpt_python", help="Python of an environment with litgpt; without it litgpt is left out")
    add("--litgpt_name", help="litgpt's name of the model [name of the checkpoint's folder]")
    add("--peft_python", default=sys.executable, help="Python of an environment with transformers and peft [this one]")
    add("--steps", type=int, default=12, help="optimizer steps of a run [%(default)s]")
    add("--skip", type=int, default=2, help="first steps that are not timed [%(default)s]")
    add("--rounds", type=int, default=3, help="runs of each system [%(default)s]")
    add("--batch_size", type=int, default=16, help="samples of a step [%(default)s]")
    add("--micro_batch_size", type=int, default=4, help="samples of a padded forward pass [%(default)s]")
    add("--precision", choices=["bf16-true", "32-true"], default="bf16-true", help="[%(default)s]")
    add("--lora_dropout", type=float, default=0.05, help="[%(default)s]")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--peak_tflops", type=float, help="the device's peak by its maker, for a further column")
    add("--random_weights", action="store_true", help="the checkpoint has none: draw them (bench/gpu_train.py)")
    add("--seed", type=int, default=1337, help="[%(default)s]")
    add("--results", type=Path, default=Path("bench-train.json"), help="JSON file for all numbers [%(default)s]")
    add("--show", action="store_true", help="measure nothing: show the numbers in --results")
    add("--write", type=Path, help="Markdown file whose section gets the table")
    add("--section", default="cpu", help="name of the section, between <!-- NAME --> and <!-- /NAME --> [%(default)s]")
    args = parser.parse_args(argv)
    for name in ("litgpt_python", "peft_python"):  # runs start in the repository; a link to a Python is not followed
        python = getattr(args, name)
        setattr(args, name, os.path.abspath(python) if python and os.sep in python else python)
    args.systems = [name for name in args.systems.split(",") if name != "litgpt" or args.litgpt_python]
    if unknown := [name for name in args.systems if name not in OURS and name not in PEERS]:
        parser.error(f"--systems: unknown {unknown[0]}; known are {', '.join([*OURS, *PEERS])}")
    if not args.show and not (args.checkpoint_dir and args.data_dir):
        parser.error("--checkpoint_dir and --data_dir are required")
    if not 0 <= args.skip < args.steps:
        parser.error(f"--skip {args.skip}: must be less than --steps {args.steps}")
    return args


def make_job(args: argparse.Namespace) -> dict[str, Any]:
    """What the peers are to do: our samples in our order, as ids and labels, and the same hyperparameters."""
    dataset = TokenDataset(args.data_dir, "train")
    batches = Batches(dataset, list(range(len(dataset))), args.batch_size, Layout(), args.seed)
    warmup = max(1, args.steps // 10)

    def sample(i: int) -> dict[str, list[int]]:
        ids = dataset.ids(i)
        return {"ids": ids.tolist(), "labels": ids.masked_fill(~dataset.supervised(i), -100).tolist()}

    return {
        "steps": [[sample(i) for i in batches.step_samples(step)] for step in range(args.steps)],
        "learning_rates": [learning_rate(step, args.steps, warmup, RATE, 0.0) for step in range(args.steps)],
        "warmup": warmup,
        "micro_batch_size": args.micro_batch_size,
        "precision": args.precision,
        "device": args.device,
        "seed": args.seed,
        "lora": {**LORA, "dropout": args.lora_dropout},
        "weight_decay": WEIGHT_DECAY,
        "clip_norm": CLIP_NORM,
        "random_weights": args.random_weights,
        "litgpt_name": args.litgpt_name or args.checkpoint_dir.resolve().name,
    }


def run_ours(args: argparse.Namespace, job: dict[str, Any], flags: list[str], folder: Path) -> dict[str, Any]:
    """A run of finetune/lora.py: tokens per second, loss of every step, peak memory in GB, versions."""
    script = "bench/gpu_train.py" if args.random_weights else "finetune/lora.py"
    command = [sys.executable, ROOT / script, "--checkpoint_dir", args.checkpoint_dir.resolve()]
    command += ["--data_dir", args.data_dir.resolve(), "--out_dir", folder / "out", "--precision", args.precision]
    command += ["--batch_size", args.batch_size, "--micro_batch_size", args.micro_batch_size, "--seed", args.seed]
    command += ["--max_steps", args.steps, "--warmup_steps", job["warmup"], "--learning_rate", RATE]
    command += ["--weight_decay", WEIGHT_DECAY, "--clip_norm", CLIP_NORM, "--lora_r", LORA["r"]]
    command += ["--lora_alpha", LORA["alpha"], "--lora_dropout", args.lora_dropout, "--log_interval", 1]
    command += ["--eval_interval", args.steps, "--save_interval", args.steps, "--eval_iters", 1, *flags]
    usage = run(command, args.device, folder / "log")
    with open(folder / "out" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    counted = [b - a for a, b in itertools.pairwise([0, *(int(row["tokens"]) for row in rows)])]
    if counted != tokens_of(job):
        raise RuntimeError(f"trained on other samples: {counted} tokens, expected {tokens_of(job)}")
    described = read_json(folder / "out" / "run.json")
    return {
        "tokens_per_second": [float(row["tokens_per_second"]) for row in rows],
        "losses": [float(row["loss"]) for row in rows],
        **usage | ({"memory_gb": described["result"]["memory_gb"]} if args.device == "cuda" else {}),
        "versions": {name: described["versions"][name] for name in ("torch", "lightning")},
    }


def run_peer(
    args: argparse.Namespace, job: dict[str, Any], name: str, checkpoint: Path, folder: Path
) -> dict[str, Any]:
    """As `run_ours`, of a peer's worker."""
    python = {"litgpt": args.litgpt_python, "peft": args.peft_python}[name]
    (folder / "job.json").write_text(json.dumps(job))
    command = [python, ROOT / "bench" / "peers" / f"{name}_lora.py"]
    command += ["--checkpoint_dir", checkpoint, "--job", folder / "job.json", "--out", folder / "result.json"]
    usage = run(command, args.device, folder / "log")
    result = read_json(folder / "result.json")
    return {
        "tokens_per_second": [n / s for n, s in zip(tokens_of(job), result["seconds"], strict=True)],
        "losses": result["losses"],
        **usage | ({"memory_gb": result["gpu_memory_gb"]} if args.device == "cuda" else {}),
        "versions": result["versions"],
    }


def tokens_of(job: dict[str, Any]) -> list[int]:
    """Real tokens of every step."""
    return [sum(len(sample["ids"]) for sample in step) for step in job["steps"]]


def matmul_tflops(width: int, device: str, dtype: torch.dtype, repeats: int = 30) -> float:
    """The rate, in 10^12 operations per second, of an MLP's product: the best of several."""
    rows = 8192 if device == "cuda" else 1024
    x, weight = (
        torch.randn(rows, width, device=device).to(dtype),
        torch.randn(4 * width, width, device=device).to(dtype),
    )
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        nn.functional.linear(x, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * rows * width * 4 * width / best / 1e12


def measure(args: argparse.Namespace) -> None:
    """Runs all systems, and the matmul, in turns; what is known is in `--results` after every run."""
    job, dtype = make_job(args), torch.bfloat16 if args.precision == "bf16-true" else torch.float32
    result = describe(args, job)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        places = {"peft": args.checkpoint_dir.resolve(), "litgpt": args.checkpoint_dir.resolve()}
        if "litgpt" in args.systems and not args.random_weights:
            try:
                places["litgpt"] = litgpt_checkpoint(
                    args.litgpt_python, args.checkpoint_dir, job["litgpt_name"], scratch
                )
            except RuntimeError as error:
                result["failed"]["litgpt"] = f"conversion: {error}"
        for number, system in itertools.product(range(args.rounds), args.systems):
            if system == args.systems[0]:
                width = Config.from_checkpoint(args.checkpoint_dir).n_embd
                result["matmul_tflops"].append(matmul_tflops(width, args.device, dtype))
                say(f"round {number + 1}: matmul {result['matmul_tflops'][-1]:.3f} TFLOP/s")
            if system in result["failed"]:
                continue
            folder = scratch / f"{number}-{system}"
            folder.mkdir()
            try:
                if system in OURS:
                    done = run_ours(args, job, OURS[system][1], folder)
                else:
                    done = run_peer(args, job, system, places[system], folder)
            except RuntimeError as error:
                result["failed"][system] = str(error)
                say(f"round {number + 1}: {system} failed: {error}")
            else:
                result["runs"].setdefault(system, []).append(done)
                speed = statistics.median(done["tokens_per_second"][args.skip :])
                used = f"{done['memory_gb']:.2f} GB; others had {done['others']:.0%} of the processors"
                say(f"round {number + 1}: {system} {speed:,.0f} tokens/s, {used}")
            write_json(args.results, result)


def describe(args: argparse.Namespace, job: dict[str, Any]) -> dict[str, Any]:
    """What is measured, where; the results are still empty."""
    chosen = (
        "steps",
        "skip",
        "rounds",
        "batch_size",
        "micro_batch_size",
        "precision",
        "lora_dropout",
        "device",
        "seed",
    )
    model = meta_gpt(Config.from_checkpoint(args.checkpoint_dir))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "model": args.checkpoint_dir.resolve().name + (" shape, random weights" if args.random_weights else ""),
        "data": TokenDataset(args.data_dir, "train").meta["name"],
        "hardware": hardware(args.device),
        "commit": commit(),
        "python": platform.python_version(),
        "settings": {key: getattr(args, key) for key in (*chosen, "peak_tflops")},
        "matmul_parameters": sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)),
        "matmul_tflops": [],
        "tokens": tokens_of(job),
        "runs": {},
        "failed": {},
    }


def report(result: dict[str, Any]) -> str:
    """The tables in Markdown. Speeds are medians over the timed steps of a run, then over the runs."""
    s, runs = result["settings"], result["runs"]
    speeds = {
        name: statistics.median(statistics.median(one["tokens_per_second"][s["skip"] :]) for one in done)
        for name, done in runs.items()
    }
    rate = statistics.median(result["matmul_tflops"])
    work = 4 * result["matmul_parameters"] / 1e12
    peers = [name for name in PEERS if name in runs]
    heads = ["system", "real tokens/s", *(f"× {PEERS[name]}" for name in peers), "of the floor"]
    heads += [*(["of peak"] if s["peak_tflops"] else []), "peak memory GB", "loss of the last step"]
    rows = []
    for name, done in runs.items():
        row = [label(name, done[0]["versions"]), f"{speeds[name]:,.0f}"]
        row += [f"{speeds[name] / speeds[peer]:.2f}" for peer in peers] + [f"{speeds[name] * work / rate:.0%}"]
        row += [f"{speeds[name] * work / s['peak_tflops']:.0%}"] if s["peak_tflops"] else []
        row += [f"{statistics.median(one['memory_gb'] for one in done):.2f}", f"{done[0]['losses'][-1]:.4f}"]
        rows.append(row)
    shown = [step for step in range(s["steps"]) if step % -(-s["steps"] // 12) == 0 or step == s["steps"] - 1]
    losses = [[label(name, {}), *(f"{done[0]['losses'][step]:.3f}" for step in shown)] for name, done in runs.items()]
    versions = {k: v for done in runs.values() for k, v in done[0]["versions"].items()}
    known = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    facts = (
        f"{result['hardware']}; {result['model']}, {s['precision']}; {result['data']}, batches of {s['batch_size']}, "
        f"micro-batches of {s['micro_batch_size']}; LoRA r {LORA['r']} on q and v, dropout {s['lora_dropout']}; "
        f"{s['steps']} steps of {statistics.mean(result['tokens']):,.0f} real tokens, the first {s['skip']} not timed, "
        f"{s['rounds']} rounds. Matmul {rate:.3g} TFLOP/s, "
        f"{result['matmul_parameters'] / 1e6:,.1f} M matmul parameters. "
        f"Python {result['python']}, {known}. Commit {result['commit']}, {result['date']}; "
        f"other processes had at most {max((one['others'] for done in runs.values() for one in done), default=0):.0%} "
        "of the processors during a run."
    )
    failed = "".join(f"\n\nFailed: {name}: {reason}" for name, reason in result["failed"].items())
    heading = f"Loss (nats per supervised token) of {'every step' if len(shown) == s['steps'] else 'some steps'}:"
    curves = markdown(["step", *(n + 1 for n in shown)], losses)
    return f"{facts}\n\n{markdown(heads, rows)}\n\n{heading}\n\n{curves}{failed}"


def label(name: str, versions: dict[str, str]) -> str:
    """What the table calls a system."""
    if name in OURS:
        return OURS[name][0]
    return " ".join([PEERS[name], *([versions["litgpt"]] if "litgpt" in versions else [])])


def main() -> None:
    """Measures, prints, writes."""
    args = parse()
    try:
        if not args.show:
            measure(args)
        result = read_json(args.results)
    except UserError as error:
        sys.exit(f"error: {error}")
    text = report(result)
    print(text)
    if args.write:
        write_section(args.write, args.section, text)
    sys.exit(1 if result["failed"] else 0)


if __name__ == "__main__":
    main()

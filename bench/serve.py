"""Throughput and latency of the challenge's server under requests as HELM sends them, and of the same one at a time.

    python bench/serve.py --checkpoint_dir checkpoints/EleutherAI/pythia-160m --write bench/README.md

The requests: multiple choice (one token after five shots of one of three subjects, MMLU), questions of arithmetic
(five shots, `--new_tokens` tokens, GSM8K) and short answers (no shots, half as many tokens, BIG-bench), of made-up
words, in a random order. `alone` decodes them one after the other with `lit_gpt.decode`, without a server. Prints a
Markdown table; the numbers go to a JSON file, to which a run adds its systems.
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, commit, hardware, markdown, say, write_section

from lit_gpt.files import read_json, write_json

SYSTEMS = {"alone": "one at a time, without a server", "1": "the server, 1 client", "30": "the server, 30 clients"}
WORDS = [
    "river",
    "stone",
    "seven",
    "table",
    "light",
    "number",
    "green",
    "always",
    "market",
    "paper",
    "under",
    "window",
    "small",
    "father",
    "answer",
]
KINDS = {"mc": "multiple choice, 1 token", "gsm": "arithmetic", "short": "short answers"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint_dir", type=Path, required=True, help="converted checkpoint")
    add("--systems", default="alone,1,30", help=f"of {', '.join(SYSTEMS)}; a number is one of clients [%(default)s]")
    add("--requests", type=int, default=60, help="[%(default)s]")
    add("--new_tokens", type=int, default=48, help="HELM asks for 400, which end early [%(default)s]")
    add("--batch_size", type=int, default=30, help="rows of the server's cache [%(default)s]")
    add("--seed", type=int, default=1337, help="[%(default)s]")
    add("--results", type=Path, default=Path("bench-serve.json"), help="JSON file for all numbers [%(default)s]")
    add("--write", type=Path, help="Markdown file whose section gets the table")
    add("--section", default="serve", help="between <!-- NAME --> and <!-- /NAME --> [%(default)s]")
    args = parser.parse_args(argv)
    args.systems = [name for name in args.systems.split(",") if name]
    return args


def make_requests(count: int, new: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Kinds of requests and their bodies: half multiple choice, the rest in equal parts."""
    rng = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    def choice() -> str:
        return f"Question: {words(25)}?\n" + "".join(f"{letter}. {words(5)}\n" for letter in "ABCD") + "Answer:"

    def arithmetic() -> str:
        return f"Q: {words(45)}?\nA:"

    subjects = ["".join(f"{choice()} {rng.choice('ABCD')}\n\n" for _ in range(5)) for _ in range(3)]
    shots = "".join(f"{arithmetic()} {words(60)}.\n\n" for _ in range(5))
    out = []
    for n in range(count):
        kind = ("mc", "gsm", "mc", "short")[n % 4]
        prompt = {"mc": rng.choice(subjects) + choice(), "gsm": shots + arithmetic(), "short": arithmetic()}[kind]
        body = {"mc": 1, "gsm": new, "short": new // 2}[kind]
        stops = ["\n\n"] if kind == "gsm" else []
        names = {"temperature": 1e-7, "top_p": 1, "top_k_per_token": 5 if kind == "mc" else 1, "stop_sequences": stops}
        out.append((kind, {"prompt": prompt, "max_new_tokens": body, **names}))
    rng.shuffle(out)
    return out


def alone(args: argparse.Namespace, asked: list[tuple[str, dict[str, Any]]]) -> list[float]:
    """Seconds of every request, decoded one after the other in this process."""
    from lit_gpt import Tokenizer, load_gpt
    from lit_gpt.checkpoint import default_device
    from lit_gpt.decode import complete
    from lit_gpt.quantize import for_decoding

    tokenizer, stops = Tokenizer(args.checkpoint_dir), [Tokenizer(args.checkpoint_dir).eos_id]
    model = load_gpt(args.checkpoint_dir, torch.bfloat16, device=default_device())
    for_decoding(model)
    complete(model, [[1, 2, 3]], 3)
    seconds = []
    for _, body in asked:
        began = time.perf_counter()
        complete(model, [tokenizer.encode(body["prompt"])], body["max_new_tokens"], stop_ids=stops)
        seconds.append(time.perf_counter() - began)
    return seconds


def served(
    args: argparse.Namespace, asked: list[tuple[str, dict[str, Any]]], clients: int
) -> tuple[list[float], float, dict]:
    """Seconds of every request to a server with so many clients, and of all; what its /health says in the end."""
    flags = ["--checkpoint_dir", args.checkpoint_dir, "--port", 0, "--batch_size", args.batch_size]
    words = [str(word) for word in (sys.executable, ROOT / "submission" / "serve.py", *flags)]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        while "Ready" not in (line := server.stderr.readline()):
            if not line:
                sys.exit("error: the server ended")
        port = int(line.split("http://127.0.0.1:")[1].split()[0])

        def ask(body: dict[str, Any] | None) -> tuple[float, dict]:
            began = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST" if body else "GET", "/process" if body else "/health", body and json.dumps(body))
            reply = connection.getresponse()
            text = reply.read()
            if reply.status != 200:
                sys.exit(f"error: {reply.status} {text.decode()}")
            return time.perf_counter() - began, json.loads(text)

        ask({"prompt": "a", "max_new_tokens": 3})
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            seconds = [one for one, _ in pool.map(ask, (body for _, body in asked))]
        return seconds, time.perf_counter() - began, ask(None)[1]
    finally:
        server.terminate()
        server.wait()


def measure(args: argparse.Namespace) -> None:
    """Runs the systems and adds them to the results."""
    asked = make_requests(args.requests, args.new_tokens, args.seed)
    about = {
        "model": args.checkpoint_dir.resolve().name,
        "hardware": hardware("cuda" if torch.cuda.is_available() else "cpu"),
        "torch": torch.__version__,
        "commit": commit(),
        **{name: getattr(args, name) for name in ("requests", "new_tokens", "batch_size")},
    }
    results = read_json(args.results) if args.results.is_file() else {}
    for name in args.systems:
        if name == "alone":
            seconds, health = alone(args, asked), {}
            whole = sum(seconds)
        else:
            seconds, whole, health = served(args, asked, int(name))
        say(f"{name}: {whole:.1f} s")
        numbers = {"seconds": seconds, "whole": whole, "kinds": [kind for kind, _ in asked], "health": health}
        results[name] = {**about, **numbers}
        write_json(args.results, results)


def show(args: argparse.Namespace) -> None:
    """Prints the table, and writes it where `--write` says."""
    results = {name: found for name, found in read_json(args.results).items() if name in SYSTEMS}
    names = [name for name in SYSTEMS if name in results]
    heads = [
        "system",
        "requests/s",
        "times",
        *(f"{kind}: median s" for kind in KINDS.values()),
        "longest s",
        "prompts read",
    ]
    rows = []
    for name in names:
        found = results[name]
        rate, first = len(found["seconds"]) / found["whole"], results[names[0]]
        latency = [
            statistics.median(s for s, kind in zip(found["seconds"], found["kinds"], strict=True) if kind == which)
            for which in KINDS
        ]
        read = found["health"].get("prompt_tokens_read", 0)
        share = read / (read + found["health"]["prompt_tokens_reused"]) if read else 1.0
        times = rate * first["whole"] / len(first["seconds"])
        numbers = [
            f"{rate:.2f}",
            f"{times:.2f}",
            *(f"{s:.2f}" for s in latency),
            f"{max(found['seconds']):.2f}",
            f"{share:.0%}",
        ]
        rows.append([SYSTEMS[name], *numbers])
    about = results[names[0]]
    new, half = about["new_tokens"], about["new_tokens"] // 2
    work = f"{about['requests']} requests: {new} new tokens for arithmetic, {half} for short answers"
    made = f"{about['batch_size']} rows; torch {about['torch']}; commit {about['commit']}, {date.today()}"
    text = f"{about['hardware']}; {about['model']}, bf16-true; {work}; {made}.\n\n{markdown(heads, rows)}"
    print(text)
    if args.write:
        write_section(args.write, args.section, text)


if __name__ == "__main__":
    arguments = parse()
    measure(arguments)
    show(arguments)

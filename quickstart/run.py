"""The whole guide on the embedded default model: download, convert, prepare, finetune, generate, evaluate.

Example:
    python quickstart/run.py
Every step is the command that a 7B model takes; it is shown before it runs. Nothing is fetched from the network. Ends
with a table of what finetuning changed on facts that no training instruction asked for.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import world

from lit_gpt.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
REPO_ID = "lit-gpt/tiny-facts"
CHECKPOINT = f"checkpoints/{REPO_ID}"
ROWS, DATA, OUT = "data/quickstart-source", "data/quickstart", "out/quickstart"
LORA = f"{OUT}/lora/lit_model_lora_finetuned.pth"
PRECISION = "32-true"
COUNTRY = next(fact.subject for fact in world.split()[1] if fact.category == "capital")  # held out
QUESTION = f"What is the capital of {COUNTRY}?"

TASK = f'--eval_tasks "[facts_mc]" --include_path quickstart/tasks --batch_size 32 --precision {PRECISION}'
GREEDY = f"--temperature 0 --precision {PRECISION}"
FINETUNE = f"""finetune/lora.py --checkpoint_dir {CHECKPOINT} --data_dir {DATA} --out_dir {OUT}/lora
    --precision {PRECISION} --lora_r 16 --lora_alpha 32 --lora_dropout 0 --learning_rate 5e-3 --warmup_steps 20
    --batch_size 32 --micro_batch_size 32 --max_steps 600 --eval_iters 16 --log_interval 10 --resume never"""

GUIDE = [
    (
        "Download a base model, here from a folder that plays the hub, and convert it to the toolkit's own file.",
        f"scripts/download.py --repo_id {REPO_ID} --from_folder quickstart/hub",
        f"scripts/convert_hf_checkpoint.py --checkpoint_dir {CHECKPOINT}",
    ),
    (
        "The base model continues a text. It has never seen an instruction.",
        f'generate/base.py --checkpoint_dir {CHECKPOINT} --prompt "The capital of {COUNTRY} is"'
        f" --max_new_tokens 24 {GREEDY}",
    ),
    (
        "Prepare the instructions as token ids. The test rows ask for facts that no training row asks for.",
        f"quickstart/world.py {ROWS}",
        f"scripts/prepare_json.py --checkpoint_dir {CHECKPOINT} --data_file {ROWS}/train.jsonl"
        f" --test_file {ROWS}/test.jsonl --destination_path {DATA}",
    ),
    (
        "Evaluate the base model on a multiple-choice task about the same facts.",
        f"eval/lm_eval_harness.py --checkpoint_dir {CHECKPOINT} {TASK} --save_filepath {OUT}/base.json",
    ),
    ("Finetune with LoRA.", FINETUNE),
    (
        "Use and evaluate the finetuned model.",
        f'generate/lora.py --checkpoint_dir {CHECKPOINT} --lora_path {LORA} --prompt "{QUESTION}" {GREEDY}',
        f"eval/lm_eval_harness.py --checkpoint_dir {CHECKPOINT} --lora_path {LORA} {TASK}"
        f" --save_filepath {OUT}/lora.json",
    ),
]

REAL = "checkpoints/openlm-research/open_llama_3b"
NEXT = f"""The same with a real model, on a GPU with 24 GB:
  python scripts/download.py --repo_id openlm-research/open_llama_3b
  python scripts/convert_hf_checkpoint.py --checkpoint_dir {REAL}
  python scripts/prepare_alpaca.py --checkpoint_dir {REAL} && python finetune/lora.py --checkpoint_dir {REAL}"""


def run(command: str) -> None:
    """Shows a command and runs it; if it fails, so do we, with its exit code."""
    print(f"\n$ python {command}", flush=True)
    done = subprocess.run([sys.executable, *shlex.split(command)])
    if done.returncode:
        sys.exit(done.returncode)


def ask(rows: list[dict[str, str]], lora: str | None) -> list[str]:
    """The answers of the base or the finetuned model to instruction rows: always the likeliest token, 12 at most."""
    import torch

    from lit_gpt import Tokenizer, load_gpt
    from lit_gpt.decode import complete
    from lit_gpt.prompts import Turn, get_style

    tokenizer, alpaca = Tokenizer(CHECKPOINT), get_style("alpaca")
    model = load_gpt(CHECKPOINT, torch.float32, finetuned=lora, merge=True)
    prompts = [alpaca.encode_prompt(tokenizer, (Turn("user", row["instruction"], row["input"]),)) for row in rows]
    return [tokenizer.decode(ids).strip() for ids in complete(model, prompts, 12, stop_ids=[tokenizer.eos_id])]


def exact(rows: list[dict[str, str]], answers: list[str]) -> float:
    """Share of the rows that are answered word for word; only case is forgiven."""
    return sum(a.casefold() == r["output"].casefold() for a, r in zip(answers, rows, strict=True)) / len(rows)


def read_rows(name: str) -> list[dict[str, str]]:
    """The rows of a file that world.py wrote."""
    return [json.loads(line) for line in Path(ROWS, name).read_text(encoding="utf-8").splitlines()]


def measure(lora: str | None, harness_json: str) -> dict[str, float | str]:
    """What one of the two models can do: its column of the table."""
    held, unseen = read_rows("test.jsonl"), read_rows("unseen.jsonl")
    sample = {"instruction": QUESTION, "input": ""}
    answers = ask([*held, *unseen, sample], lora)
    return {
        "exact_match": exact(held, answers[: len(held)]),
        "exact_match_new_wording": exact(unseen, answers[len(held) : -1]),
        "facts_mc": read_json(harness_json)["results"]["facts_mc"]["acc,none"],
        "sample": answers[-1],
    }


def table(before: dict, after: dict) -> str:
    """Both columns, as text."""
    names = {
        "val_loss": "validation loss",
        "exact_match": "exact match on held-out instructions",
        "exact_match_new_wording": "  the same in a wording never trained",
        "facts_mc": "lm-eval task facts_mc, accuracy (chance 25 %)",
        "sample": QUESTION,
    }
    rows = [f"{'':46}  {'before':20}  {'after finetuning'}"]
    for key, name in names.items():
        cells = [_cell(key, column[key]) for column in (before, after)]
        rows.append(f"{name:46}  {cells[0]:20}  {cells[1]}")
    return "\n".join(rows)


def _cell(key: str, value: float | str) -> str:
    if isinstance(value, str):
        text = " ".join(value.split())
        return text if len(text) <= 20 else text[:19] + "…"
    return f"{value:.3f}" if key == "val_loss" else f"{value:.1%}"


def main() -> None:
    """Runs the guide and prints what it changed."""
    began = time.perf_counter()
    os.chdir(ROOT)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{ROOT / OUT}/datasets"}
    # So small a model gains nothing from more threads; on a busy machine they wait for each other most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for number, (title, *commands) in enumerate(GUIDE, 1):
        print(f"\n{number}. {title}", flush=True)
        for command in commands:
            run(command)
    result = read_json(f"{OUT}/lora/run.json")["result"]
    before = {"val_loss": result["first_val_loss"], **measure(None, f"{OUT}/base.json")}
    after = {"val_loss": result["val_loss"], **measure(LORA, f"{OUT}/lora.json")}
    write_json(f"{OUT}/summary.json", {"before": before, "after": after})
    print(f"\nDone in {time.perf_counter() - began:.0f} s.\n\n{table(before, after)}\n")
    print(f"Loss plot: {OUT}/lora/loss.png\n\n{NEXT}")


if __name__ == "__main__":
    main()

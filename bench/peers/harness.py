"""A worker of bench/evaluate.py: the evaluation harness over one model, ours or the harness's own.

It lies here because a script beside `bench/evaluate.py` would hide the library `evaluate` from the harness.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import lm_eval
import torch
import yaml
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager


def write_tasks(files: dict[str, str], folder: Path) -> None:
    """The harness's own tasks, reading the files that are given by the tasks' folders."""
    for name in ("truthfulqa_mc1", "truthfulqa_mc2", "hellaswag"):
        kind = name.split("_")[0]
        task = {"include": str(Path(lm_eval.__file__).parent / "tasks" / kind / f"{name}.yaml"), "task": name}
        task |= {"dataset_path": "json", "dataset_name": None, "training_split": None}
        task["dataset_kwargs"] = {"data_files": {"validation": files[kind]}}
        if kind == "hellaswag":  # its texts are cleaned already
            task |= {"process_docs": None, "doc_to_target": "gold"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def load(job: dict[str, Any], dtype: torch.dtype) -> LM:
    """The model that answers."""
    path, device = job["checkpoint_dir"], job["device"]
    if job["system"] == "ours":
        from lit_gpt import Tokenizer, load_gpt
        from lit_gpt.harness import LitLM

        return LitLM(load_gpt(path, dtype, device=device), Tokenizer(path), pack_length=job["pack_length"])
    from lm_eval.models.huggingface import HFLM

    return HFLM(path, dtype=str(dtype).removeprefix("torch."), batch_size=job["hf_batch_size"], device=device)


def main() -> None:
    """Seconds of each group of tasks, their scores, and what every request got."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=lambda path: json.loads(Path(path).read_text()), required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    job = args.job
    logging.disable(logging.WARNING)
    lm = load(job, {"bf16-true": torch.bfloat16, "32-true": torch.float32}[job["precision"]])
    result: dict[str, Any] = {"seconds": {}, "scores": {}, "answers": []}
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(job["files"], Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        tasks = {name: manager.load([name])["tasks"][name] for names in job["groups"].values() for name in names}
        for group, names in job["groups"].items():
            asked = [tasks[name] for name in names]
            began = time.perf_counter()
            found = lm_eval.simple_evaluate(
                lm, tasks=asked, task_manager=manager, limit=job["limit"], bootstrap_iters=0
            )
            result["seconds"][group] = time.perf_counter() - began
            result["scores"] |= {name: found["results"][name]["acc,none"] for name in names}
            samples = [sample for name in names for sample in found["samples"][name]]
            result["answers"] += [float(answer[0][0]) for sample in samples for answer in sample["resps"]]
    result["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9 if job["device"] == "cuda" else None
    args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()

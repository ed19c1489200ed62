"""What the tests of evaluation share: small task files, silence, and the comparison of results."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from conftest import SENTENCES

TEXT = " ".join(SENTENCES)

QUESTIONS = [
    {
        "question": "The old cat sees",
        "choices": ["the sun.", "the sea.", "the old dog, and the red dog too."],
        "gold": 1,
    },
    {"question": "The red", "choices": ["dog likes the sea.", "cat."], "gold": 0},
    {"question": TEXT[:400], "choices": ["The old dog likes the sun.", "The red cat sees the sea."], "gold": 0},
    {"question": "Überall — naïve, 東京?", "choices": ["the sun", "the sea.\nThe cat", "é"], "gold": 2},
]
OWN_TASKS = {
    "own_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "own_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "own_writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["sea", "\n\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path) -> Path:
    """Fills a folder with task files that read a file of ours."""
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, task in OWN_TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **source, **task}))
    return folder


@contextlib.contextmanager
def quiet(cache: Path) -> Iterator[None]:
    """The libraries write into `cache` and stay silent; nothing asks the operating system for facts."""
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    patch.undo()


def compare(theirs: Any, ours: Any) -> None:
    """Numbers within 1e-4 (log-likelihoods are sums over tokens), everything else exactly."""
    if isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-4)
    elif isinstance(theirs, dict):
        assert theirs.keys() == ours.keys()
        for key in theirs:
            compare(theirs[key], ours[key])
    elif isinstance(theirs, list | tuple):
        assert len(theirs) == len(ours)
        for their, our in zip(theirs, ours, strict=True):
            compare(their, our)
    else:
        assert theirs == ours

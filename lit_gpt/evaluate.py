"""Scores of a model on the tasks of EleutherAI's evaluation harness (lm-eval), or on task files of your own."""

import contextlib
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_gpt.files import results_folder, write_text
from lit_gpt.generate import Quantize
from lit_gpt.local_data import local_data, require_examples
from lit_gpt.methods import Trained
from lit_gpt.results import Results, compare, per_sample, samples_file
from lit_gpt.settings import UserError, at_least, did_you_mean

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict

    from lit_gpt.answers import Answers
    from lit_gpt.model import GPT
    from lit_gpt.tokenizer import Tokenizer

    Loaded = tuple[TaskManager, list[Task | Group]]

OLD_NAMES = {"truthfulqa_mc": ["truthfulqa_mc1", "truthfulqa_mc2"]}
"""Names of 2023 -> what the harness calls these tasks today."""


@dataclass(kw_only=True)
class Subject(Trained):
    """Which model is evaluated, and how it runs."""

    precision: Literal["bf16-true", "32-true"] = "bf16-true"
    """Type of weights and arithmetic."""
    quantize: Literal[Quantize, "none"] | None = None
    """Hold the linear layers in 4 or 8 bits; unset: as in training."""
    max_seq_length: int | None = None
    """Window in tokens; unset: the model's context."""
    pack_length: int | None = None
    """Tokens that are scored in one call of the model, of whatever questions; unset: 4096, on the CPU 1024."""
    save_filepath: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "pack_length")

    def load(self) -> "GPT":
        """The model, ready to use.

        Raises:
            UserError: a file is missing or damaged.
        """
        from lit_gpt.checkpoint import DTYPES, default_device, load_gpt

        began = time.perf_counter()
        # Not merged: folded into weights of 16 bits, what is smaller than their steps would be lost.
        options = {"finetuned": self.finetuned, "quantize": self.quantize, "device": default_device()}
        model = load_gpt(self.checkpoint_dir, DTYPES[self.precision], **options)
        print(f"Loaded {self.checkpoint_dir} in {time.perf_counter() - began:.2f} s", file=sys.stderr)
        return model

    def window(self, model: "GPT") -> int:
        """Tokens of a window.

        Raises:
            UserError: the window that is asked for is larger than the model's context.
        """
        longest, asked = model.config.block_size, self.max_seq_length
        if asked is not None and not 2 <= asked <= longest:
            raise UserError(f"--max_seq_length: must be between 2 and {longest}, the model's context; got {asked}")
        return asked or longest

    def about(self) -> dict[str, Any]:
        """The model in plain values, for the record."""
        from lit_gpt.checkpoint import base_identity

        return {
            **base_identity(self.checkpoint_dir),
            "lora_path": self.finetuned and str(self.finetuned),
            "precision": self.precision,
            "quantize": self.quantize,
            "max_seq_length": self.max_seq_length,
        }

    def identity(self, model: "GPT") -> str:
        """Says which model answers: all that changes its answers by more than rounding."""
        from lit_gpt.checkpoint import finetuned_file, prove_weights
        from lit_gpt.files import parts_of, sha256

        files: list[Path] = []
        if self.finetuned is not None:
            peft = sorted(self.finetuned.glob("adapter_*")) if self.finetuned.is_dir() else []
            files = peft or parts_of(finetuned_file(self.finetuned))
        finetuned = [sha256(file) for file in files]
        facts = [prove_weights(self.checkpoint_dir), finetuned, self.precision, self.quantize, self.window(model)]
        return json.dumps(facts, default=str)

    @contextlib.contextmanager
    def memory_explained(self) -> Iterator[None]:
        """Says what to do when memory runs out."""
        from lit_gpt.memory import memory_error_explained

        with memory_error_explained(lambda: "; lower --pack_length, --batch_size or --max_seq_length"):
            yield


@dataclass(kw_only=True)
class Evaluate(Subject):
    """Which model to evaluate, and on what."""

    eval_tasks: list[str] | str
    """Names of the harness's tasks, groups or patterns: "[truthfulqa_mc1,hellaswag,mmlu_*]"; files of tasks, too."""
    include_path: Path | None = None
    """Folder with task files (YAML) of your own; they come before the harness's tasks of the same name."""
    local_data: Path | None = None
    """Folder with data files that stand for the hub's data sets; README.md says which."""
    limit: float | None = None
    """Use the first documents of every task only: their number, or their share if below 1; unset: all."""
    num_fewshot: int | None = None
    """Examples in front of every question; unset: as the task says. Tasks fixed at 0, like truthfulqa, stay there."""
    batch_size: int = 4
    """Texts that are generated together, by tasks that let the model write."""
    bootstrap_iters: int = 100_000
    """Resamplings for the error of scores that are no plain averages; 0: no errors at all."""
    seed: int | None = None
    """Seed of few-shot examples and sampling; unset: the harness's own seeds."""
    use_cache: Path | None = None
    """File that keeps the model's answers as they come: an interrupted evaluation goes on where it was."""
    log_samples: bool = False
    """Write every document with its answers and scores beside the results: to results.samples.jsonl."""
    compare: Path | None = None
    """Results of another model: shows the differences, their errors and whether they may be chance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.eval_tasks, str):
            self.eval_tasks = self.eval_tasks.strip("[]").split(",")
        self.eval_tasks = [name.strip() for name in self.eval_tasks if name.strip()]
        if not self.eval_tasks:
            raise UserError('--eval_tasks: name at least one task, for example "[hellaswag]"')
        at_least(1, self, "batch_size")
        at_least(0, self, "num_fewshot", "bootstrap_iters")
        if self.limit is not None and not (0 < self.limit < 1 or self.limit == int(self.limit) >= 1):
            raise UserError(f"--limit: must be a number of documents or a share between 0 and 1, got {self.limit}")
        if self.log_samples and self.save_filepath is None:
            raise UserError("--log_samples: needs --save_filepath, beside which the samples go")


def evaluate(settings: Evaluate) -> None:
    """Evaluates a base or finetuned model on tasks of lm-eval: a table on stdout, and a JSON file."""
    _require_harness()
    began = time.perf_counter()
    if settings.save_filepath is not None:
        check_writable(settings.save_filepath)
    other = None if settings.compare is None else Results.read(settings.compare)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read at import: no progress bars of any library in log files

    from lm_eval.utils import handle_non_serializable, make_table

    from lit_gpt.answers import open_answers
    from lit_gpt.quantize import for_decoding
    from lit_gpt.runlog import peak_memory_gb
    from lit_gpt.tokenizer import Tokenizer

    tokenizer = Tokenizer(settings.checkpoint_dir)
    loaded = _load_all(
        settings.eval_tasks, settings.include_path, settings.local_data
    )  # fails sooner than a model loads
    model = settings.load()
    identity = "" if settings.use_cache is None else settings.identity(model)
    if settings.quantize is None:  # kernels of 4 bits are for few rows, and most calls have hundreds
        for_decoding(model, several=True)
    with settings.memory_explained(), open_answers(settings.use_cache, identity) as answers:
        results = evaluate_model(
            model,
            tokenizer,
            loaded,
            limit=settings.limit,
            num_fewshot=settings.num_fewshot,
            batch_size=settings.batch_size,
            pack_length=settings.pack_length,
            max_seq_length=settings.window(model),
            bootstrap_iters=settings.bootstrap_iters,
            seed=settings.seed,
            answers=answers,
            log_samples=settings.log_samples or other is not None,
            about=settings.about(),
        )
    samples = results.pop("samples", {})
    seconds = time.perf_counter() - began
    results["total_evaluation_time_seconds"] = str(seconds)  # text, as in the harness
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    if other is not None:
        print(compare(other, Results(results, per_sample(samples))))
    if settings.save_filepath is not None:
        text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
        write_text(settings.save_filepath, text + "\n")
        print(f"Results written to {settings.save_filepath}", file=sys.stderr)
        if settings.log_samples:
            rows = ({"task": task, **sample} for task, found in samples.items() for sample in found)
            lines = (json.dumps(row, default=handle_non_serializable, ensure_ascii=False) + "\n" for row in rows)
            write_text(samples_file(settings.save_filepath), "".join(lines))
            print(f"Samples written to {samples_file(settings.save_filepath)}", file=sys.stderr)
    print(f"Time for evaluation: {seconds:.2f} s", file=sys.stderr)
    print(f"Memory used: {peak_memory_gb(model.wte.weight.device):.2f} GB", file=sys.stderr)


def evaluate_model(
    model: "GPT",
    tokenizer: "Tokenizer",
    tasks: "list[str] | Loaded",
    *,
    include_path: Path | None = None,
    local_data_dir: Path | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 4,
    pack_length: int | None = None,
    max_seq_length: int | None = None,
    bootstrap_iters: int = 100_000,
    seed: int | None = None,
    answers: "Answers | None" = None,
    log_samples: bool = False,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates a loaded model; see `Evaluate` for the arguments that are not explained here.

    Args:
        tasks: names, or what `load_tasks` gave.
        answers: what is known already; takes what becomes known.
        log_samples: keep every document with its requests and answers, under "samples".
        about: plain values about the model, kept under "config", "model_args".

    Returns:
        What `lm_eval.simple_evaluate` returns: the scores are in ["results"][task]["acc,none"] and so on.

    Raises:
        UserError: a task is unknown, or its data cannot be had, or a question does not fit the model.
    """
    _require_harness()
    import lm_eval

    from lit_gpt.harness import LitLM, read_gen_kwargs

    sizes = {"batch_size": batch_size, "pack_length": pack_length, "max_length": max_seq_length}
    lm = LitLM(model, tokenizer, **sizes, answers=answers)
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    manager, found = tasks if isinstance(tasks, tuple) else _load_all(tasks, include_path, local_data_dir)
    with _quiet():
        for task in manager.load(found)["tasks"].values():  # before hours of other tasks have passed
            fixed = task.config.num_fewshot
            require_examples(task, fixed if num_fewshot is None or fixed == 0 else num_fewshot)
            if task.OUTPUT_TYPE == "generate_until":
                read_gen_kwargs(task.config.generation_kwargs or {}, lm)
        results = lm_eval.simple_evaluate(
            lm,
            tasks=found,
            task_manager=manager,
            model_args=about or {},
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            device=str(lm.device),
            bootstrap_iters=bootstrap_iters,
            log_samples=log_samples,
            **({} if seed is None else dict.fromkeys(seeds, seed)),
        )
    results["config"]["model"] = "lit_gpt"
    for name, token in (("eos", tokenizer.eos_id), ("bos", tokenizer.bos_id)):
        results[f"tokenizer_{name}_token"] = [None if token is None else tokenizer.token(token), str(token)]
    results |= {"eot_token_id": lm.eot_token_id, "max_length": lm.max_length}
    if lm.truncated:
        note = f"{lm.truncated} requests were longer than {lm.max_length} tokens and lost their beginning"
        print(f"Note: {note}", file=sys.stderr)
    for name, count in results["n-shot"].items():
        if num_fewshot is not None and count != num_fewshot:
            print(f"Note: {name} is defined with {count} examples; --num_fewshot does not change it", file=sys.stderr)
    return results


def _load_all(names: list[str], include_path: Path | None, local_data_dir: Path | None) -> "Loaded":
    with _quiet(), local_data(local_data_dir):
        return load_tasks(names, include_path)


def load_tasks(names: list[str], include_path: Path | None = None) -> "Loaded":
    """Tasks and groups by name, with their data.

    Raises:
        UserError: a name is unknown (shows the nearest), a task file is broken, or its data cannot be had.
    """
    asked = [new for name in names for new in OLD_NAMES.get(name, [name])]
    manager = _index(asked, include_path)
    matching = [match for name in asked for match in _matching(manager, name)]
    found: list[Task | Group] = []
    for name in dict.fromkeys(matching):
        print(f"Loading task {name}", file=sys.stderr)
        loaded = _load(manager, name)
        found += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    try:
        manager.load(found)
    except ValueError as error:
        raise UserError(f"--eval_tasks: {error}; name it once") from error
    return manager, found


def _matching(manager: "TaskManager", name: str) -> list[str]:
    if name in manager.task_index or (Path(name).suffix == ".yaml" and Path(name).is_file()):
        return [name]
    if matching := manager.match_tasks([name]):
        return matching
    hint = did_you_mean(name, manager.all_tasks)
    raise UserError(f"--eval_tasks: no task '{name}'; {hint}`lm-eval ls tasks` lists all")


def _index(names: list[str], include_path: Path | None) -> "TaskManager":
    """The tasks there are. Reading all of the harness's 14,000 files takes seconds, so they are left out if the user's
    own folder has everything."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    if include_path is None:
        return TaskManager()
    files = sorted(include_path.rglob("*.yaml"))
    if not files:
        raise UserError(f"--include_path: no task files (*.yaml) in {include_path}")
    for file in files:
        try:  # the harness leaves broken files out without a word
            load_yaml(file, resolve_func=False)
        except Exception as error:
            raise UserError(f"{file}: not a task file ({error})") from error
    own = TaskManager(include_path=include_path, include_defaults=False)
    return own if set(names) <= set(own.all_subtasks) else TaskManager(include_path=include_path)


def _load(manager: "TaskManager", name: str) -> "TaskDict":
    try:
        return manager.load([name])
    except UserError:
        raise
    except ConnectionError as error:
        raise UserError(
            f"task {name}: its data set is not on this machine and the hub cannot be reached ({error}); go online once "
            "(unset HF_HUB_OFFLINE), or give its files (--local_data) or a task file of your own (--include_path)"
        ) from error
    except Exception as error:  # the user's file, its functions and its data: anything can be wrong with them
        entry = manager.task_index.get(name)
        place = f" ({entry.yaml_path})" if entry and entry.yaml_path else ""
        raise UserError(f"task {name}{place} cannot be loaded: {type(error).__name__}: {error}") from error


def _require_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed; pip install 'lm-eval[hf]>=0.4.13'")


def check_writable(path: Path) -> None:
    """Fails now rather than after hours of evaluation."""
    if path.is_dir():
        raise UserError(f"--save_filepath: {path} is a folder; name a file in it, for example {path / 'results.json'}")
    results_folder(path.absolute().parent, "--save_filepath")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps stdout for the table, and the libraries' running commentary to errors."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

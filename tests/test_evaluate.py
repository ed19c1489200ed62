"""The evaluate command: from flags to the table and the JSON, and every error in one line."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lm_eval")
import datasets
import lm_eval
from conftest import command
from harness_tasks import QUESTIONS, compare
from lm_eval.tasks import TaskManager

from lit_gpt import Tokenizer, load_gpt
from lit_gpt.checkpoint import base_identity, save_finetuned
from lit_gpt.evaluate import Evaluate, evaluate_model, load_tasks
from lit_gpt.harness import LitLM
from lit_gpt.methods import LoRA
from lit_gpt.model import GPT
from lit_gpt.scoring import score
from lit_gpt.settings import UserError, parse

pytestmark = pytest.mark.usefixtures("own_tasks")  # silence
LAUNCHER = Path(__file__).parents[1] / "eval" / "lm_eval_harness.py"


def test_base_model_gets_a_table_and_the_harness_own_json(
    checkpoint: Path, own_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--precision", "32-true", "--include_path", own_tasks]
    flags += ["--eval_tasks", "[own_choice,own_text]", "--max_seq_length", 48]
    assert command("evaluate", *flags, "--save_filepath", tmp_path / "new" / "base.json") == 0
    out, err = capsys.readouterr()
    assert out.startswith("|")
    assert all(line.startswith("|") for line in out.splitlines() if line)
    assert re.search(r"^Time for evaluation: \d+\.\d\d s$", err, re.MULTILINE)
    assert "2 requests were longer than 48 tokens" in err
    assert "WARNING" not in err
    found = json.loads((tmp_path / "new" / "base.json").read_text())
    lm = LitLM(load_gpt(checkpoint), Tokenizer(checkpoint), max_length=48)
    plain = lm_eval.simple_evaluate(
        lm,
        tasks=["own_choice", "own_text"],
        task_manager=TaskManager(include_path=own_tasks, include_defaults=False),
        log_samples=False,
    )
    compare(plain["results"], found["results"])
    assert plain.keys() <= found.keys()
    assert (found["max_length"], found["eot_token_id"], found["tokenizer_eos_token"]) == (48, 2, ["</s>", "2"])
    assert plain["config"].keys() <= found["config"].keys()
    assert found["config"]["model"] == "lit_gpt"
    assert found["config"]["model_args"] == {
        **base_identity(checkpoint),
        "lora_path": None,
        "precision": "32-true",
        "quantize": None,
        "max_seq_length": 48,
    }


def test_finetuned_model(checkpoint: Path, own_tasks: Path, tmp_path: Path) -> None:
    """The scores are those of the model with the method attached, and the JSON says which file was used."""
    model, lora, tasks = load_gpt(checkpoint), LoRA(lora_r=2), ["own_choice", "own_text"]
    base = evaluate_model(model, Tokenizer(checkpoint), tasks, include_path=own_tasks)
    lora.attach(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    path = tmp_path / "lit_model_lora_finetuned.pth"
    save_finetuned(path, model, lora, {"base": base_identity(checkpoint), "prompt_style": "alpaca"})
    flags = ["--checkpoint_dir", checkpoint, "--precision", "32-true", "--include_path", own_tasks]
    flags += ["--eval_tasks", "[own_choice,own_text]", "--lora_path", path]
    assert command("evaluate", *flags, "--save_filepath", tmp_path / "lora.json") == 0
    tuned = json.loads((tmp_path / "lora.json").read_text())
    assert tuned["config"]["model_args"]["lora_path"] == str(path)
    attached = evaluate_model(model.eval(), Tokenizer(checkpoint), tasks, include_path=own_tasks)
    compare(attached["results"], tuned["results"])
    before, after = (found["results"]["own_text"]["bits_per_byte,none"] for found in (base, tuned))
    assert before != pytest.approx(after, rel=1e-3)


def test_updates_smaller_than_the_weights_steps_are_evaluated(checkpoint: Path, tmp_path: Path) -> None:
    """Folded into weights of 16 bits they would be lost."""
    model, lora = load_gpt(checkpoint, torch.bfloat16), LoRA(lora_r=2)
    lora.attach(model)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=1e-5)
    path = tmp_path / "lit_model_lora_finetuned.pth"
    save_finetuned(path, model, lora, {"base": base_identity(checkpoint), "prompt_style": "alpaca"})
    loaded = Evaluate(checkpoint, eval_tasks=["none"], lora_path=path, precision="bf16-true").load()
    updates = [(p, model.get_parameter(name)) for name, p in loaded.named_parameters() if name.endswith("lora_B")]
    assert len(updates) == 2 * model.config.n_layer
    assert all(torch.equal(*pair) for pair in updates)


KILLED = """
import os, signal, sys
import lit_gpt.harness
from lit_gpt.cli import COMMANDS, _load
from lit_gpt.scoring import score
from lit_gpt.settings import run

def short(*args):
    for number, found in enumerate(score(*args)):
        yield found
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)

lit_gpt.harness.score = short
function, settings = (_load(place) for place in COMMANDS["evaluate"])
run(function, [settings], "evaluate", "", argv=sys.argv[1:])
"""


def test_a_killed_evaluation_goes_on_where_it_was(
    checkpoint: Path, own_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run asks the rest only and has the results of an undisturbed one; the third asks nothing."""
    flags = ["--checkpoint_dir", checkpoint, "--precision", "32-true", "--include_path", own_tasks]
    flags += ["--eval_tasks", "[own_choice,own_text,own_writing]", "--pack_length", 32]
    assert command("evaluate", *flags, "--save_filepath", tmp_path / "whole.json") == 0
    flags += ["--use_cache", tmp_path / "answers.jsonl", "--save_filepath", tmp_path / "found.json"]
    env = {**os.environ, "PYTHONPATH": str(LAUNCHER.parents[1]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env |= {"HF_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-c", KILLED, *map(str, flags)]
    assert subprocess.run(words, env=env, capture_output=True, check=False).returncode == -signal.SIGKILL
    before = len((tmp_path / "answers.jsonl").read_text().splitlines()) - 1
    asked: list[int] = []

    def counted(model: GPT, sequences: list, pack_length: int) -> Iterator:
        asked.append(len(sequences))
        return score(model, sequences, pack_length)

    monkeypatch.setattr("lit_gpt.harness.score", counted)
    assert command("evaluate", *flags) == 0
    whole, found = (json.loads((tmp_path / name).read_text())["results"] for name in ("whole.json", "found.json"))
    compare(whole, found)
    total = len((tmp_path / "answers.jsonl").read_text().splitlines()) - 1
    texts = len({question["question"] for question in QUESTIONS})
    assert 0 < before < total
    assert sum(asked) == total - before - texts
    asked.clear()
    monkeypatch.setattr("lit_gpt.harness.decode", None)  # nor is anything written anew
    assert command("evaluate", *flags) == 0
    assert sum(asked) == 0


def test_samples_and_comparison(checkpoint: Path, own_tasks: Path, tmp_path: Path, capsys) -> None:
    """Every document with what it was asked and got; the difference to another model, document by document."""
    flags = ["--checkpoint_dir", checkpoint, "--include_path", own_tasks, "--eval_tasks", "[own_choice,own_text]"]
    for name, precision in (("a", "32-true"), ("b", "bf16-true")):
        file = tmp_path / f"{name}.json"
        assert (
            command("evaluate", *flags, "--precision", precision, "--save_filepath", file, "--log_samples", "true") == 0
        )
    rows = [json.loads(line) for line in (tmp_path / "a.samples.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["own_choice"] * 4 + ["own_text"] * 4
    assert rows[0]["doc"] == QUESTIONS[0]
    assert len(rows[0]["resps"]) == 3
    found = json.loads((tmp_path / "a.json").read_text())
    assert "samples" not in found
    mean = sum(row["acc"] for row in rows[:4]) / 4
    assert mean == found["results"]["own_choice"]["acc,none"]
    capsys.readouterr()
    assert command("evaluate", *flags, "--precision", "32-true", "--compare", tmp_path / "a.json") == 0
    out, _ = capsys.readouterr()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if "McNemar" in line]
    assert [row[:2] for row in table] == [["own_choice", "acc"], ["own_choice", "acc_norm"]]
    assert all(row[4] == "+0.0000" and row[8] == "the same" for row in table)


def test_quantised_model_is_the_one_that_generates(checkpoint: Path, own_tasks: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    flags = ["--checkpoint_dir", checkpoint, "--precision", "32-true", "--include_path", own_tasks]
    flags += ["--eval_tasks", "own_text", "--quantize", "bnb.nf4", "--save_filepath", tmp_path / "found.json"]
    assert command("evaluate", *flags) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["config"]["model_args"]["quantize"] == "bnb.nf4"
    model = load_gpt(checkpoint, torch.float32, quantize="bnb.nf4")
    expected = evaluate_model(model, Tokenizer(checkpoint), ["own_text"], include_path=own_tasks)
    compare(expected["results"], found["results"])
    plain = evaluate_model(load_gpt(checkpoint), Tokenizer(checkpoint), ["own_text"], include_path=own_tasks)
    scores = [x["results"]["own_text"]["bits_per_byte,none"] for x in (plain, found)]
    assert abs(scores[0] - scores[1]) > 1e-5


def test_launcher_works_offline_with_an_empty_home(checkpoint: Path, own_tasks: Path, tmp_path: Path) -> None:
    hidden = ("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "XDG_CACHE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    flags = ["--checkpoint_dir", checkpoint, "--include_path", own_tasks, "--eval_tasks", "own_choice", "--limit", "2"]
    words = [sys.executable, LAUNCHER, *flags, "--save_filepath", tmp_path / "results.json"]
    done = subprocess.run(list(map(str, words)), env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "own_choice" in done.stdout
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["n-samples"]["own_choice"] == {"original": 4, "effective": 2}
    assert found["config"]["model_dtype"] == "torch.bfloat16"
    assert found["lm_eval_version"] == lm_eval.__version__
    assert "|" not in done.stderr, "progress bars in a log"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("[truthfulqa_mc,hellaswag]", ["truthfulqa_mc", "hellaswag"]),
        ("hellaswag", ["hellaswag"]),
        ("hellaswag, piqa", ["hellaswag", "piqa"]),
        ("['mmlu_*']", ["mmlu_*"]),
    ],
)
def test_ways_to_write_the_tasks(given: str, names: list[str]) -> None:
    [settings] = parse(["--checkpoint_dir", "x", "--eval_tasks", given], [Evaluate], "evaluate", "")
    assert settings.eval_tasks == names


def test_names_of_2023_and_patterns(own_tasks: Path, tmp_path: Path) -> None:
    task = (own_tasks / "own_choice.yaml").read_text()
    for name in ("truthfulqa_mc1", "truthfulqa_mc2", "other"):
        (tmp_path / f"{name}.yaml").write_text(task.replace("own_choice", name))
    found = load_tasks(["truthfulqa_mc", "truthfulqa_mc2"], tmp_path)[1]
    assert [task.task_name for task in found] == ["truthfulqa_mc1", "truthfulqa_mc2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval_tasks", "[]"], "--eval_tasks: name at least one task"),
        (["--log_samples", "true"], "--log_samples: needs --save_filepath"),
        (["--compare", "no/such.json"], "cannot read no/such.json"),
        (["--use_cache", "."], "--use_cache: . is a folder"),
        (["--pack_length", "0"], "--pack_length: must be at least 1"),
        (["--quantize", "bnb.nf3"], "--quantize: expected {bnb.nf4,"),
        (["--limit", "0"], "--limit: must be"),
        (["--limit", "2.5"], "--limit: must be"),
        (["--batch_size", "0"], "--batch_size: must be at least 1"),
        (["--max_seq_length", "257"], "--max_seq_length: must be between 2 and 256"),
        (["--include_path", "no/such"], "--include_path: no task files"),
        (["--save_filepath", "."], "--save_filepath: . is a folder"),
        (["--save_filepath", "/proc/no/such/x.json"], "--save_filepath /proc/no/such: cannot write there"),
        (["--checkpoint_dir", "no/such"], "no folder no/such"),
        (["--lora_path", "no/such.pth"], "no file no/such.pth"),
        (["--eval_tasks", "[own_chioce]"], "no task 'own_chioce'; did you mean own_choice"),
        (["--eval_tasks", "qqqq"], "no task 'qqqq'; `lm-eval ls tasks`"),
        (["--eval_tasks", "no_data"], "cannot be loaded: FileNotFoundError: Unable to find"),
        (["--eval_tasks", "bad_rows"], "cannot be loaded"),
        (["--eval_tasks", "no_field"], "cannot be loaded: UndefinedError: 'answer' is undefined"),
        (["--eval_tasks", "from_hub"], "task from_hub: its data set is not on this machine"),
        (["--eval_tasks", "empty_answer"], "task empty_answer: an answer to its question 2 is empty"),
        (["--eval_tasks", "long_answer"], "has 321 tokens; it must have 1 to 256"),
        (["--eval_tasks", "beams"], "generation_kwargs {'num_beams': 4}"),
        (["--eval_tasks", "no_room"], "max_gen_toks 256 of the task leaves no room"),
    ],
)
def test_errors_are_one_line(
    flags: list[str],
    message: str,
    checkpoint: Path,
    own_tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    full = TaskManager  # the harness's own 14,000 task files take seconds to read and are not needed here
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_path, **_: full(None, include_path, False))
    rows = {"good": QUESTIONS, "empty": [QUESTIONS[0], {**QUESTIONS[1], "choices": ["", "x"]}]}
    rows["long"] = [{**QUESTIONS[0], "choices": ["x", "é" * 160]}]
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "cho')
    for name, data, task, changes in [
        ("own_choice", "good", "own_choice", {}),
        ("no_data", "missing", "own_choice", {}),
        ("bad_rows", "broken", "own_choice", {}),
        ("no_field", "good", "own_choice", {"doc_to_text": "{{answer}}"}),
        ("from_hub", "good", "own_choice", {"dataset_path": "some/where", "dataset_kwargs": {}}),
        ("empty_answer", "empty", "own_choice", {"target_delimiter": ""}),
        ("long_answer", "long", "own_choice", {}),
        ("beams", "good", "own_writing", {"generation_kwargs": {"num_beams": 4, "max_gen_toks": 4}}),
        ("no_room", "good", "own_writing", {"generation_kwargs": {"until": ["x"]}}),
    ]:
        content = yaml.safe_load((own_tasks / f"{task}.yaml").read_text())
        content["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / f"{data}.jsonl")}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content | {"task": name} | changes))
    every = ["--checkpoint_dir", str(checkpoint), "--eval_tasks", "own_choice", "--include_path", str(tmp_path)]
    assert command("evaluate", *every, *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    if "no task" in message:  # said before anything else is done
        assert "Loaded" not in err


def test_broken_task_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ninclude: nowhere.yaml\n")
    with pytest.raises(UserError, match=r"mine\.yaml: not a task file.*nowhere\.yaml"):
        load_tasks(["mine"], tmp_path)


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lit_gpt.evaluate.importlib.util.find_spec", lambda name: None)
    assert command("evaluate", "--checkpoint_dir", "x", "--eval_tasks", "piqa") == 2
    assert "lm-eval is not installed; pip install" in capsys.readouterr().err


def test_settings_are_torch_free() -> None:
    code = "import lit_gpt.evaluate, sys; sys.exit('torch' in sys.modules or 'lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=LAUNCHER.parents[1], check=False).returncode == 0

"""Evaluation gives the numbers of the harness's own Hugging Face model, request by request."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from conftest import SENTENCES, SHARED

pytest.importorskip("lm_eval")
import datasets
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_gpt import Tokenizer, load_gpt
from lit_gpt.checkpoint import base_identity, save_finetuned
from lit_gpt.cli import COMMANDS, _load
from lit_gpt.convert import Convert, convert
from lit_gpt.evaluate import Evaluate, evaluate_model, load_tasks
from lit_gpt.harness import LitLM, read_gen_kwargs
from lit_gpt.methods import LoRA
from lit_gpt.settings import UserError, parse, run

LAUNCHER = Path(__file__).parents[1] / "eval" / "lm_eval_harness.py"
STANDARD = Path(lm_eval.__file__).parent / "tasks"
WINDOW = 48
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


class Pair(NamedTuple):
    """One random model twice, with its tokenizer."""

    theirs: HFLM
    ours: LitLM
    folder: Path


def make_pair(folder: Path, kind: str, vocab: int, window: int, theirs_at: Path | None = None) -> Pair:
    """A random model in the folder, whose tokenizer is there already, as the harness's own model and as ours.

    The Hugging Face tokenizer is read from `theirs_at` where that is another folder.
    """
    sizes: dict[str, Any] = {"vocab_size": vocab, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": window}
    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, bos_token_id=1, eos_token_id=2, **sizes))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(bos_token_id=0, eos_token_id=0, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokenizer = AutoTokenizer.from_pretrained(theirs_at or folder)
    if kind == "llama":  # never writes half characters, which SentencePiece and transformers show differently
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        whole = torch.tensor([not piece.startswith("<") for piece in pieces] + [False] * (vocab - len(pieces)))
        model.lm_head.weight.data *= whole[:, None]
    model.save_pretrained(folder)
    convert(Convert(folder))
    # Its cache of logits scores the wrong position where "a b" + "c" and "a" + "b c" are asked in one run (0.4.13).
    theirs = HFLM(model.eval(), tokenizer=tokenizer, batch_size=4, device="cpu", logits_cache=False)
    return Pair(theirs, LitLM(load_gpt(folder), Tokenizer(folder), batch_size=3), folder)


def train_neox_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def train_llama_tokenizer(folder: Path) -> None:
    import sentencepiece

    options = {"vocab_size": 300, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}  # as Llama's own
    options |= {"minloglevel": 2, "model_prefix": str(folder / "tokenizer")}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), **options)
    kind = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | {"add_bos_token": True}))


TOKENIZERS = {"llama": train_llama_tokenizer, "gpt_neox": train_neox_tokenizer}


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The libraries write into a folder of the test's and stay silent; nothing asks the operating system for facts."""
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small model with a tokenizer that was trained on a few sentences: SentencePiece or tokenizers JSON."""
    folder = tmp_path_factory.mktemp(request.param)
    TOKENIZERS[request.param](folder)
    return make_pair(folder, request.param, vocab=320, window=WINDOW)


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task files that read a file of ours."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, task in OWN_TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **source, **task}))
    return folder


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


def compare_tasks(pair: Pair, names: list[str], folder: Path, limit: int | None) -> dict[str, Any]:
    """Runs the tasks with both models and compares every request and every score."""
    both = [
        lm_eval.simple_evaluate(
            lm, tasks=names, task_manager=TaskManager(include_path=folder, include_defaults=False), limit=limit
        )
        for lm in (pair.theirs, pair.ours)
    ]
    compare(*(found["samples"] for found in both))
    compare(*(found["results"] for found in both))
    return both[1]


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, i, metadata=("task", i, 1)) for i, args in enumerate(arguments)]


def test_own_tasks_equal_the_harness_own_model(pair: Pair, own_tasks: Path) -> None:
    """Multiple choice, whole texts longer than the window, and generation; a question longer than the window, too."""
    found = compare_tasks(pair, list(OWN_TASKS), own_tasks, limit=None)
    answers = [answer for sample in found["samples"]["own_choice"] for answer in sample["resps"]]
    assert len(answers) == 10
    assert len({round(score, 3) for [[score, _]] in answers}) == 10, "the requests do not differ"
    texts = [sample["resps"][0][0] for sample in found["samples"]["own_writing"]]
    assert all(texts)


@pytest.mark.skipif(not SHARED.exists(), reason="no real data at hand")
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_standard_tasks_equal_the_harness_own_model(kind: str, tmp_path: Path) -> None:
    """TruthfulQA and HellaSwag as the harness defines them, on the real questions, with real tokenizers."""
    hub = SHARED / "hub" / ("mistralai/Mistral-7B-v0.1" if kind == "llama" else "EleutherAI/pythia-410m")
    (folder := tmp_path / "model").mkdir()
    for name in ["tokenizer.model"] if kind == "llama" else ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copyfile(hub / name, folder / name)
    pair = make_pair(folder, kind, vocab=32000 if kind == "llama" else 50304, window=512, theirs_at=hub)
    pair.theirs.logits_cache = True  # as it is by default
    tasks = {"truthfulqa_mc1": "truthfulqa_mc", "truthfulqa_mc2": "truthfulqa_mc", "hellaswag": "hellaswag_1k"}
    for name, data in tasks.items():
        files = {"validation": str(SHARED / "data" / "eval" / f"{data}.jsonl")}
        task = {"include": str(STANDARD / name.split("_")[0] / f"{name}.yaml"), "task": name, "dataset_path": "json"}
        task |= {"dataset_name": None, "dataset_kwargs": {"data_files": files}, "training_split": None}
        if name == "hellaswag":  # this file has its texts cleaned already
            task |= {"process_docs": None, "doc_to_target": "gold"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    found = compare_tasks(pair, list(tasks), tmp_path, limit=3)
    assert {name: task["acc,none"] >= 0 for name, task in found["results"].items()} == dict.fromkeys(tasks, True)


def test_edges_of_the_window_equal_the_harness_own_model(pair: Pair) -> None:
    """Nothing before the answer, a BOS spelt out, an answer that fills the window, a question that is too long."""
    bos = pair.ours.tokenizer.token(pair.ours.prefix_token_id)
    words = TEXT.split()
    fits = next(n for n in range(1, 99) if len(pair.ours.tok_encode(" ".join(words[: n + 1]))) > WINDOW)
    arguments = [
        ("", "The old cat"),
        ("The old ", "cat"),
        ("The", " " + " ".join(words[1:fits])),
        (TEXT, " The cat"),
        ("The old cat sees", " the sun."),
        ("The old cat sees", " the sea."),
        ("The old cat sees", " the sea."),
    ]
    pair.ours.truncated = 0
    asked = requests("loglikelihood", *arguments)
    compare(pair.theirs.loglikelihood(asked), pair.ours.loglikelihood(asked))
    assert pair.ours.truncated == 1
    plain = [("The old", " cat sees"), ("", "The old cat")]
    spelt = requests("loglikelihood", (bos + "The old", " cat sees"), ("", bos + "The old cat"))
    if pair.ours.tokenizer.file.name == "tokenizer.json":
        compare(pair.theirs.loglikelihood(spelt), pair.ours.loglikelihood(spelt))
    else:  # what transformers makes of a SentencePiece model forgets the space before "The" here
        compare(pair.ours.loglikelihood(requests("loglikelihood", *plain)), pair.ours.loglikelihood(spelt))
    rolling = requests("loglikelihood_rolling", ("",), ("The cat",), (TEXT,), (TEXT[:300],))
    compare(pair.theirs.loglikelihood_rolling(rolling), pair.ours.loglikelihood_rolling(rolling))


def test_greedy_text_and_the_greedy_flag(pair: Pair) -> None:
    """What the model writes when it always takes the likeliest token is flagged as likeliest, any other text is not."""
    kwargs = {"until": [], "max_gen_toks": 8}
    arguments = [(text, kwargs) for text in ("The old cat", "The", "A dog", TEXT)]
    arguments += [(text, {"until": ["e", "a"], "max_gen_toks": 20}) for text in ("The red", "The old dog likes")]
    asked = requests("generate_until", *arguments)
    texts = pair.ours.generate_until(asked)
    assert texts == pair.theirs.generate_until(asked)
    assert not any(stop in text for text in texts[4:] for stop in "ea")
    context = pair.ours.tok_encode("The old cat")
    written = pair.ours.model
    ids = list(context)
    for _ in range(5):
        ids.append(int(written(torch.tensor([ids]))[0, -1].argmax()))
    greedy = (("", ""), context, ids[len(context) :])
    other = (("", ""), context, [*ids[len(context) : -1], (ids[-1] + 1) % 320])
    for lm in (pair.ours, pair.theirs):
        assert [flag for _, flag in lm._loglikelihood_tokens([greedy, other])] == [True, False]


def test_batches_do_not_change_the_numbers(pair: Pair) -> None:
    single, many = (LitLM(pair.ours.model, pair.ours.tokenizer, batch_size=size) for size in (1, 8))
    arguments = [(question["question"], " " + choice) for question in QUESTIONS for choice in question["choices"]]
    compare(*(lm.loglikelihood(requests("loglikelihood", *arguments)) for lm in (single, many)))
    kwargs = {"until": ["sea"], "max_gen_toks": 12}
    asked = requests("generate_until", *((context, kwargs) for context, _ in arguments))
    assert single.generate_until(asked) == many.generate_until(asked)


def test_window_of_the_users_choice(pair: Pair) -> None:
    narrow = LitLM(pair.ours.model, pair.ours.tokenizer, max_length=16)
    theirs = HFLM(pair.theirs.model, tokenizer=pair.theirs.tokenizer, max_length=16, device="cpu")
    asked = requests("loglikelihood", (TEXT, " The cat"), ("The old", " dog"))
    compare(theirs.loglikelihood(asked), narrow.loglikelihood(asked))
    asked = requests("loglikelihood_rolling", (TEXT,))
    compare(theirs.loglikelihood_rolling(asked), narrow.loglikelihood_rolling(asked))
    asked = requests("generate_until", (TEXT, {"until": [], "max_gen_toks": 6}))
    assert theirs.generate_until(asked) == narrow.generate_until(asked)


def command(*argv: object) -> int:
    function, *classes = (_load(place) for place in COMMANDS["evaluate"])
    return run(function, classes, "evaluate", "", argv=[str(word) for word in argv])


def test_command_writes_what_the_harness_writes(
    pair: Pair, own_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base and finetuned: a table and nothing else on stdout, the harness's JSON with our model's name in it."""
    flags = ["--checkpoint_dir", pair.folder, "--precision", "32-true", "--include_path", own_tasks]
    flags += ["--eval_tasks", "[own_choice,own_text]"]
    assert command(*flags, "--save_filepath", tmp_path / "new" / "base.json") == 0
    out, err = capsys.readouterr()
    assert out.startswith("|")
    assert all(line.startswith("|") for line in out.splitlines() if line)
    assert re.search(r"^Time for evaluation: \d+\.\d\d s$", err, re.MULTILINE)
    assert "2 requests were longer than 48 tokens" in err
    assert "WARNING" not in err
    base = json.loads((tmp_path / "new" / "base.json").read_text())
    theirs = lm_eval.simple_evaluate(
        pair.theirs,
        tasks=["own_choice", "own_text"],
        task_manager=TaskManager(include_path=own_tasks, include_defaults=False),
        log_samples=False,
    )
    compare(theirs["results"], base["results"])
    assert theirs.keys() - {"tokenizer_pad_token"} <= base.keys()
    assert base["config"]["model"] == "lit_gpt"
    assert base["config"]["model_args"]["checkpoint_dir"] == str(pair.folder)
    assert base["config"]["model_args"]["lora_path"] is None
    assert base["config"]["model_num_parameters"] == theirs["config"]["model_num_parameters"]

    model, lora = load_gpt(pair.folder), LoRA(lora_r=2)
    lora.attach(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    path = tmp_path / "lit_model_lora_finetuned.pth"
    save_finetuned(path, model, lora, {"base": base_identity(pair.folder), "prompt_style": "alpaca"})
    assert command(*flags, "--lora_path", path, "--save_filepath", tmp_path / "lora.json") == 0
    tuned = json.loads((tmp_path / "lora.json").read_text())
    assert tuned["config"]["model_args"]["lora_path"] == str(path)
    found = evaluate_model(model.eval(), pair.ours.tokenizer, ["own_choice", "own_text"], include_path=own_tasks)
    compare(found["results"], tuned["results"])
    assert tuned["results"]["own_text"]["bits_per_byte,none"] != pytest.approx(
        base["results"]["own_text"]["bits_per_byte,none"], rel=1e-3
    )


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
        (["--limit", "0"], "--limit: must be"),
        (["--limit", "2.5"], "--limit: must be"),
        (["--batch_size", "0"], "--batch_size: must be at least 1"),
        (["--max_seq_length", "257"], "--max_seq_length: must be between 2 and 256"),
        (["--include_path", "no/such"], "--include_path: no task files"),
        (["--save_filepath", "."], "--save_filepath: . is a folder"),
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
    assert command(*every, *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_broken_task_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ninclude: nowhere.yaml\n")
    with pytest.raises(UserError, match=r"mine\.yaml: not a task file.*nowhere\.yaml"):
        load_tasks(["mine"], tmp_path)


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lit_gpt.evaluate.importlib.util.find_spec", lambda name: None)
    assert command("--checkpoint_dir", "x", "--eval_tasks", "piqa") == 2
    assert "lm-eval is not installed; pip install" in capsys.readouterr().err


def test_settings_of_generation(pair: Pair) -> None:
    lm = pair.ours
    eos = lm.tokenizer.token(lm.eot_token_id)
    max_new, sampling, stops = read_gen_kwargs(
        {"until": "\n", "do_sample": False, "temperature": 0.7, "max_tokens": 9}, lm
    )
    assert (max_new, sampling.temperature, stops) == (9, 0.0, ["\n", eos])
    kwargs = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "num_beams": 1, "max_gen_toks": 9}
    _, sampling, stops = read_gen_kwargs(kwargs, lm)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, stops) == (0.7, 5, 0.9, [eos])


def test_chat_templates_are_refused(pair: Pair) -> None:
    with pytest.raises(UserError, match="chat templates are not supported"):
        pair.ours.apply_chat_template([{"role": "user", "content": "Hello"}])


def test_settings_are_torch_free() -> None:
    code = "import lit_gpt.evaluate, sys; sys.exit('torch' in sys.modules or 'lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=LAUNCHER.parents[1], check=False).returncode == 0

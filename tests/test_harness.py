"""Our model answers the harness's requests with the numbers of the harness's own Hugging Face model."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from conftest import SHARED, train_byte_level, train_sentencepiece

pytest.importorskip("lm_eval")
import lm_eval
from harness_tasks import OWN_TASKS, QUESTIONS, TEXT, compare
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lit_gpt import Tokenizer, load_gpt
from lit_gpt.convert import Convert, convert
from lit_gpt.decode import decode
from lit_gpt.harness import LitLM, read_gen_kwargs
from lit_gpt.model import GPT
from lit_gpt.settings import UserError

pytestmark = pytest.mark.usefixtures("own_tasks")  # silence
STANDARD = Path(lm_eval.__file__).parent / "tasks"
WINDOW = 48
SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": WINDOW, "bos_token_id": 0, "eos_token_id": 0}


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


def train_llama_tokenizer(folder: Path) -> None:
    train_sentencepiece(folder)
    kind = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | {"add_bos_token": True}))


TOKENIZERS = {"llama": train_llama_tokenizer, "gpt_neox": train_byte_level}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small model with a tokenizer that was trained on a few sentences: SentencePiece or tokenizers JSON."""
    folder = tmp_path_factory.mktemp(request.param)
    TOKENIZERS[request.param](folder)
    return make_pair(folder, request.param, vocab=320, window=WINDOW)


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


KINDS = {
    "window": lambda: MistralForCausalLM(MistralConfig(sliding_window=9, num_key_value_heads=2, **SIZES)),
    "softcap": lambda: Gemma2ForCausalLM(
        Gemma2Config(sliding_window=9, head_dim=8, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **SIZES)
    ),
    "alibi": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    ),
    "alibi in 16 bits": lambda: FalconForCausalLM(
        FalconConfig(alibi=True, multi_query=False, parallel_attn=False, bias=True, **SIZES)
    ),
    "learned": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=WINDOW, bos_token_id=0, eos_token_id=0)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_attention_equals_the_harness_own_model(kind: str, tmp_path: Path) -> None:
    """Questions with a common beginning and of all lengths, equal ones, and rows shorter than a question."""
    train_byte_level(tmp_path)
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and kind != "softcap" else 0.0, 0.2)
    model.save_pretrained(tmp_path)
    convert(Convert(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    theirs = HFLM(model, tokenizer=tokenizer, batch_size=3, device="cpu", logits_cache=False, max_length=WINDOW)
    asked = [(TEXT[:start], answer) for start in (120, 160, 161, 700) for answer in (" The", " The cat.", "s", " sea")]
    asked = requests("loglikelihood", *asked, *asked[:3], ("", "The old cat"))
    expected = theirs.loglikelihood(asked)
    assert len({round(logprob, 3) for logprob, _ in expected}) > 10
    for pack_length in (7, 1000):
        ours = LitLM(load_gpt(tmp_path), Tokenizer(tmp_path), max_length=WINDOW, pack_length=pack_length)
        compare(expected, ours.loglikelihood(asked))


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


def test_equal_prompts_are_written_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing is drawn; otherwise each has its own text."""
    asked: list[int] = []

    def counted(model: GPT, prompts: list, *options: Any, **more: Any) -> Iterator:
        asked.append(len(prompts))
        return decode(model, prompts, *options, **more)

    monkeypatch.setattr("lit_gpt.harness.decode", counted)
    for kwargs, number in (({"do_sample": False}, 2), ({"do_sample": True, "temperature": 5.0}, 6)):
        asked.clear()
        arguments = [(text, {"until": ["zz"], "max_gen_toks": 9, **kwargs}) for text in ["The old", "A dog"] * 3]
        texts = pair.ours.generate_until(requests("generate_until", *arguments))
        assert sum(asked) == number
        assert len(set(texts)) == number


@pytest.mark.parametrize(
    "texts",
    [
        ["The old cat", "The old dog likes", "The old"],
        ["The old", "The old", "The old cat"],
        ["A dog", "The red", "The"],
        ["The sea"],
    ],
)
@pytest.mark.parametrize("sample", [False, True])
def test_what_prompts_begin_with_is_read_once(
    texts: list[str], sample: bool, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the texts are those that come without."""
    lm, read = LitLM(pair.ours.model, pair.ours.tokenizer, batch_size=2), []
    kwargs = {"until": ["sea"], "max_gen_toks": 9, "do_sample": sample}
    asked = requests("generate_until", *((text, kwargs) for text in texts))
    monkeypatch.setattr(LitLM, "_read_beginning", lambda self, prompts: None)
    torch.manual_seed(1)
    plain = lm.generate_until(asked)
    monkeypatch.undo()
    own = LitLM._read_beginning
    monkeypatch.setattr(LitLM, "_read_beginning", lambda self, prompts: read.append(own(self, prompts)) or read[0])
    torch.manual_seed(1)
    assert lm.generate_until(asked) == plain
    ids = [lm.tok_encode(text) for text in texts]
    shared = [len(set(tokens)) == 1 for tokens in zip(*ids, strict=False)][: min(map(len, ids)) - 1]
    expected = [*shared, False].index(False) if len(texts) > 1 else 0
    assert (read[0].used if read[0] else 0) == expected


def test_long_texts_take_over_no_beginning_that_longrope_turned_otherwise(pair: Pair) -> None:
    """What all begin with is read for a short text; rows that get long are read from their first token on."""
    model = copy.deepcopy(pair.ours.model)
    scaling = {"short_factor": [1.0, 1.5, 2.0, 2.0], "long_factor": [8.0] * 4, "attention_factor": 1.1}
    model.config.rope_percentage = 1.0
    lm = LitLM(model, pair.ours.tokenizer, batch_size=2)
    texts = [TEXT[:90] + more for more in (" cat", " dog likes", "")]
    lengths = sorted(len(lm.tok_encode(text)) for text in texts)
    assert lengths[0] < lengths[-1]
    asked = requests("generate_until", *((text, {"until": ["sea"], "max_gen_toks": 9}) for text in texts))
    for short in (lengths[0], lengths[-1] + 8, lengths[-1] + 9):  # all long, some, none
        model.config.rope_scaling = {**scaling, "original_max_position_embeddings": short}
        alone = [lm.generate_until([one])[0] for one in asked]
        assert lm.generate_until(asked) == alone


def test_window_of_the_users_choice(pair: Pair) -> None:
    narrow = LitLM(pair.ours.model, pair.ours.tokenizer, max_length=16)
    theirs = HFLM(pair.theirs.model, tokenizer=pair.theirs.tokenizer, max_length=16, device="cpu")
    asked = requests("loglikelihood", (TEXT, " The cat"), ("The old", " dog"))
    compare(theirs.loglikelihood(asked), narrow.loglikelihood(asked))
    asked = requests("loglikelihood_rolling", (TEXT,))
    compare(theirs.loglikelihood_rolling(asked), narrow.loglikelihood_rolling(asked))
    asked = requests("generate_until", (TEXT, {"until": [], "max_gen_toks": 6}))
    assert theirs.generate_until(asked) == narrow.generate_until(asked)


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

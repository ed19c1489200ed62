"""What several test files share."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
import torch
from hub_server import HubServer

from lit_gpt.cli import COMMANDS, _load
from lit_gpt.config import Config
from lit_gpt.families.catalogue import CATALOGUE
from lit_gpt.files import write_json
from lit_gpt.model import GPT
from lit_gpt.settings import run

SHARED = Path(__file__).parents[2] / "shared"
"""Real data and tokenizers, where they are at hand; tests that need them skip without."""

SENTENCES = [
    f"The {a} {b} {c} the {d}."
    for a in ("old", "red")
    for b in ("cat", "dog")
    for c in ("sees", "likes")
    for d in ("sun", "sea")
]


def command(name: str, *argv: object) -> int:
    """Runs a command with these flags in this process; its exit code."""
    function, *classes = (_load(place) for place in COMMANDS[name])
    return run(function, classes, name, "", argv=[str(word) for word in argv])


def train_sentencepiece(folder: Path, **changes: object) -> None:
    """Writes a `tokenizer.model` of the Llama kind, trained on SENTENCES; `changes` are settings of the trainer."""
    trained = io.BytesIO()
    settings = {
        "vocab_size": 300,
        "model_type": "bpe",
        "byte_fallback": True,
        "character_coverage": 1.0,
        "hard_vocab_limit": False,
        "normalization_rule_name": "identity",  # spaces and all: as Llama's own
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
        **changes,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES * 20), model_writer=trained, **settings)
    (folder / "tokenizer.model").write_bytes(trained.getvalue())


def train_byte_level(folder: Path) -> None:
    """Writes a `tokenizer.json` of the GPT-NeoX kind, trained on SENTENCES: byte level, no BOS in front of a prompt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], **options)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", kind)


def make_checkpoint(folder: Path, seed: int = 0, **changes) -> Path:
    """Writes a converted checkpoint: a random Llama-shaped model of a few thousand parameters and its own tokenizer."""
    folder.mkdir(parents=True)
    train_sentencepiece(folder)
    sizes = {
        "block_size": 256,
        "padded_vocab_size": 320,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "intermediate_size": 48,
    }
    config = Config("llama", **{**sizes, "norm": "rms", "mlp": "gated", "activation": "silu", **changes})
    torch.manual_seed(seed)
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(model.state_dict(), folder / "lit_model.pth")
    write_json(folder / "lit_config.json", {**config.to_dict(), "weights_sha256": f"{seed:064x}"})
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small converted checkpoint; do not change it."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tests" / "tiny")


@pytest.fixture(scope="session")
def data(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few samples to finetune on, prepared for the tokenizer of every `make_checkpoint`; do not change it."""
    rows = [
        {"instruction": f"Say word {n % 5}{' now' * (n % 3)}.", "input": "", "output": f"the word is {n % 5}"}
        for n in range(40)
    ]
    folder = tmp_path_factory.mktemp("data")
    write_json(folder / "rows.json", rows)
    flags = ["--checkpoint_dir", checkpoint, "--data_file", folder / "rows.json", "--destination_path", folder / "rows"]
    assert command("prepare json", *flags, "--test_split_fraction", 0.2) == 0
    return folder / "rows"


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of small task files of ours; the harness and its libraries are silent and leave nothing behind."""
    from harness_tasks import quiet, write_tasks

    with quiet(tmp_path_factory.mktemp("cache")):
        yield write_tasks(tmp_path_factory.mktemp("tasks"))


@contextlib.contextmanager
def local_hub(patch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A local hub that the client in this process talks to."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    with HubServer() as server:
        patch.setattr(constants, "ENDPOINT", server.endpoint)  # read from the environment at import
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def stand_in(patch: pytest.MonkeyPatch, repo_id: str, description: str | bytes) -> None:
    """Gives a model of the catalogue the shape of a small one that has its name here: that of this `config.json`."""
    patch.setitem(CATALOGUE, repo_id, dataclasses.replace(CATALOGUE[repo_id], config=json.loads(description)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """See `local_hub`."""
    with local_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces and divides into forward and backward as always, but makes no machine code: fast, and needs no C++."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, dynamic: compile(f, dynamic=dynamic, backend="aot_eager_decomp_partition")
    )

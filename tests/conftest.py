"""What several test files share."""

import io
from pathlib import Path

import pytest
import sentencepiece
import torch

from lit_gpt.config import Config
from lit_gpt.files import write_json
from lit_gpt.model import GPT

SHARED = Path(__file__).parents[2] / "shared"
"""Real data and tokenizers, where they are at hand; tests that need them skip without."""

SENTENCES = [
    f"The {a} {b} {c} the {d}."
    for a in ("old", "red")
    for b in ("cat", "dog")
    for c in ("sees", "likes")
    for d in ("sun", "sea")
]


def make_checkpoint(folder: Path, seed: int = 0, **changes) -> Path:
    """Writes a converted checkpoint: a random Llama-shaped model of a few thousand parameters and its own tokenizer."""
    folder.mkdir(parents=True)
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=trained,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        normalization_rule_name="identity",  # spaces and all: as Llama's own
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
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

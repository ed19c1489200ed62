"""Perplexity: transformers' own loss over sliding windows, validation's loss over a data set, and the command."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES, command, train_sentencepiece
from transformers import LlamaConfig, LlamaForCausalLM

from lit_gpt import Tokenizer, load_gpt
from lit_gpt.convert import Convert, convert
from lit_gpt.data.dataset import TokenDataset

TEXT = " ".join(SENTENCES) + " Überall — naïve, 東京?\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """A random Llama of transformers, and its folder with our conversion and a text in it."""
    folder = tmp_path_factory.mktemp("llama")
    train_sentencepiece(folder)
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=64))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    convert(Convert(folder))
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder, model.eval()


@torch.no_grad()
def theirs(model: LlamaForCausalLM, ids: list[int], length: int, stride: int) -> tuple[float, int]:
    """As the documentation of transformers computes it: windows of so many tokens, what was seen before not counted."""
    nats, tokens, done = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        window = torch.tensor([ids[begin:end]])
        labels = window.clone()
        labels[:, : -(end - done)] = -100
        count = int((labels[:, 1:] != -100).sum())
        nats += model(window, labels=labels).loss.item() * count
        tokens, done = tokens + count, end
        if end == len(ids):
            break
    return nats, tokens


@pytest.mark.parametrize(("window", "stride"), [(64, None), (24, 24), (24, 7), (24, 1)])
def test_equals_transformers(
    llama: tuple[Path, LlamaForCausalLM], window: int, stride: int | None, tmp_path: Path, capsys
) -> None:
    folder, model = llama
    flags = ["--checkpoint_dir", folder, "--text_file", folder / "text.txt", "--precision", "32-true"]
    flags += ["--max_seq_length", window, *(["--stride", stride] if stride else []), "--pack_length", 50]
    assert command("perplexity", *flags, "--save_filepath", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    tokenizer = Tokenizer(folder)
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT, bos=False)]
    assert len(ids) > 100
    nats, tokens = theirs(model, ids, window + 1, stride or window // 2)
    assert tokens == len(ids) - 1
    assert found["results"] == pytest.approx(
        {
            "tokens": tokens,
            "nats_per_token": nats / tokens,
            "bits_per_byte": nats / math.log(2) / len(TEXT.encode()),
            "perplexity": math.exp(nats / tokens),
        },
        rel=1e-5,
    )
    assert found["config"]["text_file"] == str(folder / "text.txt")
    out = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in out] == ["tokens", "nats per token", "bits per byte", "perplexity"]


def test_a_data_set_has_the_loss_of_validation(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """The mean over supervised tokens; a window shorter than its samples changes it."""
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--split", "train", "--precision", "32-true"]
    found = {}
    for window in (256, 16):
        assert command("perplexity", *flags, "--max_seq_length", window, "--save_filepath", tmp_path / "a.json") == 0
        found[window] = json.loads((tmp_path / "a.json").read_text())["results"]
    model, dataset, tokenizer = load_gpt(checkpoint), TokenDataset(data, "train"), Tokenizer(checkpoint)
    nats, tokens, size = 0.0, 0, 0
    for i in range(len(dataset)):
        ids, on = dataset.ids(i), dataset.supervised(i)
        losses = torch.nn.functional.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")
        nats, tokens = nats + losses[on[1:]].sum().item(), tokens + int(on[1:].sum())
        size += len(tokenizer.decode(ids[on].tolist()).encode())
    assert found[256]["tokens"] == found[16]["tokens"] == tokens
    assert found[256]["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found[256]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found[16]["nats_per_token"] != pytest.approx(nats / tokens, rel=1e-4)


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, [], "--text_file or --data_dir: give one of them"),
        (None, ["--text_file", "no.txt"], "--text_file no.txt: cannot read it (No such file or directory)"),
        (b"", [], "the file is empty"),
        (b"caf\xe9", [], "not UTF-8 text"),
        (b"a b", ["--stride", 0], "--stride: must be at least 1"),
        (b"a b", ["--max_seq_length", 1000], "--max_seq_length: must be between 2 and 256"),
        (b"a b", ["--data_dir", "x"], "--text_file or --data_dir: give one of them"),
        (b"a b", ["--pack_length", 0], "--pack_length: must be at least 1"),
        (None, ["--data_dir", "no/such"], "no folder no/such; prepare a data set first"),
    ],
)
def test_errors_are_one_line(checkpoint: Path, content, flags: list, message: str, tmp_path: Path, capsys) -> None:
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
        flags = ["--text_file", tmp_path / "text.txt", *flags]
    assert command("perplexity", "--checkpoint_dir", checkpoint, *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]

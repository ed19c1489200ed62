"""The commands around decoding: many prompts, stop texts, what is printed where, and bad input in one line."""

import json
import re
from pathlib import Path

import pytest
from conftest import command, make_checkpoint, train_byte_level

from lit_gpt import Tokenizer, load_gpt
from lit_gpt.decode import complete

FLAGS = ["--precision", "32-true", "--temperature", 0, "--max_new_tokens", 12]
TIME = r"Time for inference {}: \d+\.\d\d s total, \d+\.\d\d tokens/sec"


def ran(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """What the command prints to stdout."""
    capsys.readouterr()
    assert command("generate base", *flags) == 0
    return capsys.readouterr().out


def test_a_file_of_prompts_gives_the_texts_of_each_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["The old cat sees", "The", "The red dog likes the sun. The"]
    (tmp_path / "p.txt").write_text("\n".join(asked) + "\n")
    rows = [json.dumps({"prompt": text}) for text in asked]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    alone = [ran(capsys, "--checkpoint_dir", checkpoint, *FLAGS, "--prompt", text)[:-1] for text in asked]
    for name in ("p.txt", "p.jsonl"):
        flags = ["--checkpoint_dir", checkpoint, *FLAGS, "--prompts_file", tmp_path / name, "--batch_size", 2]
        capsys.readouterr()
        assert command("generate base", *flags, "--num_samples", 2) == 0
        out, err = capsys.readouterr()
        found = [json.loads(line) for line in out.splitlines()]
        assert [(row["prompt"], row["sample"]) for row in found] == [(text, n) for text in asked for n in (1, 2)]
        assert [row["prompt"] + row["text"] for row in found[::2]] == alone
        for number in range(1, 7):
            assert re.search(TIME.format(number), err)


def test_samples_of_one_prompt_are_a_batch(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ran(capsys, "--checkpoint_dir", checkpoint, *FLAGS, "--prompt", "The old", "--num_samples", 3)
    one = ran(capsys, "--checkpoint_dir", checkpoint, *FLAGS, "--prompt", "The old")
    assert text == one * 3


def test_stop_texts_and_a_draft(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--checkpoint_dir", checkpoint, *FLAGS, "--prompt", "The old"]
    whole = ran(capsys, *flags)[:-1]
    stop = whole[len("The old") + 3 : len("The old") + 6]
    cut = ran(capsys, *flags, "--stop", json.dumps([stop, "never there"]))[:-1]
    assert ran(capsys, *flags, "--stop", stop)[:-1] == cut
    assert cut == "The old" + whole[len("The old") :].split(stop)[0]
    draft = make_checkpoint(tmp_path / "draft", seed=1, n_layer=1)
    assert ran(capsys, *flags, "--draft_checkpoint_dir", draft)[:-1] == whole
    assert ran(capsys, *flags, "--draft_checkpoint_dir", checkpoint, "--stop", json.dumps([stop]))[:-1] == cut


def test_long_prompts_are_refused_or_lose_their_beginning(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "The old cat sees the sun. " * 100
    flags = ["--checkpoint_dir", checkpoint, *FLAGS, "--prompt", long]
    assert command("generate base", *flags) == 2
    assert re.search(
        r"the prompt has [\d,]+ tokens, the model's context is 256; .*--truncate_prompt left", capsys.readouterr().err
    )
    out = ran(capsys, *flags, "--truncate_prompt", "left")
    tokenizer = Tokenizer(checkpoint)
    ids = tokenizer.encode(long)
    kept = ids[:1] + ids[-(256 - 12 - 1) :]
    (text,) = complete(load_gpt(checkpoint), [kept], 12, stop_ids=[tokenizer.eos_id])
    stream = tokenizer.stream_decoder(continues=True)
    assert out == long + "".join(map(stream.add, text)) + stream.flush() + "\n"


def test_streaming_prints_whole_characters(tmp_path: Path) -> None:
    """Every part is text by itself: no part ends in half a character, and all together are the text."""
    from lit_gpt.streaming import Until

    train_byte_level(tmp_path)
    tokenizer, told = Tokenizer(tmp_path), "żółw 🐢 日本 e\u0301"
    for stops in ([], ["🐍"]):
        stream, until = tokenizer.stream_decoder(), Until(stops)
        parts = [until.add(stream.add(i)) for i in tokenizer.encode(told)]
        assert "".join(parts) == told
        assert len([part for part in parts if part]) > 8
        assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt="], "--prompt: it is empty"),
        (["--temperature", -1], "--temperature: must be at least 0"),
        (["--top_p", 0], "--top_p: must be in"),
        (["--min_p", 2], "--min_p: must be in"),
        (["--repetition_penalty", 0], "--repetition_penalty: must be above 0"),
        (["--stop", '[""]'], "--stop: an empty text"),
        (["--stop", ""], "--stop: an empty text"),
        (["--batch_size", 0], "--batch_size: must be at least 1"),
        (["--prompts_file", "nowhere.txt"], "--prompts_file nowhere.txt: cannot read it"),
        (["--prompts_file", "x.txt", "--prompt", "y"], "--prompt, --input: the prompts are those of --prompts_file"),
        (["--compile", "true", "--draft_checkpoint_dir", "x"], "--compile: is for single tokens"),
    ],
)
def test_bad_settings(checkpoint: Path, flags: list, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("generate base", "--checkpoint_dir", checkpoint, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"fine\ncaf\xe9\n", "p.txt:2: not UTF-8"),
        ("p.txt", b"", "it is empty"),
        ("p.txt", b"one\n\ntwo\n", "p.txt:2: the prompt is empty"),
        ("p.jsonl", b'{"prompt": "x"}\n{"prompt": 3}\n', 'p.jsonl:2: no text "prompt"'),
        ("p.jsonl", b"[]\n", 'p.jsonl:1: no text "prompt"'),
        ("p.jsonl", b'{"prompt"', "p.jsonl:1: not JSON"),
        ("p.txt", b"word and " * 1_200_000, "tokens, the model's context is 256"),
    ],
)
def test_bad_files_of_prompts(
    checkpoint: Path, tmp_path: Path, name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert command("generate base", "--checkpoint_dir", checkpoint, "--prompts_file", tmp_path / name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_draft_with_another_tokenizer_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_checkpoint(tmp_path / "other")
    (other / "tokenizer.model").unlink()
    train_byte_level(other)
    assert command("generate base", "--checkpoint_dir", checkpoint, "--draft_checkpoint_dir", other) == 2
    assert "its tokenizer is another one" in capsys.readouterr().err

"""Ids, text, special tokens and streaming, against transformers and SentencePiece."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED

from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer

MISTRAL, PYTHIA = SHARED / "hub/mistralai/Mistral-7B-v0.1", SHARED / "hub/EleutherAI/pythia-410m"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no real tokenizers at hand")
TEXTS = [
    *("", "Hello world", " leading", "   three", "two  spaces", "trailing  ", "a\n\n\nb", "\n", "\tTab\r\n", "  \n  x"),
    *(
        "naïve façade",
        "e\u0301 é",
        "日本語のテスト",
        "Ωμέγα नमस्ते",
        "🙂👩‍👩‍👧 flags 🇫🇷",
        "ﬁ ½ ①",
        "a\u00a0b\u200bc",
        "\ufeffbom",
    ),
    *("def f(x):\n    return x  # c\n\n\tpass\n", "https://x.org/?a=1&b=2", "3.14159 1,000,000", "don't; (it's) [ok]"),
    *("a▁b ▁", "<0x0A>", "\x00\x01", "### Response:", "word " * 300),
]


def only(folder: Path, *files: Path) -> Path:
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture(scope="module", params=[MISTRAL, PYTHIA], ids=["mistral", "pythia"])
def real(request: pytest.FixtureRequest) -> tuple:
    """A real tokenizer as we and as transformers read it."""
    if not SHARED.exists():
        pytest.skip("no real tokenizers at hand")
    from transformers import AutoTokenizer

    return Tokenizer(request.param), AutoTokenizer.from_pretrained(request.param)


@pytest.fixture(scope="module", params=["json", "sentencepiece", "byte-level"])
def any_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if not SHARED.exists():
        pytest.skip("no real tokenizers at hand")
    if request.param == "sentencepiece":
        return Tokenizer(only(tmp_path_factory.mktemp("sp") / "sp", MISTRAL / "tokenizer.model"))
    return Tokenizer({"json": MISTRAL, "byte-level": PYTHIA}[request.param])


def test_ids_equal_transformers(real: tuple) -> None:
    ours, theirs = real
    texts = [*TEXTS, "a</s> b", "<s>x", "<|endoftext|> y"]
    assert [ours.encode(text) for text in texts] == [theirs(text)["input_ids"] for text in texts]
    assert ours.encode_batch(texts) == [ours.encode(text) for text in texts]
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)
    assert ours.token(1000) == theirs.convert_ids_to_tokens(1000)


def test_text_equals_transformers(real: tuple) -> None:
    ours, theirs = real
    for text in TEXTS:
        ids = ours.encode(text, eos=True)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(ours.vocab_size) for _ in range(rng.randrange(12))]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@needs_shared
def test_both_files_of_a_checkpoint_agree(tmp_path: Path) -> None:
    """tokenizer.json is preferred; SentencePiece gives the same ids and the same text for real rows and odd ones."""
    both, pieces = Tokenizer(MISTRAL), Tokenizer(only(tmp_path / "sp", MISTRAL / "tokenizer.model"))
    assert (both.file.name, pieces.file.name) == ("tokenizer.json", "tokenizer.model")
    rows = [json.loads(line) for line in (SHARED / "data/gsm8k/test.jsonl").read_text().splitlines()]
    rows += json.loads((SHARED / "data/dolly/dolly_sample.jsonl").read_text())
    texts = [*TEXTS, *(value for row in rows for value in row.values())]
    ids = both.encode_batch(texts)
    assert ids == pieces.encode_batch(texts)
    assert [both.decode(row) for row in ids] == [pieces.decode(row) for row in ids]
    names = ("bos_id", "eos_id", "use_bos", "vocab_size")
    assert [getattr(both, name) for name in names] == [getattr(pieces, name) for name in names]
    assert both.hash != pieces.hash
    assert pieces.hash == hashlib.sha256((MISTRAL / "tokenizer.model").read_bytes()).hexdigest()
    # What the two make of a text that spells a special token: documented at the top of the module.
    assert both.encode("</s>", bos=False) == [2]
    assert 2 not in pieces.encode("</s>", bos=False)


@needs_shared
def test_special_ids_are_found_where_checkpoints_keep_them(tmp_path: Path) -> None:
    folder = only(tmp_path / "sp", MISTRAL / "tokenizer.model")

    def found(**files: dict) -> tuple:
        for old in set(folder.glob("*.json")) - {folder / "tokenizer.json"}:
            old.unlink()
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        tokenizer = Tokenizer(folder)
        return tokenizer.bos_id, tokenizer.eos_id, tokenizer.use_bos

    assert found() == (1, 2, True)
    assert found(tokenizer_config={"add_bos_token": False}) == (1, 2, False)
    assert found(tokenizer_config={"eos_token": "▁the"})[1] == Tokenizer(folder).encode("the", bos=False)[0]
    assert found(special_tokens_map={"eos_token": {"content": "<s>"}}) == (1, 1, True)
    assert found(tokenizer_config={"bos_token": "", "eos_token": None}, config={"eos_token_id": 7}) == (1, 2, True)

    folder = only(tmp_path / "json", PYTHIA / "tokenizer.json")
    assert found() == (None, None, False)
    assert found(config={"bos_token_id": 5, "eos_token_id": 0}) == (5, 0, False)
    assert found(generation_config={"eos_token_id": [3, 4]}, config={"eos_token_id": 0}) == (None, 3, False)
    assert found(config={"eos_token_id": 60000}) == (None, None, False)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no EOS token"):
        Tokenizer(folder).encode("x", eos=True)


@needs_shared
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("source", [MISTRAL, PYTHIA], ids=["mistral", "pythia"])
def test_use_bos_equals_transformers(tmp_path: Path, source: Path, asked: bool) -> None:
    """With a tokenizer.json its own rule holds, whatever tokenizer_config.json says."""
    from transformers import AutoTokenizer

    folder = only(tmp_path / "copy", source / "tokenizer.json", source / "config.json")
    config = json.loads((source / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": asked}))
    assert Tokenizer(folder).encode("Hello") == AutoTokenizer.from_pretrained(folder)("Hello")["input_ids"]


def test_bos_and_eos_are_asked_for(any_kind: Tokenizer) -> None:
    plain = any_kind.encode("Hello", bos=False)
    assert any_kind.encode("Hello", bos=True, eos=True) == [any_kind.bos_id, *plain, any_kind.eos_id]
    assert any_kind.encode("Hello") == [any_kind.bos_id] * any_kind.use_bos + plain
    assert any_kind.encode_batch([]) == []


def test_decode_leaves_out_what_is_not_text(any_kind: Tokenizer) -> None:
    hello = any_kind.encode("Hello  world\n", bos=False)
    assert any_kind.decode([any_kind.bos_id, *hello, any_kind.eos_id, any_kind.vocab_size + 3]) == "Hello  world\n"
    assert any_kind.decode([]) == ""
    assert any_kind.token(any_kind.vocab_size + 3) == f"<id {any_kind.vocab_size + 3}>"


def test_streamed_text_is_the_decoded_text(any_kind: Tokenizer) -> None:
    """For random ids, half of them from the range that holds single bytes, and for real text."""
    rng = random.Random(1)
    low = [i for i in range(300) if any_kind.token(i).startswith("<0x") or any_kind.use_bos is False]
    rows = [any_kind.encode(text) for text in TEXTS]
    for _ in range(500):
        rows.append([rng.choice(low) if rng.random() < 0.5 else rng.randrange(any_kind.vocab_size) for _ in range(10)])
    for ids in rows:
        stream = any_kind.stream_decoder()
        parts = [stream.add(i) for i in ids]
        assert "".join(parts) + stream.flush() == any_kind.decode(ids)


def test_streamed_characters_are_whole(any_kind: Tokenizer) -> None:
    stream = any_kind.stream_decoder()
    parts = [stream.add(i) for i in any_kind.encode("so 🦥① far")]
    assert "\ufffd" not in "".join(parts)
    assert "".join(parts) == "so 🦥① far"
    assert max(map(len, parts)) < 8  # it does stream
    stream = any_kind.stream_decoder()
    assert "".join(stream.add(i) for i in any_kind.encode("🦥")[:-1]) == ""
    assert "\ufffd" in stream.flush()


@needs_shared
def test_stream_that_continues_a_text_keeps_its_first_space() -> None:
    tokenizer = Tokenizer(MISTRAL)
    (paris,) = tokenizer.encode("Paris", bos=False)
    assert tokenizer.stream_decoder().add(paris) == "Paris"
    assert tokenizer.stream_decoder(continues=True).add(paris) == " Paris"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "no folder"),
        ("config.json", b"{}", "no tokenizer.json or tokenizer.model"),
        ("tokenizer.json", b'{"model": {', "not a tokenizer.json"),
        ("tokenizer.json", b"", "not a tokenizer.json"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n", "not a tokenizer.model (43 bytes"),
        ("tokenizer.model", b"", "not a tokenizer.model (0 bytes"),
    ],
)
def test_folders_without_a_usable_tokenizer(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = tmp_path / "model"
    if name:
        folder.mkdir()
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        Tokenizer(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_broken_settings_and_texts(checkpoint: Path, tmp_path: Path) -> None:
    folder = only(tmp_path / "copy", checkpoint / "tokenizer.model")
    with pytest.raises(UserError, match="not UTF-8"):
        Tokenizer(folder).encode("half a pair: \ud83d")
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": tru')
    with pytest.raises(UserError, match=r"tokenizer_config.json:1"):
        Tokenizer(folder)


def test_no_torch(checkpoint: Path) -> None:
    code = (
        f"import sys; from lit_gpt.tokenizer import Tokenizer; import lit_gpt.prompts, lit_gpt.data.prepare;"
        f"Tokenizer({str(checkpoint)!r}).encode('The old cat'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])

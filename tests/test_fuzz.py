"""Thousands of bad inputs: every one ends in a one-line error or is read as what it says, never in anything else.

The environment variable FUZZ says how many inputs there are in all; `make test-faults` tries more.
"""

import contextlib
import copy
import dataclasses
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SENTENCES, command, train_byte_level
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_gpt.checkpoint import load_gpt, read_finetuned, save_finetuned
from lit_gpt.cli import COMMANDS, _load
from lit_gpt.config import Config
from lit_gpt.data import formats, readers
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.files import read_json, sealed, write_json
from lit_gpt.hub import Download, download
from lit_gpt.methods import LoRA
from lit_gpt.model import GPT, meta_gpt
from lit_gpt.prompts import Conversation
from lit_gpt.settings import UserError, parse
from lit_gpt.tokenizer import Tokenizer

FUZZ = int(os.environ.get("FUZZ", "1500"))
"""Inputs in all; each test has its share of them."""
TALLY: Counter[str] = Counter()
SECONDS = 30
"""An input that takes longer hangs; most take a hundredth of a second."""


class Hangs(BaseException):
    """Not an Exception: the product turns those of its libraries into a UserError."""


@pytest.fixture(scope="module", autouse=True)
def tally(request: pytest.FixtureRequest) -> Iterator[None]:
    """Says at the end what was tried."""

    def hangs(*_: object) -> None:
        raise Hangs

    old = signal.signal(signal.SIGALRM, hangs)
    yield
    signal.signal(signal.SIGALRM, old)
    tried, refused = TALLY["tried"], TALLY["refused"]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(
            f"\nbad inputs tried: {tried:,}, one-line errors: {refused:,}, "
            f"accepted and unchanged/valid: {tried - refused:,}"
        )


def fuzz(share: float) -> Callable:
    """The settings of a test that gets this share of all inputs."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    checks += [HealthCheck.large_base_example]
    number = max(1, round(FUZZ * share))
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=checks,
        print_blob=False,
    )


def outcome(call: Callable[[], Any]) -> Any:
    """What `call` returns; None if it raises a UserError. Anything else that it raises fails the test."""
    TALLY["tried"] += 1
    try:
        with limited():
            return call()
    except UserError:
        TALLY["refused"] += 1
        return None


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Fails what takes too long."""
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


# --- what is done to good inputs -----------------------------------------------------------------------------------

PIECES = [
    *(
        b"\0",
        b"\x1b[2J",
        b"\r",
        b"\n",
        b"\x1c",
        b"\x85",
        b'"',
        b"'",
        b"\\",
        b",",
        b";",
        b"\t",
        b":",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc3",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        "\u2028\u0085\u202e".encode(),
        b"\\ud800",
        b"\\u0000",
    ),
    *(
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0",
        b"9" * 400,
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
    ),
    *(
        b"!!python/object/apply:os.system [id]",
        b"&a ",
        b"*a",
        b"<<: ",
        b"- ",
        b"? ",
        b"# ",
        b"---\n",
        b"%YAML 9\n",
        b"| ",
    ),
]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp037")


@st.composite
def spoiled(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` with a few bytes flipped, cut off, taken out, doubled, or with something put in."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        place, kind = draw(st.integers(0, len(data))), draw(st.integers(0, 6))
        length = draw(st.integers(1, 40))
        if kind == 0:
            data[place : place + 1] = bytes(byte ^ 1 << length % 8 for byte in data[place : place + 1])
        elif kind == 1:
            data[place : place + length] = draw(st.binary(max_size=8))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        else:
            data[place:place] = draw(st.sampled_from(PIECES))
    return bytes(data)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.integers(),
    st.floats(),
    st.sampled_from([10**9, 10**30, 10**400, -(10**400), 1e308, 0.5, 2**31, 2**63]),
    st.text(max_size=5),
    st.sampled_from(["", "1", "nan", "false", "os.system", "../../x", "\ud800", "\0", "x" * 10_000]),
    st.lists(st.integers(-1, 3), max_size=2),
    st.dictionaries(
        st.sampled_from(["factor", "type", "rope_type", "content"]), st.integers(-1, 4) | st.text(max_size=3)
    ),
)
"""A value where another should be."""


@st.composite
def altered(draw: st.DrawFn, good: dict[str, Any]) -> dict[str, Any]:
    """`good` with keys missing or with other values."""
    value = copy.deepcopy(good)
    for key in draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=3)):
        if draw(st.integers(0, 3)) == 0:
            value.pop(key, None)
        else:
            value[key] = draw(ODD)
    return value


BAD_JSON = [
    b"[" * 50_000,
    b'{"a": ' * 5000,
    b'{"n_layer": ' + b"9" * 5000 + b"}",
    b"null",
    b"[]",
    b"NaN",
    b"\xff\xfe{}",
    b"",
]
"""What a reader of JSON may stumble over."""


def dumped(value: Any) -> bytes:
    """As JSON, such as it is; numbers beyond what Python writes in decimal are left to the other tests."""
    return json.dumps(value).encode()


# --- data files ----------------------------------------------------------------------------------------------------

ROWS = [
    {
        "instruction": f"{sentence} Is it so?",
        "input": "" if n % 2 else "“Yes”,\nit is; é\t",
        "output": f'"So" it is {n}.',
    }
    for n, sentence in enumerate(SENTENCES[:6])
]
LINES = "".join(json.dumps(row, ensure_ascii=n % 2 == 0) + "\n" for n, row in enumerate(ROWS))
ARRAY = json.dumps(ROWS, indent=1)
CSV = "instruction,input,output\n" + "".join(
    ",".join('"' + value.replace('"', '""') + '"' for value in row.values()) + "\n" for row in ROWS
)
DATA_TEXTS = {"lines": LINES, "array": ARRAY, "csv": CSV}
ODD_ROW = st.dictionaries(
    st.sampled_from(["instruction", "input", "output", "status", "\ud800"]), ODD | st.just("text")
)


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """What the file is, and its bytes."""
    kind = draw(st.sampled_from(sorted(DATA_TEXTS)))
    text = DATA_TEXTS[kind]
    if draw(st.integers(0, 7)) == 0:
        return kind, draw(st.binary(max_size=200))
    if kind == "lines" and draw(st.booleans()):
        text += "".join(json.dumps(row) + "\n" for row in draw(st.lists(ODD_ROW | ODD, max_size=3)))
    good = text.encode(draw(st.just("utf-8") | st.sampled_from(ENCODINGS)), errors="replace")
    return kind, draw(spoiled(good)) if draw(st.integers(0, 9)) else good


def samples(path: Path, kind: str) -> tuple[list[Conversation], int]:
    """The samples of a file, and how many rows of it were not taken; every row must say where it stands."""
    taken, refused, places, said = [], 0, set(), []
    for place, row in readers.rows(path, "csv" if kind == "csv" else "json"):
        assert place.startswith(f"{path}:")
        assert place not in places
        places.add(place)
        try:
            if isinstance(row, readers.BadRow):
                raise row
            taken.append(formats.take(place, row))
        except formats.LeftOut:
            refused += 1
        except readers.BadRow as error:
            refused += 1
            said.append(str(error).removeprefix(place))
    assert all(text[0] == ":" and len(text) < 600 for text in said)
    return taken, refused


def assert_samples(taken: list[Conversation]) -> None:
    for sample in taken:
        (question, given), answer = sample[-2][1:], sample[-1].text
        assert all(isinstance(value, str) and value == value.strip() for turn in sample for value in turn)
        assert answer
        assert question or given
        "".join(value for turn in sample for value in turn).encode()


@given(file=data_files())
@fuzz(0.3)
def test_data_files(tmp_path: Path, file: tuple[str, bytes]) -> None:
    kind, content = file
    path = tmp_path / "rows"
    path.write_bytes(content)
    found = outcome(lambda: samples(path, kind))
    if found is not None:
        taken, refused = found
        assert_samples(taken)
        if kind == "lines" and content[:1] == b"{" and content.split(b"\n")[0].strip() != b"{":
            lines = content.decode(errors="surrogateescape").split("\n")
            assert len(taken) + refused == sum(bool(line.strip()) for line in lines), "no line is passed over"
        if content == DATA_TEXTS[kind].encode():
            assert [(*sample[0][1:], sample[1].text) for sample in taken] == [
                tuple(value.strip() for value in row.values()) for row in ROWS
            ]


@given(
    text=st.text(max_size=20) | st.text("instructionpu=, ", max_size=40) | spoiled(b"instruction=a,output=b").map(repr)
)
@fuzz(0.04)
def test_map_texts(text: str) -> None:
    keys = outcome(lambda: formats.parse_map(text))
    if keys is not None:
        assert keys.keys() <= set(formats.FIELDS)
        named = dict(part.split("=", 1) for part in text.split(","))
        named = {field.strip(): key.strip() for field, key in named.items()}
        assert keys.items() >= named.items()
        assert all(keys.values())


@given(file=data_files())
@fuzz(0.03)
def test_commands_on_data_files(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, file: tuple) -> None:
    """Exit code 0 and a whole set, or 2 and one line, on a clean terminal."""
    kind, content = file
    (tmp_path / "rows").write_bytes(content)
    shutil.rmtree(tmp_path / "set", ignore_errors=True)
    flags = ["--checkpoint_dir", checkpoint, "--data_file", tmp_path / "rows", "--destination_path", tmp_path / "set"]
    name = "prepare csv" if kind == "csv" else "prepare json"
    capsys.readouterr()

    def prepare() -> bool:
        code = command(name, *flags, "--skip_bad_rows", "true")
        told = capsys.readouterr()
        assert told.out == ""
        if code == 2:
            assert told.err.startswith("error: ")
            assert told.err.count("\n") == 1
            assert told.err.strip().isprintable()
            raise UserError(told.err)
        assert code == 0, told.err
        return True

    if outcome(prepare):
        meta = TokenDataset(tmp_path / "set").meta
        assert meta["rows"]["train"] == len(TokenDataset(tmp_path / "set"))
        assert meta["rows"]["test"] == len(TokenDataset(tmp_path / "set", "test"))
        dropped = sum(meta["dropped"].values())
        assert meta["rows"]["read"] == meta["rows"]["train"] + meta["rows"]["test"] + dropped
    else:
        assert not (tmp_path / "set").exists()


# --- our own files -------------------------------------------------------------------------------------------------


def content_of(folder: Path) -> dict[str, Any]:
    """All that a training run reads of a data set."""
    found: dict[str, Any] = {}
    for split in ("train", "test"):
        data = TokenDataset(folder, split)
        found[split] = [(data.ids(i).tolist(), data.supervised(i).tolist()) for i in range(len(data))]
        found["meta"] = data.meta
    return found


@given(data=st.data())
@fuzz(0.1)
def test_data_sets(data: st.DataObject, tmp_path: Path, prepared: tuple[Path, dict]) -> None:
    """The same data, or none."""
    folder, expected = prepared
    name = data.draw(st.sampled_from(["train.pt", "test.pt", "meta.json"]))
    good = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(data.draw(spoiled(good)))
        found = outcome(lambda: content_of(folder))
    finally:
        (folder / name).write_bytes(good)
    if found is not None:
        assert found["train"] == expected["train"]
        assert found["test"] == expected["test"]
        known = {key: value for key, value in found["meta"].items() if key in expected["meta"]}  # "sha256" may be hit
        assert expected["meta"] == {**expected["meta"], **known}


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A copy of the prepared data set, and what is in it."""
    folder = shutil.copytree(data, tmp_path_factory.mktemp("fuzz") / "set")
    return folder, content_of(folder)


@pytest.fixture(scope="module")
def finetuned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A file of finetuned weights, and what is in it."""
    path, model, method = tmp_path_factory.mktemp("fuzz") / "lit_model_lora_finetuned.pth", load_gpt(checkpoint), LoRA()
    method.attach(model)
    save_finetuned(
        path, model, method, {"prompt_style": "alpaca", "base": {"weights_sha256": "0" * 64}, "quantize": None}
    )
    return path, read_finetuned(path)


@given(data=st.data())
@fuzz(0.08)
def test_finetuned_files(data: st.DataObject, finetuned: tuple[Path, dict]) -> None:
    path, expected = finetuned
    good = path.read_bytes()
    try:
        path.write_bytes(data.draw(spoiled(good)))
        found = outcome(lambda: read_finetuned(path))
    finally:
        path.write_bytes(good)
    if found is not None:
        assert {**found, "weights": None} == {**expected, "weights": None}
        assert found["weights"].keys() == expected["weights"].keys()
        assert all(torch.equal(found["weights"][name], weight) for name, weight in expected["weights"].items())


# --- configuration -------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {
    **SIZES,
    "model_type": "llama",
    "intermediate_size": 70,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "head_dim": 12,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "rope_parameters": None,
    "partial_rotary_factor": 1.0,
    "max_sequence_length": None,
    "rope_condense_ratio": 1,
    "tie_word_embeddings": False,
    "quantization_config": None,
}
NEOX = {**SIZES, "model_type": "gpt_neox", "intermediate_size": 90, "rotary_pct": 0.25, "rotary_emb_base": 10000}
FALCON = {
    **SIZES,
    "model_type": "falcon",
    "new_decoder_architecture": True,
    "num_kv_heads": 2,
    "alibi": False,
    "bias": True,
}


def assert_model(config: Config) -> None:
    """A model can be built of it and computes numbers; large ones are not tried."""
    sizes = [
        getattr(config, name) for name in ("padded_vocab_size", "n_head", "n_embd", "intermediate_size", "head_size")
    ]
    if max(*sizes, config.n_layer**3) > 5000:
        return
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, dtype=torch.int64)).isfinite().all()
    assert {name for name, _ in meta_gpt(config).named_parameters()} == {name for name, _ in model.named_parameters()}


@given(hf=st.one_of(altered(LLAMA), altered(NEOX), altered(FALCON)))
@fuzz(0.1)
def test_config_json(hf: dict) -> None:
    config = outcome(lambda: Config.from_hf(hf))
    if config is not None:
        assert_model(config)


@given(data=st.data())
@fuzz(0.05)
def test_lit_config(data: st.DataObject, tmp_path: Path) -> None:
    """Changed by hand, with the seal taken out; or damaged."""
    config = Config.from_hf(LLAMA)
    whole = dumped(sealed({**config.to_dict(), "weights_sha256": "0" * 64}))
    content = data.draw(altered(config.to_dict()).map(dumped) | spoiled(whole) | st.sampled_from(BAD_JSON))
    (tmp_path / "lit_config.json").write_bytes(content)
    found = outcome(lambda: Config.from_checkpoint(tmp_path))
    if found is not None:
        assert_model(found)


TOKENIZER_FILES = {
    "tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True},
    "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>"},
    "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 3]},
    "config.json": {"bos_token_id": 1, "eos_token_id": 2},
}


@pytest.fixture(scope="module")
def tokenizers(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with a tokenizer of each kind."""
    folders = [tmp_path_factory.mktemp("sentencepiece"), tmp_path_factory.mktemp("byte-level")]
    shutil.copy(checkpoint / "tokenizer.model", folders[0])
    train_byte_level(folders[1])
    (folders[1] / "tokenizer_config.json").unlink()
    return folders


def use_tokenizer(folder: Path) -> bool:
    """Reads a tokenizer and does with it what the commands do."""
    tokenizer = Tokenizer(folder)
    ids = (tokenizer.bos_id, tokenizer.eos_id)
    assert all(i is None or (type(i) is int and 0 <= i < tokenizer.vocab_size) for i in ids)
    rows = tokenizer.encode_batch(["The old cat  sees\n é 🦥", "", "<s> </s>"], eos=True)
    everything = range(min(tokenizer.vocab_size, 300))
    stream = tokenizer.stream_decoder()
    streamed = "".join(stream.add(i) for i in everything) + stream.flush()
    for text in (
        *map(tokenizer.decode, rows),
        tokenizer.decode(everything),
        streamed,
        *map(tokenizer.token, everything),
    ):
        text.encode()
    return True


@given(data=st.data())
@fuzz(0.08)
def test_tokenizers(data: st.DataObject, tokenizers: list[Path]) -> None:
    folder = data.draw(st.sampled_from(tokenizers))
    (file,) = folder.glob("tokenizer.*")
    good, written = file.read_bytes(), []
    try:
        if data.draw(st.booleans()):
            file.write_bytes(data.draw(spoiled(good)))
        for name in data.draw(st.lists(st.sampled_from(sorted(TOKENIZER_FILES)), max_size=2)):
            content = dumped(data.draw(altered(TOKENIZER_FILES[name])))
            written.append(folder / name)
            written[-1].write_bytes(data.draw(st.just(content) | spoiled(content) | st.sampled_from(BAD_JSON)))
        outcome(lambda: use_tokenizer(folder))
    finally:
        file.write_bytes(good)
        for path in written:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def downloaded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that plays the hub, with the record of a download."""
    home, first = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("first")
    folder = first / "org" / "name"
    folder.mkdir(parents=True)
    shutil.copy(checkpoint / "tokenizer.model", folder)
    write_json(folder / "config.json", LLAMA)
    download(Download(repo_id="org/name", from_folder=first, checkpoint_dir=home, tokenizer_only=True))
    return home


@given(data=st.data())
@fuzz(0.02)
def test_records_of_downloads(data: st.DataObject, tmp_path: Path, downloaded: Path) -> None:
    """A damaged record brings no other bytes."""
    record, folder = downloaded / "org/name/download.json", tmp_path / "org/name"
    good = record.read_bytes()
    shutil.rmtree(folder, ignore_errors=True)
    flags = {"repo_id": "org/name", "from_folder": downloaded, "checkpoint_dir": tmp_path, "tokenizer_only": True}
    try:
        changed = altered(read_json(record)).map(dumped)
        record.write_bytes(data.draw(spoiled(good) | changed | st.sampled_from(BAD_JSON)))
        done = outcome(lambda: download(Download(**flags)) or True)
    finally:
        record.write_bytes(good)
    if done:
        for name in ("config.json", "tokenizer.model"):
            assert (folder / name).read_bytes() == (downloaded / "org/name" / name).read_bytes()


# --- settings ------------------------------------------------------------------------------------------------------

CLASSES = {name: [_load(place) for place in places[1:]] for name, places in COMMANDS.items()}
FLAGS = sorted({field.name for found in CLASSES.values() for cls in found for field in dataclasses.fields(cls)})
FILES = [
    *("", " ", "-", "--", "-1", "0", "1", "2.5", "nan", ".nan", ".inf", "1e999", "1_000", "010", "1:30", "0x10"),
    *(
        "true",
        "null",
        "~",
        "[",
        "[]",
        "[a,b]",
        "[[a]]",
        "{}",
        "{a: b}",
        "a: b",
        "- a",
        "? a",
        "'",
        '"',
        "#",
        "%",
        "@",
        "`",
    ),
    *(
        "!!python/object/apply:os.system [id]",
        "!!timestamp x",
        "!!bool x",
        "!!int x",
        "!x",
        "*a",
        "&a [*a]",
        "<<: {a: 1}",
    ),
    *(
        "bf16-true",
        "bnb.nf4",
        "alpaca",
        "auto",
        "2d3h",
        "tensorboard",
        "é",
        "\udce9",
        "\x1b[31m",
        "9" * 400,
        "[" * 5000,
    ),
]
VALUES = st.sampled_from(FILES) | st.integers().map(str) | st.floats().map(str)
VALUES |= st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
NUMBERS = (1 << 63) - 1


def parsed(name: str, argv: list[str]) -> list:
    """The settings of a command; None for `--help` and the like, which have been answered."""
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        try:
            return parse(argv, CLASSES[name], f"lit-gpt {name}", "Doc.")
        except SystemExit:
            return []


def assert_settings(found: list) -> None:
    """Every value is one of its field's type, and a number is a number."""
    for instance in found:
        for field in dataclasses.fields(instance):
            if not field.init:
                continue
            value = getattr(instance, field.name)
            for item in value if isinstance(value, list) else [value]:
                assert item is None or isinstance(item, str | Path | int | float) or field.name == "token"
                if isinstance(item, int | float):
                    assert -NUMBERS <= item <= NUMBERS, field.name
                if isinstance(item, str | Path):
                    os.fsencode(item)
            if value is None:
                assert field.default is None or "None" in str(field.type), field.name
            if field.type in (int, float, bool, str):
                assert isinstance(value, field.type), field.name


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    name = draw(st.sampled_from(sorted(COMMANDS)))
    own = [field.name for cls in CLASSES[name] for field in dataclasses.fields(cls) if field.init]
    argv = [f"--{field}=x" for field in ("checkpoint_dir", "lora_path", "out_dir") if field in own]
    for _ in range(draw(st.integers(1, 3))):
        flag = draw(
            st.sampled_from(own) | st.sampled_from(own) | st.sampled_from(FLAGS) | st.text("abc_-=", max_size=4)
        )
        value = draw(VALUES)
        argv += [f"--{flag}={value}"] if draw(st.integers(0, 3)) else [f"--{flag}", value]
    return name, argv


@given(line=command_lines())
@fuzz(0.1)
def test_command_lines(line: tuple[str, list[str]]) -> None:
    found = outcome(lambda: parsed(*line))
    if found is not None:
        assert_settings(found)


@given(text=VALUES)
@fuzz(0.02)
def test_text_stays_as_it_was_typed(text: str) -> None:
    """A prompt that looks like YAML is still the prompt."""
    found = outcome(lambda: parsed("generate base", ["--checkpoint_dir=x", f"--prompt={text}"]))
    if found is not None:
        assert found[0].prompt == text


LAUGHS = "\n".join(
    ["seed:", "- &a0 [x, x, x, x, x, x, x, x, x]"] + [f"- &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(9)]
)
"""A few hundred bytes that say a thousand million words."""
GOOD_FILE = b"checkpoint_dir: x\nseed: 3\ntemperature: 0.5\nprompt: 'a: b'\ntop_k: null\nprecision: bf16-true\n"
BAD_FILES = [
    LAUGHS,
    "seed: !!python/object/apply:os.system [exit 1]\n",
    "!!python/object/new:os.system [exit 1]",
    "seed: &a [*a]",
    "seed: " + "[" * 20_000,
    "- " * 5000,
    "seed: " + "{a: " * 400 + "1" + "}" * 400,
    "seed: !!timestamp x",
    "seed: 1\nseed: 2",
    "<<: {seed: 1}",
    "? [a]\n: 1",
    "config: x.yaml",
    "prompt: null",
    'checkpoint_dir: "a\\0b"',
    "temperature: " + "1" * 400,
]


@given(data=st.data())
@fuzz(0.08)
def test_files_of_settings(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    anything = st.recursive(VALUES | ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(VALUES, inner))
    drawn = st.dictionaries(st.sampled_from(FLAGS) | VALUES, anything, max_size=3)
    content = data.draw(
        st.one_of(
            spoiled(GOOD_FILE),
            st.sampled_from([text.encode() for text in BAD_FILES]),
            st.binary(max_size=40),
            st.tuples(st.sampled_from(FLAGS), st.sampled_from(FILES)).map(
                lambda pair: ": ".join(pair).encode("utf-8", "replace")
            ),
            drawn.map(lambda value: json.dumps(value).encode()),
        )
    )
    path.write_bytes(content)
    found = outcome(lambda: parsed("generate base", ["--checkpoint_dir=x", "--config", str(path)]))
    if found is not None:
        assert_settings(found)
        assert content.decode("utf-8-sig") not in BAD_FILES


# --- what was found so, and what is said now -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature=.nan"], "--temperature: must be a number of ordinary size, got nan"),
        (["--temperature=1e999"], "--temperature: must be a number of ordinary size, got inf"),
        (["--temperature=" + "1" * 400], "a value cannot be read (int too large to convert to float)"),
        (["--top_k=" + "1" * 400], "--top_k: must be a number of ordinary size, got 1111"),
        (["--seed=!!timestamp x"], "a value cannot be read ("),
        (["--seed=!!bool x"], "a value cannot be read ('x')"),
        (["--seed="], "--seed: expected INT, got nothing"),
        (["--top_k=.inf"], "--top_k: expected INT, got inf"),
        (["--prompt=a\0b"], "--prompt: holds the character '\\x00', which no file has; take it out"),
    ],
)
def test_flags_that_were_found(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed("generate base", ["--checkpoint_dir=x", *flags])
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "not YAML (no setting has a tag (!), a reference (&, *) or a list in a list"),
        ("seed: !!timestamp x", "not YAML (no setting has a tag"),
        ("seed: [[[", "not YAML (no setting has a tag"),
        ("prompt: null", "--prompt: needs a value, got null"),
        ("config: x", ":1: unknown key 'config'"),
    ],
)
def test_files_that_were_found(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as caught, limited():
        parsed("generate base", ["--checkpoint_dir=x", "--config", str(tmp_path / "x.yaml")])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "n_layer is 1000000000, and no model has more than 4,096"),
        ({"vocab_size": True}, "padded_vocab_size must be a whole number from 1 on, got True"),
        ({"num_key_value_heads": -2}, "n_query_groups must be a whole number from 1 on, got -2"),
        ({"head_dim": 11}, "rope_percentage 1.0 takes more pairs than head_size 11 has"),
        ({"rms_norm_eps": float("nan")}, "norm_eps must be a positive number, got nan"),
        ({"rope_theta": -1}, "rope_base must be a positive number, got -1.0"),
        ({"rope_theta": 10**400}, "a value is of the wrong type (int too large to convert to float)"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a positive number, got 0.0"),
    ],
)
def test_configurations_that_were_found(change: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Config.from_hf({**LLAMA, **change})
    assert str(caught.value) == f"config.json: {message}"


def test_other_things_that_were_found(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="--map: output is named twice, as 'a' and 'b'"):
        formats.parse_map("output=a,output=b")
    shutil.copy(checkpoint / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "\\ud800"}')
    with pytest.raises(UserError, match=r"eos_token '\\ud800' is no text"):
        Tokenizer(tmp_path)
    (tmp_path / "rows").write_text(json.dumps({"instruction": "\x1b[2J", "output": ["\x1b[2J"]}))
    assert command("prepare json", "--checkpoint_dir", checkpoint, "--data_file", tmp_path / "rows") == 2
    assert "\x1b" not in capsys.readouterr().err
    for depth in range(900, 1000):  # read, but too deep to be shown
        (tmp_path / "rows").write_text("[" * depth + "]" * depth)
        with contextlib.suppress(UserError):
            samples(tmp_path / "rows", "json")

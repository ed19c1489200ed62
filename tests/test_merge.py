"""Merging: the new checkpoint has the logits of base and update, in the base's types, and is whole or not there."""

import hashlib
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import command, make_checkpoint
from torch import Tensor, nn

from lit_gpt import Config, Tokenizer, load_gpt, parts
from lit_gpt.checkpoint import apply_finetuned, base_identity, read_finetuned, save_finetuned
from lit_gpt.files import read_json, write_json
from lit_gpt.merge import CHECKED, TEXT
from lit_gpt.methods import LoRA, trainable_state
from lit_gpt.model import meta_gpt
from lit_gpt.parts import logits, weights_of

IDX = torch.randint(0, 300, (2, 33), generator=torch.Generator().manual_seed(3))
EVERYWHERE = {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp", "head")}
CASES = {
    "query and value": ({}, {}),
    "grouped queries, biases": ({"n_query_groups": 2, "qkv_bias": True, "mlp_bias": True}, EVERYWHERE),
    "one group": ({"n_query_groups": 1}, {"lora_key": True}),
    "side by side": ({"norm": "layer", "mlp": "plain", "parallel_residual": True, "head_bias": True}, EVERYWHERE),
    "tied": ({"tie_embeddings": True}, {"lora_mlp": True}),
    "tied, head": ({"tie_embeddings": True}, {"lora_head": True}),
}


def write_base(folder: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    """A converted checkpoint with a config.json, in a type."""
    make_checkpoint(folder, **changes)
    state = torch.load(folder / "lit_model.pth", weights_only=True)
    if changes.get("tie_embeddings"):
        del state["lm_head.weight"]  # as converted ones
    torch.save({name: weight.to(dtype) for name, weight in state.items()}, folder / "lit_model.pth")
    write_json(folder / "config.json", {"model_type": "llama", "eos_token_id": 2})
    return folder


def finetune(base: Path, folder: Path, quantize: str | None = None, **settings: object) -> Path:
    """A finetuned file, as of a run whose weights have moved far."""
    model, method = load_gpt(base, torch.float32), LoRA(lora_r=4, lora_dropout=0.0, **settings)
    method.attach(model)
    torch.manual_seed(5)
    for weight in trainable_state(model).values():
        nn.init.normal_(weight, std=0.1)
    facts = {"prompt_style": "alpaca", "base": base_identity(base), "quantize": quantize}
    save_finetuned(folder / "lit_model_lora_finetuned.pth", model, method, facts)
    return folder


def merge(base: Path, finetuned: Path, out: Path, *flags: object) -> int:
    """`scripts/merge_lora.py`, in this process."""
    return command("merge lora", "--checkpoint_dir", base, "--lora_path", finetuned, "--out_dir", out, *flags)


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "lit_model.pth", weights_only=True)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def finetuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(base, tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_base_and_update(case: str, tmp_path: Path) -> None:
    changes, settings = CASES[case]
    base = write_base(tmp_path / "base", **changes)
    lora, out = finetune(base, tmp_path / "lora", **settings), tmp_path / "merged"
    assert merge(base, lora, out, "--check", "false") == 0
    expected = load_gpt(base, finetuned=lora)(IDX)
    assert relative(load_gpt(out)(IDX), expected) <= 1e-5
    assert relative(load_gpt(base)(IDX), expected) > 0.01
    before, after = weights(base), weights(out)
    adapted = {f"{name.rpartition('.')[0]}.weight" for name in read_finetuned(lora)["weights"]}
    untied = case == "tied, head"
    assert set(after) == set(before) | ({"lm_head.weight"} if untied else set())
    for name, weight in before.items():
        assert torch.equal(after[name], weight) == (name not in adapted), name
    assert Config.from_checkpoint(out).tie_embeddings == (case == "tied")
    assert read_json(out / "config.json").get("tie_word_embeddings") == (False if untied else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_and_rounded_to_once(dtype: torch.dtype, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dtype)
    lora = finetune(base, tmp_path / "lora", **EVERYWHERE)
    assert merge(base, lora, tmp_path / "merged", "--check", "false") == 0
    update = read_finetuned(lora)["weights"]
    after = weights(tmp_path / "merged")
    for name, weight in weights(base).items():
        assert after[name].dtype == dtype
        if f"{name.rpartition('.')[0]}.lora_A" in update:
            A, B = (update[f"{name.rpartition('.')[0]}.lora_{letter}"].double() for letter in "AB")
            exact = weight.double() + 16 / 4 * B @ A
            spacing = torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal
            assert ((after[name].double() - exact).abs() <= 0.5001 * spacing + 1e-6).all(), name


def test_the_folder_is_a_checkpoint_like_any_other(
    base: Path, finetuned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Generate from it, finetune it, and merge again."""
    out = tmp_path / "org" / "merged"
    assert merge(base, finetuned / "lit_model_lora_finetuned.pth", out) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert f"next: python generate/base.py --checkpoint_dir {out} --prompt" in said.err
    assert {path.name for path in out.iterdir()} == {
        *("lit_model.pth", "lit_config.json", "config.json", "tokenizer.model")
    }
    assert Config.from_checkpoint(out) == Config.from_checkpoint(base)
    assert command("generate base", "--checkpoint_dir", out, "--prompt", "The old cat", "--max_new_tokens", 3) == 0
    assert capsys.readouterr().out.startswith("The old cat")
    flags = ["--data_dir", data, "--out_dir", tmp_path / "lora", "--batch_size", 4, "--max_steps", 1]
    assert command("finetune lora", "--checkpoint_dir", out, *flags, "--eval_iters", 1) == 0
    assert merge(out, tmp_path / "lora", tmp_path / "again") == 0
    first, second = (read_json(folder / "lit_config.json") for folder in (out, tmp_path / "again"))
    assert second["merged"]["base"]["weights_sha256"] == first["weights_sha256"] != second["weights_sha256"]
    assert second["merged"]["base"]["merged"] == first["merged"]


def test_what_the_description_says(base: Path, finetuned: Path, tmp_path: Path) -> None:
    assert merge(base, finetuned, tmp_path / "merged", "--check", "false") == 0
    description, file = read_json(tmp_path / "merged" / "lit_config.json"), finetuned / "lit_model_lora_finetuned.pth"
    lines = [
        f"{name} {weight.dtype} {tuple(weight.shape)} {zlib.crc32(weight.contiguous().numpy().tobytes()):08x}\n"
        for name, weight in sorted(weights(tmp_path / "merged").items())
    ]
    assert description["weights_sha256"] == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert description["dtype"] == "float32"
    assert description["merged"] == {
        "base": base_identity(base),
        "finetuned": {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        "method": read_finetuned(file)["method"],
        "quantize": None,
        "prompt_style": "alpaca",
        "run": None,
    }


def test_files_beside_the_weights(finetuned: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for name in ("generation_config.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE.txt"):
        (base / name).write_text('{"name": "value"}')
        (base / name).chmod(0o444)
    for name in ("model.safetensors", "download.json", "notes.txt"):
        (base / name).write_text("{}")
    out = tmp_path / "merged"
    for _ in range(2):  # the second replaces the first
        assert merge(base, finetuned, out, "--check", "false") == 0
    copied = {path.name for path in out.iterdir()} - {"lit_model.pth", "lit_config.json"}
    assert copied == {path.name for path in base.iterdir()} - {
        *("lit_model.pth", "lit_config.json", "model.safetensors", "download.json", "notes.txt")
    }
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in copied)


@pytest.mark.parametrize("quantize", [None, "bnb.nf4-dq", "bnb.int8-training"])
def test_the_gap_is_that_to_the_network_that_was_trained(
    quantize: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if quantize:
        pytest.importorskip("bitsandbytes")
    base = write_base(tmp_path / "base", torch.bfloat16, n_embd=64, intermediate_size=96, n_query_groups=2)
    lora, out = finetune(base, tmp_path / "lora", quantize, **EVERYWHERE), tmp_path / "merged"
    assert merge(base, lora, out) == 0
    said = capsys.readouterr().err
    ids = torch.tensor([Tokenizer(base).encode(TEXT)[:CHECKED]])
    trained, merged = load_gpt(base, torch.float32, finetuned=lora)(ids)[0], load_gpt(out, torch.float32)(ids)[0]
    gap, p = (trained - merged).abs(), trained.double().softmax(-1)
    divergence = (p * (p.log() - merged.double().log_softmax(-1))).sum(-1).mean()
    agree = (trained.argmax(-1) == merged.argmax(-1)).double().mean()
    assert (
        f"against the network that was trained (lora on {quantize or 'the base'}): logits differ by {gap.max():.3g} "
        f"at most, {gap.mean():.3g} on average; the likeliest token is the same at {agree:.1%} of {CHECKED} tokens; "
        f"KL divergence {divergence:.3g} nats\n"
    ) in said
    assert f"merging {lora / 'lit_model_lora_finetuned.pth'} into {base / 'lit_model.pth'}\n" in said
    assert (f"note: trained over this base in {quantize}, merged into it in full precision" in said) == bool(quantize)
    update = read_finetuned(lora)["weights"]
    A, B = update["blocks.1.mlp.up.lora_A"], update["blocks.1.mlp.up.lora_B"]
    expected = (weights(base)["blocks.1.mlp.up.weight"].float() + 4 * B @ A).bfloat16()
    torch.testing.assert_close(weights(out)["blocks.1.mlp.up.weight"], expected)


@pytest.mark.parametrize("quantize", [None, "bnb.fp4", "bnb.int8-training"])
def test_a_network_part_by_part_is_that_of_load_gpt(quantize: str | None, tmp_path: Path) -> None:
    if quantize:
        pytest.importorskip("bitsandbytes")
    base = write_base(tmp_path / "base", torch.bfloat16, n_embd=64, tie_embeddings=True)
    lora = finetune(base, tmp_path / "lora", quantize, **EVERYWHERE)
    model = meta_gpt(Config.from_checkpoint(base))
    apply_finetuned(model, lora, base)
    found = logits(model, weights_of(base, model, read_finetuned(lora)["weights"]), IDX[0].tolist(), quantize)
    assert torch.equal(found, load_gpt(base, torch.float32, finetuned=lora)(IDX[:1])[0])
    assert all(parameter.is_meta for parameter in model.parameters())


def test_without_the_check_no_tokenizer_is_needed(
    finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = write_base(tmp_path / "base")
    (base / "tokenizer.model").unlink()
    assert merge(base, finetuned, tmp_path / "merged") == 2
    assert f"no tokenizer.json or tokenizer.model in {base}" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
    assert merge(base, finetuned, tmp_path / "merged", "--check", "false") == 0
    assert "against" not in capsys.readouterr().err


def cut(base: Path, lora: Path, out: Path) -> None:
    file = lora / "lit_model_lora_finetuned.pth"
    file.write_bytes(file.read_bytes()[:-200])


def unconverted(base: Path, lora: Path, out: Path) -> None:
    (base / "lit_model.pth").unlink()


def other_base(base: Path, lora: Path, out: Path) -> None:
    write_json(base / "lit_config.json", {**read_json(base / "lit_config.json"), "weights_sha256": "1" * 64})


def other_weights(base: Path, lora: Path, out: Path) -> None:
    torch.save({**weights(base), "wte.weight": torch.zeros(3, 32)}, base / "lit_model.pth")


def other_model(base: Path, lora: Path, out: Path) -> None:
    write_base(out)


def downloaded_model(base: Path, lora: Path, out: Path) -> None:
    out.mkdir()
    (out / "config.json").write_text("{}")


REFUSED = {
    "no base": (lambda base, lora, out: (base / "x", lora, out), r"no folder .*x; download a checkpoint first"),
    "not converted": (unconverted, r"no file .*/lit_model.pth; convert the checkpoint first"),
    "no finetuned file": (lambda base, lora, out: (base, lora / "x.pth", out), r"no file .*x\.pth; finetune first"),
    "empty folder": (lambda base, lora, out: (base, out.parent, out), r"0 files lit_model\*_finetuned.pth in"),
    "not finetuned": (lambda base, lora, out: (base, base / "lit_model.pth", out), "holds no finetuned weights"),
    "damaged": (cut, r"lit_model_lora_finetuned.pth is damaged or not a file of ours"),
    "another base": (other_base, r"was finetuned from .*, but .* holds other weights \(111111111111\); use that base"),
    "weights of another shape": (other_weights, "does not fit lit_config.json: wte.weight; convert again"),
    "the base itself": (lambda base, lora, out: (base, lora, base / ".." / base.name), "is the model itself"),
    "another model": (other_model, r"--out_dir .* holds another model; choose another folder"),
    "a download": (downloaded_model, r"--out_dir .* holds another model; choose another folder"),
    "a file": (lambda base, lora, out: (base, lora, base / "config.json" / "x"), r"--out_dir .*: cannot write there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_one_line(case: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    change, expected = REFUSED[case]
    own = write_base(tmp_path / "base")
    folders = (own, finetune(own, tmp_path / "lora"), tmp_path / "merged")
    folders = change(*folders) or folders
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert merge(*folders, "--check", "false") == 2
    *notes, message, end = capsys.readouterr().err.split("\n")
    assert message.startswith("error: ")
    assert not end
    assert all(note.startswith("merging ") for note in notes)
    assert re.search(expected, message), message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_failure_leaves_what_was_there(
    base: Path, finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(failure: BaseException):
        def some(*args: object) -> Iterator[tuple[str, Tensor]]:
            yield from list(merged(*args))[:5]
            raise failure

        return some

    merged, full = parts.merged, OSError(28, "No space left on device")
    for earlier in (False, True):
        if earlier:
            assert merge(base, finetuned, tmp_path / "merged", "--check", "false") == 0
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert bool(before) == earlier
        for failure, code in ((full, 2), (KeyboardInterrupt(), 130), (ValueError(), 1)):
            with monkeypatch.context() as patch:
                patch.setattr(parts, "merged", failing(failure))
                assert merge(base, finetuned, tmp_path / "merged", "--check", "false") == code
            assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


MEASURE = """
import sys
from pathlib import Path
from lit_gpt.merge import Merge, merge_lora

def peak():
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("VmHWM"))

small, large = (Path(name) for name in sys.argv[1:])
merge_lora(Merge(small / "base", small / "lora", small / "merged"))  # everything is imported
before = peak()
merge_lora(Merge(large / "base", large / "lora", large / "merged"))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
def test_memory_is_that_of_the_largest_part(tmp_path: Path) -> None:
    """86 MB of bfloat16 weights, those of a block 9 MB, and 19 MB in float32."""
    sizes = {"n_embd": 768, "intermediate_size": 1024, "n_layer": 9}
    for folder, changes in ((tmp_path / "small", {}), (tmp_path / "large", sizes)):
        base = write_base(folder / "base", torch.bfloat16, **changes)
        finetune(base, folder / "lora", **EVERYWHERE)
    assert (tmp_path / "large" / "base" / "lit_model.pth").stat().st_size > 80e6
    words = [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60, done.stdout

"""What only a GPU can show: its kernels, waiting for it, its memory. Skipped where there is none.

Needs what training needs, pytest and sentencepiece; bench/gpu.sh runs it (part `tests`).
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command, make_checkpoint
from torch import Tensor

from lit_gpt import GPT, Config, load_gpt
from lit_gpt.attention import Look
from lit_gpt.checkpoint import read_finetuned
from lit_gpt.data.batches import Layout
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.decode import Sampling, complete
from lit_gpt.low_rank import draw_dropped, dropped
from lit_gpt.methods import METHODS
from lit_gpt.packs import Pack, _Tiles
from lit_gpt.quantize import dequantized, for_decoding, quantized
from lit_gpt.scoring import score
from lit_gpt.train import loss_sum

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FLAGS = ["--batch_size", 8, "--micro_batch_size", 2, "--learning_rate", 0.02, "--max_steps", 6, "--save_interval", 3]
CUDA = torch.device("cuda")


def apart(found: Tensor, expected: Tensor) -> float:
    """Relative distance."""
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with heads of 64 channels, as the attention kernels want them."""
    sizes = {"n_embd": 256, "n_head": 4, "n_query_groups": 2, "intermediate_size": 384}
    return make_checkpoint(tmp_path_factory.mktemp("wide") / "tests" / "wide", **sizes)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("scale", [64**-0.5, 0.05])
def test_the_kernels_for_a_pack_compute_its_tiles(groups: int, scale: float) -> None:
    """Values and gradients in 16 bits, with shared beginnings, are those of float64 products."""
    torch.manual_seed(0)
    depths = np.r_[:30, 30:80, 30:31, :70, 70:198, 90:120, 100:400, 100:103, :64, :9, 5:20]
    pack, look = Pack(depths, CUDA), Look(scale)
    q, k, v = (torch.randn(1, heads, len(depths), 64, device=CUDA) for heads in (4, groups, groups))
    upstream = torch.randn_like(q)
    exact = [x.bfloat16().double().requires_grad_() for x in (q, k, v)]
    expected = _Tiles.apply(*exact, pack.tiles, look)
    short = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    found = pack.attend(0, *short, look)
    assert apart(found, expected) < 1e-2
    for a, b in zip(
        torch.autograd.grad(found, short, upstream.bfloat16()),
        torch.autograd.grad(expected, exact, upstream.bfloat16().double()),
        strict=True,
    ):
        assert apart(a, b) < 1e-2


@torch.inference_mode()
def test_a_tree_is_scored_by_the_kernels(wide: Path) -> None:
    """Row by row, the tokens known from earlier rows among the keys: as single sequences in float32 on the CPU."""
    draw = np.random.default_rng(0)
    ids = [tuple(draw.integers(0, 3, draw.integers(4, 200)).tolist()) for _ in range(40)]
    asked = [(one, len(one) // 2) for one in ids]
    plain, model = load_gpt(wide, torch.float32), load_gpt(wide, torch.bfloat16, device=CUDA)
    for pack_length in (50, 4096):
        scores = dict(pair for _, known in score(model, asked, pack_length) for pair in known)
        for i, (one, n) in enumerate(asked):
            logprobs = plain(torch.tensor([one[:-1]]))[0, -n:].log_softmax(-1)
            expected = logprobs.gather(1, torch.tensor(one[-n:])[:, None]).sum().item()
            assert scores[i].logprob == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("quantize", [None, "bnb.nf4", "bnb.nf4-dq", "bnb.int8-training"])
@pytest.mark.parametrize("recompute", [0, 3, 4])  # nothing, the MLPs and a block, everything
@pytest.mark.parametrize("dora", [False, True])
def test_a_step_never_waits_for_the_device(
    wide: Path, data: Path, quantize: str | None, recompute: int, dora: bool
) -> None:
    """From the batch to the gradients; a wait raises. That it does is shown at the end."""
    model = load_gpt(wide, torch.bfloat16, quantize=quantize, device=CUDA)
    METHODS["lora"](lora_mlp=True, lora_dora=dora).attach(model.train())
    samples = list(range(24))
    layout = Layout(pack_length=512, recompute=lambda _: recompute)

    def step() -> Tensor:
        loss = torch.zeros((), device=CUDA)
        for batch in layout.batches(TokenDataset(data), samples):
            part = loss_sum(model, batch.to(CUDA))
            part.backward()
            loss += part.detach()
        return loss

    loss = step()  # libraries are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        with pytest.raises(RuntimeError, match="synchroniz"):
            loss.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.parametrize("dropout", [0.05, 0.5])
def test_dropout_drops_its_share(dropout: float) -> None:
    x = torch.ones(250_000, 8, device=CUDA, dtype=torch.bfloat16)
    share = (dropped(x, draw_dropped(x, dropout)) == 0).float().mean()
    assert float(share) == pytest.approx(dropout, rel=0.01)


@pytest.mark.parametrize("quantize", ["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8-training"])
def test_quantised_use_is_the_network_of_training(wide: Path, quantize: str) -> None:
    model = load_gpt(wide, torch.bfloat16, quantize=quantize, device=CUDA)
    for length in (1, 7, 200):  # few tokens take other kernels
        idx = torch.randint(0, 300, (1, length), device=CUDA)
        trained = model(idx)
        with torch.inference_mode():
            used = model(idx)
        assert apart(used, trained) < 2e-2


def test_logits_are_those_of_the_cpu(wide: Path) -> None:
    idx = torch.randint(0, 300, (2, 50))
    there, here = load_gpt(wide, torch.float32, device=CUDA)(idx.to(CUDA)), load_gpt(wide, torch.float32)(idx)
    assert apart(there.cpu(), here) < 1e-5


def adapted(wide: Path, dtype: torch.dtype) -> GPT:
    """With LoRA, without dropout, all of whose values count."""
    model = load_gpt(wide, dtype, device=CUDA)
    METHODS["lora"](lora_dropout=0.0, lora_mlp=True).attach(model.train())
    torch.manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.05)
    return model


def gradient(model: GPT, layout: Layout, data: Path) -> Tensor:
    """Of all that is trained, over some samples."""
    for batch in layout.batches(TokenDataset(data), list(range(16))):
        loss_sum(model, batch.to(CUDA)).backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return found


def test_packed_and_recomputed_gradients_are_the_plain_ones(wide: Path, data: Path) -> None:
    """In float32 (tiles) and in bfloat16 (one kernel)."""
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        model = adapted(wide, dtype)
        plain = gradient(model, Layout(1), data)
        again = [Layout(pack_length=512, recompute=lambda _, n=n: n) for n in (2, 3, 4)]
        for layout in (Layout(pack_length=512), Layout(4), *again):
            assert apart(gradient(model, layout, data), plain) < most


def test_compiled_gradients_are_the_plain_ones(wide: Path, data: Path) -> None:
    model = adapted(wide, torch.float32)
    plain = gradient(model, Layout(pack_length=512), data)
    model.compile_blocks()
    for n in (0, 2):
        layout = Layout(pack_length=512, fixed=True, recompute=lambda _, n=n: n)
        assert apart(gradient(model, layout, data), plain) < 1e-4


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "16-mixed", "32-true"])
def test_every_precision_learns(wide: Path, data: Path, tmp_path: Path, precision: str) -> None:
    flags = ["--checkpoint_dir", wide, "--data_dir", data, "--out_dir", tmp_path / "out", *FLAGS]
    assert command("finetune lora", *flags, "--precision", precision, "--warmup_steps", 1) == 0
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "out" / "metrics.csv").open())]
    assert losses[-1] < losses[0]
    result = json.loads((tmp_path / "out" / "run.json").read_text())["result"]
    assert result["memory_gb"] > 0
    generate = ["--checkpoint_dir", wide, "--lora_path", tmp_path / "out", "--prompt", "Say word 1.", "--seed", 1]
    assert command("generate lora", *generate, "--max_new_tokens", 5) == 0


@pytest.mark.parametrize("quantize", [None, "bnb.nf4"])
def test_a_deterministic_run_goes_on_to_the_bit(wide: Path, data: Path, tmp_path: Path, quantize: str | None) -> None:
    """The end of a run is made again from a checkpoint on its way; in processes of their own, as users start them."""
    out, launcher = tmp_path / "out", Path(__file__).parents[1] / "finetune" / "lora.py"
    flags = ["--checkpoint_dir", wide, "--data_dir", data, "--out_dir", out, *FLAGS, "--deterministic", "true"]
    flags += ["--quantize", quantize] if quantize else []
    weights = []
    for more in ([], ["--resume", out / "step-000003"]):
        words = [str(word) for word in (sys.executable, launcher, *flags, *more)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        weights.append(read_finetuned(out)["weights"])
    assert "Going on after step 3" in done.stdout
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_out_of_memory_is_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = make_checkpoint(tmp_path / "tests" / "large", n_embd=2048, n_head=32, intermediate_size=8192, n_layer=4)
    flags = ["--checkpoint_dir", large, "--data_dir", data, "--out_dir", tmp_path / "out", *FLAGS]
    total = torch.cuda.get_device_properties(CUDA).total_memory
    held = torch.cuda.memory_allocated()
    weights = sum(p.numel() for p in GPT(Config.from_checkpoint(large)).parameters()) * 2
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((held + weights + 60e6) / total)
    try:
        assert command("finetune lora", *flags) == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert "out of memory" in capsys.readouterr().err.strip().splitlines()[-1]


LONGROPE = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "attention_factor": 1.1}


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"sliding_window": 12},
        {"positions": "alibi", "n_query_groups": 1},
        {"positions": "alibi-16"},
        {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 63}},  # two texts are short, one is long
    ],
)
def test_steps_as_a_cuda_graph_give_the_same_text(sizes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different lengths, against the same steps one by one on the processor."""
    torch.manual_seed(0)
    shape = {"block_size": 256, "padded_vocab_size": 96, "n_layer": 2, "n_head": 4, "n_embd": 128}
    model = GPT(Config("llama", **shape, intermediate_size=96, **sizes)).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    prompts = [[5, 6, 7, 8, 9], [1], [30, 2, 51]]
    expected, replays = complete(model, prompts, 60), []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph)))
    model = model.to(CUDA)
    assert complete(model, prompts, 60) == expected
    assert len(replays) == 57
    drawn = Sampling(1.0, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
    first, second = (
        complete(model, prompts, 60, sampling=drawn, generator=torch.Generator(CUDA).manual_seed(3)) for _ in range(2)
    )
    assert first == second != expected
    assert len(set(first[0])) > 5


@pytest.mark.parametrize("kind", ["bnb.nf4", "bnb.int8", "torch.int8", "torch.int4"])
def test_quantised_layers_compute_with_their_weights(kind: str) -> None:
    torch.manual_seed(0)
    original = torch.randn(384, 256)
    layer = quantized(original, torch.randn(384), kind, torch.bfloat16, CUDA)
    holder = torch.nn.Module()
    holder.layer, holder.blocks = layer, []
    weight = dequantized(layer, torch.float32)
    assert apart(weight.cpu(), original) < 0.12
    for_decoding(holder)
    for rows in (1, 8, 100):
        x = torch.randn(rows, 256, device=CUDA).bfloat16()
        assert apart(holder.layer(x), x.float() @ weight.t() + layer.bias.float()) < 0.01

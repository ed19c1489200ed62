"""The memory plan: what it counts is what is kept, and it says what fits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command
from test_finetune import FLAGS
from test_packing import FAMILIES
from torch.utils.checkpoint import checkpoint

from lit_gpt import GPT, Config
from lit_gpt.attention import causal
from lit_gpt.memory import HEAP, Plan, enough_tokens, fitting_pack, kept_by_block, needs
from lit_gpt.methods import Adapter, AdapterV2, Full, LoRA
from lit_gpt.model import Block
from lit_gpt.packs import Pack

WIDE = {"n_embd": 128, "intermediate_size": 320, "n_layer": 3, "block_size": 512}
EVERYTHING = {f"lora_{part}": True for part in ("key", "projection", "mlp")}


def kept_per_token(config: Config, method: LoRA, tiles: bool, mlps: bool, compiled: bool = False) -> float:
    """Bytes that autograd really keeps of a block for one token, in bfloat16; `mlps`: of these none is kept."""
    return kept_of_a_block(config, method, tiles, lambda layers: mlps * layers, compiled)


def kept_of_a_block(
    config: Config,
    method: LoRA,
    tiles: bool,
    recompute: Callable[[int], int],
    compiled: bool = False,
    mixed: bool = False,
) -> float:
    """The same; `recompute`: number of layers -> how much is computed again, see `GPT.hidden`."""
    model = GPT(config).to(torch.float32 if mixed else torch.bfloat16)
    method.attach(model)
    if compiled:
        model.compile_blocks()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    totals, tokens = [], 384
    for layers in (1, 3):
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(x: torch.Tensor, kept: dict = kept) -> torch.Tensor:
            if x.untyped_storage().data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
            return x

        blocks, model.blocks = model.blocks, model.blocks[:layers]
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), autocast:
            pack = Pack(np.arange(tokens), torch.device("cpu"))
            idx = torch.zeros(1, tokens, dtype=torch.int64)
            out = model.hidden(idx, None, pack.attend if tiles else causal, recompute=recompute(layers))
        totals.append(sum(storage.nbytes() for storage in kept.values()))
        model.blocks = blocks
        del out
    return (totals[1] - totals[0]) / 2 / tokens


@pytest.mark.parametrize("family", list(FAMILIES)[:4])  # masks of windows and the like are not counted
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("more", [{}, EVERYTHING], ids=["query_value", "all"])
@pytest.mark.parametrize("tiles", [False, True], ids=["kernel", "tiles"])
def test_what_is_counted_is_what_is_kept(family: str, dropout: float, more: dict, tiles: bool) -> None:
    config = Config("llama", **{**FAMILIES[family], **WIDE})
    method = LoRA(lora_r=16, lora_dropout=dropout, **more)
    counted = kept_by_block(config, method, 2, tiles)
    assert counted.block == pytest.approx(kept_per_token(config, method, tiles, mlps=False), rel=0.05)
    assert counted.block - counted.mlp == pytest.approx(kept_per_token(config, method, tiles, mlps=True), rel=0.05)


MORE = {
    "gemma3": {"activation": "gelu_pytorch_tanh", "norm": "rms+1", "post_norm": True, "qk_norm": "head"},
    "olmo2": {"pre_norm": False, "post_norm": True, "qk_norm": "all", "clip_qkv": 3.0},
    "mixture": {"n_expert": 4, "n_expert_per_token": 2},
}
METHODS = {
    "lora": LoRA(lora_r=16, **EVERYTHING),
    "dora": LoRA(lora_r=16, lora_dora=True),
    "dora, all": LoRA(lora_r=16, lora_dora=True, lora_dropout=0.0, **EVERYTHING),
    "full": Full(),
    "adapter": Adapter(adapter_prompt_length=1, adapter_start_layer=0),
    "adapter_v2": AdapterV2(adapter_prompt_length=1, adapter_start_layer=0),
}


@pytest.mark.parametrize("family", ["llama", "norms of sums", *MORE])
@pytest.mark.parametrize("method", METHODS)
def test_other_methods_and_families_are_counted_as_well(family: str, method: str) -> None:
    config = Config("llama", **{**(FAMILIES.get(family) or FAMILIES["llama"] | MORE[family]), **WIDE})
    counted = kept_by_block(config, METHODS[method], 2, True)
    for mlps, expected in ((False, counted.block), (True, counted.block - counted.mlp)):
        assert expected == pytest.approx(kept_per_token(config, METHODS[method], True, mlps), rel=0.1)


@pytest.mark.parametrize("family", list(FAMILIES)[:4])
@pytest.mark.parametrize("more", [{}, EVERYTHING], ids=["query_value", "all"])
def test_what_is_counted_of_mixed_precision(family: str, more: dict) -> None:
    """Products keep 16-bit copies of their weights, which count as weights; the residual stream has 32 bits."""
    config, method = Config("llama", **{**FAMILIES[family], **WIDE}), LoRA(lora_r=16, **more)
    found = kept_of_a_block(config, method, True, lambda layers: 0, mixed=True)
    copies = 2 * sum(m.weight.numel() for m in GPT(config).blocks[0].modules() if isinstance(m, torch.nn.Linear))
    assert found - copies / 384 == pytest.approx(kept_by_block(config, method, 2, True, stream=4).block, rel=0.1)


@pytest.mark.parametrize("family", list(FAMILIES)[:4])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("more", [{}, EVERYTHING], ids=["query_value", "all"])
def test_what_is_counted_of_compiled_blocks_is_what_they_keep(
    family: str, dropout: float, more: dict, traced_only: None
) -> None:
    config = Config("llama", **{**FAMILIES[family], **WIDE})
    method = LoRA(lora_r=16, lora_dropout=dropout, **more)
    counted = kept_by_block(config, method, 2, True, compiled=True)
    for mlps, expected in ((False, counted.block), (True, counted.block - counted.mlp)):
        torch._dynamo.reset()
        assert expected == pytest.approx(kept_per_token(config, method, True, mlps, compiled=True), rel=0.06)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "norms of sums"])
def test_of_a_block_that_is_computed_again_its_input_is_kept(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, inputs = Config("llama", **{**FAMILIES[family], **WIDE}), []

    def watched(block: object, x: torch.Tensor, *more: object, **options: object) -> torch.Tensor:
        inputs.extend([x] * isinstance(block, Block))
        return checkpoint(block, x, *more, **options)

    monkeypatch.setattr("lit_gpt.model.checkpoint", watched)
    method = LoRA(lora_r=16, **EVERYTHING)
    assert kept_of_a_block(config, method, True, lambda n: 2 * n - 1) == pytest.approx(2 * config.n_embd, rel=0.05)
    assert not any(hasattr(x, "made") for x in inputs)  # that would hold on to what it was made of, too


def test_a_7b_model_at_2048_tokens_fits_24_gb() -> None:
    needed = needs(Config.from_name("open_llama_7b"), LoRA(), torch.bfloat16, None)
    assert needed.parameters == 6_738_415_616
    assert needed.trainable == 4_194_304
    assert needed.weights == pytest.approx(13.48e9, rel=1e-3)
    whole = Plan(needed, 24e9 * 0.94, [2048], low_memory=False)
    assert whole.fits
    assert whole.recompute(2048) == 0
    tight = Plan(needed, 17e9, [2048], low_memory=False)
    assert tight.fits
    assert 32 < tight.recompute(2048) < needed.everything == 63
    kept = int(needed.most_tokens(17e9, 0))
    both = Plan(needed, 17e9, [2048, kept], low_memory=False)
    assert (both.recompute(kept), both.recompute(kept + 1)) == (0, 1)
    assert both.peak == needed.peak(kept, 0) > tight.peak
    assert Plan(needed, 24e9, [2048], low_memory=True).peak < 14.7e9
    assert not Plan(needed, 14e9, [2048], low_memory=False).fits
    assert needs(Config.from_name("open_llama_7b"), LoRA(), torch.bfloat16, "bnb.nf4-dq").weights < 4e9


def test_a_trained_head_has_two_gradients_at_once() -> None:
    """One is added to the other: that of a chunk of targets, and the sum of those before it."""
    config = Config.from_name("pythia-160m")
    full, lora = (needs(config, method, torch.float32, None, HEAP) for method in (Full(), LoRA(lora_head=True)))
    assert full.head - lora.head == 2 * 4 * config.padded_vocab_size * config.n_embd


def test_dry_run_prints_the_plan_and_loads_nothing(checkpoint: Path, data: Path, tmp_path: Path, capsys) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("lit_config.json", "tokenizer.model"):
        (bare / name).write_bytes((checkpoint / name).read_bytes())
    flags = ["--checkpoint_dir", bare, "--data_dir", data, "--out_dir", tmp_path / "out", *FLAGS, "--dry_run", "true"]
    assert command("finetune lora", *flags) == 0
    shown = capsys.readouterr().out
    assert "weights" in shown
    assert "peak" in shown
    assert "lit_model.pth is not there" in shown
    assert not (tmp_path / "out").exists()
    assert command("finetune lora", *flags, "--memory_gb", 0.0001) == 2
    assert "does not fit into 0.00 GB" in capsys.readouterr().err


def test_packs_become_shorter_before_anything_is_recomputed(
    checkpoint: Path, data: Path, tmp_path: Path, capsys
) -> None:
    """Down to 768 tokens, that is, which take little more time each; shorter ones only when all is recomputed."""
    needed = needs(Config.from_checkpoint(checkpoint), LoRA(), torch.float32, None, HEAP)
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, *FLAGS, "--batch_size", 512, "--dry_run", "true"]
    flags += ["--share_prefix", "false", "--pack_length", 2048, "--out_dir", tmp_path]
    for tokens, how in ((1000, "packs of 960 tokens"), (600, "above 60")):
        budget = needed.peak(tokens, 0) / 1e9
        assert command("finetune lora", *flags, "--memory_gb", budget) == 0
        shown = capsys.readouterr().out
        assert how in shown
        assert ("blocks kept" in shown) == (tokens == 1000)
        assert ("recomputed" in shown) == (tokens == 600)


@pytest.mark.parametrize(
    ("capability", "enough"), [((8, 0), 768), ((8, 9), 768), ((9, 0), 2048), ((10, 0), 2048), ((12, 0), 768)]
)
def test_a_fast_card_recomputes_where_others_get_shorter_packs(
    capability: tuple[int, int], enough: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert enough_tokens(torch.device("cuda")) == enough
    assert enough_tokens(torch.device("cpu")) == 768
    needed = needs(Config.from_name("open_llama_7b"), LoRA(), torch.bfloat16, None)
    tokens = fitting_pack(needed, 17.5e9, False, 2048, enough)
    plan = Plan(needed, 17.5e9, [tokens], low_memory=False)
    assert plan.fits
    assert (tokens == 2048) == (0 < plan.recompute(tokens) <= 32) == (enough == 2048)


def test_tight_memory_recomputes_and_shortens_packs_and_computes_the_same(
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    capsys,
) -> None:
    from lit_gpt.checkpoint import read_finetuned

    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, *FLAGS, "--max_steps", 3, "--lora_dropout", 0]
    found = {}
    needed = needs(Config.from_checkpoint(checkpoint), LoRA(lora_dropout=0.0), torch.float32, None, HEAP)
    tight = needed.peak(200, needed.everything) / 1e9
    for name, more in {"free": [], "low": ["--low_memory", "true"], "tight": ["--memory_gb", tight]}.items():
        assert command("finetune lora", *flags, "--out_dir", tmp_path / name, *more) == 0
        found[name] = read_finetuned(tmp_path / name)["weights"]
    shown = capsys.readouterr().out
    assert "blocks recomputed" in shown
    assert "as much as fits" in shown
    for name in ("low", "tight"):
        for key, expected in found["free"].items():
            assert torch.allclose(found[name][key], expected, rtol=1e-3, atol=1e-5), (name, key)

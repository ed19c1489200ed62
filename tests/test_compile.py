"""Compiled blocks train as plain ones do, are compiled once, and leave no trace in what is saved."""

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import command
from test_packing import FAMILIES, TEMPLATES, Samples
from test_train import PlainFabric
from torch._dynamo.utils import counters

from lit_gpt import GPT, Config
from lit_gpt.checkpoint import read_finetuned
from lit_gpt.data.batches import Batches, Layout
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.decode import complete
from lit_gpt.finetune import Finetune
from lit_gpt.methods import LoRA
from lit_gpt.methods.lora import traceable_add
from lit_gpt.settings import UserError
from lit_gpt.train import loss_sum, train, validate
from lit_gpt.workload import Workload

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
DATA = Samples(TEMPLATES["two"], 24)
LAYOUT = Layout(pack_length=64, fixed=True)


@pytest.fixture(autouse=True)
def forget() -> None:
    """What other tests compiled is not to count here."""
    torch._dynamo.reset()
    counters.clear()


def model_for(family: str, **lora: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(Config("llama", **FAMILIES[family] | {"n_layer": 4}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    LoRA(**lora).attach(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def trained(model: GPT, recompute: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of three steps, and the weights after them."""
    losses = []
    layout = Layout(pack_length=64, fixed=True, recompute=lambda _: recompute)
    options = {"seed": 1, "steps": 3, "samples": 24, "schedule": lambda step: 1.0, "max_norm": 1.0}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    batches = Batches(DATA, list(range(len(DATA))), 8, layout, seed=1)
    train(
        PlainFabric(), model, optimizer, batches, after_step=lambda _, loss, *__: losses.append(loss.item()), **options
    )
    return losses, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def assert_compiled_once() -> None:
    """One graph before and one after attention, for all blocks and batches, without a break."""
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def compare(family: str, **lora: Any) -> None:
    plain = model_for(family, lora_dropout=0.0, **lora)
    compiled = [copy.deepcopy(plain) for _ in range(2)]
    losses, weights = trained(plain, recompute=0)
    assert losses[2] != losses[0]
    compiled[0].compile_blocks()
    for block in compiled[1].blocks:
        block.compiled = compiled[0].blocks[0].compiled
    for model, recompute in zip(compiled, (0, 8), strict=True):
        found, changed = trained(model, recompute)
        assert found == pytest.approx(losses, rel=1e-5)
        assert list(changed) == list(weights)
        assert all((changed[name] - w).abs().max() <= 1e-5 for name, w in weights.items())
    assert_compiled_once()


@needs_compiler
def test_compiled_training_is_plain_training() -> None:
    compare("llama_grouped")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "falcon"])
def test_every_kind_of_block_is_traced_as_a_whole(family: str, traced_only: None) -> None:
    compare(family, lora_key=True, lora_projection=True, lora_mlp=True)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_no_backward_pass_of_ours_is_compiled(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.11 would lose gradients in some of them; see `lean.own_backward`."""
    graphs: list[torch.fx.GraphModule] = []
    compile = torch.compile

    def collect(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **_: compile(f, dynamic=False, backend=collect))
    model = model_for(family, lora_key=True, lora_projection=True, lora_mlp=True)
    model.compile_blocks()
    trained(model, recompute=0)
    assert len(graphs) == 2
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert any("linear" in name for name in called)
    assert not any("autograd_function" in name for name in called)


def test_dropout_of_dora_is_traced_as_well(traced_only: None) -> None:
    model = model_for("llama", lora_dropout=0.3, lora_dora=True)
    model.compile_blocks()
    losses, _ = trained(model, recompute=0)
    assert all(map(math.isfinite, losses))
    assert_compiled_once()


@needs_compiler
def test_the_backward_pass_has_the_dropout_of_the_forward_pass() -> None:
    """Whether masks are kept or drawn again: the loss, of the same seed, changes as the gradient says."""
    model = model_for("llama", lora_dropout=0.3, lora_mlp=True).double()
    model.compile_blocks()
    (batch, *_) = LAYOUT.batches(DATA, list(range(12)))
    trained = [p for p in model.parameters() if p.requires_grad]
    direction = [torch.randn_like(p) for p in trained]

    def moved(seed: int, step: float) -> float:
        """The loss where all that is trained has gone so far in the direction."""
        torch.manual_seed(seed)
        with torch.no_grad():
            torch._foreach_add_(trained, direction, alpha=step)
        found = loss_sum(model, batch).item()
        with torch.no_grad():
            torch._foreach_add_(trained, direction, alpha=-step)
        return found

    slopes = {}
    for seed, batch.recompute in ((1, 0), (1, 4), (1, 8), (2, 8)):
        torch.manual_seed(seed)
        gradient = torch.autograd.grad(loss_sum(model, batch), trained)
        slope = float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
        slopes[seed] = (moved(seed, 1e-5) - moved(seed, -1e-5)) / 2e-5
        assert slope == pytest.approx(slopes[seed], rel=1e-5)
    assert slopes[1] != pytest.approx(slopes[2], rel=1e-2)


def kept_bytes(model: GPT, recompute: int = 0) -> int:
    """What autograd keeps of the tokens for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    (batch,) = Layout(pack_length=512, fixed=True).batches(DATA, list(range(24)))
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    model.hidden(batch.idx_BT, None, batch.pack.attend, None, recompute)  # the first pass makes the code
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        alive = model.hidden(batch.idx_BT, None, batch.pack.attend, None, recompute)
    del alive
    return sum(kept.values())


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_mlps_can_be_computed_again(family: str, dropout: float, traced_only: None) -> None:
    model = model_for(family, lora_mlp=True, lora_dropout=dropout)
    model.compile_blocks()
    (batch, *_) = LAYOUT.batches(DATA, list(range(12)))
    trained, found = [p for p in model.parameters() if p.requires_grad], []
    for batch.recompute in (0, 4, 2):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(loss_sum(model, batch), trained))
    for grads in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found[0], grads, strict=True))
    assert counters["stats"]["unique_graphs"] == 3  # one more after attention
    assert not counters["graph_break"]
    assert kept_bytes(model, 4) < 0.8 * kept_bytes(model)


@pytest.mark.parametrize("dropout", [0.001, 0.25])
def test_traceable_dropout_drops_its_share(dropout: float) -> None:
    torch.manual_seed(0)
    x, eye = torch.ones(50_000, 8, dtype=torch.bfloat16), torch.eye(8)
    y = traceable_add(torch.zeros_like(x), x, eye, eye, 1.0, dropout)
    assert float((y == 0).float().mean()) == pytest.approx(dropout, rel=0.1)
    assert y.float().mean() == pytest.approx(1.0, abs=0.005)


def test_validation_and_generation_stay_as_they_are(traced_only: None) -> None:
    model = model_for("llama")
    names, validation = list(model.state_dict()), LAYOUT.batches(DATA, list(range(5)))
    expected = validate(model, validation, torch.device("cpu")), list(complete(model.eval(), [[5, 6, 7]], 8))
    model.compile_blocks()
    assert (validate(model, validation, torch.device("cpu")), list(complete(model, [[5, 6, 7]], 8))) == expected
    assert not counters["stats"]
    assert list(model.state_dict()) == names


def test_all_packs_have_one_shape() -> None:
    data = copy.deepcopy(DATA)
    data.rows[3], data.masks[3], data.lengths[3] = torch.arange(71) % 40, torch.ones(71, dtype=torch.bool), 71
    model = model_for("llama")
    batches, loose = (Layout(pack_length=64, fixed=fixed).batches(data, list(range(24))) for fixed in (True, False))
    assert [batch.idx_BT.size(1) for batch in batches] == [128] + [64] * (len(batches) - 1)
    wide = Layout(pack_length=200, fixed=True).batches(data, list(range(24)))  # in steps of 64
    assert {batch.idx_BT.size(1) for batch in wide} == {192}
    found, same, expected = (validate(model, x, torch.device("cpu")) for x in (batches, wide, loose))
    assert found == pytest.approx(expected, rel=1e-6)
    assert same == pytest.approx(expected, rel=1e-6)


def test_the_length_of_packs_needs_little_filling(checkpoint: Path, data: Path) -> None:
    settings = Finetune(checkpoint_dir=checkpoint, data_dir=data, batch_size=8, pack_length=1000, compile=True)
    splits = {split: TokenDataset(data, split) for split in ("train", "test")}
    work = Workload(settings, splits, Config.from_checkpoint(checkpoint))

    def tokens() -> list[int]:
        return [batch.idx_BT.numel() for step in range(8) for batch in work.batches.step(step, work.samples)]

    work.settle()
    chosen, packs = work.layout.pack_length, tokens()
    assert set(packs) == {chosen}
    fixed, loose = work.trial()
    assert [batch.idx_BT.numel() for batch in fixed] == packs[: len(fixed)]
    totals = []
    for work.layout.pack_length in range(128, 1000, 64):
        totals.append(sum(tokens()))
    assert min(totals) <= sum(packs) <= 1.05 * min(totals) < 0.8 * totals[-1]
    work.layout.pack_length, work.layout.fixed = 960, False
    assert [batch.idx_BT.numel() for batch in loose] == tokens()[: len(loose)]
    assert work.step_tokens == (sum(packs) / 8, sum(tokens()) / 8)


FLAGS = ["--precision", "32-true", "--batch_size", 8, "--max_steps", 4, "--learning_rate", 0.05, "--pack_length", 128]


def test_the_command(checkpoint: Path, data: Path, tmp_path: Path, traced_only: None, capsys: Any) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, *FLAGS, "--lora_dropout", 0, "--eval_prompt", "Say"]
    for compile in (False, True):
        assert command("finetune lora", *flags, "--compile", compile, "--out_dir", tmp_path / str(compile)) == 0
    told = capsys.readouterr().out
    assert told.count("Compiled in ") == 1
    assert any(end in told for end in ("it pays after ", "it does not pay"))
    plain, compiled = (read_finetuned(tmp_path / name)["weights"] for name in ("False", "True"))
    assert list(plain) == list(compiled)
    assert all(torch.allclose(plain[name], compiled[name], atol=1e-3) for name in plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--pack_length", 0], "--compile needs packs"),
        (["--quantize", "bnb.nf4"], "--compile does not work with quantised layers"),
        ([], "no such compiler; it needs a C++ compiler such as g++"),
    ],
)
def test_what_cannot_be_compiled(
    changes: list, message: str, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such compiler\nand much more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path, *FLAGS, "--compile", "true"]
    assert command("finetune lora", *flags, *changes) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_layer": 1}, "leaves the first block"), ({"n_expert": 4, "n_expert_per_token": 2}, "a mixture of experts")],
)
def test_models_that_cannot_be_compiled(changes: dict, message: str, data: Path) -> None:
    settings = Finetune(checkpoint_dir=Path("nowhere"), data_dir=data, compile=True, pack_length=640)
    splits = {split: TokenDataset(data, split) for split in ("train", "test")}
    with pytest.raises(UserError, match=message):
        Workload(settings, splits, Config("llama", **{**FAMILIES["llama"], "block_size": 512, **changes})).fit(
            LoRA(), torch.float32, torch.device("cpu")
        )

"""The loop's arithmetic: losses, schedule, order of the samples."""

import contextlib
import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from lit_gpt import GPT, Config
from lit_gpt.data.batches import Batches, Layout
from lit_gpt.settings import UserError
from lit_gpt.train import learning_rate, loss_sum, train, validate


class Samples:
    """Stands for a TokenDataset: random samples of which the last part is supervised."""

    def __init__(self, n: int, seed: int = 0, shortest: int = 4, longest: int = 14) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(shortest, longest + 1, (n,), generator=generator)
        self.rows = [torch.randint(1, 50, (int(t),), generator=generator) for t in self.lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def ids(self, i: int) -> torch.Tensor:
        return self.rows[i]

    def supervised(self, i: int) -> torch.Tensor:
        return torch.arange(len(self.rows[i])) >= len(self.rows[i]) // 2


class PlainFabric:
    """The part of Fabric that the loop uses, without Fabric."""

    device = torch.device("cpu")

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def clip_gradients(self, model, optimizer, max_norm: float, error_if_nonfinite: bool) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    sizes = {
        "block_size": 32,
        "padded_vocab_size": 50,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "intermediate_size": 24,
    }
    model = GPT(Config("llama", **sizes)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def plain_loss(model: GPT, data: Samples, samples: list[int]) -> torch.Tensor:
    """Mean over all supervised tokens, each sample alone and unpadded."""
    losses = []
    for i in samples:
        logits = model(data.ids(i)[None])[0, :-1]
        losses.append(F.cross_entropy(logits, data.ids(i)[1:], reduction="none")[data.supervised(i)[1:]])
    return torch.cat(losses).mean()


def step_gradients(model: GPT, data: Samples, batch: int, micro: int) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model)
    parts = Batches(data, list(range(len(data))), batch, Layout(micro), seed=3).step(0)
    targets = sum(part.targets for part in parts)
    for part in parts:
        (loss_sum(model, part) / targets).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_loss_is_the_mean_over_supervised_tokens_and_padding_plays_no_part(model: GPT) -> None:
    data = Samples(8)
    (batch,) = Layout(8).batches(data, list(range(8)))
    assert torch.isclose(
        loss_sum(model, batch).double() / batch.targets, plain_loss(model, data, list(range(8))), atol=1e-6
    )
    assert batch.tokens == int(data.lengths.sum())
    assert batch.targets == len(batch.labels_N) == sum(int(data.supervised(i)[1:].sum()) for i in range(8))


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_gradients_do_not_depend_on_the_micro_batch(model: GPT, micro: int) -> None:
    data = Samples(8)
    whole, parts = step_gradients(model, data, 8, 8), step_gradients(model, data, 8, micro)
    for name in whole:
        assert torch.allclose(whole[name], parts[name], rtol=1e-4, atol=1e-7), name


def test_every_epoch_reads_every_sample_once_and_the_longest_comes_first() -> None:
    data = Samples(23)
    batches = Batches(data, list(range(23)), 8, Layout(4), seed=5)
    stream = [i for step in range(12) for i in batches.step_samples(step)]
    assert int(data.lengths[stream[0]]) == int(data.lengths.max())
    assert batches.step(0)[0].samples[0] == stream[0]
    drawn = [i for step in range(batches.steps(4)) for i in batches.step_samples(step, limit=4 * 23)]
    assert batches.steps(4) == 12
    assert len(drawn) == 92
    assert all(drawn.count(i) == 4 for i in range(23))
    first = [i for step in range(3) for i in batches.step_samples(step)][:24]
    assert len(set(first)) == 23  # 23 different ones, then the first of the next epoch
    again = Batches(data, list(range(23)), 8, Layout(4), seed=5)
    assert again.step_samples(7) == batches.step_samples(7)  # a function of the step alone
    other = Batches(data, list(range(23)), 8, Layout(4), seed=6)
    assert [other.step_samples(s) for s in range(3)] != [batches.step_samples(s) for s in range(3)]
    assert batches._shuffled(0) != batches._shuffled(1)


def test_truncation_keeps_the_last_token() -> None:
    data = Samples(3, shortest=10, longest=14)
    (batch,) = Layout(3, max_length=9).batches(data, [0, 1, 2])
    assert batch.tokens == 27
    for row, i in enumerate(batch.samples):
        assert torch.equal(batch.idx_BT[row], data.ids(i)[:8])
        (last,) = batch.labels_N[batch.places_N == row * 8 + 7].tolist()
        assert last == int(data.ids(i)[-1])


def test_truncation_leaves_no_question_with_an_answers_end() -> None:
    """Question, answer, question, answer: what does not end in an answer goes, and a lone question teaches nothing."""
    data = Samples(1)
    data.rows, data.lengths = [torch.arange(1, 13)], torch.tensor([12])
    mask = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1], dtype=torch.bool)
    data.supervised = lambda i: mask
    for limit, kept, targets in ((11, [*range(1, 11), 12], 5), (8, [1, 2, 3, 4, 5, 6], 3), (3, [1, 2, 3], 0)):
        (batch,) = Layout(1, max_length=limit).batches(data, [0])
        assert batch.idx_BT[0].tolist() == kept[:-1]
        assert batch.targets == targets
    assert Layout(1, max_length=5).batches(data, [0])[0].labels_N.tolist() == [4, 12]


def test_validation_is_the_same_every_time_and_leaves_the_mode_alone(model: GPT) -> None:
    data = Samples(10)
    fixed = Layout(2).batches(data, list(range(7)))
    assert [b.idx_BT.size(0) for b in fixed] == [2, 2, 2, 1]
    loss = validate(model.train(), fixed, torch.device("cpu"))
    assert loss == validate(model, Layout(2).batches(data, list(range(7))), torch.device("cpu"))
    assert loss == pytest.approx(float(plain_loss(model, data, list(range(7)))), rel=1e-6)
    assert model.training


def test_schedule() -> None:
    rates = [learning_rate(step, 20, 5, peak=1.0, end=0.1) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[12] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 8 / 15)).item()))
    assert [learning_rate(step, 3, 0, 1.0, 0.0) for step in range(3)][-1] == pytest.approx(0.0)


def test_loop_is_plain_gradient_descent_on_the_batches(model: GPT) -> None:
    """Five steps of the loop equal five steps written out."""
    data, seen = Samples(12), []
    other = copy.deepcopy(model)
    batches = Batches(data, list(range(12)), 4, Layout(2), seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def after_step(step: int, loss: torch.Tensor, tokens: int, rate: float) -> bool:
        seen.append((step, loss.item(), tokens, rate))
        return False

    options = {"seed": 1, "steps": 5, "samples": 18, "max_norm": 0.5, "after_step": after_step}
    assert train(PlainFabric(), model, optimizer, batches, schedule=lambda n: 0.1 * (n + 1), **options) == 5
    for step in range(5):
        chosen = batches.step_samples(step, 18)
        loss = plain_loss(other, data, chosen)
        other.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter -= 0.1 * (step + 1) * parameter.grad
        tokens = sum(int(data.lengths[i]) for i in chosen)
        assert seen[step] == (step + 1, pytest.approx(loss.item(), rel=1e-5), tokens, 0.1 * (step + 1))
    assert len(batches.step_samples(4, 18)) == 2
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_after_step_can_stop_the_run(model: GPT) -> None:
    batches = Batches(Samples(12), list(range(12)), 4, Layout(2), seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"seed": 1, "steps": 9, "samples": 36, "schedule": lambda n: 0.1, "max_norm": None}
    assert train(PlainFabric(), model, optimizer, batches, after_step=lambda step, *_: step == 2, **options) == 2


def test_no_supervised_token_to_validate_on(model: GPT) -> None:
    data = Samples(2)
    data.supervised = lambda i: torch.zeros(len(data.ids(i)), dtype=torch.bool)
    with pytest.raises(UserError, match="no supervised token"):
        validate(model, Layout(2).batches(data, [0, 1]), torch.device("cpu"))

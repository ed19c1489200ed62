"""Decoding: the cache, batches and sampling give what the plain computation gives."""

import pytest
import torch

from lit_gpt import GPT, Config
from lit_gpt.decode import Sampling, complete
from lit_gpt.settings import UserError


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    config = Config("llama", block_size=32, padded_vocab_size=53, n_layer=2, n_head=4, n_embd=32, intermediate_size=48)
    model = GPT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


PROMPTS = [[5, 6, 7, 8, 9], [1], [30, 2, 51]]


def plain_greedy(model: GPT, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_cached_batch_equals_recomputing_each_alone(model: GPT) -> None:
    expected = [plain_greedy(model, prompt, 12) for prompt in PROMPTS]
    assert complete(model, PROMPTS, 12) == expected
    assert [complete(model, [prompt], 12)[0] for prompt in PROMPTS] == expected
    assert complete(model, [[5, 6], [7, 8]], 12) == [plain_greedy(model, p, 12) for p in ([5, 6], [7, 8])]


def test_a_row_ends_at_its_stop_token_and_the_others_go_on(model: GPT) -> None:
    expected = [plain_greedy(model, prompt, 12) for prompt in PROMPTS]
    stop = expected[0][3]
    out = complete(model, PROMPTS, 12, stop_ids=[stop])
    assert out == [e[: e.index(stop)] if stop in e else e for e in expected]
    assert len(out[0]) <= 3


def test_generation_fills_the_context_and_stops(model: GPT) -> None:
    out = complete(model, PROMPTS, 1000)
    assert [len(p) + len(o) for p, o in zip(PROMPTS, out, strict=True)] == [32, 32, 32]
    assert out[0] == plain_greedy(model, PROMPTS[0], 27)


@pytest.mark.parametrize(
    ("prompts", "message"), [([[]], "empty"), ([[1], [2] * 32], "32 tokens, the model's context is 32")]
)
def test_prompts_that_cannot_be_continued(model: GPT, prompts: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        complete(model, prompts, 3)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_k=2), [3, 4]),
        (Sampling(1.0, top_k=9), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_p=0.6), [3, 4]),
        (Sampling(1.0, top_p=0.3), [4]),
        (Sampling(0.5, top_k=3, top_p=0.9), [3, 4]),
        (Sampling(0.0), [4]),
    ],
)
def test_sampling_draws_from_the_right_tokens_with_the_right_frequencies(sampling: Sampling, kept: list[int]) -> None:
    """Against the definition, and against transformers' processors where those exist."""
    from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.tensor([[0.05, 0.1, 0.15, 0.3, 0.4]]).log()
    drawn = sampling.draw(logits.expand(4000, 5), torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=5) / 4000
    assert sorted(drawn.unique().tolist()) == kept
    if sampling.temperature == 0:
        return
    expected = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k is not None:
        expected = TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = TopPLogitsWarper(sampling.top_p)(None, expected)
    assert torch.allclose(share, expected.softmax(-1)[0], atol=0.03)


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_bad_sampling(bad: dict) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(bad))}"):
        Sampling(**bad)

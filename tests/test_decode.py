"""Decoding: the cache, batches and sampling give what the plain computation gives."""

import copy

import pytest
import torch

from lit_gpt import GPT, Config
from lit_gpt.attention import Look, sdpa
from lit_gpt.cache import KVCache
from lit_gpt.decode import Rows, Sampling, complete, kernels_for
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
        (Sampling(1.0, min_p=0.5), [3, 4]),
        (Sampling(2.0, top_k=4, min_p=0.4), [1, 2, 3, 4]),
        (Sampling(0.0), [4]),
    ],
)
def test_sampling_draws_from_the_right_tokens_with_the_right_frequencies(sampling: Sampling, kept: list[int]) -> None:
    """Against the definition, and against transformers' processors where those exist."""
    from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

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
    if sampling.min_p > 0:
        expected = MinPLogitsWarper(sampling.min_p)(None, expected)
    assert torch.allclose(share, expected.softmax(-1)[0], atol=0.03)


BAD = [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 1.1}]
BAD += [{"min_p": -0.1}, {"repetition_penalty": 0.0}]


@pytest.mark.parametrize("bad", BAD)
def test_bad_sampling(bad: dict) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(bad))}"):
        Sampling(**bad)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize(
    "rules",
    [
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.05},
        {"repetition_penalty": 1.7},
        {"top_k": 30, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 0.8},
    ],
)
def test_probabilities_are_those_of_transformers_processors(temperature: float, rules: dict) -> None:
    from transformers import generation

    torch.manual_seed(0)
    logits, before = 3 * torch.randn(20, 53), torch.randint(53, (20, 15))
    expected = logits
    if penalty := rules.get("repetition_penalty"):
        expected = generation.RepetitionPenaltyLogitsProcessor(penalty)(before, expected)
    expected = generation.TemperatureLogitsWarper(temperature)(before, expected)
    for name, kind in (
        ("top_k", generation.TopKLogitsWarper),
        ("top_p", generation.TopPLogitsWarper),
        ("min_p", generation.MinPLogitsWarper),
    ):
        if name in rules:
            expected = kind(rules[name])(before, expected)
    seen = torch.zeros(20, 53, dtype=torch.bool).scatter_(1, before, True)
    found = Sampling(temperature, **rules).probabilities(logits, seen)
    torch.testing.assert_close(found, expected.softmax(-1), rtol=1e-5, atol=1e-7)
    drawn = torch.stack([Sampling(temperature, **rules).draw(logits, None, seen) for _ in range(50)], 1)
    assert (found.gather(1, drawn) > 0).all()


def test_equal_prompts_are_read_once_and_drawn_apart(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    forward = GPT.forward
    monkeypatch.setattr(
        GPT, "forward", lambda gpt, idx, **rest: (shapes.append(idx.shape), forward(gpt, idx, **rest))[1]
    )
    prompts = [PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[0]]
    assert complete(model, prompts, 9) == [plain_greedy(model, prompt, 9) for prompt in prompts]
    assert shapes[0] == (2, 5)
    drawn = complete(model, [PROMPTS[0]] * 4, 9, sampling=Sampling(1.0), generator=torch.Generator().manual_seed(0))
    assert len({tuple(text) for text in drawn}) == 4


def test_the_penalty_knows_prompt_and_text(model: GPT) -> None:
    """Against drawing one by one, with the penalty computed anew from the whole text."""
    text = list(PROMPTS[0])
    for _ in range(12):
        logits = model(torch.tensor([text]))[:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, text] = True
        text.append(int(torch.where(seen, torch.where(logits > 0, logits / 1.3, logits * 1.3), logits).argmax()))
    assert complete(model, PROMPTS, 12, sampling=Sampling(repetition_penalty=1.3))[0] == text[5:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_row_takes_other_kernels_and_leaves_the_switch(model: GPT, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(96, 80).to(dtype)
    x = torch.randn(1, 1, 96, dtype=dtype)
    with kernels_for(1, x.device):
        assert not torch.backends.mkldnn.enabled
        y = layer(x)
    assert torch.backends.mkldnn.enabled
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_fused_layers_give_the_same_text(model: GPT) -> None:

    for changes in (
        {},
        {"n_query_groups": 2, "qkv_bias": True, "rope_percentage": 0.5, "clip_qkv": 0.5},
        {"qk_norm": "head"},
    ):
        gpt = copy.deepcopy(model)
        if changes:
            torch.manual_seed(1)
            gpt = GPT(Config(**{**model.config.to_dict(), **changes})).eval().requires_grad_(False)
            for parameter in gpt.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        idx = torch.tensor([PROMPTS[0]])
        before, text = gpt(idx), complete(gpt, PROMPTS, 12)
        for block in gpt.blocks:
            block.attn.fuse()
        assert (gpt.blocks[0].attn.qkv is None) == ("qk_norm" in changes)
        torch.testing.assert_close(gpt(idx), before, rtol=1e-5, atol=1e-6)
        assert complete(gpt, PROMPTS, 12) == text


def test_a_step_with_positions_asks_the_host_for_nothing(model: GPT) -> None:
    """What a CUDA graph needs: no number of a tensor is looked at in between; the same code runs here."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoLook(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.name()
            assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select")), name
            return func(*args, **(kwargs or {}))

    sampling = Sampling(0.8, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.2)
    with torch.inference_mode():
        rows = Rows(model, KVCache(model.config, 3, 32, "cpu", torch.float32), PROMPTS, sampling)
        with NoLook():
            for _ in range(3):
                rows.step()
    assert rows.position_B.tolist() == [len(prompt) + 3 for prompt in PROMPTS]


def test_one_token_of_16_bits_sees_keys_that_are_widened() -> None:
    """On a CPU the attention of one row is float32's, over the keys as they are kept, row after row of one memory."""
    torch.manual_seed(0)
    config = Config("llama", block_size=64, padded_vocab_size=9, n_layer=1, n_head=4, n_embd=32, intermediate_size=8)
    whole, look = KVCache(config, 2, 64, "cpu", torch.bfloat16), Look(scale=0.3)
    for number, length in ((0, 40), (1, 7), (0, 1)):
        cache = whole.row(number)
        cache.begin(torch.zeros(1, length, dtype=torch.int64), None)
        q, k, v = torch.randn(3, 1, 4, length, 8, dtype=torch.bfloat16)
        cache.attend(0, q, k, v, look)
        cache.begin(torch.zeros(1, 1, dtype=torch.int64), None)
        q, own_k, own_v = torch.randn(3, 1, 4, 1, 8, dtype=torch.bfloat16)
        found = cache.attend(0, q, own_k, own_v, look)
        keys, values = (torch.cat(pair, 2).float() for pair in ((k, own_k), (v, own_v)))
        assert torch.equal(found, sdpa(q.float(), keys, values, look).bfloat16())

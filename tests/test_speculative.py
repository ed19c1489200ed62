"""A draft changes the speed and nothing else."""

import pytest
import torch

from lit_gpt import GPT, Config
from lit_gpt.decode import Sampling, complete
from lit_gpt.settings import UserError
from lit_gpt.speculative import decode_with_draft


def small(seed: int, words: int = 7, **changes: object) -> GPT:
    torch.manual_seed(seed)
    sizes = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 16, "intermediate_size": 24, **changes}
    model = GPT(Config("llama", padded_vocab_size=words, **sizes)).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return small(0)


def drafted(model: GPT, draft: GPT, n: int, **options: object) -> list[int]:
    return [token for (token,) in decode_with_draft(model, draft, [1, 2, 3], n, **options)]


@pytest.mark.parametrize("ahead", [1, 3, 8])
@pytest.mark.parametrize("draft", ["itself", "another"])
def test_greedy_text_is_the_models_own(model: GPT, draft: str, ahead: int) -> None:
    other = model if draft == "itself" else small(1, n_layer=1)
    for n in (1, 2, 30):
        assert drafted(model, other, n, ahead=ahead) == complete(model, [[1, 2, 3]], n)[0]
    penalised = Sampling(repetition_penalty=1.5)
    found = drafted(model, other, 30, ahead=ahead, sampling=penalised)
    assert found == complete(model, [[1, 2, 3]], 30, sampling=penalised)[0]


def test_longrope_goes_by_the_length_of_the_text() -> None:
    """And not by what the caches have room for besides."""
    factors = {"short_factor": [1.0, 1.5, 2.0, 2.0], "long_factor": [8.0] * 4, "attention_factor": 1.1}
    model = small(0, rope_scaling={**factors, "original_max_position_embeddings": 30})
    for n in (20, 27, 28, 40):
        assert drafted(model, small(1), n, ahead=5) == complete(model, [[1, 2, 3]], n)[0]


def test_it_ends_where_decode_ends(model: GPT) -> None:
    whole = complete(model, [[1, 2, 3]], 1000)[0]
    assert drafted(model, small(1), 1000) == whole
    assert len(whole) == 61
    stop = whole[5]
    assert drafted(model, small(1), 1000, stop_ids=[stop]) == whole[: whole.index(stop)]


def test_a_model_that_drafts_for_itself_is_never_refused(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = GPT.forward
    monkeypatch.setattr(
        GPT, "forward", lambda gpt, idx, **rest: (calls.append(idx.size(1)), forward(gpt, idx, **rest))[1]
    )
    drafted(model, model, 26, ahead=4, sampling=Sampling(1.0), generator=torch.Generator().manual_seed(0))
    assert sorted(calls)[-2:] == [5, 5]
    assert calls.count(5) == 5  # one judgement for five tokens


def test_sampled_text_has_the_models_distribution(model: GPT) -> None:
    """Of all pairs of first tokens after the prompt, by a chi-square test against the exact probabilities."""
    sampling, draft = Sampling(1.2, top_k=5, top_p=0.95), small(2, n_layer=1)
    generator = torch.Generator().manual_seed(5)
    counts = torch.zeros(7, 7)
    rounds = 1500
    for _ in range(rounds):
        first, second = drafted(model, draft, 3, sampling=sampling, generator=generator, ahead=2)[:2]
        counts[first, second] += 1
    p_V = sampling.probabilities(model(torch.tensor([[1, 2, 3]]))[:, -1])[0]
    rows = torch.tensor([[1, 2, 3, token] for token in range(7)])
    expected = p_V[:, None] * sampling.probabilities(model(rows)[:, -1]) * rounds
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    rest = torch.stack([counts[~often].sum(), expected[~often].sum()])
    chi = ((counts - expected)[often].square() / expected[often]).sum() + (rest[0] - rest[1]) ** 2 / rest[1].clamp_min(
        1
    )
    assert chi < int(often.sum()) + 4 * (2 * int(often.sum())) ** 0.5
    wrong = sampling.probabilities(draft(torch.tensor([[1, 2, 3]]))[:, -1])[0]
    assert (wrong - p_V).abs().sum() > 0.2  # the draft's own would have been noticed


def test_another_vocabulary_is_refused(model: GPT) -> None:
    with pytest.raises(UserError, match="vocabulary has another size"):
        drafted(model, small(1, words=9), 3)

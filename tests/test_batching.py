"""Continuous batching: a text is the one that the model writes alone, whoever is beside it."""

import copy
import random
import threading
import time

import pytest
import torch

from lit_gpt import alike, batching, cache
from lit_gpt.batching import APART, Engine, Job, Refused, Token, split
from lit_gpt.cache import weighed
from lit_gpt.config import Config
from lit_gpt.decode import Sampling, complete
from lit_gpt.model import GPT, MLP
from lit_gpt.quantize import for_decoding

SIZES = {"block_size": 64, "padded_vocab_size": 53, "n_layer": 2, "n_head": 4, "n_embd": 32, "intermediate_size": 48}
KINDS = {
    "plain": {},
    "grouped keys, gated": {"n_query_groups": 2, "norm": "rms", "mlp": "gated", "activation": "silu"},
    "window": {"sliding_window": 5, "n_query_groups": 1},
    "window in one layer, softcaps": {
        "sliding_window": 6,
        "windowed": [True, False],
        "attn_softcap": 5.0,
        "logit_softcap": 9.0,
        "rope_local_base": 100.0,
    },
    "ALiBi": {"positions": "alibi"},
    "ALiBi in 16 bits": {"positions": "alibi-16", "n_query_groups": 2},
    "learned positions": {"positions": "learned", "position_offset": 2},
    "norms of queries and keys": {"qk_norm": "head", "norm": "rms"},
    "LongRoPE": {
        "rope_scaling": {
            "short_factor": [1.0, 1.2, 1.5, 2.0],
            "long_factor": [2.0, 4.0, 8.0, 8.0],
            "attention_factor": 1.1,
            "original_max_position_embeddings": 50,
        }
    },
    "mixture": {"n_expert": 4, "n_expert_per_token": 2},
}


def make(kind: str = "plain", dtype: torch.dtype = torch.float32) -> GPT:
    torch.manual_seed(0)
    model = GPT(Config("llama", **{**SIZES, **KINDS[kind]})).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def make_prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Some with a common beginning, some of their own; 1 to 40 tokens."""
    rng = random.Random(seed)
    head = [rng.randrange(53) for _ in range(21)]
    return [
        head[: rng.choice([0, 21, 21, 16])] + [rng.randrange(53) for _ in range(rng.randint(1, 19))]
        for _ in range(count)
    ]


def job(prompt: list[int], new: int = 9, **options: object) -> tuple[Job, list[Token]]:
    """A job, and the list that gets its tokens."""
    tokens: list[Token] = []
    return Job(prompt, new, tokens.append, **options), tokens


def work(engine: Engine) -> None:
    while engine.step():
        pass


def together(engine: Engine, wanted: list[dict], late: int = 0) -> list[list[Token]]:
    """All texts, the last `late` of them asked for one by one while others are on their way."""
    pairs = [job(**want) for want in wanted]
    engine.submit(*(one for one, _ in pairs[: len(pairs) - late]))
    for one, _ in pairs[len(pairs) - late :]:
        engine.step()
        engine.submit(one)
    work(engine)
    for one, _ in pairs:
        one.future.result(timeout=0)
    return [tokens for _, tokens in pairs]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LongRoPE"])
def test_texts_are_those_of_the_plain_computation(kind: str) -> None:
    model, prompts = make(kind), make_prompts(11)
    wanted = [{"prompt": p, "top": n % 2 * 2 + 1, "cuts": [16, 21]} for n, p in enumerate(prompts)]
    found = together(Engine(model, 4, 64, piece=8), wanted, late=5)
    assert [[token.id for token in text] for text in found] == [complete(model, [p], 9)[0] for p in prompts]
    for prompt, text in zip(prompts, found, strict=True):
        ids = prompt + [token.id for token in text]
        expected = model(torch.tensor([ids]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
        for token, logprobs in zip(text, expected, strict=True):
            assert token.logprob == pytest.approx(float(logprobs[token.id]), abs=1e-4)
            top = logprobs.topk(len(token.top))
            assert [i for i, _ in token.top] == top.indices.tolist()
            assert [p for _, p in token.top] == pytest.approx(top.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("length", [64, 50])
def test_longrope_goes_by_the_length_of_the_engines_rows(length: int) -> None:
    """So that beginnings can be taken over: no text is long, or all are, also short ones."""
    model, prompts = make("LongRoPE"), make_prompts(11)
    found = together(Engine(model, 4, length, piece=8), [{"prompt": p} for p in prompts])
    if length > model.config.short_length:
        scaling = model.config.rope_scaling
        model.config.rope_scaling = {**scaling, "short_factor": scaling["long_factor"]}
    assert [[token.id for token in text] for text in found] == [complete(model, [p], 9)[0] for p in prompts]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("grouped keys, gated", torch.float32), ("grouped keys, gated", torch.bfloat16), ("plain", torch.bfloat16)],
)
@pytest.mark.parametrize("alike", [True, False])
def test_thirty_mixed_texts_have_the_bits_of_each_alone(
    kind: str, dtype: torch.dtype, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the sampled ones, and the numbers; also where only calls of equal sizes give equal bits."""
    if not alike:
        monkeypatch.setattr(batching, "like_sizes", lambda *_: [])
        monkeypatch.setattr(batching, "like_queries", lambda *_: [16])
    model, rng = make(kind, dtype), random.Random(1)
    for_decoding(model, several=True)
    samplings = [Sampling(), Sampling(0.8, top_k=20), Sampling(1.0, top_p=0.7)]
    wanted = [
        {"prompt": prompt, "new": rng.choice([1, 3, 12]), "sampling": rng.choice(samplings), "seed": n, "top": n % 4}
        | ({"cuts": [21]} if n % 5 else {})
        for n, prompt in enumerate(make_prompts(30))
    ]
    engine, alone = Engine(model, 7, 64, piece=8), []
    assert bool(engine.sizes) == alike
    for want in wanted:
        for row in engine.rows:
            row.pieces.clear()
        alone += together(engine, [want])
    assert together(engine, wanted, late=9) == alone
    rng.shuffle(order := list(range(30)))
    again = together(engine, [wanted[n] for n in order])  # with what the rows still hold
    assert again == [alone[n] for n in order]


def test_a_common_beginning_is_read_once_and_the_oldest_is_forgotten() -> None:
    engine = Engine(make(), 3, 64, piece=8)
    head, other = list(range(24)), list(range(30, 50))
    together(engine, [{"prompt": [*head, n], "new": 1} for n in range(6)])
    assert (engine.read, engine.reused) == (24 + 6, 5 * 24)
    together(engine, [{"prompt": other, "new": 1}])
    together(engine, [{"prompt": [*head[:20], 1], "new": 1}])  # two of its pieces are the same
    assert (engine.read, engine.reused) == (30 + 20 + 5, 5 * 24 + 16)
    together(engine, [{"prompt": [*head, 3], "new": 1, "echo": True}])  # every logit is wanted
    assert engine.read == 55 + 25


def test_pieces_are_few_and_what_follows_does_not_change_them() -> None:
    rng = random.Random(0)
    for _ in range(500):
        size, most = rng.randint(1, 300), rng.choice([8, 16, 64])
        prompt = [rng.randrange(9) for _ in range(size)]
        cuts = sorted(rng.sample(range(1, size + 1), rng.randint(0, size)))
        pieces = split(prompt, most, cuts)
        assert [i for piece in pieces for i in piece] == prompt
        assert all(0 < len(piece) <= most for piece in pieces)
        assert len(pieces) <= size // most + size // APART + 1
        more = [*prompt, *range(rng.randint(1, 40))]
        later = split(more, most, [*cuts, *(cut for cut in range(size + 1, len(more) + 1) if rng.random() < 0.3)])
        assert later[: len(pieces) - 1] == pieces[:-1]


def test_pieces_end_at_cuts_that_are_not_too_close() -> None:
    prompt = list(range(100))
    ends = {(): [64, 100], (20, 50, 60, 99): [20, 50, 99, 100], (15, 100): [64, 100], (1, 17, 33): [17, 33, 97, 100]}
    for cuts, expected in ends.items():
        assert [piece[-1] + 1 for piece in split(prompt, 64, cuts)] == expected
    assert split([7], 64, [1]) == [(7,)]


@pytest.mark.parametrize("alike", [True, False])
def test_a_prompt_that_ends_at_a_cut_has_the_same_text_again(alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not alike:
        monkeypatch.setattr(batching, "like_sizes", lambda *_: [])
    model, prompts = make(), [[*range(30)], [5], [*range(20), 3, 4]]
    engine = Engine(model, 3, 64, piece=8)
    for _ in range(3):
        wanted = [{"prompt": prompt, "cuts": [20, len(prompt)]} for prompt in prompts]
        found = together(engine, wanted)
        assert [[token.id for token in text] for text in found] == [complete(model, [p], 9)[0] for p in prompts]


def test_the_prompts_own_logprobs() -> None:
    model, prompt = make(), make_prompts(1)[0]
    expected = model(torch.tensor([prompt])).log_softmax(-1)[0]
    for new in (0, 2):
        one, tokens = job(prompt, new, echo=True, top=2)
        engine = Engine(model, 2, 64, piece=8)
        engine.submit(one)
        work(engine)
        assert one.future.done()
        assert len(tokens) == new
        assert [token.id for token in one.read] == prompt
        assert (one.read[0].logprob, one.read[0].top) == (0.0, [])
        for place, token in enumerate(one.read[1:]):
            assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=1e-4)
            assert token.top[0][0] == int(expected[place].argmax())


def test_what_ends_a_text() -> None:
    model, (prompt,) = make(), make_prompts(1)
    text = complete(model, [prompt], 9)[0]
    stop = text[4]
    for options, expected in (
        ({"stop_ids": [stop]}, text[: text.index(stop)]),
        ({"new": 1}, text[:1]),
        ({"new": 0}, []),
    ):
        assert [t.id for t in together(Engine(model, 2, 64, piece=8), [{"prompt": prompt, **options}])[0]] == expected
    one, tokens = job(prompt)
    one.take = lambda token: (tokens.append(token), len(tokens) == 3)[1]
    engine = Engine(model, 2, 64)
    engine.submit(one)
    work(engine)
    assert [t.id for t in tokens] == text[:3]
    full = together(engine, [{"prompt": prompt, "new": 64 - len(prompt)}])[0]
    assert [t.id for t in full] == complete(model, [prompt], 64 - len(prompt))[0]
    with pytest.raises(ValueError, match="do not fit 64"):
        engine.submit(job(prompt, 65 - len(prompt))[0])


def test_one_that_fails_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that raises, one that the model cannot compute, one with NaN, one whose client has left."""
    model = make()
    prompts = make_prompts(6)
    expected = [complete(model, [p], 9)[0] for p in prompts]
    nan, broken, *_ = set(range(53)) - {i for p, text in zip(prompts, expected, strict=True) for i in p + text}
    forward = GPT.forward

    def fragile(gpt: GPT, idx: torch.Tensor, **rest: object) -> torch.Tensor:
        if (idx == broken).any():
            raise RuntimeError("out of memory")
        return forward(gpt, idx, **rest)

    monkeypatch.setattr(GPT, "forward", fragile)
    with torch.no_grad():
        model.wte.weight[nan] = torch.nan
    pairs = [job(p) for p in prompts]
    bad, worse, worst, gone = job([1, nan, 3])[0], job([2, broken])[0], job([4, 5])[0], job([6, 7])[0]
    worst.take = lambda token: 1 / 0
    engine = Engine(model, 4, 64, piece=8)
    ones = [one for one, _ in pairs]
    engine.submit(bad, ones[0], worse, ones[1], worst, gone, *ones[2:4])
    for _ in range(3):
        engine.step()
    gone.future.cancel()
    engine.submit(*ones[4:])
    work(engine)
    for one, kind in ((bad, ArithmeticError), (worse, RuntimeError), (worst, ZeroDivisionError)):
        assert isinstance(one.future.exception(timeout=0), kind)
    assert [[t.id for t in tokens] for _, tokens in pairs] == expected
    assert engine.state() | {"rows": 4, "busy": 0, "waiting": 0} == engine.state()


def test_a_row_that_had_nan_is_clean_again() -> None:
    model, prompt = make(), make_prompts(1)[0]
    expected = complete(model, [prompt], 9)[0]
    with torch.no_grad():
        model.wte.weight[52] = torch.nan
    engine = Engine(model, 1, 64, piece=8)
    bad = job([52] * 30)[0]
    engine.submit(bad)
    work(engine)
    assert bad.future.exception(timeout=0)
    assert not engine._cache.k_LBGSD.isnan().any()
    assert [t.id for t in together(engine, [{"prompt": prompt}])[0]] == expected


def test_the_queue_has_an_end_and_so_has_the_engine() -> None:
    engine = Engine(make(), 1, 64, queue_size=3)
    first, second = job([1])[0], job([2])[0]
    engine.submit(first, second)
    with pytest.raises(Refused, match="the queue is full \\(2 waiting\\)"):
        engine.submit(job([3])[0], job([4])[0])
    engine.start()
    assert first.future.result(timeout=30) is second.future.result(timeout=30) is None
    engine.close()
    with pytest.raises(Refused, match="shutting down"):
        engine.submit(job([5])[0])


def test_an_empty_queue_takes_any_number_and_those_who_left_hold_no_place() -> None:
    engine = Engine(make(), 1, 64, queue_size=2)
    jobs = [job([1])[0] for _ in range(5)]
    engine.submit(*jobs)
    with pytest.raises(Refused, match="the queue is full"):
        engine.submit(job([2])[0])
    for one in jobs[1:]:
        one.future.cancel()
    engine.submit(last := job([2])[0])
    assert list(engine.waiting) == [jobs[0], last]
    work(engine)
    assert jobs[0].future.done()
    assert last.future.result(timeout=0) is None


def test_an_engine_that_is_given_up_while_it_is_built_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the main thread: Python aborts if it ends while another is in the middle of kernels."""
    began = threading.Event()

    def build() -> Engine:
        began.set()
        while True:
            time.sleep(0.01)

    def result(_: object) -> None:
        began.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(batching.Future, "result", result)
    with pytest.raises(KeyboardInterrupt):
        Engine.started(build)
    assert "engine" not in {thread.name for thread in threading.enumerate()}


def test_nobody_waits_for_an_engine_that_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(make(), 1, 64)
    monkeypatch.setattr(engine, "step", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    one = job([1])[0]
    engine.submit(one)
    with pytest.raises(KeyboardInterrupt):
        engine._run()
    assert one.future.cancelled()
    with pytest.raises(Refused):
        engine.submit(job([2])[0])


def test_a_device_that_is_lost_is_told_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then not even a row can be wiped."""

    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: the device is lost")

    engine = Engine(make(), 2, 64)
    monkeypatch.setattr(GPT, "forward", lost)
    monkeypatch.setattr(torch.Tensor, "zero_", lost)
    engine.start()
    for _ in range(3):
        engine.submit(one := job([1, 2])[0])
        assert "lost" in str(one.future.exception(timeout=30))
    engine.close()


def test_the_end_gives_up_what_is_not_done() -> None:
    engine = Engine(make(), 1, 64)
    started, waiting = job([1], 60)[0], job([2])[0]
    engine.submit(started, waiting)
    engine.step()
    engine._closed = True
    engine._run()
    assert started.future.cancelled()
    assert waiting.future.cancelled()


def test_the_loop_survives_what_is_wrong_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(make(), 2, 64)
    monkeypatch.setattr(engine, "_pieces", lambda: 1 / 0)
    engine.start()
    lost = job([1, 2])[0]
    engine.submit(lost)
    assert isinstance(lost.future.exception(timeout=30), ZeroDivisionError)
    monkeypatch.undo()
    served = job([1, 2])[0]
    engine.submit(served)
    assert served.future.result(timeout=30) is None
    engine.close()


def test_a_number_of_tokens_that_seldom_gives_other_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer's numbers, one in 5,000: of this model's calls with so few tokens, one in 52."""
    sizes, calls, down = batching.like_sizes(make(), 64), [], MLP.forward

    def seldom(mlp: MLP, x: torch.Tensor) -> torch.Tensor:
        calls.append(x.size(1))
        return down(mlp, x) + 1e-3 * (calls.count(sizes[0]) == 52 and x.size(1) == sizes[0])

    monkeypatch.setattr(MLP, "forward", seldom)
    assert batching.like_sizes(make(), 64) == sizes[1:]
    monkeypatch.setattr(MLP, "forward", down)
    logits = GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda model, x: logits(model, x) + 1e-3 * (x.size(1) == sizes[1]))
    assert batching.like_sizes(make(), 64) == [sizes[0], *sizes[2:]]


def test_numbers_of_queries_that_give_other_bits_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(q: torch.Tensor, *args: object) -> tuple[torch.Tensor, ...]:
        y, sums = weighed(q, *args)
        return y, sums + (q.size(2) == 4 * 2) * torch.eye(1)

    model = make("grouped keys, gated")
    expected = [size for size in batching.like_queries(model, 64) if size != 4]
    monkeypatch.setattr(alike, "weighed", other)
    assert batching.like_queries(model, 64) == expected


def test_those_with_a_common_beginning_look_at_it_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six texts after one beginning of 32 tokens, one of the same length after another, one after none."""
    calls = []

    def seen(q: torch.Tensor, k: torch.Tensor, *args: object) -> tuple[torch.Tensor, ...]:
        calls.append((q.size(2), k.size(2)))
        return weighed(q, k, *args)

    engine, head = Engine(make(), 8, 64, piece=8), list(range(32))
    monkeypatch.setattr(cache, "weighed", seen)
    prompts = [*([*head, n] for n in range(6)), [*head[::-1], 7], [8]]
    together(engine, [{"prompt": prompt, "new": 12, "cuts": [32]} for prompt in prompts])
    for count in (6, 1):
        assert (next(size for size in engine.together if size >= count), 32) in calls
    rests = [keys for queries, keys in calls if (queries, keys) not in {(size, 32) for size in engine.together}]
    assert sorted(rests) == sorted([*range(2, 13)] * 8 * engine.model.config.n_layer)


def test_a_first_engine_leaves_the_model_as_it_was() -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    Engine(model, 2, 64)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))

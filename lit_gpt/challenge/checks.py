"""What is tried on a submission, check by check. What must hold for every answer is in `properties`."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lit_gpt.challenge.client import (
    CHOICES,
    GREEDY,
    SHAPES,
    WINDOW,
    Client,
    Doubt,
    Failure,
    Reply,
    Request,
    body,
    long_text,
)
from lit_gpt.challenge.properties import fields

HEALTH = {"prompt": "The capital of France is "}
"""What the organisers sent until a container answered."""

SHIFT = 0.25
"""Nats by which a token's log-probability may differ between writing and reading it: arithmetic in 16 bits."""

NEARLY = 8
"""Tokens, or characters, that may be lost besides when a text is cut to a number of tokens."""

BATCHED = 1.5
"""Times by which requests at once are faster than one after the other if a server computes them together."""

BROKEN = [
    ("/process", b"{"),
    ("/process", b""),
    ("/process", b"[]"),
    ("/process", b'{"max_new_tokens": 4}'),
    ("/process", b'{"prompt": ["a", "list"]}'),
    ("/process", b'{"prompt": "Hello", "max_new_tokens": "many"}'),
    ("/process", b'{"prompt": "\xff"}'),
    ("/process", b"[" * 100_000),
    ("/tokenize", b"{}"),
    ("/decode", b'{"tokens": ["a"]}'),
]
"""Bodies that mean nothing."""

STRANGE = [
    *(
        ("/process", b'{"prompt": "Hello", "max_new_tokens": 4, %s}' % part)
        for part in (
            b'"temperature": NaN',
            b'"temperature": -1',
            b'"temperature": 1e-300',
            b'"top_p": 0',
            b'"top_k": -1',
            b'"top_k_per_token": 1000000',
            b'"seed": 100000000000000000000',
            b'"stop_sequences": [""]',
            b'"num_return_sequences": 0',
        )
    ),
    ("/process", b'{"prompt": "", "max_new_tokens": 4}'),
    ("/process", b'{"prompt": "\\ud800", "max_new_tokens": 4}'),
    ("/process", b'{"prompt": "\\u0000", "max_new_tokens": 4}'),
    ("/process", b'{"prompt": "Hello", "max_new_tokens": -1}'),
    ("/process", b'{"prompt": "Hello", "max_new_tokens": 0}'),
    ("/tokenize", b'{"text": "", "truncation": true, "max_length": 0}'),
    ("/tokenize", b'{"text": "Hello", "truncation": true, "max_length": -1}'),
    ("/decode", b'{"tokens": []}'),
    ("/decode", b'{"tokens": [-1, 1000000000]}'),
]
"""Bodies of which a server may think what it likes, if it does not break."""


@dataclass
class Trial:
    """A submission, how hard it is tried, and what the checks know of it by then."""

    client: Client
    clients: int
    """Requests at once."""
    budget: float
    """Seconds per request."""
    alone: dict[str, Reply] = field(default_factory=dict)
    """Scenario -> the answer to its request, sent with no other."""


def healthy(trial: Trial) -> str:
    """A container that did not answer this within 20 minutes was out; only the prompt is given."""
    reply = trial.client.ask("/process", HEALTH, "text")
    return f"{reply.seconds:.2f} s"


def health(trial: Trial) -> str:
    """Not of the challenge, but what every container platform asks."""
    reply = trial.client.send("/health", method="GET")
    if reply.status != 200 or not isinstance(reply.value, dict):
        raise Doubt(f"status {reply.status}; the challenge does not ask for it, container platforms do", reply.request)
    return str(reply.value.get("status", ""))


def scenario(name: str) -> Callable[[Trial], str]:
    """The check that sends the request of a scenario."""

    def check(trial: Trial) -> str:
        trial.alone[name] = reply = trial.client.ask("/process", SHAPES[name], "text")
        return f"{reply.seconds:.2f} s, {len(reply.tokens)} tokens: {json.dumps(reply.text, ensure_ascii=False)[:40]}"

    return check


def vocabularies(trial: Trial) -> None:
    """The sample submission's names, and names that nobody knows."""
    toy = {"prompt": "Once upon a time", "num_samples": 1, "max_new_tokens": 4, "top_k": 200, "temperature": 0.8}
    trial.client.ask("/process", toy | {"seed": 1, "echo_prompt": False}, "text")
    trial.client.ask("/process", body("Once upon a time", 4) | {"nobody_knows": [1], "presence_penalty": 0.0}, "text")


def stop_strings(trial: Trial) -> str:
    """Parts of what the model writes become stop strings: its answer must end before them."""
    names = ("GSM8K", "MATH", "BIG-bench, texts", "BIG-bench, choices")
    free = [SHAPES[name] | {"max_new_tokens": 48, "stop_sequences": []} for name in names]
    tries: list[tuple[dict[str, Any], str, str]] = []
    for asked, reply in zip(free, trial.client.together(free), strict=True):
        text = reply.text
        for start in sorted({len(text) // 2, len(text) // 3, 1}) if len(text.strip()) > 1 else ():
            stop = text[start : start + 4]  # across tokens, mostly
            tries.append((asked | {"stop_sequences": ["never written", stop]}, stop, text))
    replies = trial.client.together([asked for asked, _, _ in tries])
    for (_, stop, text), reply in zip(tries, replies, strict=True):
        wanted = text[: text.index(stop)]
        # a text that went another way by rounding says nothing of stop strings
        same_way = reply.text.startswith(wanted) or wanted.startswith(reply.text)
        if stop in reply.text or (same_way and reply.text != wanted):
            raise Failure(f"with the stop string {stop!r}, {text!r:.60} became {reply.text!r:.60}", reply.request)
    if not tries:
        raise Doubt("the model answers nothing to the scenarios' prompts, so stop strings could not be tried")
    return f"{len(tries)} tried"


def letters(trial: Trial) -> str:
    """HELM compares the whole answer with one letter, also where it asked for 64 tokens and gave no stop string."""
    found = {name: trial.client.ask("/process", SHAPES[name], "text") for name in CHOICES}
    for name, reply in found.items():
        if reply.text.strip() not in tuple("ABCD"):
            advice = "; it goes on after the letter: serve with --cut blank_line" if "\n" in reply.text.strip() else ""
            raise Doubt(f"{name}: {reply.text[:30]!r} is no letter, which HELM scores 0{advice}", reply.request)
    return ", ".join(reply.text.strip() for reply in found.values())


def texts_end(trial: Trial) -> str:
    """A server that ignores the token that ends a text writes to the limit where no stop string ends it."""
    free = [trial.client.ask("/process", SHAPES[name], "text") for name in ("BIG-bench, choices", "BIG-bench, texts")]
    ended = [reply for reply in free if len(reply.tokens) < reply.asked["max_new_tokens"]]
    if not ended:
        raise Doubt("without a stop string, all answers go on to max_new_tokens: does EOS end a text?", free[1].request)
    return f"{len(ended)} of {len(free)} before their limit"


def at_once(trial: Trial) -> str:
    """All scenarios at once: the greedy ones get what they got alone, within the budget."""
    names = [list(SHAPES)[number % len(SHAPES)] for number in range(trial.clients)]
    began = time.perf_counter()
    replies = trial.client.together([SHAPES[name] for name in names])
    took = (time.perf_counter() - began) / len(names)
    greedy = [(name, reply) for name, reply in zip(names, replies, strict=True) if name in trial.alone]
    greedy = [(name, reply) for name, reply in greedy if SHAPES[name]["temperature"] == GREEDY]
    apart = [_apart(name, trial.alone[name], among) for name, among in greedy if trial.alone[name].text != among.text]
    if apart:
        raise min(apart, key=lambda failure: isinstance(failure, Doubt))
    note, gain = f"{took:.3g} s each", None
    if len(trial.alone) == len(SHAPES):
        pairs = [(trial.alone[name], reply) for name, reply in zip(names, replies, strict=True)]
        # what is drawn may be longer this time
        alone = sum(one.seconds * max(1, len(reply.tokens)) / max(1, len(one.tokens)) for one, reply in pairs)
        gain = alone / len(names) / took
        note += f", {gain:.1f} times as fast as one after the other"
    if took > trial.budget:
        known = trial.client.send("/health", method="GET").value
        kind = Doubt if isinstance(known, dict) and "cpu" in str(known.get("device", "")) else Failure
        raise kind(f"{note}; the evaluation's time allows for {trial.budget:g} s")
    if gain is not None and gain < BATCHED <= len(names) / 2:
        raise Doubt(f"{note}: are they computed together?")
    return note


def _apart(name: str, alone: Reply, among: Reply) -> Failure:
    """Two greedy answers that differ: by rounding, if the first tokens that do were about as likely, or by more."""
    pairs = zip(alone.text, among.text, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(alone.text), len(among.text)))
    texts = f"alone {alone.text[place:]!r:.40}, among others {among.text[place:]!r:.40}"
    message = f"{name}, from character {place} on: {texts}"
    for a, b in zip(alone.tokens, among.tokens, strict=False):
        if a.get("text") != b.get("text"):
            try:
                tie = abs(a["logprob"] - b["logprob"]) < SHIFT
            except (KeyError, TypeError):
                tie = False
            if tie:
                return Doubt(f"{message}; both were as likely, up to rounding", among.request)
            break
    return Failure(message, among.request)


def repeatable(trial: Trial) -> None:
    """Greedy is greedy, and a seed decides what is drawn."""
    drawn = {"prompt": SHAPES["BIG-bench, texts"]["prompt"], "max_new_tokens": 24, "temperature": 1.5}
    for asked in (SHAPES["BIG-bench, texts"], drawn | {"seed": 7}):
        texts = [trial.client.ask("/process", asked, "text") for _ in range(3)]
        for other in texts[1:]:
            if other.text != texts[0].text:
                message = f"{texts[0].text!r:.60}, then {other.text!r:.60}"
                raise Failure(f"the same request twice gives {message}", other.request)
    others = trial.client.together([drawn | {"seed": seed} for seed in range(1, 5)])
    if len({reply.text for reply in others}) == 1:
        raise Doubt("four seeds give the same text at temperature 1.5: is anything drawn?", others[0].request)


def echo(trial: Trial) -> str:
    """A token has the same log-probability when it is written and, read again, as part of the prompt."""
    asked = SHAPES["BIG-bench, texts"] | {"max_new_tokens": 8}
    written = trial.client.ask("/process", asked, "text")
    whole = asked["prompt"] + written.text
    read = trial.client.process(whole, 1, echo_prompt=True)
    for reply in (written, read):
        if wrong := fields(reply):
            raise Failure(wrong, reply.request)
    places, place = {}, 0
    for token in read.tokens:
        places[place] = token
        place += len(token["text"])
    place, compared, other = len(asked["prompt"]), 0, []
    for token in written.tokens:
        again = places.get(place)
        if again is not None and again["text"] == token["text"] and token["text"]:
            compared += 1
            if abs(again["logprob"] - token["logprob"]) > SHIFT:
                message = f"{token['logprob']:.2f} when written, {again['logprob']:.2f} in the prompt"
                other.append(f"the log-probability of {token['text']!r} is {message}: shifted by one?")
        place += len(token["text"])
    if len(other) > compared / 2:  # a first word that is spelt in another way, read again, changes some behind it
        raise Failure(other[0], read.request)
    return f"{compared} log-probabilities compared"


def truncation(trial: Trial) -> str:
    """HELM counts with truncation off, and cuts with it on."""
    client = trial.client
    text = long_text(client, 5000, plain=True)
    whole = client.tokenize(text, max_length=WINDOW)
    shown = Request("POST", "/tokenize", json.dumps({"text": text, "truncation": False, "max_length": WINDOW}).encode())
    if len(whole) <= WINDOW:
        raise Failure(f"truncation is false, but a text of {len(text)} characters has {len(whole)} tokens", shown)
    for length in (WINDOW, WINDOW - 400, 100):
        cut = client.tokenize(text, truncation=True, max_length=length)
        # a few less are needed where the text's end takes more tokens in the server's prompt style
        if cut != whole[: len(cut)] or not length - NEARLY <= len(cut) <= length:
            asked = {"text": text, "truncation": True, "max_length": length}
            shown = Request("POST", "/tokenize", json.dumps(asked).encode())
            raise Failure(f"truncated to {length} tokens, but got {len(cut)}, or others than the first", shown)
    return f"{len(whole)} tokens, cut to {WINDOW}, {WINDOW - 400} and 100"


def round_trip(trial: Trial) -> None:
    """What is cut, decoded and counted again fits, and is the text's beginning."""
    client = trial.client
    text = long_text(client, 2500, plain=True)
    for length in (*range(40, 60), WINDOW - 400, WINDOW - 64, WINDOW - 1):
        tokens = client.tokenize(text[: length * 12], truncation=True, max_length=length)
        again = client.decode(tokens)
        shown = Request("POST", "/decode", json.dumps({"tokens": tokens}).encode())
        if not text.startswith(again):
            raise Failure(f"the first {length} tokens decode to another text, ending in {again[-30:]!r}", shown)
        if (count := len(client.tokenize(again))) > length:
            raise Failure(f"the first {length} tokens decode to a text of {count} tokens", shown)


def fitting(trial: Trial) -> str:
    """HELM's own way to cut a prompt: it must come to an end, and the answer must come."""
    notes = []
    for name in ("GSM8K", "BIG-bench, choices", "MMLU"):
        room = SHAPES[name]["max_new_tokens"]
        cut, less = trial.client.fit(long_text(trial.client, 5000, plain=False), room)
        trial.client.process(cut, room, stop_sequences=SHAPES[name]["stop_sequences"])
        notes.append(less)
        if less > NEARLY:
            shown = Request("POST", "/tokenize", json.dumps({"text": cut, "truncation": False}).encode())
            raise Failure(f"the cut prompt had to lose {less} more characters to fit", shown)
    return f"letters beyond ASCII; up to {max(notes)} characters less than the tokenizer's cut"


def full_window(trial: Trial) -> str:
    """A prompt of exactly 2048 - max_new_tokens tokens, by /tokenize's count, which HELM goes by."""
    client = trial.client
    for room in (1, 64, 400):
        text, _ = client.fit(long_text(client, 2500, plain=True), room)
        for _ in range(64):
            if len(client.tokenize(text + " a")) > WINDOW - room:
                break
            text += " a"
        reply = client.process(text, room, echo_prompt=room == 1)
        if room == 1 and text.strip() not in reply.text:
            raise Failure(f"the prompt lost its beginning: the window is smaller than {WINDOW} tokens", reply.request)
    return f"{WINDOW - 1} + 1, {WINDOW - 64} + 64 and {WINDOW - 400} + 400 tokens"


def beyond_window(trial: Trial) -> str:
    """A prompt that nobody cut is refused or cut, and nothing breaks."""
    reply = trial.client.send("/process", body(long_text(trial.client, 5000, plain=True), 64))
    if reply.status >= 500 or (reply.status == 200 and not reply.value):
        raise Failure(f"status {reply.status} for a prompt of more than 5,000 tokens", reply.request)
    return f"status {reply.status}"


def bad_requests(trial: Trial) -> str:
    """Broken bodies are refused (4xx), strange ones at least do no harm (no 5xx)."""
    for path, data in BROKEN + STRANGE:
        reply = trial.client.send(path, data)
        if not 200 <= reply.status < 500:
            raise Failure(f"status {reply.status}; a bad request is the client's fault (4xx)", reply.request)
        if (path, data) in BROKEN and reply.status < 400:
            raise Failure(f"status {reply.status} for a body that means nothing", reply.request)
    return f"{len(BROKEN)} broken, {len(STRANGE)} strange"


def hang_up(trial: Trial) -> str:
    """Clients that leave do not stop the others."""
    for _ in range(4):
        trial.client.leave(SHAPES["GSM8K"])
    reply = trial.client.ask("/process", SHAPES["MMLU"], "text")
    alone = trial.alone.get("MMLU")
    if alone is not None and reply.text != alone.text:
        raise _apart("MMLU", alone, reply)
    return healthy(trial)


CHECKS: dict[str, Callable[[Trial], str | None]] = {
    "the organisers' health check": healthy,
    "GET /health": health,
    **{f"as {name}": scenario(name) for name in SHAPES},
    "both vocabularies, unknown fields": vocabularies,
    "stop strings end the text": stop_strings,
    "a letter is all the answer": letters,
    "texts end before the limit": texts_end,
    "many at once": at_once,
    "the same request, the same answer": repeatable,
    "prompt echoed with its log-probabilities": echo,
    "/tokenize truncates if asked to": truncation,
    "/tokenize, /decode, /tokenize fits": round_trip,
    "HELM's way to fit 5,000 tokens": fitting,
    "a prompt that fills the window": full_window,
    "a prompt beyond the window": beyond_window,
    "bad requests": bad_requests,
    "clients that hang up": hang_up,
    "still there": healthy,
}
"""What is tried, in this order. The properties of all answers follow."""

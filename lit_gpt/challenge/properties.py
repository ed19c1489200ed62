"""What must hold for every answer of a submission to /process, whatever was asked."""

from collections.abc import Callable

from lit_gpt.challenge.client import Reply, finite

LATE = 0.25
"""Seconds that an answer's `request_time` may exceed the time that it took: clocks, and the way back."""
SPECIAL = ("<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")
"""Tokens that end or begin texts in the families that the challenge allows."""

_NUMBER = (float, int)


def fields(reply: Reply) -> str | None:
    """The interface's fields, with its types; HELM 0.2.4 reads `top_logprob`, too."""
    value = reply.value if isinstance(reply.value, dict) else {}
    wanted = {"text": str, "tokens": list, "logprob": _NUMBER, "request_time": _NUMBER}
    for key, kind in wanted.items():
        if not isinstance(value.get(key), kind) or isinstance(value[key], bool):
            return f"'{key}' is {_shown(value, key)}"
    for token in value["tokens"]:
        if not isinstance(token, dict):
            return f"a token is {token!r:.40}, not an object"
        for key, kind in {"text": str, "logprob": _NUMBER, "top_logprob": dict}.items():
            if not isinstance(token.get(key), kind) or isinstance(token[key], bool):
                return f"a token's '{key}' is {_shown(token, key)}"
        if wrong := [v for v in token["top_logprob"].values() if not isinstance(v, _NUMBER) or isinstance(v, bool)]:
            return f"a token's 'top_logprob' holds {wrong[0]!r:.40}"
    return None


def _shown(value: dict, key: str) -> str:
    return f"{value[key]!r:.40}" if key in value else "missing"


def is_finite(reply: Reply) -> str | None:
    """HELM takes exp(logprob); for NaN or Infinity most servers fail, and with them the whole scenario."""
    return None if finite(reply.value) else "NaN or Infinity in it, which is no JSON"


def logarithms(reply: Reply) -> str | None:
    """Log-probabilities, not probabilities: none is above 0."""
    found = [token["logprob"] for token in reply.tokens]
    found += [value for token in reply.tokens for value in token["top_logprob"].values()]
    above = [value for value in found if value > 1e-3]
    return f"a log-probability of {above[0]:.3g}; none is above 0" if above else None


def total(reply: Reply) -> str | None:
    """The answer's log-probability is the sum of its tokens'."""
    added = sum(token["logprob"] for token in reply.tokens)
    if not reply.tokens or abs(added - reply.value["logprob"]) <= 0.01 + 1e-3 * abs(added):
        return None
    return f"'logprob' is {reply.value['logprob']:.3f}, but the tokens' add up to {added:.3f}"


def joined(reply: Reply) -> str | None:
    """The tokens' texts are the text, with every blank."""
    found = "".join(token["text"] for token in reply.tokens)
    return None if found == reply.text else f"the tokens' texts are {found!r:.60}, but 'text' is {reply.text!r:.60}"


def prompt(reply: Reply) -> str | None:
    """The prompt is in the text if that was asked for (echo_prompt), and the text does not begin with it otherwise."""
    asked, text = reply.prompt.strip(), reply.text.strip()
    if reply.asked.get("echo_prompt"):  # a prompt style of the server's may stand around it
        return None if asked in text else "echo_prompt is true, but the prompt is not in 'text'"
    return "'text' repeats the prompt" if len(reply.prompt) > 8 and text.startswith(asked) else None


def stopped(reply: Reply) -> str | None:
    """No stop string is in the answer: HELM cuts nothing off."""
    answer = reply.text[len(reply.prompt) if reply.asked.get("echo_prompt") else 0 :]
    found = [stop for stop in reply.asked.get("stop_sequences") or () if stop and stop in answer]
    return f"the stop string {found[0]!r} is in 'text'" if found else None


def special(reply: Reply) -> str | None:
    """Nor is the token that ends a text; an echoed prompt may have some of its style."""
    if reply.asked.get("echo_prompt"):
        return None
    found = [word for word in SPECIAL if word in reply.text and word not in reply.prompt]
    return f"the special token {found[0]} is in 'text'" if found else None


def within(reply: Reply) -> str | None:
    """An answer has no more tokens than were asked for."""
    asked = reply.asked
    most = asked.get("max_new_tokens")
    if asked.get("echo_prompt") or not isinstance(most, int) or len(reply.tokens) <= most or most < 0:
        return None
    return f"{len(reply.tokens)} tokens, but max_new_tokens is {most}"


def timed(reply: Reply) -> str | None:
    """`request_time` is how many seconds the answer took."""
    given = reply.value["request_time"]
    if 0 <= given <= reply.seconds + LATE:
        return None
    return f"'request_time' is {given:.2f} s, but the answer took {reply.seconds:.2f} s"


PROPERTIES: dict[str, Callable[[Reply], str | None]] = {
    "fields and types of the interface": fields,
    "no NaN, no Infinity": is_finite,
    "log-probabilities are at most 0": logarithms,
    "logprob is the sum of the tokens'": total,
    "the tokens' texts make up the text": joined,
    "the prompt is in the text if asked for": prompt,
    "no stop string in the text": stopped,
    "no special token in the text": special,
    "at most max_new_tokens tokens": within,
    "request_time is the time": timed,
}
"""What is checked -> what is wrong with an answer, if anything. The others count on the first two."""

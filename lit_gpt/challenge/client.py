"""HELM as a submission sees it: what it sends, how it fits prompts, what it reads.

The bodies are those of `HTTPModelClient` and `HTTPModelTokenizer` of crfm-helm (0.2.4, which scored the challenge, and
0.5.16 send the same), the shapes those of the challenge's scenarios. The questions in them are made up.
"""

import http.client
import json
import shlex
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lit_gpt.files import atomic

WINDOW = 2048
"""Tokens of a prompt and its answer, by the challenge's rules."""

LARGEST = sys.float_info.max
"""Of the numbers that a client can read."""

GREEDY = 1e-7
"""What HELM sends for a temperature of 0."""

LONGEST_SHOWN = 600
"""Characters of a body that stands in a command; a longer one goes to a file."""


class Request(NamedTuple):
    """A request, for showing it."""

    method: str
    path: str
    body: bytes | None

    def curl(self, url: str, file: Path) -> str:
        """The command that sends the same; a body that is too long for it is written to `file`.

        Raises:
            UserError: it cannot be written there.
        """
        words = ["curl", "-sS", url + self.path]
        if self.method != "POST":
            words += ["-X", self.method]
        if self.body is not None:
            text = self.body.decode(errors="replace")
            if len(text) > LONGEST_SHOWN or text.encode() != self.body:
                with atomic(file) as temporary:
                    temporary.write_bytes(self.body)
                text = f"@{file}"
            words += ["-H", "Content-Type: application/json", "--data-binary", text]
        return shlex.join(words)


class Reply(NamedTuple):
    """What came back."""

    request: Request
    status: int
    value: Any
    """The JSON that it holds; None if it holds none."""
    seconds: float

    @property
    def asked(self) -> dict[str, Any]:
        """The body that was sent; empty if it was no JSON object."""
        try:
            sent = json.loads(self.request.body or b"{}")
        except (ValueError, RecursionError):
            return {}
        return sent if isinstance(sent, dict) else {}

    @property
    def prompt(self) -> str:
        """What was to be continued; empty if nothing was."""
        sent = self.asked.get("prompt")
        return sent if isinstance(sent, str) else ""

    @property
    def text(self) -> str:
        """The answer; empty if there is none."""
        return self.value["text"] if isinstance(self.value, dict) and isinstance(self.value.get("text"), str) else ""

    @property
    def tokens(self) -> list[dict[str, Any]]:
        """The answer's tokens; empty if there are none."""
        found = self.value.get("tokens") if isinstance(self.value, dict) else None
        return found if isinstance(found, list) and all(isinstance(token, dict) for token in found) else []


class Failure(Exception):
    """A submission that does so loses: what it does, and the request that shows it."""

    def __init__(self, message: str, request: Request | None = None) -> None:
        super().__init__(message)
        self.request = request


class Doubt(Failure):
    """The evaluation accepts this, but it is unlikely to be meant."""


class Silence(Failure):
    """No answer came within the time that there is for one."""


@dataclass
class Client:
    """Talks to a submission, one connection for each request, as HELM does."""

    url: str
    timeout: float
    """Seconds to wait for an answer."""
    answers: list[Reply] = field(default_factory=list)
    """All answers of /process so far, other than errors."""

    def send(self, path: str, body: Any = None, method: str = "POST") -> Reply:
        """Sends a body, as JSON unless it is bytes; returns the reply whatever its status.

        Raises:
            Failure: nothing came back.
        """
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = Request(method, path, data)
        address = urlsplit(self.url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(address.hostname, address.port, timeout=self.timeout)
        began = time.perf_counter()
        try:
            connection.request(method, address.path + path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            seconds = time.perf_counter() - began
            kind = Silence if isinstance(error, TimeoutError) else Failure
            raise kind(f"no answer after {seconds:.1f} s ({str(error) or type(error).__name__})", request) from error
        finally:
            connection.close()
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        reply = Reply(request, response.status, value, time.perf_counter() - began)
        if path == "/process" and reply.status == 200:
            self.answers.append(reply)
        return reply

    def ask(self, path: str, body: Any, needs: str) -> Reply:
        """Sends a body that must be answered by an object with the field `needs`.

        Raises:
            Failure: it is not.
        """
        reply = self.send(path, body)
        if reply.status != 200:
            said = json.dumps(reply.value)[:200] if reply.value is not None else "and no JSON"
            raise Failure(f"status {reply.status} instead of 200: {said}", reply.request)
        if not isinstance(reply.value, dict) or needs not in reply.value:
            raise Failure(f"the answer is no JSON object with '{needs}'", reply.request)
        return reply

    def process(self, prompt: str, max_new_tokens: int, **changes: Any) -> Reply:
        """A text, asked for as HELM does, greedily unless told otherwise."""
        return self.ask("/process", body(prompt, max_new_tokens) | changes, "text")

    def together(self, bodies: list[dict[str, Any]]) -> list[Reply]:
        """The answers of /process to requests that are sent at the same time.

        Raises:
            Failure: one of them was not answered.
        """
        replies: list[Reply | Failure | None] = [None] * len(bodies)

        def one(place: int) -> None:
            try:
                replies[place] = self.ask("/process", bodies[place], "text")
            except Failure as failure:
                replies[place] = failure

        threads = [threading.Thread(target=one, args=(place,)) for place in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for reply in replies:
            if not isinstance(reply, Reply):
                raise reply or Failure("no answer")
        return replies

    def tokenize(self, text: str, truncation: bool = False, max_length: int = WINDOW) -> list[int]:
        """Token ids of a text."""
        return self.ids(self.ask("/tokenize", _tokenize(text, truncation, max_length), "tokens"))

    def ids(self, reply: Reply) -> list[int]:
        """The token ids in a reply of /tokenize.

        Raises:
            Failure: they are no integers.
        """
        found = reply.value["tokens"]
        if not isinstance(found, list) or any(type(token) is not int for token in found):
            raise Failure("'tokens' is no list of integers", reply.request)
        return found

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids."""
        reply = self.ask("/decode", {"tokens": tokens}, "text")
        if not isinstance(reply.value["text"], str):
            raise Failure("'text' is no text", reply.request)
        return reply.text

    def fit(self, text: str, max_new_tokens: int) -> tuple[str, int]:
        """Cuts a prompt to the window as HELM does (`LocalWindowService.truncate_from_right`).

        Returns the prompt, and how many characters more than the tokenizer's own cut had to go.

        Raises:
            Failure: it never fits.
        """
        length = WINDOW - max_new_tokens
        if len(self.tokenize(text)) <= length:
            return text, 0
        cut = self.decode(self.tokenize(text, truncation=True, max_length=length))
        for less in range(64):
            tried = cut[: len(cut) - less]
            if len(self.tokenize(tried)) <= length:
                return tried, less
        shown = Request("POST", "/tokenize", json.dumps(_tokenize(cut, False, WINDOW)).encode())
        raise Failure(f"/decode of {length} tokens gives a text that /tokenize never counts as {length} or less", shown)

    def leave(self, asked: dict[str, Any]) -> None:
        """Sends a request and hangs up before the answer."""
        address, data = urlsplit(self.url), json.dumps(asked).encode()
        head = f"POST {address.path}/process HTTP/1.1\r\nHost: {address.hostname}\r\nContent-Type: application/json\r\n"
        try:
            with socket.create_connection((address.hostname, address.port or 80), self.timeout) as connection:
                connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        except OSError as error:
            raise Failure(f"does not take a request ({error})", Request("POST", "/process", data)) from error


def _tokenize(text: str, truncation: bool, max_length: int) -> dict[str, Any]:
    return {"text": text, "truncation": truncation, "max_length": max_length}


def body(
    prompt: str,
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    temperature: float = GREEDY,
    top_k_per_token: int = 1,
) -> dict[str, Any]:
    """What HELM sends to /process."""
    return {
        "prompt": prompt,
        "temperature": temperature,
        "num_return_sequences": 1,
        "max_new_tokens": max_new_tokens,
        "top_p": 1,
        "echo_prompt": False,
        "top_k_per_token": top_k_per_token,
        "stop_sequences": list(stop),
    }


_CHOICES = [
    ("What do bees make?", "wool", "honey", "ink", "salt", "B"),
    ("Which of these is a metal?", "iron", "oak", "linen", "chalk", "A"),
    ("How many legs does a spider have?", "four", "six", "ten", "eight", "D"),
    ("What falls as snow?", "sand", "ash", "water", "glass", "C"),
    ("Which season follows winter?", "spring", "summer", "autumn", "none", "A"),
    ("What does a thermometer measure?", "weight", "temperature", "age", "colour", "B"),
]
_SUMS = [
    ("Ann has 3 boxes of 6 pears and eats 2. How many are left?", "3 * 6 = 18, and 18 - 2 = 16. The answer is 16."),
    ("A train of 9 coaches has 40 seats in each. How many seats?", "9 * 40 = 360. The answer is 360."),
    ("Tom reads 12 pages a day. How many in a week?", "12 * 7 = 84. The answer is 84."),
    ("A rope of 20 m is cut into 5 pieces. How long is each?", "20 / 5 = 4. The answer is 4."),
    ("Eggs come in boxes of 10. How many boxes for 70 eggs?", "70 / 10 = 7. The answer is 7."),
]
_TALKS = [
    ("Ann: Tea?\nBob: Yes, at four.\nAnn: Fine.", "Ann and Bob will have tea at four."),
    ("Eve: The bus is late.\nJo: Take my bicycle.\nEve: Thanks!", "Eve takes Jo's bicycle, as the bus is late."),
]


def _examples(texts: list[str], end: str, instruction: str = "") -> str:
    """A prompt of examples and a question that ends where its answer belongs."""
    return "\n\n".join([instruction, *texts, end] if instruction else [*texts, end])


def _choice(row: tuple[str, ...], answered: bool) -> str:
    lines = [f"Question: {row[0]}", *(f"{letter}. {text}" for letter, text in zip("ABCD", row[1:5], strict=True))]
    return "\n".join([*lines, f"Answer: {row[5]}" if answered else "Answer:"])


_ASK = _examples([_choice(row, True) for row in _CHOICES[:-1]], _choice(_CHOICES[-1], False))
_HEAD = "The following are multiple choice questions (with answers)"
_SUMS_ASK = _examples([f"Q: {q}\nA: {a}" for q, a in _SUMS], "Q: A hen lays 5 eggs a week. How many in 8 weeks?\nA:")
_MATH_ASK = "\n###\n".join([*(f"Problem: {q}\nSolution: {a}" for q, a in _SUMS), "Problem: What is 6 * 7?\nSolution:"])
_TALK = "###\nArticle: {}\n\nSummarize the above article in 1 sentence.\n{}"

SHAPES: dict[str, dict[str, Any]] = {
    "MMLU": body(f"{_HEAD} about nature.\n\n{_ASK}", 1, top_k_per_token=5),
    "TruthfulQA": body(_ASK, 1, top_k_per_token=5),
    "BBQ, ETHICS, corr2cause": body(f"{_HEAD}.\n\n{_ASK}", 1, top_k_per_token=5),
    "BIG-bench, choices": body(_ASK, 64),
    "BIG-bench, texts": body("Say it backwards.\n\nQ: one two\nA: two one\n\nQ: sun moon\nA:", 64),
    "GSM8K": body(_SUMS_ASK, 400, stop=("\n\n",)),
    "MATH": body(_MATH_ASK, 400, stop=("###",)),
    "SAMSum, CNN/DM": body(
        "\n\n".join(_TALK.format(*row) for row in [*_TALKS, ("Al: Where are you?\nBo: On my way.", "")]).rstrip(),
        128,
        stop=("###",),
        temperature=0.3,
    ),
}
"""Scenario -> a request of its shape. Choices get no stop strings, whatever their length (HELM's adapter)."""

CHOICES = ("MMLU", "TruthfulQA", "BBQ, ETHICS, corr2cause", "BIG-bench, choices")
"""Those whose answer is a letter."""


def long_text(client: Client, tokens: int, plain: bool) -> str:
    """A text of at least so many tokens; unless `plain`, with letters that are not ASCII."""
    line = "The quick brown fox jumps over the lazy dog, and a dozen jars of jam are packed for Zoe's 12 friends.\n"
    line = line if plain else line.replace("Zoe", "Zoë").replace("jam", "crème brûlée 🍮")
    return line * (tokens // max(1, len(client.tokenize(line * 8)) // 8 - 1) + 1)


def finite(value: Any) -> bool:
    """Whether JSON (RFC 8259) can hold all numbers of a value: HELM gives up a whole scenario for one NaN."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return all(finite(part) for part in value)
    return not isinstance(value, float | int) or -LARGEST < value < LARGEST

"""A submission without a model, for the tests of those who try submissions: right in everything, or wrong on demand.

    with FakeSubmission("no_stop") as url: ...          in this process
    python fake_submission.py --config serve.yaml --port 8080        as a bundle's server; `defects: [..]` in the file

Tokens are up to four characters with a blank in front; what follows a text is decided by a hash of it. `DEFECTS` are
those of the challenge's sample submission and of other teams' servers.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import random
import re
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DEFECTS = {
    "no_eos": "always writes to max_new_tokens",
    "no_stop": "ignores stop_sequences",
    "no_cut": "goes on after a letter",
    "nan": "divides by 1e-7 in 16 bits",
    "probabilities": "of the prompt's tokens, where logarithms belong",
    "unshifted": "log-probabilities of the prompt",
    "token_as_time": "request_time is the last token's id",
    "serial": "one request at a time",
    "no_truncation": "/tokenize ignores truncation and max_length",
    "always_truncates": "/tokenize cuts unasked",
    "no_blanks": "the tokens' texts lose the blank in front",
    "prompt_in_text": "although echo_prompt is false",
    "no_echo": "although echo_prompt is true",
    "strict": "refuses fields that it does not know",
    "no_decode": "has no /decode",
    "decode_changes": "/decode gives another text",
    "errors": "answers 500 to bad requests",
    "accepts": "answers 200 to what means nothing",
    "batched": "the text depends on the other requests",
    "random": "greedy is not greedy",
    "no_seed": "ignores the seed",
    "no_top": "tokens without top_logprob",
    "no_sum": "logprob is of the last token",
    "text_number": "logprob is a text",
    "special": "</s> is in the text",
    "too_many": "one token more than asked for",
    "window": "counts a token more than /tokenize does",
    "clips": "drops the beginning of prompts of more than 1,000 tokens",
    "crash_long": "answers 500 to a long prompt",
    "no_health": "has no /health",
    "hangs_up": "closes the connection at the organisers' health check",
}
WORDS = [" the", " cat", " sat", " on", " mat", ".", "\n", "\n\n", "\n\nQ:", " 72", "###", ""]
EOS = ""


class FakeSubmission:
    """Serves on a free port of 127.0.0.1, or the one given."""

    def __init__(self, *defects: str, port: int = 0, delay: float = 0) -> None:
        """`delay`: seconds that a token takes."""
        assert set(defects) <= set(DEFECTS), defects
        self.defects, self.delay, self.lock = set(defects), delay, threading.Lock()
        self.ids: dict[str, int] = {}
        self.texts: list[str] = []
        self.requests: list[tuple[str, Any]] = []
        self.running = 0
        self.clock = 0.0
        handler = type("Handler", (_Handler,), {"fake": self})
        self.server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 64})(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self.url

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @staticmethod
    @functools.lru_cache(256)
    def split(text: str) -> list[str]:
        """Tokens of a text; a beginning of them makes a text with the same tokens. Do not change the list."""
        return re.findall(r" ?[^\s]{1,4}|\s", text)

    def id(self, token: str) -> int:
        with self.lock:
            if token not in self.ids:
                self.ids[token] = len(self.texts) + 5000
                self.texts.append(token)
            return self.ids[token]

    def chance(self, before: str, token: str) -> float:
        """Probability of a token after a text, in (0, 1)."""
        digest = hashlib.blake2b(f"{before[-40:]}|{token}".encode(errors="replace"), digest_size=8).digest()
        return (int.from_bytes(digest, "big") + 1) / (2**64 + 2)

    def process(self, asked: dict[str, Any]) -> dict[str, Any]:
        prompt, most = asked["prompt"], asked.get("max_new_tokens", 50)
        count = len(self.split(prompt)) + ("window" in self.defects)
        if count > 2048 and "crash_long" in self.defects:
            raise ZeroDivisionError
        if count + most > 2048 and asked.keys() >= {"top_p"}:
            raise ValueError("too long")
        if "clips" in self.defects:
            prompt = "".join(self.split(prompt)[-1000:])
        stops = [] if "no_stop" in self.defects else [stop for stop in asked.get("stop_sequences") or [] if stop]
        greedy = asked.get("temperature", 0.8) <= 1e-6 and "random" not in self.defects
        seed = None if "no_seed" in self.defects else asked.get("seed")
        draw = random.Random(seed)
        tokens: list[str] = []
        mood = f"{self.running > 3}" if "batched" in self.defects else ""
        while len(tokens) < most + ("too_many" in self.defects):
            before = prompt + "".join(tokens)
            self.clock += 0.01  # seconds of a machine that does one thing at a time
            time.sleep(self.delay)
            if prompt.endswith("Answer:") and not tokens:
                token = " B"
            elif prompt.endswith("Answer:") and "no_eos" not in self.defects:
                token = "\n\nQ:" if len(tokens) == 1 and "no_cut" in self.defects else EOS
            elif greedy:
                token = max(WORDS, key=lambda word: self.chance(before, word + mood))
            else:
                token = draw.choice(WORDS)
            if token == EOS:
                if "special" in self.defects:
                    tokens.append("</s>")
                if "no_eos" not in self.defects:
                    break
                token = "."
            tokens += self.split(token)[: most - len(tokens) + ("too_many" in self.defects)]
            text = "".join(tokens)
            if found := [text.index(stop) for stop in stops if stop in text]:
                kept = text[: min(found)]
                tokens = self.split(kept)
                break
        shown = [self.token(prompt + "".join(tokens[:place]), token) for place, token in enumerate(tokens)]
        text = "".join(tokens)
        if asked.get("echo_prompt") and "no_echo" not in self.defects:
            words, read = self.split(prompt), []
            for place, token in enumerate(words):
                before = "".join(words[: place + ("unshifted" in self.defects)])
                read.append(self.token(before, token))
                if "probabilities" in self.defects:
                    read[-1]["top_logprob"] = {token: 0.5}
            shown, text = read + shown, prompt + text
        if "prompt_in_text" in self.defects:
            text = prompt + text
            shown = [{"text": prompt, "logprob": 0.0, "top_logprob": {}}, *shown]
        if "nan" in self.defects and asked.get("temperature") == 1e-7 and shown:
            shown[0]["logprob"] = math.nan
        total: Any = sum(token["logprob"] for token in shown)
        if "no_sum" in self.defects:
            total = shown[-1]["logprob"] if shown else 0.0
        return {"text": text, "tokens": shown, "logprob": str(total) if "text_number" in self.defects else total}

    def token(self, before: str, token: str) -> dict[str, Any]:
        value = math.log(self.chance(before, token))
        text = token.lstrip(" ") if "no_blanks" in self.defects else token
        return {"text": text, "logprob": value} | ({} if "no_top" in self.defects else {"top_logprob": {text: value}})

    def answer(self, path: str, asked: Any) -> tuple[int, Any]:
        """Status and JSON for a request; what is refused raises ValueError, KeyError or TypeError."""
        began, last = time.perf_counter(), 0
        if path == "/process":
            known = {"prompt", "num_samples", "max_new_tokens", "top_k", "temperature", "seed", "echo_prompt"}
            if "strict" in self.defects and asked.keys() - known:
                return 422, {"detail": "extra fields not permitted"}
            if not isinstance(asked["prompt"], str) or not 0 <= asked.get("max_new_tokens", 50) < 1e6:
                raise ValueError("prompt")
            self.running += 1
            try:
                value = self.process(asked)
            finally:
                self.running -= 1
            last = self.id(value["tokens"][-1]["text"]) if value["tokens"] else 0
        elif path == "/tokenize":
            found = [self.id(token) for token in self.split(asked["text"])]
            cuts = asked.get("truncation", True) and "no_truncation" not in self.defects
            cuts = cuts or "always_truncates" in self.defects
            value = {"tokens": found[: max(0, asked.get("max_length", 2048))] if cuts else found}
        elif path == "/decode" and "no_decode" not in self.defects:
            text = "".join(self.texts[number - 5000] for number in asked["tokens"] if number >= 5000)
            value = {"text": " " + text.strip() if "decode_changes" in self.defects else text}
        else:
            return 404, {"detail": "Not Found"}
        return 200, value | {"request_time": last if "token_as_time" in self.defects else time.perf_counter() - began}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeSubmission
    busy = threading.Lock()

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        found = self.path == "/health" and "no_health" not in self.fake.defects
        self.reply(200 if found else 404, {"status": "ok"} if found else {})

    def do_POST(self) -> None:
        data, fake = self.rfile.read(int(self.headers["Content-Length"] or 0)), self.fake
        try:
            asked = json.loads(data)
            fake.requests.append((self.path, asked))
            if "hangs_up" in fake.defects and asked.keys() == {"prompt"}:
                return
            if "serial" in fake.defects and self.path == "/process":
                with self.busy:
                    status, value = fake.answer(self.path, asked)
            else:
                status, value = fake.answer(self.path, asked)
        except ZeroDivisionError:
            status, value = 500, {"detail": "crashed"}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            status, value = 500 if "errors" in fake.defects else 422, {}
            if "accepts" in fake.defects:
                status, value = fake.answer("/process", {"prompt": "Nothing", "max_new_tokens": 4})
        self.reply(status, value)

    def reply(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(text)


def main() -> None:
    """Serves until SIGTERM; what is under way is finished."""
    port = int(sys.argv[sys.argv.index("--port") + 1])
    with open(sys.argv[sys.argv.index("--config") + 1]) as file:
        words = re.findall(r"\w+", file.read())
    if "broken" in words:
        sys.exit("error: model/: no lit_model.pth")
    fake = FakeSubmission(*set(words) & set(DEFECTS), port=port, delay=0.05 if "slow" in words else 0)
    fake.server.daemon_threads = False
    if "stays" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=fake.server.shutdown).start())
    fake.server.serve_forever(0.02)
    if "code" in words:
        sys.exit(1)
    if "lost" in words:
        os._exit(0)
    fake.server.server_close()  # waits for the threads


if __name__ == "__main__":
    main()

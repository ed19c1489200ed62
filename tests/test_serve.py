"""The challenge's server: what comes back over HTTP, what is refused, and how it ends."""

import gc
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import uvicorn
from conftest import command, train_byte_level

from lit_gpt import api, app
from lit_gpt.api import Service, Tokenize, Writer, is_choice
from lit_gpt.app import build_app
from lit_gpt.batching import Engine, Token
from lit_gpt.checkpoint import load_gpt
from lit_gpt.decode import complete
from lit_gpt.prompts import get_style
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
PROMPT = "The old cat sees the"
HELM = {
    "temperature": 1e-7,
    "num_return_sequences": 1,
    "max_new_tokens": 12,
    "top_p": 1,
    "echo_prompt": False,
    "top_k_per_token": 5,
    "stop_sequences": [],
}
"""The names that HELM sends."""

Ask = Callable[..., tuple[int, dict]]


class Client:
    """Asks a server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, path: str, body: object = None, method: str = "POST") -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        connection.request(method, path, data)
        reply = connection.getresponse()
        self.headers = reply.headers
        text = reply.read().decode()
        connection.close()
        return reply.status, json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in {text}"))

    def process(self, prompt: str = PROMPT, **body: object) -> dict:
        status, reply = self("/process", {"prompt": prompt, **HELM, **body})
        assert status == 200, reply
        assert "".join(token["text"] for token in reply["tokens"]) == reply["text"]
        assert sum(token["logprob"] for token in reply["tokens"]) == pytest.approx(reply["logprob"])
        return {name: value for name, value in reply.items() if name != "request_time"}


class Running:
    """A server in a thread of this process."""

    def __init__(self, folder: Path, timeout: float = 60, queue: int = 100, rows: int = 5, **options: object) -> None:
        self.engine = Engine(load_gpt(folder, torch.float32), rows, 128, queue, piece=16)
        self.service = Service(self.engine, folder, **options)
        built = build_app(self.service, timeout, {"model": "tiny"})
        self.server = uvicorn.Server(uvicorn.Config(built, http=app.Connection, port=0, log_level="critical"))

    def __enter__(self) -> Client:
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return Client(self.server.servers[0].sockets[0].getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def ask(checkpoint: Path) -> Iterator[Client]:
    with Running(checkpoint) as client:
        yield client


def test_a_greedy_text_is_that_of_decoding(ask: Client, checkpoint: Path) -> None:
    tokenizer, model = Tokenizer(checkpoint), load_gpt(checkpoint, torch.float32)
    ids = tokenizer.encode(PROMPT)
    new = complete(model, [ids], 12, stop_ids=[tokenizer.eos_id])[0]
    reply = ask.process()
    assert reply["text"] == tokenizer.decode(ids + new).removeprefix(tokenizer.decode(ids))
    assert len(reply["tokens"]) == len(new)
    logprobs = model(torch.tensor([ids + new]))[0].log_softmax(-1)[len(ids) - 1 : -1]
    for token, i, expected in zip(reply["tokens"], new, logprobs, strict=True):
        assert token["logprob"] == pytest.approx(float(expected[i]), abs=1e-4)
        assert max(token["top_logprob"].values()) == token["logprob"]
    assert ask.process(temperature=0, max_new_tokens=0) == {"text": "", "tokens": [], "logprob": 0}


def test_both_vocabularies_and_names_that_nobody_knows(ask: Client) -> None:
    greedy = ask.process()
    assert ask.process(what="ever", model="x", stop_sequences=None, seed=None) == greedy
    status, default = ask("/process", {"prompt": PROMPT})
    assert (status, set(default)) == (200, {"text", "tokens", "logprob", "request_time"})
    assert len(default["tokens"]) <= 50
    toy = {"prompt": PROMPT, "num_samples": 3, "top_k": 5, "temperature": 1.5, "seed": 7, "max_new_tokens": 12}
    (_, first), (_, again) = ask("/process", toy), ask("/process", toy)
    assert first["completions"] == again["completions"]
    assert len({one["text"] for one in first["completions"]}) == 3
    assert first["completions"][0] == {name: first[name] for name in ("text", "tokens", "logprob")}
    one = ask.process(num_return_sequences=2, temperature=1.0, top_p=0.9, seed=8)
    assert one["completions"][1] == ask.process(temperature=1.0, top_p=0.9, seed=9) != one["completions"][0]


def test_thirty_clients_get_what_each_gets_alone(ask: Client) -> None:
    rng = random.Random(0)
    wanted = [
        {
            "prompt": " ".join(rng.choices(["The", "old", "red", "cat", "dog", "sees", "sun."], k=rng.randint(1, 30))),
            "max_new_tokens": rng.choice([1, 5, 20]),
            "temperature": rng.choice([0, 1e-7, 0.8]),
            "seed": n,
            "echo_prompt": n % 7 == 0,
            "num_return_sequences": 1 + (n % 9 == 0),
        }
        for n in range(30)
    ]
    alone = [ask.process(**want) for want in wanted]
    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(lambda want: ask.process(**want), wanted)) == alone
    _, health = ask("/health", method="GET")
    assert health["status"] == "ok"
    assert health["busy"] == health["waiting"] == 0


def test_stop_strings_end_the_text_and_its_tokens(ask: Client) -> None:
    whole = ask.process()["text"]
    for start, stop in ((3, 5), (4, 9), (6, 7), (0, 3)):
        stop = whole[start:stop]
        reply = ask.process(stop_sequences=["", "never there", stop])
        assert reply["text"] == whole[: whole.index(stop)]
    assert ask.process(stop_sequences=[]) == ask.process(stop_sequences=[""])


@pytest.mark.parametrize("prompt", [PROMPT, "  two  spaces", "Größe 🎈", "</s> spelt", "a\n\nb\n"])
def test_an_echoed_prompt_comes_with_its_own_logprobs(ask: Client, checkpoint: Path, prompt: str) -> None:
    tokenizer, model = Tokenizer(checkpoint), load_gpt(checkpoint, torch.float32)
    ids, plain = tokenizer.encode(prompt), ask.process(prompt)
    reply = ask.process(prompt, echo_prompt=True)
    assert reply["text"] == prompt + plain["text"]
    assert reply["tokens"][len(ids) :] == plain["tokens"]
    expected = model(torch.tensor([ids])).log_softmax(-1)[0]
    assert [t["logprob"] for t in reply["tokens"][: len(ids)]] == pytest.approx(
        [0.0, *(float(expected[n, i]) for n, i in enumerate(ids[1:]))], abs=1e-4
    )
    assert ask.process(prompt, echo_prompt=True, max_new_tokens=0)["text"] == prompt


def test_prompts_that_are_too_long_lose_their_beginning(ask: Client, checkpoint: Path) -> None:
    prompt = "The red dog likes the sea. " * 40
    reply = ask.process(prompt, max_new_tokens=20)
    assert "lost its first" in reply.pop("note")
    tokenizer = Tokenizer(checkpoint)
    ids = tokenizer.encode(prompt)
    kept = ids[:1] + ids[len(ids) - (128 - 20 - 1) :]
    model = load_gpt(checkpoint, torch.float32)
    assert reply["text"] == tokenizer.decode(kept + complete(model, [kept], 20)[0]).removeprefix(tokenizer.decode(kept))
    reply = ask.process("The red dog", max_new_tokens=5000)  # goes on to the end of the window
    assert len(reply["tokens"]) == 128 - len(tokenizer.encode("The red dog"))
    assert "note" not in reply
    assert len(ask.process(prompt, max_new_tokens=5000)["tokens"]) == 64
    assert len(ask.process("", max_new_tokens=3)["tokens"]) == 3


def test_tokenize_and_decode(ask: Client, checkpoint: Path) -> None:
    tokenizer, text = Tokenizer(checkpoint), "The old cat likes Größe 🎈🎈 and the sea."
    ids = tokenizer.encode(text)
    reply = ask("/tokenize", {"text": text, "truncation": False, "max_length": 3})[1]
    assert reply["tokens"] == ids
    assert isinstance(reply["request_time"], float)
    assert ask("/tokenize", {"text": text})[1]["tokens"] == ids
    assert ask("/decode", {"tokens": ids})[1]["text"] == text
    for most in range(1, len(ids)):
        cut = ask("/tokenize", {"text": text, "truncation": True, "max_length": most})[1]["tokens"]
        assert cut == ids[: len(cut)]
        assert most - len(cut) < 5  # fewer only by half a character
        back = ask("/decode", {"tokens": cut})[1]["text"]
        again = ask("/tokenize", {"text": back, "truncation": False})[1]["tokens"]
        assert len(again) <= most
    assert ask("/decode", {"tokens": [5, 10**6]})[0] == 200


BAD = [
    (b"{", 400, "JSON"),
    (b'{"prompt": "\xff"}', 400, "UTF-8"),
    (b"[" * 100000, 400, "JSON"),
    ([1], 422, "object"),
    ({}, 422, "prompt"),
    ({"prompt": 3}, 422, "prompt"),
    ({"prompt": None}, 422, "prompt"),
    ({"prompt": "\ud800"}, 422, "UTF-8"),
    ({"prompt": "x", "temperature": float("nan")}, 422, "temperature"),
    ({"prompt": "x", "temperature": -1}, 422, "temperature"),
    ({"prompt": "x", "top_p": 2}, 422, "top_p"),
    ({"prompt": "x", "max_new_tokens": -1}, 422, "max_new_tokens"),
    ({"prompt": "x", "num_samples": 10**9}, 422, "num_samples"),
    ({"prompt": "x", "stop_sequences": [1]}, 422, "stop_sequences.0"),
    ({"prompt": "x", "stop_sequences": ["x"] * (api.MOST_STOPS + 1)}, 422, "stop_sequences"),
    ({"prompt": "x" * app.BODY}, 413, "bytes"),
    (
        {"prompt": "x", "num_samples": 64, "max_new_tokens": 100, "top_k_per_token": 100},
        422,
        "64 texts x 100 tokens x 100",
    ),
    ({"prompt": "The " * 100, "num_samples": 64, "echo_prompt": True, "top_k_per_token": 99}, 422, "may be 250,000"),
]


@pytest.mark.parametrize(("body", "status", "word"), BAD)
def test_bad_requests_are_answered_in_one_line(ask: Client, body: object, status: int, word: str) -> None:
    found, reply = ask("/process", body)
    assert (found, list(reply)) == (status, ["error"])
    assert word in reply["error"]
    assert "\n" not in reply["error"]
    assert ask.process()["text"]


def test_a_prompt_of_blank_lines_has_the_same_text_again(ask: Client) -> None:
    for prompt in ("\n\n", "The old cat\n\n" * 9, "\n" * 50):
        assert ask.process(prompt) == ask.process(prompt) == ask.process(prompt)


def _post(port: int, body: bytes, length: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(b"POST /process HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + body)
    return connection


def test_a_body_that_does_not_come(ask: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "ARRIVES", 0.2)
    with _post(ask.port, b"{", 99) as slow:
        assert b"has not come within 0.2 seconds" in b"".join(iter(lambda: slow.recv(9999), b""))


def test_the_end_does_not_wait_for_a_body(checkpoint: Path) -> None:
    running = Running(checkpoint)
    with running as client:
        half = _post(client.port, b"{", 99)
        while not any(connection.cycle for connection in running.server.server_state.connections):
            time.sleep(0.01)
    with half:
        assert half.recv(99) == b""  # no answer that it was late


def test_a_head_that_does_not_come(ask: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, a part, and a part of a second request are given up; who waits for a text is not."""
    monkeypatch.setattr(app, "ARRIVES", 0.3)
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    for sent in (b"", whole[:9], whole + whole[:9]):
        with socket.create_connection(("127.0.0.1", ask.port), timeout=60) as slow:
            slow.sendall(sent)
            got = b"".join(iter(lambda: slow.recv(9999), b""))  # until it is closed
            assert got.startswith(b"HTTP/1.1 200") if whole in sent else not got
    assert ask.process(num_return_sequences=20, max_new_tokens=100, top_k_per_token=1)["text"]


def test_clients_that_leave_are_no_errors(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the middle of a request, and of a reply of which several texts are on their way."""
    running = Running(checkpoint, rows=1)
    body = json.dumps({"prompt": PROMPT, **HELM, "max_new_tokens": 100, "num_return_sequences": 9}).encode()
    with running as client:
        _post(client.port, body[:-9], len(body)).close()
        for _ in range(3):
            left = _post(client.port, body, len(body))
            while not any(row.job for row in running.engine.rows):
                time.sleep(0.01)
            left.close()
            while (state := running.engine.state())["busy"] or state["waiting"]:
                time.sleep(0.01)
        assert client.process()
        gc.collect()
    assert not caplog.records


def test_other_bad_requests(ask: Client) -> None:
    assert ask("/decode", {"tokens": [-1]})[0] == 422
    assert ask("/tokenize", {"text": "a", "max_length": 0})[0] == 422
    assert ask("/nowhere", {})[0] == 404
    assert ask("/process", method="GET")[0] == 405


def test_a_full_queue_a_timeout_and_a_client_that_leaves(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(checkpoint, timeout=0.5, queue=1, rows=1)
    step, go = running.engine.step, threading.Event()
    monkeypatch.setattr(running.engine, "step", lambda: go.wait(30) and step())
    with running as client:
        left = http.client.HTTPConnection("127.0.0.1", client.port)
        left.request("POST", "/process", json.dumps({"prompt": PROMPT, **HELM}))
        while not running.engine.waiting:
            time.sleep(0.01)
        status, reply = client("/process", {"prompt": PROMPT, **HELM})
        assert (status, client.headers["Retry-After"]) == (503, "5")
        assert "try again later" in reply["error"]
        (job,) = running.engine.waiting
        left.close()
        while not job.future.cancelled():
            time.sleep(0.01)
        running.engine.waiting.clear()
        status, reply = client("/process", {"prompt": PROMPT, **HELM})
        assert (status, reply) == (504, {"error": "not done after 0.5 seconds; try again later"})
        go.set()
        running.engine.waiting.clear()
        assert client.process(max_new_tokens=2)


def test_a_model_that_fails_is_told(checkpoint: Path) -> None:
    running = Running(checkpoint)
    with torch.no_grad():
        running.engine.model.wte.weight[7] = torch.nan
    text = running.service.tokenizer.decode([7])
    bad = next(t for t in (text, "<0x04>", "\x04") if 7 in running.service.tokenizer.encode(t))
    with running as client, ThreadPoolExecutor(9) as pool:
        replies = list(pool.map(lambda n: client("/process", {"prompt": bad if n == 4 else PROMPT, **HELM}), range(9)))
    assert [status for status, _ in replies] == [500 if n == 4 else 200 for n in range(9)]
    assert replies[4][1] == {"error": "the model failed: ArithmeticError: the model's logits are not finite"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_has_ended_is_not_healthy(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    running = Running(checkpoint)

    def ends() -> None:
        raise SystemExit("lost")

    with running as client:
        assert client("/health", method="GET")[0] == 200
        monkeypatch.setattr(running.engine, "step", ends)
        assert client("/process", {"prompt": PROMPT, **HELM})[0] == 503
        running.engine._thread.join()
        status, reply = client("/health", method="GET")
        assert (status, reply["status"], reply["model"]) == (503, "failed", "tiny")
        assert "the thread that runs the model has ended" in reply["error"]
        assert client("/process", {"prompt": PROMPT, **HELM}) == (503, {"error": reply["error"]})


def test_a_reply_of_many_numbers_that_is_not_too_large(ask: Client) -> None:
    reply = ask.process(max_new_tokens=20, top_k_per_token=100, num_return_sequences=64)
    assert len(reply["completions"]) == 64


def test_a_byte_order_mark(ask: Client) -> None:
    """Which Windows' tools put in front of a file."""
    body = json.dumps({"prompt": PROMPT, **HELM}).encode()
    (status, marked), (_, plain) = ask("/process", b"\xef\xbb\xbf" + body), ask("/process", body)
    assert (status, marked["tokens"]) == (200, plain["tokens"])


@pytest.mark.parametrize("style", ["alpaca", "chatml", "plain"])
def test_helm_fits_prompts_of_a_style(checkpoint: Path, tmp_path: Path, style: str) -> None:
    """As it fits them (`Client.fit` of the challenge): what the style adds counts, and no prompt loses anything."""
    train_byte_level(tmp_path)
    for folder in (checkpoint, tmp_path):
        service = Service(Running(checkpoint).engine, folder, get_style(style))
        service.engine.length = window = 400
        for text in ("The old red cat sees the sun. " * 60, "Größe 🎈🎈 \n\n 日本 " * 90, "x"):
            for new in (1, 20, 100):
                fitted, room = text, window - new
                if len(service.tokenize(Tokenize(text=text, truncation=False))) > room:
                    cut = service.tokenize(Tokenize(text=text, truncation=True, max_length=room))
                    fitted = service.decode(api.Decode(tokens=cut))
                    assert text.startswith(fitted.rstrip("\ufffd"))  # half a character
                assert len(service.tokenize(Tokenize(text=fitted, truncation=False))) <= room
                ids, lost = service.prompt(fitted, new)
                assert lost == 0
                assert room - len(ids) < 8 or fitted == text  # and the window is used
        assert service.decode(api.Decode(tokens=service.tokenize(Tokenize(text="The old cat")))) == "The old cat"
        assert service.tokenize(Tokenize(text="", truncation=False)) is not None


def test_prompts_in_the_models_own_style(checkpoint: Path) -> None:
    running = Running(checkpoint, style=get_style("alpaca"))
    style, tokenizer = get_style("alpaca"), Tokenizer(checkpoint)
    with pytest.raises(UserError, match="style alpaca has"):
        running.service.prompt("Say it.", 20)
    running.engine.length = 4096
    ids, lost = running.service.prompt("Say it.", 20)
    assert (tokenizer.decode(ids).endswith("### Instruction:\nSay it.\n\n### Response:"), lost) == (True, 0)
    frame = len(ids)
    running.engine.length = frame + 30
    ids, lost = running.service.prompt("Say it now, " * 30, 15)
    assert lost > 0
    assert len(ids) <= frame + 15
    assert tokenizer.decode(ids).startswith("Below is an instruction")
    assert "now, \n\n### Response:" in tokenizer.decode(ids) or "now,\n\n### Response:" in tokenizer.decode(ids)
    assert running.service.stop_ids == style.stop_ids(tokenizer)


@pytest.mark.parametrize(
    ("prompt", "choice"),
    [
        ("Question: Which?\nA. one\nB. two\nC. three\nAnswer:", True),
        ("Intro\n\nQ: 1\nA. one\nB. two\nA: B\n\nQ: 2\nA. x\ny\nB. z\nA:", True),
        ("Question: 2 + 2?\nAnswer:", False),
        ("A. one thing\nand B. another\nAnswer:", False),
        ("Pick:\nA. one\nB. two\nand then go on with a story about it", False),
    ],
)
def test_what_looks_like_a_choice(prompt: str, choice: bool) -> None:
    assert is_choice(prompt) == choice


def test_what_looks_like_a_choice_is_soon_said() -> None:
    began = time.perf_counter()
    assert not is_choice("A. x\n" * 200_000 + "Answer:")
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("cut", "parts", "text"),
    [
        ("\n\n", [" B", "\n", "\nQuestion"], " B"),
        ("\n\n", ["\n", "\n B.", " it is\n", "x", "\n\n", "y"], "\n\n B. it is\nx"),
        ("\n", ["\n", " B", "\nx"], "\n B"),
        ("\n", ["\n\n"], "\n\n"),
        (None, ["B\n\nx"], "B\n\nx"),
    ],
)
def test_the_cut_of_answers(checkpoint: Path, cut: str | None, parts: list[str], text: str) -> None:
    writer = Writer(Tokenizer(checkpoint), True, [], cut)
    pieces = iter(parts)
    writer._stream.add = lambda _: next(pieces)
    writer._stream.flush = lambda: ""
    ended = [writer.add(Token(0, 0.0, [])) for _ in parts]
    writer.end()
    assert (writer.text, "".join(writer.parts)) == (text, text)
    assert any(ended) == (len(text) < len("".join(parts)))


def test_the_cut_is_for_choices_only(checkpoint: Path) -> None:
    running = Running(checkpoint, cut="\n")
    for prompt, expected in (("Q\nA. one\nB. two\nAnswer:", True), (PROMPT, False)):
        _, (writer,), _ = running.service.jobs(api.Process(prompt=prompt))
        assert (writer._cut is not None) == expected


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_tokens_join_to_the_text_whatever_ids_come(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    if kind == "byte level":
        train_byte_level(tmp_path)
    tokenizer, rng = Tokenizer(checkpoint if kind == "sentencepiece" else tmp_path), random.Random(0)
    word = tokenizer.encode("a", bos=False)
    texts = ["Größe 🎈 cat", "The sun\n\n sea  dog ###", " 日本"]
    for n in range(300):
        ids = [rng.randrange(tokenizer.vocab_size + 5) for _ in range(rng.randint(1, 12))]
        if n % 3 == 0:
            ids = tokenizer.encode(rng.choice(texts), bos=False)[: rng.randint(1, 30)] + ids[:2]
        whole = tokenizer.decode(word + ids)[len(tokenizer.decode(word)) :]
        start = rng.randrange(max(1, len(whole)))
        stops = [whole[start : start + 2]] if n % 2 and whole else []
        writer = Writer(tokenizer, True, stops, None)
        for i in ids:
            if writer.add(Token(i, -1.0, [])):
                break
        writer.end()
        assert writer.text == (whole.split(stops[0])[0] if stops else whole)
        assert "".join(writer.parts) == writer.text
        assert len(writer.parts) == len(writer.tokens) <= len(ids)


def test_truncation_fits_with_every_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    train_byte_level(tmp_path)
    for folder in (checkpoint, tmp_path):
        service = Service(Running(checkpoint).engine, folder)
        for text in ("Größe 🎈🎈 sun", "  The   old 日本 cat", "\n\n\n"):
            for most in range(1, 12):
                ids = service.tokenize(Tokenize(text=text, max_length=most))
                assert len(service.tokenizer.encode(service.tokenizer.decode(ids))) <= most


def begun(*flags: object) -> subprocess.Popen:
    """The command as a process."""
    words = [sys.executable, ROOT / "submission" / "serve.py", *flags]
    return subprocess.Popen([str(word) for word in words], stderr=subprocess.PIPE, text=True, cwd=ROOT)


def ready(process: subprocess.Popen) -> Client:
    """Waits until it serves."""
    while "Ready" not in (line := process.stderr.readline()):
        assert line, "it ended"
    client = Client(int(line.split("127.0.0.1:")[1].split()[0]))
    assert line.endswith(f" tokens, on {client('/health', method='GET')[1]['device']})\n")
    return client


def test_a_second_ctrl_c_ends_it_at_once(checkpoint: Path) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--port", 0, "--batch_size", 2]
    process = begun(*flags)
    try:
        client = ready(process)
        with ThreadPoolExecutor(1) as pool:
            body = {"prompt": PROMPT, **HELM, "max_new_tokens": 240, "num_return_sequences": 64}
            running = pool.submit(client, "/process", body)
            while client("/health", method="GET")[1]["busy"] < 2:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
            assert running.exception() or running.result()[0] == 503
        assert process.stderr.read() == "interrupted\n"
    finally:
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_running_requests_end(checkpoint: Path, number: int, code: int) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--port", 0, "--batch_size", 2, "--precision", "32-true"]
    process = begun(*flags)
    try:
        client = ready(process)
        with ThreadPoolExecutor(3) as pool:
            bodies = [{"prompt": PROMPT, **HELM, "max_new_tokens": 240}] * 3
            running = [pool.submit(client, "/process", body) for body in bodies]
            while client("/health", method="GET")[1]["busy"] < 2:
                time.sleep(0.01)
            process.send_signal(number)
            assert process.wait(timeout=60) == code
            assert [future.result()[0] for future in running] == [200] * 3
        with pytest.raises(ConnectionRefusedError):
            client("/health", method="GET")
        rest = process.stderr.read()
        assert "Traceback" not in rest
        assert len(rest.splitlines()) == 1
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", 99999], "--port: must be in [0, 65535]"),
        (["--batch_size", 0], "--batch_size: must be at least 1"),
        (["--timeout", 0], "--timeout: must be above 0"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--prompt_style", "trained"], "--prompt_style trained: nothing is known"),
        (["--prompt_style", "nope"], "no prompt style 'nope'"),
        (["--batch_size", 10**9], "--batch_size: the KV cache does not fit"),
    ],
)
def test_bad_settings(checkpoint: Path, capfd: pytest.CaptureFixture, flags: list, message: str) -> None:
    assert command("serve", "--checkpoint_dir", checkpoint, "--port", 0, *flags) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line


def test_a_port_that_is_taken(checkpoint: Path, ask: Client, capfd: pytest.CaptureFixture) -> None:
    assert command("serve", "--checkpoint_dir", checkpoint, "--port", ask.port) == 2
    assert "in use; take another port" in capfd.readouterr().err

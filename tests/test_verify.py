"""Trying a submission: each defect of those that lost is found, and one without defects passes."""

import json
import math
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import command
from fake_submission import DEFECTS, FakeSubmission

from lit_gpt.challenge.checks import CHECKS
from lit_gpt.challenge.client import WINDOW, Client, Failure
from lit_gpt.challenge.properties import PROPERTIES

FOUND = {
    "no_eos": "warn texts end before the limit",
    "no_stop": "FAIL stop strings end the text",
    "no_cut": "warn a letter is all the answer",
    "nan": "FAIL no NaN, no Infinity",
    "probabilities": "FAIL log-probabilities are at most 0",
    "unshifted": "FAIL prompt echoed with its log-probabilities",
    "token_as_time": "FAIL request_time is the time",
    "serial": "warn many at once",
    "no_truncation": "FAIL /tokenize truncates if asked to",
    "always_truncates": "FAIL /tokenize truncates if asked to",
    "no_blanks": "FAIL the tokens' texts make up the text",
    "prompt_in_text": "FAIL the prompt is in the text if asked for",
    "no_echo": "FAIL the prompt is in the text if asked for",
    "strict": "FAIL both vocabularies, unknown fields",
    "no_decode": "FAIL HELM's way to fit 5,000 tokens",
    "decode_changes": "FAIL /tokenize, /decode, /tokenize fits",
    "errors": "FAIL bad requests",
    "accepts": "FAIL bad requests",
    "batched": "FAIL many at once",
    "random": "FAIL the same request, the same answer",
    "no_seed": "FAIL the same request, the same answer",
    "no_top": "FAIL fields and types of the interface",
    "no_sum": "FAIL logprob is the sum of the tokens'",
    "text_number": "FAIL fields and types of the interface",
    "special": "FAIL no special token in the text",
    "too_many": "FAIL at most max_new_tokens tokens",
    "window": "FAIL a prompt that fills the window",
    "clips": "FAIL a prompt that fills the window",
    "crash_long": "FAIL a prompt beyond the window",
    "no_health": "warn GET /health",
    "hangs_up": "FAIL the organisers' health check",
}
"""Defect -> what must be said of it."""


@pytest.fixture(autouse=True)
def requests_go_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is kept of failures goes beside where the command is called, and nothing stays in the folder for temporary
    files."""
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    assert not list((tmp_path / "temporary").iterdir())


def tried(out: str) -> dict[str, str]:
    """Check -> outcome, from what the command printed."""
    titles = sorted((*CHECKS, *PROPERTIES, "starts", "ends when told to"), key=len, reverse=True)
    rows = [line.split("  ", 1) for line in out.splitlines() if line.startswith(("pass  ", "warn  ", "FAIL  "))]
    return {next(title for title in titles if text.startswith(title)): outcome for outcome, text in rows}


def test_a_good_submission_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeSubmission() as url:
        assert command("verify", "--url", url) == 0
    found = tried(capsys.readouterr().out)
    assert found.keys() == {*CHECKS, *PROPERTIES}
    assert not list(Path().iterdir())
    # how fast it is, compared with one after the other, is the machine's business here
    assert {title for title, outcome in found.items() if outcome != "pass"} <= {"many at once"}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_found(
    defect: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, title = FOUND[defect].split(" ", 1)
    fake = FakeSubmission(defect, delay=0.002 if defect == "batched" else 0)
    if defect == "serial":
        monkeypatch.setattr("lit_gpt.challenge.client.time", SimpleNamespace(perf_counter=lambda: fake.clock))
        monkeypatch.setattr("lit_gpt.challenge.checks.time", SimpleNamespace(perf_counter=lambda: fake.clock))
    with fake as url:
        assert command("verify", "--url", url, "--timeout", 20) == int(outcome == "FAIL")
    found = tried(capsys.readouterr().out)
    assert found[title] == outcome
    if outcome == "warn":
        assert "FAIL" not in found.values()


def test_a_server_that_puts_prompts_in_a_style_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """An echoed prompt is in the middle of the text then, and /tokenize counts the style's own tokens."""
    fake = FakeSubmission()
    answer = fake.answer

    def styled(path: str, asked: dict) -> tuple[int, object]:
        framed = {key: f"Ask: {asked[key]} Reply:" for key in ("prompt", "text") if isinstance(asked.get(key), str)}
        if path != "/tokenize":
            return answer(path, {**asked, **framed})
        status, reply = answer(path, {**asked, "truncation": False})
        more = len(fake.split(framed["text"])) - len(reply["tokens"])
        tokens = [0] * more + reply["tokens"]  # which /decode leaves out
        most = max(0, asked.get("max_length", WINDOW)) if asked.get("truncation", True) else None
        return status, {**reply, "tokens": tokens[:most]}

    fake.answer = styled
    with fake as url:
        assert command("verify", "--url", url, "--clients", 4) == 0
    found = tried(capsys.readouterr().out)
    assert found.keys() == {*CHECKS, *PROPERTIES}
    assert {found[title] for title in ("a prompt that fills the window", "HELM's way to fit 5,000 tokens")} == {"pass"}


TOKEN = {"text": "x", "logprob": -1.0, "top_logprob": {}}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {"text": 5, "tokens": 5},
        {"text": "x", "tokens": [1, 2]},
        {"text": "x", "tokens": ["a"]},
        {"text": "x", "tokens": [None], "logprob": True, "request_time": 0},
        {"text": "x", "tokens": [TOKEN | {"top_logprob": {"x": "y"}}], "logprob": -1, "request_time": 0},
        {"text": "x", "tokens": [TOKEN | {"logprob": 10**400}], "logprob": 10**400, "request_time": -(10**400)},
        {"text": "\ud800", "tokens": [TOKEN] * 3, "logprob": -math.inf, "request_time": math.nan},
    ],
    ids=str,
)
def test_whatever_a_server_answers_is_found_out(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeSubmission()
    fake.answer = lambda path, asked: (200, value)
    with fake as url:
        assert command("verify", "--url", url, "--timeout", 20, "--clients", 4) == 1
    shown = capsys.readouterr()
    assert shown.err == ""
    assert tried(shown.out).keys() == {*CHECKS, *PROPERTIES}


def test_what_is_no_submission(capsys: pytest.CaptureFixture[str]) -> None:
    """Another server at the port: no property holds of answers that never came."""
    fake = FakeSubmission()
    fake.answer = lambda path, asked: (501, None)
    with fake as url:
        assert command("verify", "--url", url, "--timeout", 20, "--clients", 4) == 1
    found = tried(capsys.readouterr().out)
    assert {found[title] for title in PROPERTIES} == {"warn"}


def test_a_server_that_is_gone_when_a_client_hangs_up() -> None:
    with FakeSubmission() as url:
        pass
    with pytest.raises(Failure, match="does not take a request"):
        Client(url, 5).leave({"prompt": "x"})


def test_the_request_of_a_failure_can_be_sent_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with FakeSubmission("window", "probabilities") as url:
        assert command("verify", "--url", url, "--save_filepath", report) == 1
        findings = json.loads(report.read_text())["findings"]
        failed = {finding["check"]: finding["request"] for finding in findings if finding["outcome"] == "FAIL"}
        assert len(failed) == 3
        shown = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("      curl")]
        assert set(shown) <= set(failed.values())
        for title, status in (("a prompt that fills the window", "422"), ("log-probabilities are at most 0", "200")):
            words = [*shlex.split(failed[title]), "-o", str(tmp_path / "reply"), "-w", "%{http_code}"]
            if shutil.which("curl"):
                assert subprocess.run(words, capture_output=True, text=True).stdout == status
        assert "@verify-failures/a-prompt-that-fills-the-window.json" in failed["a prompt that fills the window"]
        assert all(path.parent.name == "verify-failures" for path in Path().rglob("*.json"))
        Path("file").touch()
        assert command("verify", "--url", url, "--failures_dir", "file") == 1
    assert "its request was not kept: cannot write file/" in capsys.readouterr().out


def test_a_server_that_never_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """It accepts connections, and that is all: one wait is enough."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert command("verify", "--url", url, "--timeout", 0.3, "--save_filepath", "report.json") == 1
    shown = capsys.readouterr()
    first, curl, rest, _, last = shown.out.splitlines()
    assert first.startswith("FAIL  the organisers' health check")
    assert "no answer after 0.3 s (timed out)" in first
    assert curl.strip().startswith("curl ")
    assert rest == "      No answer comes: the other checks are not tried."
    count = len(CHECKS) + len(PROPERTIES)
    assert last == f"{count} checks: 0 passed, 0 warned, 1 failed, {count - 1} not tried."
    findings = json.loads(Path("report.json").read_text())["findings"]
    assert [finding["outcome"] for finding in findings] == ["FAIL"] + ["not tried"] * (count - 1)


def test_a_server_that_stops_answering(capsys: pytest.CaptureFixture[str]) -> None:
    """One check may time out; after two in a row the rest is not tried."""
    fake, count = FakeSubmission(), 0
    answer = fake.answer

    def slow(path: str, asked: dict) -> tuple[int, object]:
        nonlocal count
        count += 1
        time.sleep(1.5 if count == 3 or count > 5 else 0)
        return answer(path, asked)

    fake.answer = slow
    with fake as url:
        assert command("verify", "--url", url, "--timeout", 0.5) == 1
    found = tried(out := capsys.readouterr().out)
    outcomes = [found[title] for title in found]
    assert outcomes.count("FAIL") == 3
    assert outcomes[-2:] == ["FAIL", "FAIL"]
    assert len(outcomes) < len(CHECKS)
    assert f"{len(CHECKS) + len(PROPERTIES) - len(outcomes)} not tried." in out


def test_helm_cuts_a_prompt_so() -> None:
    """Straight from its documentation: count untruncated; truncate, decode; then character by character."""
    with FakeSubmission() as fake_url:
        client = Client(fake_url, 20)
        assert client.fit("short", 64) == ("short", 0)
        text = "word " * 3000
        cut, less = client.fit(text, 64)
        assert text.startswith(cut)
        assert less == 0
        assert len(client.tokenize(cut)) == WINDOW - 64


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--url", "localhost:8080"], "expected an address such as http://localhost:8080"),
        (["--url", "http://host:port"], "expected an address"),
        (["--url", "http://127.0.0.1:9"], "nothing listens at http://127.0.0.1:9"),
        (["--url", "http://127.0.0.1:9", "--bundle_dir", "x"], "give one of them"),
        (["--bundle_dir", "nowhere"], "--bundle_dir nowhere: no serve.yaml"),
        (["--clients", "0"], "--clients: must be at least 1"),
        (["--timeout", "0"], "--timeout: must be above 0"),
        (["--url", f"http://{'a' * 70}.de"], "--url: expected an address"),
        (["--url", "http://[::1]:1", "--save_filepath", "/proc/x/y"], "--save_filepath /proc/x: cannot write there"),
        (["--url", "http://[::1]:1"], "nothing listens"),
    ],
)
def test_errors(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("verify", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder as prepare_submission writes it, as far as starting it goes."""
    (tmp_path / "submission").mkdir()
    shutil.copy(Path(__file__).parent / "fake_submission.py", tmp_path / "submission/serve.py")
    (tmp_path / "serve.yaml").write_text("good\n")
    return tmp_path


def test_the_bundle_is_started_and_ended(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)  # found without a flag
    assert command("verify") == 0
    found = tried(capsys.readouterr().out)
    assert found["starts"] == found["ends when told to"] == "pass"


@pytest.mark.parametrize("way", ["stays", "code"])
def test_a_bad_end(way: str, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gpt.challenge.started.GRACE", 0.5)
    (bundle / "serve.yaml").write_text(way)
    assert command("verify", "--bundle_dir", bundle) == 1
    out = capsys.readouterr().out
    assert tried(out)["ends when told to"] == "FAIL"
    assert out.partition("What the server wrote: ")[2].split()[0] == "verify-failures/server.log"
    assert Path("verify-failures/server.log").is_file()


def test_an_answer_that_is_lost(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenarios = {title: check for title, check in CHECKS.items() if title.startswith("as ")}
    monkeypatch.setattr("lit_gpt.challenge.verify.CHECKS", scenarios)
    (bundle / "serve.yaml").write_text("slow lost")
    assert command("verify", "--bundle_dir", bundle) == 0
    assert tried(capsys.readouterr().out)["ends when told to"] == "warn"


def test_a_server_that_does_not_start(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "serve.yaml").write_text("broken")
    assert command("verify", "--bundle_dir", bundle) == 2
    assert "its server ended with exit code 1: error: model/: no lit_model.pth" in capsys.readouterr().err
    (bundle / "submission/serve.py").unlink()
    assert command("verify", "--bundle_dir", bundle) == 2
    assert "no submission/serve.py; write the bundle anew" in capsys.readouterr().err

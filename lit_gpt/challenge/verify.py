"""Tries a submission as the challenge's evaluation does; without torch, so it runs wherever a client does."""

import contextlib
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.challenge.checks import CHECKS, Trial
from lit_gpt.challenge.client import GREEDY, SHAPES, Client, Doubt, Failure, Silence
from lit_gpt.challenge.properties import PROPERTIES, fields, is_finite
from lit_gpt.challenge.started import GRACE, Started, checked_url, listens
from lit_gpt.files import results_folder, write_json
from lit_gpt.settings import Stopped, UserError, at_least, one_line

COLOURS = {"pass": "\033[32m", "warn": "\033[33m", "FAIL": "\033[31m"}
GIVEN_UP = 2
"""Checks in a row without an answer after which no more are made; if there was none before, one is enough."""


@dataclass
class Verify:
    """Which submission is tried, and how hard."""

    url: str | None = None
    """Address of a server that runs; unset: the one of the bundle is started."""
    bundle_dir: Path | None = None
    """Folder that prepare_submission wrote; unset: the current one, or the one that this command is part of."""
    clients: int = 30
    """Requests at once; the challenge's evaluation sent 30."""
    budget: float = 2.6
    """Seconds per request, with so many at once: the open tasks' 6,900 requests in 300 minutes."""
    timeout: float = 600.0
    """Seconds to wait for an answer."""
    start_timeout: float = 1200.0
    """Seconds until a started server must answer; the organisers waited for 20 minutes."""
    save_filepath: Path | None = None
    """JSON file for what was found, with all requests that failed."""
    failures_dir: Path = Path("verify-failures")
    """Folder for requests that failed and are too long for a command, and for what a started server wrote; made only if
    there are any."""

    def __post_init__(self) -> None:
        at_least(1, self, "clients")
        for name in ("budget", "timeout", "start_timeout"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name}: must be above 0 seconds, got {getattr(self, name)}")
        self.url = checked_url(self.url, self.bundle_dir)


class Report:
    """Makes checks, prints what they find line by line, and keeps it."""

    def __init__(self, url: str, folder: Path) -> None:
        """`folder`: for requests that failed and are too long to be printed."""
        self.url, self.folder = url, folder
        self.findings: list[dict[str, Any]] = []
        self.silent = 0
        """Checks in a row to which no answer came."""

    def run(self, title: str, check: Callable[[], str | None]) -> None:
        """Makes a check; its note is what it returns or raises. After `GIVEN_UP` without an answer none is made."""
        if self.silent >= GIVEN_UP:
            self.findings.append({"check": title, "outcome": "not tried", "note": "", "seconds": 0.0})
            return
        began = time.perf_counter()
        try:
            outcome, note, request = "pass", check() or "", None
            self.silent = 0
        except Failure as failure:
            self.silent = self.silent + 1 if isinstance(failure, Silence) else 0
            outcome, note = "warn" if isinstance(failure, Doubt) else "FAIL", str(failure)
            request = failure.request
        shown = outcome
        if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            shown = f"{COLOURS[outcome]}{outcome}\033[0m"
        print(f"{shown}  {title:42}{one_line(note)}".rstrip(), flush=True)
        seconds = round(time.perf_counter() - began, 3)
        finding: dict[str, Any] = {"check": title, "outcome": outcome, "note": note, "seconds": seconds}
        if request is not None:
            file = self.folder / f"{'-'.join(re.findall(r'[A-Za-z0-9]+', title))}.json"
            try:
                finding["request"] = request.curl(self.url, file)
            except UserError as error:
                finding["request"] = f"its request was not kept: {error}"
            if note not in (known["note"] for known in self.findings):  # one is enough
                print(f"      {finding['request']}", flush=True)
        self.findings.append(finding)
        if self.silent >= GIVEN_UP:
            print("      No answer comes: the other checks are not tried.", flush=True)

    def count(self, outcome: str) -> int:
        """How many checks ended so."""
        return sum(finding["outcome"] == outcome for finding in self.findings)


def ends(server: Started, trial: Trial) -> str:
    """SIGTERM, as Docker sends it: the answer under way is finished, and the process ends."""
    greedy = [name for name in trial.alone if SHAPES[name]["temperature"] == GREEDY]  # as long as before
    longest = max(greedy, key=lambda name: trial.alone[name].seconds, default="GSM8K")
    answered = []

    def last() -> None:
        with contextlib.suppress(Failure):
            answered.append(trial.client.ask("/process", SHAPES[longest], "text"))

    thread = threading.Thread(target=last)
    thread.start()
    time.sleep(max(0.2, trial.alone[longest].seconds / 4 if greedy else 0))  # until it is under way
    began = time.monotonic()
    code = server.terminate()
    if code is None:
        raise Failure(f"still there {GRACE} s after SIGTERM")
    thread.join()
    if code not in (0, 143, -15):
        raise Failure(f"exit code {code} after SIGTERM")
    if not answered:
        raise Doubt(f"exit code {code}, but the answer under way was lost")
    return f"{time.monotonic() - began:.1f} s after SIGTERM, with the answer under way"


def holds(title: str, trial: Trial) -> str:
    """One of the properties, over all answers that came."""
    wrong, answers = PROPERTIES[title], trial.client.answers
    if wrong is not fields:
        answers = [reply for reply in answers if not fields(reply) and (wrong is is_finite or not is_finite(reply))]
    if not answers:
        raise Doubt("no answer to look at")
    found = [(reply, problem) for reply in answers if (problem := wrong(reply))]
    if found:
        shortest, problem = min(found, key=lambda pair: len(pair[0].request.body or b""))
        raise Failure(f"in {len(found)} of {len(answers)} answers: {problem}", shortest.request)
    return f"{len(answers)} answers"


def verify(settings: Verify) -> None:
    """Tries a submission as the challenge's evaluation does; exit code 1 if anything failed.

    Raises:
        UserError: there is no server, or no bundle that starts one.
    """
    if settings.save_filepath is not None:
        results_folder(settings.save_filepath.parent, "--save_filepath")
    with contextlib.ExitStack() as stack:
        server = None
        if settings.url is None:
            server = stack.enter_context(Started(settings.bundle_dir, settings.start_timeout))
        elif not listens(settings.url):
            raise UserError(f"--url: nothing listens at {settings.url}; start it with python submission/serve.py")
        url = server.url if server else settings.url
        trial = Trial(Client(url, settings.timeout), settings.clients, settings.budget)
        report = Report(url, settings.failures_dir)
        if server:
            report.run("starts", lambda: f"{server.seconds:.1f} s")
        report.silent = GIVEN_UP - 1  # to listen is not to answer
        for title, check in CHECKS.items():
            report.run(title, functools.partial(check, trial))
        for title in PROPERTIES:
            report.run(title, functools.partial(holds, title, trial))
        if server:
            report.run("ends when told to", functools.partial(ends, server, trial))
            if report.count("FAIL"):
                server.keep_log = settings.failures_dir / "server.log"
                print(f"\nWhat the server wrote: {server.keep_log}")
    failed, left = report.count("FAIL"), report.count("not tried")
    counts = f"{report.count('pass')} passed, {report.count('warn')} warned, {failed} failed"
    print(f"\n{len(report.findings)} checks: {counts}{f', {left} not tried' if left else ''}.")
    if settings.save_filepath is not None:
        write_json(settings.save_filepath, {"url": url, "failed": failed, "findings": report.findings})
    if failed:
        raise Stopped("", 1)

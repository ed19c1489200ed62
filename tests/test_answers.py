"""Answers on the disk: known again, by request and model; nothing is lost when the process is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_gpt.answers import Answers, open_answers
from lit_gpt.settings import UserError


def test_answers_come_back(tmp_path: Path) -> None:
    path, ask = tmp_path / "new" / "answers.jsonl", ((1, 2, 3), 2)
    with open_answers(path, "model a") as answers:
        assert answers.known([ask]) == {}
        answers.add({ask: (-0.1234567890123456789, True), ("write", (1, 2)): 'text "\n é'})
    with open_answers(path, "model a") as answers:
        assert answers.known([ask, ((1, 2), 2)]) == {ask: [-0.1234567890123456789, True]}
        assert answers.known([("write", (1, 2))]) == {("write", (1, 2)): 'text "\n é'}
    with open_answers(path, "model b") as answers:
        assert answers.known([ask]) == {}
        answers.add({ask: (0.5, False)})
    with open_answers(path, "model a") as answers:
        assert answers.known([ask])[ask][1] is True


def test_without_a_file_nothing_is_known() -> None:
    with open_answers(None, "x") as answers:
        answers.add({(1,): "a"})
        assert answers.known([(1,)]) == Answers().known([(1,)]) == {}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_half_a_line_is_taken_away(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path, "a") as answers:
        answers.add({(1,): "one"})
        answers.add({(2,): "two"})
    path.write_bytes(path.read_bytes()[:-cut])
    with open_answers(path, "a") as answers:
        assert answers.known([(1,), (2,)]) == {(1,): "one"}
        answers.add({(2,): "again"})
    with open_answers(path, "a") as answers:
        assert answers.known([(1,), (2,)]) == {(1,): "one", (2,): "again"}


@pytest.mark.parametrize("content", ["hello\n", "hello", '["a", 1]\n', '{"results": 1}\n', "\x00\x01\n"])
def test_other_files_are_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text(content)
    with pytest.raises(UserError, match=r"--use_cache: .*other:1: not a file of answers"), open_answers(path, "a"):
        pass
    assert path.read_text() == content


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path, "a") as answers:
        answers.add({(1,): "one"})
    path.write_bytes(path.read_bytes().replace(b"one", b"o\xffe") + b"[1, 2]\n")
    with pytest.raises(UserError, match=r"answers.jsonl:2: damaged; take the line out"), open_answers(path, "a"):
        pass


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path, "a") as answers:
        answers.add({(1,): [-1.25, True], (2,): "two"})
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    for place in range(head, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"answers.jsonl:[23]: damaged"), open_answers(path, "a"):
            pass
    path.write_bytes(whole.replace(b'answers", 2', b'answers", 1'))
    with pytest.raises(UserError, match=r"answers.jsonl:1: made by another version"), open_answers(path, "a"):
        pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        open_answers(tmp_path / "answers", "a"),
        pytest.raises(UserError, match="another process is using"),
        open_answers(tmp_path / "answers", "a"),
    ):
        pass
    with pytest.raises(UserError, match="is a folder"), open_answers(tmp_path, "a"):
        pass


WORK = """
import sys, time
from pathlib import Path
from lit_gpt.answers import open_answers
with open_answers(Path(sys.argv[1]), "model") as answers:
    for i in range(10_000):
        answers.add({(i,): "answer " * 20})
"""


def test_a_killed_process_has_lost_nothing(tmp_path: Path) -> None:
    """All answers but at most the last one written are whole, and the next process goes on."""
    path, root = tmp_path / "answers.jsonl", Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", WORK, str(path)], env=env)
    while not path.exists() or path.stat().st_size < 20_000:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = path.read_bytes().count(b"\n") - 1
    with open_answers(path, "model") as answers:
        known = answers.known([(i,) for i in range(10_000)])
        assert sorted(known) == [(i,) for i in range(whole)]
        assert set(known.values()) == {"answer " * 20}
        assert whole > 50
    for line in path.read_text().splitlines():
        json.loads(line)

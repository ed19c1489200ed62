"""Conversations: the kept cache gives what computing anew gives; commands, pipes, terminals, and their errors."""

import copy
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import command, make_checkpoint

from lit_gpt import GPT, Tokenizer, load_gpt
from lit_gpt.chat import COMMANDS, obey
from lit_gpt.checkpoint import base_identity, save_finetuned, style_of
from lit_gpt.decode import Sampling, complete
from lit_gpt.files import read_json, write_json
from lit_gpt.methods import LoRA
from lit_gpt.prompts import Turn, get_style
from lit_gpt.settings import UserError
from lit_gpt.talk import Talk

ROOT = Path(__file__).parents[1]
QUESTIONS = ("What does the cat see?", "Why does the red dog like the sea?\n\nSay it.", "And the sun?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("chat") / "model", block_size=1024)


@pytest.fixture(scope="module")
def model(folder: Path) -> GPT:
    return load_gpt(folder, torch.float32)


@pytest.fixture
def talk(folder: Path, model: GPT) -> Talk:
    return talk_in("alpaca", folder, model)


def talk_in(style: str, folder: Path, model: GPT, n: int = 12, **options: object) -> Talk:
    return Talk(model, Tokenizer(folder), get_style(style), Sampling(), n, **options)


def from_scratch(talk: Talk, turns: list[Turn]) -> str:
    """The answer to these turns, without a cache from before."""
    ids = talk.style.encode_prompt(talk.tokenizer, tuple(turns))
    [answer] = complete(talk.model, [ids], talk.max_new_tokens, stop_ids=talk.style.stop_ids(talk.tokenizer))
    return talk.tokenizer.decode(answer).strip()


TEMPLATE = "{% for m in messages %}{{ '[' + m.role + ']\n' + m.content + '\n' }}{% endfor %}{{ '[assistant]\n' }}"


@pytest.mark.parametrize("style", ["alpaca", "chatml", "llama2-chat", "plain", TEMPLATE])
def test_answers_are_those_from_scratch(folder: Path, model: GPT, style: str) -> None:
    if style == TEMPLATE:  # asks only where it is asked to
        style = style.replace("{{ '[assistant]", "{% if add_generation_prompt %}{{ '[assistant]") + "{% endif %}"
    talk = talk_in(style, folder, model)
    for number, question in enumerate(QUESTIONS):
        said = list(talk.turns)
        before = len(talk._ids)
        answer = "".join(talk.ask(question))
        assert answer.strip() == from_scratch(talk, [*said, Turn("user", question)]) != ""
        assert talk.turns == [*said, Turn("user", question), Turn("assistant", answer.strip())]
        # A random model's answers are no text that the tokenizer would write so; the rest is read once.
        prompt = talk.style.encode_prompt(talk.tokenizer, tuple(talk.turns[:-1]))
        assert talk.spent.prompt == len(prompt)
        assert (0 < talk.spent.reused <= before) == bool(number)


def test_nothing_is_read_twice(folder: Path, model: GPT, talk: Talk) -> None:
    """With the ids of an answer as they were drawn, all that came before is in the cache, but for its last token."""
    words = talk.tokenizer.encode("The old cat sees the sea.", bos=False)
    answers = [iter(words), iter(words)]

    class Fixed(Sampling):
        def draw(self, *args: object) -> torch.Tensor:
            return torch.tensor([next(answers[0], talk.tokenizer.eos_id)])

    talk.sampling = Fixed()
    assert "".join(talk.ask("What?")) == "The old cat sees the sea."
    first = talk.spent.prompt
    del answers[0]
    assert "".join(talk.ask("And?")) == "The old cat sees the sea."
    assert talk.spent.reused == first + len(words) - 1


def test_the_cache_grows(folder: Path, model: GPT) -> None:
    talk, sizes = talk_in("plain", folder, model), []
    for question in QUESTIONS * 3:
        said = list(talk.turns)
        assert "".join(talk.ask(question)).strip() == from_scratch(talk, [*said, Turn("user", question)])
        sizes.append(talk._cache.length)
    assert len(set(sizes)) > 1


def test_a_long_conversation_is_read_again_where_longrope_turns_it_otherwise(folder: Path, model: GPT) -> None:
    """Once, at the turn that passes the original length; the cache may have grown beyond that before."""
    factors = {"short_factor": [1.0, 1.5, 2.0, 2.0], "long_factor": [8.0] * 4, "attention_factor": 1.1}
    model = copy.deepcopy(model)
    model.config.rope_scaling = {**factors, "original_max_position_embeddings": 200}
    talk, reused = talk_in("plain", folder, model), []
    for question in QUESTIONS * 4:
        said = list(talk.turns)
        assert "".join(talk.ask(question)).strip() == from_scratch(talk, [*said, Turn("user", question)])
        reused.append(talk.spent.reused)
    assert reused.count(0) == 2
    assert reused[0] == 0


def test_a_stopped_answer_is_kept_as_far_as_it_went(talk: Talk) -> None:
    whole = "".join(talk.ask(QUESTIONS[0]))
    talk.reset()
    count = iter(range(100))
    part = "".join(talk.ask(QUESTIONS[0], lambda: next(count) == 4))
    assert part
    assert whole.startswith(part)
    assert whole != part
    assert talk.turns[-1] == Turn("assistant", part.strip())
    talk.reset()
    for _ in talk.ask(QUESTIONS[0]):
        break
    said = list(talk.turns)
    assert whole.startswith(said[-1].text)
    assert "".join(talk.ask(QUESTIONS[1])).strip() == from_scratch(talk, [*said, Turn("user", QUESTIONS[1])])


def test_an_interrupt_within_the_model_leaves_a_usable_conversation(talk: Talk) -> None:
    "".join(talk.ask(QUESTIONS[0]))
    said, draw = list(talk.turns), talk.sampling.draw

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    talk.sampling.draw = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(talk.ask("Lost?"))
    assert talk.turns == said
    talk.sampling.draw = draw
    assert "".join(talk.ask(QUESTIONS[1])).strip() == from_scratch(talk, [*said, Turn("user", QUESTIONS[1])])


def test_the_oldest_turns_go_when_the_context_is_full(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    model = load_gpt(checkpoint, torch.float32)
    talk = talk_in("plain", checkpoint, model, 20)
    for number in range(12):
        question = f"{number}: {QUESTIONS[1]}"
        "".join(talk.ask(question))
        assert talk.spent.prompt + 20 <= model.config.block_size
        assert talk.turns[-2].text == question
    assert len(talk.turns) == 24
    assert 0 < talk.forgotten < 23
    assert talk.turns[talk.forgotten].role == "user"
    assert f"note: the oldest {talk.forgotten} turns no longer fit" in capsys.readouterr().err
    said = list(talk.turns)
    answer = "".join(talk.ask("Last?"))
    assert answer.strip() == from_scratch(talk, [*said, Turn("user", "Last?")][talk.forgotten :])
    with pytest.raises(UserError, match=r"this takes \d+ tokens, the model's context has 256; shorten it"):
        list(talk.ask("sun " * 300))
    assert len(talk.turns) == 26
    assert "".join(talk.ask("Still there?"))


def test_system_prompt(folder: Path, model: GPT, capsys: pytest.CaptureFixture) -> None:
    talk = talk_in("chatml", folder, model, system="The old dog.")
    answer = "".join(talk.ask(QUESTIONS[0])).strip()
    assert answer == from_scratch(talk, [Turn("system", "The old dog."), Turn("user", QUESTIONS[0])])
    obey(talk, "/system The red cat.")
    said = list(talk.turns)
    answer = "".join(talk.ask(QUESTIONS[1])).strip()
    assert answer == from_scratch(talk, [Turn("system", "The red cat."), *said, Turn("user", QUESTIONS[1])])
    obey(talk, '/system ""')
    assert talk.system is None
    obey(talk, "/system")
    assert capsys.readouterr().err == "system prompt: The red cat.\nno system prompt\nno system prompt\n"


# --- commands ----------------------------------------------------------------------------------------------------


def test_save_and_load(talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    talk.system = "Be kind."
    "".join(talk.ask(QUESTIONS[1]))
    file = tmp_path / "my talk.json"
    obey(talk, f"/save {file}")
    assert [message["role"] for message in read_json(file)["messages"]] == ["system", "user", "assistant"]
    said, answer = list(talk.turns), "".join(talk.ask(QUESTIONS[2]))
    obey(talk, f"/save {file}")  # its own file may be replaced
    obey(talk, "/reset")
    assert talk.turns == []
    write_json(tmp_path / "part.json", {"messages": read_json(file)["messages"][:3]})
    talk.system = None
    obey(talk, f"/load {tmp_path / 'part.json'}")
    assert (talk.turns, talk.system) == (said, "Be kind.")
    assert "".join(talk.ask(QUESTIONS[2])) == answer
    obey(talk, "/stats")
    assert "of which" in capsys.readouterr().err
    obey(talk, "/help")
    assert all(name in capsys.readouterr().err for name in list(COMMANDS)[:1])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/hepl", "no command /hepl; did you mean /help?"),
        ("/save", "name a file"),
        ("/save /dev/null/x", "cannot write"),
        ("/save other.json", "other.json is there and holds no conversation; choose another name"),
        ("/load nothing.json", "cannot read nothing.json"),
        ("/load other.json", r'no conversation; it must hold {"messages"'),
        ("/load broken.json", "not valid JSON"),
        ("/load user.json", "it ends with the user's turn"),
        ("/load half.json", r'no conversation; it must hold {"messages"'),
        ("/load role.json", "turn 1 has the role 'bot'"),
        ("/load tool.json", "alpaca has no turns of the tool"),
    ],
)
def test_commands_that_cannot_be_done(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json("other.json", {"a": 1})
    Path("broken.json").write_text("{")
    ask, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    write_json("user.json", {"messages": [ask]})
    Path("half.json").write_text(r'{"messages": [{"role": "user", "content": "\ud800"}]}')
    write_json("role.json", {"messages": [{"role": "bot", "content": "x"}]})
    write_json("tool.json", {"messages": [ask, {"role": "tool", "content": "1"}, reply]})
    with pytest.raises(UserError, match=expected):
        obey(talk, line)
    assert read_json("other.json") == {"a": 1}


# --- the style of a model ------------------------------------------------------------------------------------------


def test_the_style_is_that_of_the_run_or_of_the_model(checkpoint: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    assert style_of(folder) is None
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ messages[0].content }}"})
    assert style_of(folder).name == "{{ messages[0].content }}"
    write_json(folder / "lit_config.json", {**read_json(folder / "lit_config.json"), "merged": {"prompt_style": "phi"}})
    assert style_of(folder).name == "phi"
    model = load_gpt(folder)
    LoRA().attach(model)
    save_finetuned(
        tmp_path / "lit_model_lora_finetuned.pth",
        model,
        LoRA(),
        {"prompt_style": "{{ 'stored' }}", "base": base_identity(folder), "quantize": None},
    )
    assert style_of(folder, tmp_path).name == "{{ 'stored' }}"
    assert style_of(folder, tmp_path, "zephyr").name == "zephyr"
    write_json(folder / "adapter_config.json", {})
    assert style_of(folder, folder).name == "phi"


# --- through a pipe ----------------------------------------------------------------------------------------------


@pytest.fixture
def piped(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """Runs the command with these lines as its standard input; exit code, stdout, stderr."""

    def run(text: str | bytes, *flags: object) -> tuple[int, str, str]:
        data = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        common = ("--checkpoint_dir", folder, "--precision", "32-true", "--temperature", 0, "--max_new_tokens", 12)
        capsys.readouterr()
        code = command("chat", *common, *flags)
        return code, *capsys.readouterr()

    return run


def test_every_line_of_a_pipe_is_a_question(piped: Callable, folder: Path, model: GPT, tmp_path: Path) -> None:
    talk = talk_in("chatml", folder, model, system="Be brief.")
    answers = ["".join(talk.ask(question)) + "\n" for question in ("What?", "é, 日本?", "/usr")]
    file = tmp_path / "talk.json"
    text = f"\ufeffWhat?\r\n\n  \né, 日本?\n /usr\n/save {file}\n/exit\nnever\n"
    code, out, err = piped(text, "--prompt_style", "chatml", "--system", "Be brief.")
    assert (code, out) == (0, "".join(answers))
    assert "prompt style chatml, context 1,024 tokens" in err
    assert len(read_json(file)["messages"]) == 7
    assert piped("")[:2] == (0, "")


def test_without_a_style_the_model_goes_on_with_the_text(piped: Callable, folder: Path, model: GPT) -> None:
    code, out, err = piped("The cat")
    assert (code, out) == (0, "".join(talk_in("plain", folder, model).ask("The cat")) + "\n")
    assert "note: this model has no chat template" in err


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("sun " * 1400, [], "tokens, the model's context has 1,024; shorten it"),
        (b"ok\n\xff\xfe\n", [], "standard input, line 2: not UTF-8"),
        ("/nothing", [], "no command /nothing"),
        ("", ["--prompt_style", "chatlm"], "no prompt style 'chatlm'; did you mean chatml?"),
        ("", ["--prompt_style", "model"], "has no chat template of its own"),
        ("", ["--prompt_style", "none.jinja"], "cannot read the template none.jinja"),
        ("", ["--prompt_style", "redpajama", "--system", "x"], "no system prompt here: prompt style redpajama has no"),
        ("", ["--prompt_style", "chatml", "--system", " "], "no system prompt here: turn 1 (system) is empty"),
        ("", ["--prompt_style", "{{ raise_exception('no') }}", "--system", "x"], "the chat template refuses"),
        (
            "",
            ["--lora_path", "a", "--adapter_path", "b"],
            "--lora_path and --adapter_path: a model is finetuned by one",
        ),
        ("", ["--lora_path", "nothing"], "finetune first"),
        ("", ["--max_new_tokens", 0], "--max_new_tokens: must be at least 1"),
        ("", ["--temperature", -1], "--temperature: must be at least 0"),
        ("", ["--top_p", 0], "--top_p: must be in (0, 1]"),
        ("", ["--min_p", 2], "--min_p: must be in [0, 1]"),
        ("", ["--quantize", "int3"], "--quantize: expected"),
    ],
)
def test_bad_input_gets_one_line(piped: Callable, text: str, flags: list, expected: str) -> None:
    code, _, err = piped(text, *flags)
    last = err.splitlines()[-1]
    assert code == 2
    assert last.startswith("error: ")
    assert expected in last
    assert "Traceback" not in err


# --- in a terminal -----------------------------------------------------------------------------------------------


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *argv: object) -> None:
        self.screen, end = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1", "INPUTRC": "/dev/null"}
        own = {"start_new_session": True, "cwd": ROOT, "env": environment}
        # its own session, so that the terminal's Ctrl-C reaches it
        line = f"import os; os.open({os.ttyname(end)!r}, os.O_RDWR); import sys; os.execv(sys.argv[1], sys.argv[1:])"
        words = [sys.executable, "-c", line, sys.executable, *map(str, argv)]
        self.process = subprocess.Popen(words, stdin=end, stdout=end, stderr=end, **own)
        os.close(end)
        self.text = ""

    def until(self, wanted: str, again: str = "") -> str:
        """Reads until a text comes that has not been waited for; what stands before it. Keys may be typed again."""
        limit = time.monotonic() + 10
        self._read(lambda: wanted in self.text or (bool(again) and time.monotonic() > limit), wanted)
        if wanted not in self.text:
            self.type(again)
            return self.until(wanted)
        before, _, self.text = self.text.partition(wanted)
        return before

    def more(self, count: int) -> None:
        """Reads until so many characters come."""
        self._read(lambda: len(self.text) >= count, f"{count} characters")
        self.text = ""

    def _read(self, enough: Callable[[], bool], wanted: str) -> None:
        limit = time.monotonic() + 60
        while not enough():
            assert time.monotonic() < limit, f"{wanted} did not come: {self.text!r}"
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.screen, 1 << 16).decode(errors="replace")
                except OSError:  # the program has ended
                    limit = 0

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())


def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """It stops an answer and not the program; at the prompt the second one leaves."""
    folder = make_checkpoint(tmp_path / "model", block_size=100_000)  # answers without an end
    flags = ["--prompt_style", "chatml", "--precision", "32-true", "--max_new_tokens", 99_000]
    terminal = Terminal("chat/base.py", "--checkpoint_dir", folder, *flags)
    try:
        terminal.until("Ctrl-D leaves")
        terminal.until("> ")
        for question in QUESTIONS[:1] * 2:
            terminal.type(f"{question}\n")
            terminal.until(question)
            terminal.more(100)  # of the answer
            terminal.type("\x03")
            terminal.until("(stopped)")
            terminal.until("> ")
        terminal.type("/stats\n")
        assert "4 turns" in terminal.until("memory used")
        terminal.until("> ")
        terminal.type(f"/save {tmp_path / 'talk.json'}\n")
        terminal.until("4 turns saved")
        assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 4
        for told in ("(Ctrl-C again leaves)", "interrupted"):
            terminal.until("> ")
            terminal.type("half a question")
            terminal.until("half a question")  # its echo: the program is waiting for more
            terminal.type("\x03")
            terminal.until(told, again="\x03")  # Python loses one that comes just before it waits for keys
        assert terminal.process.wait(20) == 130
    finally:
        terminal.process.send_signal(signal.SIGKILL)
        terminal.process.wait()
        os.close(terminal.screen)

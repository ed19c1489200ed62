"""The README is true: its commands run as written, on a small model; the files and flags that it names are there."""

import ast
import contextlib
import csv
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SENTENCES, stand_in, train_sentencepiece
from test_litgpt import litgpt_folder

from lit_gpt import Tokenizer
from lit_gpt.api import Process
from lit_gpt.cli import COMMANDS
from lit_gpt.serve import Serve

pytest.importorskip("lm_eval")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = re.search(r"\| setting \|.*?\n\n", README, re.DOTALL)[0]
MODEL = "openlm-research/open_llama_3b"
ROWS = [{"instruction": f"Say {a}.", "input": "", "output": b} for a, b in zip(SENTENCES, SENTENCES[::-1], strict=True)]
SMALL = {
    "scripts/download.py --repo_id": "--from_folder hub",
    "scripts/prepare_alpaca.py": "--data_file alpaca.json",
    "finetune/lora.py": "--max_steps 2 --batch_size 4 --micro_batch_size 2 --eval_iters 1",
    "generate/": "--max_new_tokens 3",
    "eval/lm_eval_harness.py": "--include_path tasks",
}
"""Start of a command -> what is added for lack of network and time, unless the README says otherwise."""


def blocks(language: str, text: str = README) -> list[str]:
    """The code of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str = README) -> list[list[str]]:
    """Every command of a document, in order, as words."""
    lines = "\n".join(blocks("bash", text)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def small(words: list[str], flags: dict[str, str] = SMALL) -> list[str]:
    """The command as written, then the flags that make it small."""
    added = shlex.split(next((more for start, more in flags.items() if " ".join(words).startswith(start)), ""))
    return words + [word for flag in zip(added[::2], added[1::2], strict=True) if flag[0] not in words for word in flag]


def put_stand_ins(folder: Path) -> None:
    """What the guide finds on the network or with its user: models, Alpaca, own rows, the harness's tasks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=512))
    model.save_pretrained(folder / "hub" / MODEL)
    train_sentencepiece(folder / "hub" / MODEL)
    litgpt_folder(folder / "checkpoints/litgpt/pythia-160m", "gpt_neox: parallel", 2025)
    (folder / "alpaca.json").write_text(json.dumps(ROWS))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with (folder / "rows.csv").open("w") as file:
        csv.writer(file).writerows([("question", "answer"), *((row["instruction"], row["output"]) for row in ROWS)])
    (folder / "tasks").mkdir()
    task = {"output_type": "multiple_choice", "doc_to_text": "{{instruction}}", "doc_to_choice": ["yes", "no"]}
    task |= {"doc_to_target": 0, "dataset_path": "json", "test_split": "test"}
    task["dataset_kwargs"] = {"data_files": {"test": str(folder / "rows.jsonl")}}
    for name in re.search(r'--eval_tasks "\[(.*?)\]"', README)[1].split(","):
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **task}))


def start(script: str, *flags: str) -> tuple[int, str, str]:
    """Starts a launcher as `python SCRIPT FLAGS` does, in this process; exit code, stdout, stderr."""
    code, out, err = None, io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [script, *flags])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What do llamas eat?\n")))
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as left:
            code = left.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory, own_tasks: Path) -> Iterator[Path]:
    """The folder in which every `python` command of the README was run, one after the other."""
    folder = tmp_path_factory.mktemp("guide")
    put_stand_ins(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stand_in(patch, MODEL, (folder / "hub" / MODEL / "config.json").read_text())
        for program, *words in commands():
            if program == "python":
                unending = ["--print_config"] if words[0] == "submission/serve.py" else []  # tests/test_serve.py serves
                code, out, err = start(*small(words), *unending)
                assert code == 0, f"python {shlex.join(words)}\n{out}\n{err}"
        yield folder


def test_every_command_of_the_guide_runs(guide: Path) -> None:
    """`guide` has run them: here is what they promise."""
    sections = re.split(r"^### ", README, flags=re.MULTILINE)[1:]
    assert [section[0] for section in sections] == list("123456789")
    assert all("```bash\npython " in section for section in sections)
    finetuned = guide / "out/lora/alpaca"
    assert {path.name for path in finetuned.iterdir()} == {
        *("lit_model_lora_finetuned.pth", "metrics.csv", "loss.png", "run.json", ".lock")
    }
    for path in (f"checkpoints/{MODEL}/lit_model.pth", "data/alpaca/train.pt", "data/rows/train.pt"):
        assert (guide / path).is_file()
    base, tuned = (json.loads((guide / f"results-{kind}.json").read_text()) for kind in ("base", "lora"))
    assert set(base["results"]) == set(tuned["results"]) == {"truthfulqa_mc1", "hellaswag"}
    assert tuned["config"]["model_args"]["lora_path"] == "out/lora/alpaca/lit_model_lora_finetuned.pth"


def test_other_commands_have_what_they_need() -> None:
    for program, *words in commands():
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        elif program == "pip":
            assert words[:2] == ["install", "-r"]
            assert (ROOT / words[2]).is_file(), words
        elif program == "curl":
            Process.model_validate_json(words[2])
            assert words[0] == f"localhost:{Serve(Path()).port}/process"
        else:
            assert program == "python", f"no check for {program} {words}"


def test_commands_of_the_installed_package_are_there() -> None:
    named = set(re.findall(r"`lit-gpt ([a-z_ ]+)`", README))
    assert named
    assert named <= set(COMMANDS)


def test_python_runs(guide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    count = len(Tokenizer(guide / "checkpoints" / MODEL).encode("Llamas eat"))
    assert capsys.readouterr().out == f"torch.Size([1, {count}, 300])\n"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_files_that_are_named_are_there(document: str, guide: Path) -> None:
    """In the repository, by a short name after `lit_gpt/`, or in what the guide has made."""
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    names = re.findall(r"`([\w./-]*(?:/|\.(?:py|md|txt|toml|json|pth|png|csv|pt)))`", text)
    names += re.findall(r"\]\(([^)]+)\)", text)
    assert len(names) > 5
    for name in names:
        homes = [ROOT, ROOT / "lit_gpt", ROOT / "lit_gpt" / "families", guide]
        assert any((home / name).exists() for home in homes) or list(guide.rglob(name)), f"{document} names {name}"


def test_commands_for_several_devices(guide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, less the program that starts them: their plan."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    assert [line.split()[0] for line in lines] == ["python", "torchrun", "srun"]
    monkeypatch.chdir(guide)
    for line in lines:
        code, out, err = start("finetune/lora.py", *line.partition("finetune/lora.py ")[2].split(), "--dry_run", "true")
        assert code == 0, err
        assert f"{8 if line.startswith('python') else 16} devices: each holds all weights" in out


def test_flags_that_are_named_are_there(guide: Path) -> None:
    shown = {words[0]: start(words[0], "--help")[1] for program, *words in commands() if program == "python"}
    for flag in set(re.findall(r"`(--\w+)", TABLE)):
        assert f"\n  {flag} " in shown["finetune/lora.py"], flag
    own = ["--help", "--config", "--print_config"]
    own += re.findall(r"--\w+", " ".join(re.findall(r"^(?:torchrun|srun).*", README, re.MULTILINE)))
    for flag in set(re.findall(r"(?<![\w-])--\w+", README)) - set(own):
        assert any(f"\n  {flag} " in text for text in shown.values()), flag


def test_defaults_in_the_table_are_those_of_the_command() -> None:
    shown = " ".join(start("finetune/lora.py", "--help")[1].split())
    compared = []
    for names, values in re.findall(r"^\| (`--.*?`) \| ([^|]*) \|", TABLE, re.MULTILINE):
        flags, values = re.findall(r"--\w+", names), values.split(", ")
        if len(flags) == len(values) and all(re.fullmatch(r"[\d.e-]+", value) for value in values):
            for flag, value in zip(flags, values, strict=True):
                assert re.search(rf" {flag} [^\[]*\[{ast.literal_eval(value)}\]", shown), f"{flag} is not {value}"
                compared.append(flag)
    assert {"--learning_rate", "--batch_size", "--lora_dropout"} <= set(compared)

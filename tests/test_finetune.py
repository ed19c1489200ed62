"""The finetune and generate commands from flags to files, on a small random model."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import command, make_checkpoint

from lit_gpt import GPT
from lit_gpt.checkpoint import load_file, load_gpt, read_finetuned
from lit_gpt.finetune import duration
from lit_gpt.settings import UserError

FLAGS = ["--precision", "32-true", "--batch_size", 8, "--micro_batch_size", 2, "--learning_rate", 0.05]


@pytest.fixture(scope="module")
def finished(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("out") / "lora"
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", out, *FLAGS, "--max_steps", 12]
    every = ["--eval_interval", 5, "--save_interval", 5, "--log_interval", 2]
    assert command("finetune lora", *flags, *every, "--lora_r", 4, "--lora_head", "true") == 0
    return out


def test_run_leaves_everything_that_is_promised(finished: Path, checkpoint: Path) -> None:
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert list(rows[0]) == [
        *("step", "iter", "samples", "tokens", "loss", "val_loss", "learning_rate"),
        *("tokens_per_second", "seconds", "memory_gb"),
    ]
    assert [int(row["step"]) for row in rows] == [2, 4, 5, 6, 8, 10, 12]
    assert [row["step"] for row in rows if row["val_loss"]] == ["5", "10", "12"]
    assert [int(row["iter"]) for row in rows] == [4 * int(row["step"]) for row in rows]
    assert [int(row["samples"]) for row in rows] == [8 * int(row["step"]) for row in rows]
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    seconds, tokens = [float(row["seconds"]) for row in rows], [int(row["tokens"]) for row in rows]
    assert seconds == sorted(seconds)
    assert tokens == sorted(tokens)
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((finished / "run.json").read_text())
    assert told["method"] == {"name": "lora", "lora_r": 4, "lora_head": True} | {
        key: value for key, value in told["method"].items() if key not in ("name", "lora_r", "lora_head")
    }
    assert told["result"]["steps"] == 12
    assert told["result"]["val_loss"] < told["result"]["first_val_loss"]
    assert told["result"]["tokens"] == tokens[-1]
    assert told["base"]["weights_sha256"] == "0" * 64
    assert torch.__version__.startswith(told["versions"]["torch"])  # which may leave out the kind of CUDA
    saved = sorted(str(path.relative_to(finished)) for path in finished.rglob("*_finetuned.pth"))
    name = "lit_model_lora_finetuned.pth"
    assert saved == [name, f"step-000005/{name}", f"step-000010/{name}"]


def test_finetuned_file_knows_its_settings_and_base(finished: Path, checkpoint: Path, tmp_path: Path) -> None:
    saved = read_finetuned(finished)
    assert saved["prompt_style"] == "alpaca"
    assert {weight.dtype for weight in saved["weights"].values()} == {torch.float32}
    idx = torch.randint(0, 300, (2, 7))
    base, tuned, merged = (
        load_gpt(checkpoint, **options)
        for options in ({}, {"finetuned": finished}, {"finetuned": finished, "merge": True})
    )
    assert not torch.allclose(base(idx), tuned(idx), atol=1e-3)
    assert torch.allclose(tuned(idx), merged(idx), atol=1e-5)
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="holds other weights"):
        load_gpt(other, finetuned=finished)


def test_the_same_run_twice_is_the_same_to_the_bit(
    finished: Path, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path, *FLAGS, "--max_steps", 12]
    assert command("finetune lora", *flags, "--lora_r", 4, "--lora_head", "true", "--save_interval", 99) == 0
    first, second = read_finetuned(finished)["weights"], read_finetuned(tmp_path)["weights"]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_precisions(
    precision: str, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training and in validation products are in 16 bits, and what is trained stays in 32."""
    found, loss_sum = set(), GPT.loss_sum

    def watched(model: GPT, *args: Any, **options: Any) -> torch.Tensor:
        hook = model.blocks[0].attn.q.register_forward_hook(lambda _, x, y: found.add((model.training, y.dtype)))
        loss = loss_sum(model, *args, **options)
        hook.remove()
        return loss

    monkeypatch.setattr(GPT, "loss_sum", watched)
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path, *FLAGS, "--max_steps", 6]
    assert command("finetune lora", *flags, "--precision", precision, "--loggers", "[]", "--eval_prompt", "Say") == 0
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert {w.dtype for w in read_finetuned(tmp_path)["weights"].values()} == {torch.float32}
    assert found == {(True, torch.bfloat16), (False, torch.bfloat16)}


@pytest.mark.parametrize(
    ("method", "flag", "file"),
    [
        ("full", "--finetuned_path", "lit_model_finetuned.pth"),
        ("adapter", "--adapter_path", "lit_model_adapter_finetuned.pth"),
        ("adapter_v2", "--adapter_v2_path", "lit_model_adapter_v2_finetuned.pth"),
    ],
)
def test_every_method_from_training_to_answers(
    method: str, flag: str, file: str, checkpoint: Path, data: Path, own_tasks: Path, tmp_path: Path, capsys
) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path, *FLAGS, "--max_steps", 30]
    more = [] if method == "full" else ["--adapter_start_layer", 0]
    assert command(f"finetune {method}", *flags, *more) == 0
    printed = capsys.readouterr().out
    assert f"python generate/{method}.py --checkpoint_dir {checkpoint} {flag} {tmp_path / file}" in printed
    told = json.loads((tmp_path / "run.json").read_text())["result"]
    assert told["val_loss"] < 0.99 * told["first_val_loss"]
    use = ["--checkpoint_dir", checkpoint, "--precision", "32-true", flag, tmp_path / file]
    answer = ["--prompt", "Say word 3.", "--temperature", 0, "--max_new_tokens", 8]
    assert command(f"generate {method}", *use, *answer) == 0
    tuned = capsys.readouterr().out
    model = load_gpt(checkpoint, torch.float32, finetuned=tmp_path)
    assert any("adapter" in name for name in model.state_dict()) == (method != "full")
    assert command("generate base", *use[:4], *answer) == 0
    assert capsys.readouterr().out != tuned
    task = ["--eval_tasks", "[own_choice]", "--include_path", own_tasks, "--limit", 2]
    assert command("evaluate", *use, *task) == 0
    assert command("evaluate", *use, *task, "--lora_path", tmp_path) == 2
    assert "a model is finetuned by one of them" in capsys.readouterr().err


def test_generate_prints_text_on_stdout_and_the_rest_on_stderr(finished: Path, checkpoint: Path, capsys) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--precision", "32-true", "--max_new_tokens", 5, "--num_samples", 2]
    assert command("generate base", *flags, "--prompt", "The old cat") == 0
    printed = capsys.readouterr()
    assert [line.startswith("The old cat") for line in printed.out.splitlines() if line] == [True, True]
    assert "Time for inference 2: " in printed.err
    assert "tokens/sec" in printed.err
    assert command("generate lora", *flags, "--lora_path", finished, "--prompt", "Say word 3.", "--temperature", 0) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert "Instruction" not in first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--data_dir", "no/such"], "no folder no/such; prepare a data set first"),
        (["--checkpoint_dir", "no/such"], "no folder no/such; download a checkpoint first"),
        (["--precision", "bf16"], "--precision"),
        (["--micro_batch_size", 3], "--batch_size 8 is not a multiple of --micro_batch_size 3"),
        (["--max_seq_length", 60], "samples are longer than 60 tokens"),
        (["--max_time", "soon"], "'soon' is no duration"),
        (["--lora_querry", "true"], "did you mean --lora_query"),
        (["--loggers", "[paper]"], "unknown paper; known are tensorboard and wandb"),
        (["--pack_length", -5], "--pack_length: must be 0 or from 64"),
        (["--pack_length", 1_000_000_000], "to 1,048,576"),
        (["--max_seq_length", 1], "--max_seq_length"),
        (["--learning_rate", 0], "--learning_rate 0"),
        (["--max_steps", 0], "--max_steps: must be at least 1"),
    ],
)
def test_bad_input(changes: list, message: str, checkpoint: Path, data: Path, tmp_path: Path, capsys) -> None:
    flags = [
        "--checkpoint_dir",
        checkpoint,
        "--data_dir",
        data,
        "--out_dir",
        tmp_path / "out",
        *FLAGS,
        "--max_steps",
        2,
    ]
    assert command("finetune lora", *flags, *changes) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert message in printed[-1]
    assert printed[-1].startswith("error: ")


def test_data_of_another_tokenizer_is_refused(data: Path, tmp_path: Path, capsys) -> None:
    other = make_checkpoint(tmp_path / "other")
    (other / "tokenizer.model").write_bytes((other / "tokenizer.model").read_bytes() + b"\x1a\x00")
    flags = ["--checkpoint_dir", other, "--data_dir", data, "--out_dir", tmp_path / "out", *FLAGS, "--max_steps", 2]
    assert command("finetune lora", *flags) == 2
    assert "tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_damaged_weights(damage: str, data: Path, tmp_path: Path, capsys) -> None:
    folder = make_checkpoint(tmp_path / "damaged")
    path = folder / "lit_model.pth"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"not weights")
    flags = ["--checkpoint_dir", folder, "--data_dir", data, "--out_dir", tmp_path / "out", *FLAGS, "--max_steps", 2]
    assert command("finetune lora", *flags) == 2
    assert "lit_model.pth" in capsys.readouterr().err.splitlines()[-1]


def test_an_out_dir_that_is_a_file_is_refused(checkpoint: Path, data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    out.write_text("kept")
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", out, *FLAGS, "--max_steps", 1]
    assert command("finetune lora", *flags) == 2
    assert f"error: --out_dir {out}: cannot write there" in capsys.readouterr().err
    assert out.read_text() == "kept"


def test_weights_that_may_not_be_read_are_not_called_damaged(tmp_path: Path, monkeypatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "lit_model.pth"
    path.touch()
    monkeypatch.setattr("lit_gpt.checkpoint.prove", refused)
    with pytest.raises(UserError, match=r"cannot read .*lit_model.pth: Permission denied; check its permissions"):
        load_file(path, "convert the checkpoint first")


def test_a_plot_that_fails_costs_no_weights(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(rows: list, path: Path) -> None:
        raise UserError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("lit_gpt.runlog.plot_losses", full)
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path, *FLAGS, "--max_steps", 1]
    assert command("finetune lora", *flags) == 2
    assert "No space left" in capsys.readouterr().err
    assert (tmp_path / "lit_model_lora_finetuned.pth").is_file()


def test_long_samples_are_dropped_or_cut_when_asked(checkpoint: Path, data: Path, tmp_path: Path, capsys) -> None:
    lengths = sorted(torch.load(data / "train.pt")["lengths"].tolist())
    limit = lengths[-1] - 1
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path, *FLAGS, "--max_steps", 1]
    for choice, word in (("drop", "left out"), ("truncate", "cut, keeping the end-of-text token")):
        asked = ["--max_seq_length", limit, "--long_samples", choice, "--resume", "never"]
        assert command("finetune lora", *flags, *asked) == 0
        assert word in capsys.readouterr().out


def test_duration() -> None:
    assert duration("23h30m") == 23.5 * 3600
    assert duration("1d2h3m4s") == 86400 + 7200 + 180 + 4
    assert duration("90") == 90
    assert duration(None) == float("inf")
    for bad in ("", "h", "1x", "-5m"):
        with pytest.raises(UserError, match="no duration"):
            duration(bad)


def test_max_time_ends_the_run(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, "--out_dir", tmp_path, *FLAGS, "--max_steps", 100000]
    assert command("finetune lora", *flags, "--max_time", "1s", "--log_interval", 1000, "--eval_interval", 100000) == 0
    assert 0 < json.loads((tmp_path / "run.json").read_text())["result"]["steps"] < 100000


def test_help_is_quick_because_it_imports_no_torch() -> None:
    code = "import sys; sys.argv = ['x', '--help']; import runpy\n"
    code += "try: runpy.run_path('finetune/lora.py', run_name='__main__')\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    root = Path(__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
    assert "--learning_rate" in shown


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_saved(
    data: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """Weights of infinity appear after the third step; the checkpoint of the second stays."""
    import lit_gpt.run

    folder, out = make_checkpoint(tmp_path / "base"), tmp_path / "out"
    told = lit_gpt.run.RunLog.step

    def spoil(self, row: dict, iter_ms: float) -> None:
        told(self, row, iter_ms)
        if row["step"] == 3:
            spoiled[0].gpt.wte.weight.data.fill_(float("inf"))

    spoiled = []
    go = lit_gpt.run.Run.go
    monkeypatch.setattr(lit_gpt.run.Run, "go", lambda self: (spoiled.append(self), go(self)))
    monkeypatch.setattr(lit_gpt.run.RunLog, "step", spoil)
    flags = ["--checkpoint_dir", folder, "--data_dir", data, "--out_dir", out, *FLAGS, "--max_steps", 9]
    assert command("finetune lora", *flags, "--save_interval", 2) == 2
    assert "the loss of step 4 is nan, on samples" in capsys.readouterr().err
    assert (out / "step-000002" / "lit_model_lora_finetuned.pth").is_file()
    assert not (out / "lit_model_lora_finetuned.pth").exists()
    assert [row["step"] for row in csv.DictReader((out / "metrics.csv").open())] == ["1", "2", "3"]


def test_a_template_goes_with_the_data_and_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its text is kept, so the file may go; training, generating and chatting have the same prompt."""
    folder = make_checkpoint(tmp_path / "model", block_size=512)
    asks = "{% if add_generation_prompt %}A: {% endif %}"
    text = "{% for m in messages %}{{ m.role[0] | upper }}: {{ m.content }}{{ eos_token }}{% endfor %}" + asks
    (tmp_path / "mine.jinja").write_text(text)
    rows = [{"instruction": "Say it.", "output": "the old cat sees the sea"}] * 4
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = ["--checkpoint_dir", folder, "--prompt_style", tmp_path / "mine.jinja", "--test_split_fraction", 0.3]
    flags += ["--data_file", tmp_path / "rows.json", "--destination_path", tmp_path / "set"]
    assert command("prepare json", *flags) == 0
    (tmp_path / "mine.jinja").unlink()
    flags = ["--checkpoint_dir", folder, "--data_dir", tmp_path / "set", "--out_dir", tmp_path / "out", *FLAGS]
    flags += ["--eval_prompt", "Say it.", "--max_steps", 40, "--eval_interval", 40]
    assert command("finetune full", *flags) == 0
    assert "-> 'the old cat sees the sea'" in capsys.readouterr().out
    assert json.loads((tmp_path / "set/meta.json").read_text())["prompt_style"] == text
    assert json.loads((tmp_path / "out/run.json").read_text())["data"]["prompt_style"] == text
    assert read_finetuned(tmp_path / "out")["prompt_style"] == text
    common = ["--checkpoint_dir", folder, "--finetuned_path", tmp_path / "out", "--precision", "32-true"]
    common += ["--temperature", 0]
    assert command("generate full", *common, "--prompt", "Say it.") == 0
    assert capsys.readouterr().out.strip() == "the old cat sees the sea"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Say it.\n")))
    assert command("chat", *common) == 0
    assert capsys.readouterr().out == "the old cat sees the sea\n"

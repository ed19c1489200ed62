"""Runs that are killed, stopped, damaged and continued: the weights come out the same, to the bit."""

import csv
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import command, make_checkpoint
from forks import Forks

import lit_gpt.run
from lit_gpt import Config, load_gpt
from lit_gpt.checkpoint import read_finetuned
from lit_gpt.files import read_json, sealed, write_json
from lit_gpt.methods import METHODS
from lit_gpt.resume import damage, steps_saved
from lit_gpt.run import Run
from lit_gpt.runlog import RunLog
from lit_gpt.settings import UserError
from lit_gpt.stopping import Deadline, Pace
from lit_gpt.workload import usual_pack_length

FLAGS = ["--precision", "32-true", "--batch_size", 8, "--micro_batch_size", 2, "--learning_rate", 0.02]
FLAGS += ["--max_steps", 60, "--save_interval", 3, "--eval_interval", 10, "--log_interval", 1, "--eval_iters", 2]
FILE = "lit_model_lora_finetuned.pth"
KILLS = int(os.environ.get("KILLS", "25"))
FLIPS = int(os.environ.get("FLIPS", "30"))
EVERY = int(os.environ.get("EVERY", "4"))
"""Processes killed at random moments; bits flipped in each file; which n-th operations are died at. `make test-faults`
takes more of all."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def flags(checkpoint: Path, data: Path) -> list:
    return ["--checkpoint_dir", checkpoint, "--data_dir", data, *FLAGS]


@pytest.fixture(scope="module")
def whole(forks: Forks, flags: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert forks.run("finetune lora", [*flags, "--out_dir", out], out / "log") == 0, (out / "log").read_text()
    return out


def assert_same_run(out: Path, whole: Path) -> None:
    """Same weights to the bit, and the same rows but for what clocks and memory say."""
    a, b = read_finetuned(out)["weights"], read_finetuned(whole)["weights"]
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert a.keys() == b.keys()
    clocks = ("tokens_per_second", "seconds", "memory_gb")
    rows = [
        [{k: v for k, v in row.items() if k not in clocks} for row in csv.DictReader((f / "metrics.csv").open())]
        for f in (out, whole)
    ]
    assert rows[0] == rows[1]
    results = [json.loads((f / "run.json").read_text())["result"] for f in (out, whole)]
    for key in ("steps", "samples", "tokens", "first_val_loss", "val_loss", "best"):
        assert results[0][key] == results[1][key], key
    assert not [p.name for p in out.iterdir() if p.name.endswith(".tmp")]


def job(flags: list, out: Path, *more: object, method: str = "lora") -> tuple[str, list, Path]:
    """What `Forks` is to start: the run in the folder `out`, and where its output goes."""
    out.mkdir(exist_ok=True)
    return f"finetune {method}", [*flags, "--out_dir", out, *more], out / "log"


def last_line(out: Path) -> str:
    return (out / "log").read_text().strip().splitlines()[-1]


def test_kill_9_at_random_moments(forks: Forks, flags: list, whole: Path, tmp_path: Path) -> None:
    """Each run is killed again and again until one process gets to the end; it saves at every step."""
    chance, killed, runs, mid_write = random.Random(0), 0, 0, 0
    while killed < KILLS:
        out, code = tmp_path / str(runs), -9
        runs += 1
        while code == -9:
            work = job(flags, out, "--save_interval", 1)
            code = (
                forks.kill_after(chance.uniform(0.1, 1.2), signal.SIGKILL, *work)
                if killed < KILLS
                else forks.run(*work)
            )
            killed += code == -9
            mid_write += code == -9 and bool(list(out.glob(".*.tmp")))
        assert code == 0, last_line(out)
        assert_same_run(out, whole)
    print(f"\nkilled: {killed} processes of {runs} runs, {mid_write} while saving; all weights equal to the bit")


def test_killed_at_every_operation_on_a_checkpoint(forks: Forks, flags: list, tmp_path: Path) -> None:
    """A process dies before it makes, opens, renames or removes the n-th of its checkpoints' files, for every n."""
    short = [*flags, "--max_steps", 8, "--save_interval", 2, "--keep_last", 1]
    whole = tmp_path / "whole"
    assert forks.run(*job(short, whole)) == 0
    for bomb in range(1, 999, EVERY):
        out = tmp_path / str(bomb)
        if forks.run(*job(short, out), bomb=bomb, place=out / ".step-") == 0:
            break
        for folder in steps_saved(out):
            assert damage(folder) is None
        assert forks.run(*job(short, out)) == 0, last_line(out)
        assert_same_run(out, whole)
        assert [p.name for p in steps_saved(out)] == ["step-000006"]
    assert bomb > 30


VARIANTS = {
    "bf16": ["--precision", "bf16-true"],
    "mixed": ["--precision", "bf16-mixed"],
    "nf4": ["--precision", "bf16-true", "--quantize", "bnb.nf4-dq"],
    "padded": ["--pack_length", 0],
    "recomputed": ["--low_memory", "true"],
    "all layers": ["--lora_head", "true", "--lora_mlp", "true", "--lora_key", "true", "--lora_projection", "true"],
    "epochs": ["--epochs", 3, "--batch_size", 10],  # an odd end of every epoch
    "dropout": ["--lora_dropout", 0.5],
    "dora": ["--lora_dora", "true", "--lora_plus_ratio", 16, "--neftune_alpha", 5],
    "full": ["--learning_rate", 0.001],
    "full bf16": ["--learning_rate", 0.001, "--precision", "bf16-true"],
    "full 8-bit": ["--learning_rate", 0.001, "--optimizer", "paged-adamw-8bit"],
    "adapter": ["--adapter_start_layer", 0],
    "adapter_v2": ["--adapter_start_layer", 1, "--precision", "bf16-true", "--quantize", "bnb.nf4"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_run_goes_on_exactly(variant: str, forks: Forks, flags: list, tmp_path: Path) -> None:
    """Killed in the middle of writing its third checkpoint."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    method = variant.split()[0] if variant.split()[0] in METHODS else "lora"
    short = [*flags, "--max_steps", 12, *VARIANTS[variant]]
    assert forks.run(*job(short, whole, method=method)) == 0, last_line(whole)
    assert forks.run(*job(short, out, method=method), bomb=3, place=out / ".step-000009") == -9
    assert [path.name for path in steps_saved(out)] == ["step-000003", "step-000006"]
    assert forks.run(*job(short, out, method=method)) == 0, last_line(out)
    assert_same_run(out, whole)


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 143)])
def test_signals_save_and_say_how_to_go_on(
    number: str, code: int, forks: Forks, flags: list, whole: Path, tmp_path: Path
) -> None:
    """Sent when the run is at work, with another process on the same processor."""
    out = tmp_path / "out"
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        child = forks.start(*job(flags, out))
        while not (out / "metrics.csv").exists() or len((out / "metrics.csv").read_text().splitlines()) < 5:
            time.sleep(0.01)
        os.kill(child, getattr(signal, number))
        assert forks.wait() == code
    finally:
        busy.kill()
        busy.wait()
    step = int(re.search(rf"stopped by {number} after step (\d+), saved in {out}/step-0", (out / "log").read_text())[1])
    assert 4 <= step < 60
    assert damage(out / f"step-{step:06d}") is None
    assert shlex.split(last_line(out).partition("go on with: ")[2]) == [
        *("python", "finetune/lora.py"),
        *map(str, job(flags, out)[1]),
    ]
    assert forks.run(*job(flags, out)) == 0, last_line(out)
    assert_same_run(out, whole)


def test_signals_before_the_first_step_end_the_command(forks: Forks, flags: list, tmp_path: Path) -> None:
    """There is nothing to save yet."""
    out = tmp_path / "out"
    child = forks.start(*job(flags, out, "--pack_length", 0, "--eval_iters", 4000, "--micro_batch_size", 1))
    while "Validating" not in ((out / "log").read_text() if (out / "log").exists() else ""):
        time.sleep(0.001)
    os.kill(child, signal.SIGTERM)
    assert forks.wait() == 143
    assert "stopped by SIGTERM before the first step" in last_line(out)


def test_the_command_to_go_on_with_does_not_start_anew(forks: Forks, flags: list, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = forks.start(*job([*flags, "--resume", "never"], out))
    while not steps_saved(out):
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert forks.wait() == 143
    assert "--resume" not in last_line(out)


def test_a_start_that_fails_removes_nothing(forks: Forks, flags: list, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "log"}
    assert forks.run(*job(flags, out, "--resume", "never", "--loggers", "[wandb]")) == 2
    assert "wandb is not installed" in last_line(out)
    assert before == {path: path.read_bytes() for path in before}


def test_a_run_goes_on_when_nobody_reads_it(flags: list, tmp_path: Path) -> None:
    """As in `| head`, or when a terminal is closed that it did not belong to."""
    command = [sys.executable, "finetune/lora.py", *map(str, [*flags, "--out_dir", tmp_path, "--max_steps", 5])]
    root = Path(__file__).parents[1]
    run = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while b"Validating" not in run.stdout.readline():
        pass
    run.stdout.close()
    assert run.wait() == 0
    assert (tmp_path / "run.json").is_file()


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x01", b"a,b\n1,2\n", b"step,iter\n1,inf\n"])
def test_rows_that_are_lost(content: bytes, forks: Forks, flags: list, whole: Path, tmp_path: Path) -> None:
    """The weights come out the same, and it is said."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "run.json").unlink()
    (out / "metrics.csv").write_bytes(content)
    assert forks.run(*job(flags, out)) == 0, last_line(out)
    assert "note: no rows in" in (out / "log").read_text()
    a, b = read_finetuned(out)["weights"], read_finetuned(whole)["weights"]
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_second_ctrl_c_leaves_at_once(forks: Forks, flags: list, tmp_path: Path) -> None:
    """A step takes seconds."""
    out = tmp_path / "out"
    endless = job(flags, out, "--max_steps", 100000, "--batch_size", 2048, "--micro_batch_size", 2048)
    child = forks.start(*endless)
    while "step 0: val loss" not in ((out / "log").read_text() if (out / "log").exists() else ""):
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    while "SIGINT: saving after this step; Ctrl-C again leaves at once" not in (out / "log").read_text():
        time.sleep(0.001)
    os.kill(child, signal.SIGINT)
    assert forks.wait() == 130
    assert last_line(out) == "interrupted"
    assert not steps_saved(out)


def test_the_schedule_ends_where_the_time_ends(flags: list, tmp_path: Path, monkeypatch) -> None:
    """By a clock on which a step takes a second, a validation three and a save two; two processes are stopped."""
    now, began, stop_after = [0.0], [0.0], [0.0]

    def slower(seconds: float, place: object, name: str) -> None:
        function = getattr(place, name)

        def call(*args, **options):
            now[0] += seconds
            return function(*args, **options)

        monkeypatch.setattr(place, name, call)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    slower(1.0, lit_gpt.run, "learning_rate")
    slower(3.0, lit_gpt.run, "validate")
    slower(2.0, lit_gpt.run, "save_step")
    write_row = RunLog.step

    def stop(self: RunLog, row: dict, iter_ms: float) -> None:
        write_row(self, row, iter_ms)
        if now[0] - began[0] > stop_after[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "step", stop)
    for seconds, code in ((60, 143), (80, 143), (999, 0)):
        began[0], stop_after[0] = now[0], seconds
        monkeypatch.setattr("lit_gpt.stopping.STARTED", now[0])
        assert (
            command("finetune lora", *flags, *("--out_dir", tmp_path, "--max_steps", 10**6, "--max_time", "5m")) == code
        )
        now[0] += 1000  # nobody is at work
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    rates = [float(row["learning_rate"]) for row in rows]
    assert 290 < now[0] - 3000 + 5 <= 300  # five seconds are kept for the end of the process
    assert rates[-1] == 0
    assert rows[-1]["val_loss"]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.02, rel=0.02)
    assert (
        max(b - a for a, b in itertools.pairwise(rates[peak:])) < 1e-4
    )  # down, but for the noise of what a step takes


def test_steps_that_fit() -> None:
    """Without a step that was timed nothing is known; an end of the time that is near counts all the same."""
    deadline = Deadline(float("inf"), 0.0, Pace(save=1.0))
    deadline.count(), deadline.count()
    assert deadline.fitting() == float("inf")
    assert Deadline(1e6, 0.0, Pace(save=1.0)).fitting() == float("inf")
    assert Deadline(1e6, 0.0, Pace(save=1e6)).fitting() == 0  # the save alone takes longer
    assert Deadline(1e6, 1e6, Pace(save=1.0)).fitting() == 0
    assert 980 <= Deadline(2e6, 1e6, Pace(2000.0, 3000.0, 7, 7000.0)).fitting() <= 994


def test_a_checkpoint_that_was_made_from_other_things_is_refused(
    forks: Forks, flags: list, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", make_checkpoint(tmp_path / "other", seed=1)
    rows = tmp_path / "rows"
    shutil.copytree(data, rows)
    assert forks.run(*job(flags, out, "--max_steps", 7)) == 0
    (out / "run.json").unlink()  # as if it had been stopped after the last checkpoint
    was = "step-000006 is of another run: "
    for changes, told in (
        (["--learning_rate", 0.01], "learning_rate was 0.02, is 0.01; max_steps was 7, is 60; go on with what it had"),
        (["--lora_r", 4, "--max_steps", 7], "lora_r was 8, is 4; go on"),
        (
            ["--checkpoint_dir", other, "--max_steps", 7],
            "base content was ",
        ),
        (["--clip_norm", "null", "--max_steps", 7], "clip_norm was 1.0, is unset; go on"),
    ):
        assert forks.run(*job(flags, out, *changes)) == 2
        assert was + told in last_line(out)
    split = torch.load(rows / "train.pt")
    split["lengths"][0] -= 1
    split["lengths"][1] += 1
    torch.save(split, rows / "train.pt")
    assert forks.run(*job(flags, out, "--max_steps", 7, "--data_dir", rows)) == 2
    assert was + "data train.pt was" in last_line(out)
    assert forks.run(*job(flags, out, "--max_steps", 7, "--pack_length", 128, "--keep_last", 1)) == 0
    told = (out / "log").read_text()
    usual = usual_pack_length(torch.device("cpu"))
    assert f"note: pack_length was {usual}, is 128: sums are rounded, and dropout is drawn, in another order" in told
    assert "Going on after step 6" in told


def test_a_finished_run_is_not_trained_again_or_overwritten(
    forks: Forks, flags: list, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "log"}
    assert forks.run(*job(flags, out)) == 0
    assert f"{out} holds this run, finished: nothing to do" in last_line(out)
    assert forks.run(*job(flags, out, "--seed", 5)) == 2
    assert f"{out} is of another run: seed was 1337, is 5" in last_line(out)
    assert before == {path: path.read_bytes() for path in before}
    assert forks.run(*job(flags, out, "--seed", 5, "--resume", "never")) == 0
    assert json.loads((out / "run.json").read_text())["settings"]["seed"] == 5


def test_resume_takes_a_folder(forks: Forks, flags: list, whole: Path, tmp_path: Path) -> None:
    """A checkpoint of another folder, and one from before the newest, whose successors go."""
    early = steps_saved(whole)[0]
    out = tmp_path / "out"
    assert forks.run(*job(flags, out, "--resume", early)) == 0, last_line(out)
    assert_same_run(out, whole)
    (out / "run.json").unlink()
    assert forks.run(*job(flags, out, "--resume", steps_saved(out)[0])) == 0
    assert_same_run(out, whole)
    assert forks.run(*job(flags, out, "--resume", out / "step-000099")) == 2
    assert "step-000099: no such folder" in last_line(out)
    assert forks.run(*job(flags, out, "--resume", out)) == 2
    assert "give one of its checkpoints, such as" in last_line(out)
    assert forks.run(*job(flags, out, "--resume", whole.parent)) == 2
    assert "is damaged or no checkpoint" in last_line(out)


@pytest.mark.parametrize("name", [FILE, "optimizer.pth", "progress.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    name: str, forks: Forks, flags: list, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "run.json").unlink()
    *_, before, newest = steps_saved(out)
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 4
    (newest / name).write_bytes(content)
    assert forks.run(*job(flags, out)) == 0
    told = (out / "log").read_text()
    assert f"passed over: {newest} is damaged" in told
    assert f"Going on after step {int(before.name[5:])}\n" in told
    assert_same_run(out, whole)


def test_nothing_is_removed_when_no_checkpoint_is_whole(forks: Forks, flags: list, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "run.json").unlink()
    folders = steps_saved(out)
    for folder in folders:
        (folder / "optimizer.pth").unlink()
    assert forks.run(*job(flags, out)) == 2
    assert f"no checkpoint in {out} is whole; --resume never starts anew" in last_line(out)
    assert steps_saved(out) == folders


def test_every_truncation_and_bit_flip_is_noticed(whole: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Of the files of a checkpoint, and of those that are used without a manifest: same content, or one line."""
    chance = random.Random(1)
    folder = tmp_path / "step-000001"
    shutil.copytree(steps_saved(whole)[-1], folder)
    readers = {folder / name: lambda: damage(folder) and refuse() for name in (p.name for p in folder.iterdir())}
    readers[tmp_path / FILE] = lambda: read_finetuned(tmp_path / FILE)
    shutil.copy(whole / FILE, tmp_path)
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    write_json(model / "lit_config.json", sealed(read_json(model / "lit_config.json")))
    readers |= {model / name: lambda: told(model) for name in ("lit_model.pth", "lit_config.json")}
    tried = noticed = 0
    for path, read in readers.items():
        content, expected = path.read_bytes(), read()
        cuts = [content[: len(content) * n // 50] for n in range(50)]
        for changed in [*cuts, *(flipped(content, chance.randrange(8 * len(content))) for _ in range(FLIPS))]:
            path.write_bytes(changed)
            tried += 1
            try:
                found = read()
            except UserError:
                noticed += 1
            else:
                assert same(found, expected), path
        path.write_bytes(content)
    print(f"\ndamaged files: {tried} read, {noticed} refused in one line, the rest with the same content")
    assert noticed > 0.9 * tried


def refuse() -> None:
    raise UserError("damaged")


def told(folder: Path) -> dict:
    return {**load_gpt(folder).state_dict(), "config": Config.from_checkpoint(folder).to_dict()}


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def same(a: object, b: object) -> bool:
    """Whether two nested dicts of tensors and plain values are equal."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("largest", [50, 1200, 5000, 12000, 20000])
def test_a_full_disk(largest: int, forks: Forks, flags: list, whole: Path, tmp_path: Path) -> None:
    """No file can grow beyond so many bytes: one line, whole checkpoints only, and later the run goes on."""
    out = tmp_path / "out"
    assert forks.run(*job(flags, out), largest=largest) == 2
    assert re.search(r"^error: cannot write .*: File too large; free some space", last_line(out)), last_line(out)
    assert "Traceback" not in (out / "log").read_text()
    assert all(damage(folder) is None for folder in steps_saved(out))
    assert not [p for p in out.rglob("*.tmp") if p.name != ".lock"]
    assert forks.run(*job(flags, out)) == 0, last_line(out)
    assert_same_run(out, whole)


@pytest.mark.parametrize("largest", [100, 3000])
def test_a_full_disk_while_others_write(
    largest: int, forks: Forks, checkpoint: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    """Prepared data and a merged model: one line, and nothing is left behind."""
    rows, out = tmp_path / "rows.json", tmp_path / "out"
    shutil.copy(data.parent / "rows.json", rows)
    prepare = ["--checkpoint_dir", checkpoint, "--data_file", rows, "--destination_path", out]
    merge = ["--checkpoint_dir", checkpoint, "--lora_path", whole, "--out_dir", out]
    for name, argv in (("prepare json", prepare), ("merge lora", merge)):
        assert forks.run(name, argv, tmp_path / "log", largest=largest) == 2
        assert re.search(r"error: cannot write .*: File too large; free some space", last_line(tmp_path))
        assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]


def test_a_disk_without_room_for_a_checkpoint(flags: list, tmp_path: Path, monkeypatch, capsys) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert command("finetune lora", *flags, "--out_dir", tmp_path) == 2
    assert "takes 1.0 MB, 0.0 MB free on its disk; free some space and give the same command" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(forks: Forks, flags: list, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    child = forks.start(*job(flags, out, "--max_steps", 10**6))
    while not (out / "metrics.csv").exists():
        time.sleep(0.01)
    assert command("finetune lora", *flags, "--out_dir", out) == 2
    assert f"--out_dir {out}: another run is at work there" in capsys.readouterr().err
    os.kill(child, signal.SIGKILL)
    assert forks.wait() == -9
    assert forks.run(*job(flags, out, "--resume", "never")) == 0


def test_the_best_is_kept_and_patience_ends(flags: list, tmp_path: Path, monkeypatch, capsys) -> None:
    losses = iter([9.0, 5.0, 4.0, 6.0, 4.0, 7.0, 1.0])
    monkeypatch.setattr("lit_gpt.run.validate", lambda *_: next(losses))
    options = ["--eval_interval", 4, "--save_interval", 3, "--keep_last", 2, "--early_stop_patience", 3]
    assert command("finetune lora", *flags, "--out_dir", tmp_path, *options) == 0
    result = json.loads((tmp_path / "run.json").read_text())["result"]
    assert result["steps"] == 20
    assert result["best"] == {"step": 8, "val_loss": 4.0}
    assert [path.name for path in steps_saved(tmp_path)] == ["step-000008", "step-000015", "step-000018"]
    printed = capsys.readouterr().out
    assert "step 20: no lower val loss in 3 validations, so the run ends here" in printed
    assert f"lowest val loss 4.0000 after step 8: {tmp_path}/step-000008/" in printed
    assert read_finetuned(tmp_path / "step-000008")["weights"]


def test_running_out_of_memory(forks: Forks, flags: list, tmp_path: Path) -> None:
    """The process may take 0.6 GB more; a batch of all samples needs more, with the advice it is less."""
    out, large = tmp_path / "out", ["--batch_size", 1024, "--pack_length", 150_000, "--share_prefix", "false"]
    large += ["--max_steps", 2, "--save_interval", 1]
    assert forks.run(*job(flags, out, *large), room=600_000_000) == 2
    told = last_line(out)
    assert re.search(
        r"error: out of memory after step 0, in a batch of 1\d\d,\d\d\d tokens \(samples \d+, .* \.\.\.\); ", told
    )
    found = re.search(r"(\d\.\d\d) instead of (\d\.\d\d) GB are planned with (.+): go on with that", told)
    assert float(found[1]) < float(found[2])
    assert forks.run(*job(flags, out, *large, *found[3].split())) == 0, last_line(out)


def test_data_that_is_deleted(forks: Forks, flags: list, data: Path, whole: Path, tmp_path: Path) -> None:
    """While the run is at work nothing happens; before it goes on, its data must be there again."""
    out, rows = tmp_path / "out", tmp_path / "rows"
    shutil.copytree(data, rows)
    child = forks.start(*job(flags, out, "--data_dir", rows))
    while not steps_saved(out):
        time.sleep(0.01)
    shutil.rmtree(rows)
    os.kill(child, signal.SIGTERM)
    assert forks.wait() == 143
    assert forks.run(*job(flags, out, "--data_dir", rows)) == 2
    assert f"no folder {rows}; prepare a data set first" in last_line(out)
    shutil.copytree(data, rows)
    assert forks.run(*job(flags, out, "--data_dir", rows)) == 0
    assert_same_run(out, whole)


def test_weights_that_are_no_numbers_are_not_saved(flags: list, tmp_path: Path, monkeypatch, capsys) -> None:
    """An infinite gradient spoils the weights before any loss shows it."""
    log_row = RunLog.step

    def spoil(self: RunLog, row: dict, iter_ms: float) -> None:
        log_row(self, row, iter_ms)
        if row["step"] == 6:
            next(p for p in runs[0].gpt.parameters() if p.requires_grad).data[0, 0] = float("inf")

    runs, go = [], Run.go
    monkeypatch.setattr(Run, "go", lambda self: (runs.append(self), go(self)))
    monkeypatch.setattr(RunLog, "step", spoil)
    assert command("finetune lora", *flags, "--out_dir", tmp_path) == 2
    assert "after step 6 blocks.0.attn.q.lora_A holds values that are no numbers" in capsys.readouterr().err
    assert [path.name for path in steps_saved(tmp_path)] == ["step-000003"]

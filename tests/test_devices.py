"""Several processes that train one model: the same run as one process, and never a hang."""

import csv
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import command, make_checkpoint
from forks import Forks
from test_resume import FLAGS, assert_same_run
from test_train import PlainFabric, Samples

from lit_gpt import GPT, Config
from lit_gpt.checkpoint import load_file, load_gpt, read_finetuned
from lit_gpt.data.batches import Batches, Layout, share_out
from lit_gpt.finetune import Finetune, launch
from lit_gpt.memory import needs
from lit_gpt.methods import Full, LoRA
from lit_gpt.processes import AGAIN, PARENT
from lit_gpt.ranks import Ranks, divided, is_divided, joined, parted
from lit_gpt.resume import steps_saved
from lit_gpt.settings import UserError
from lit_gpt.train import train

ROOT = Path(__file__).parents[1]


class Pair:
    """Two processes, as `torchrun --nproc_per_node 2` starts them."""

    def __init__(self, forks: list[Forks]) -> None:
        self.forks = forks

    def start(
        self, method: str, argv: list, out: Path, supervised: bool = False, victim: int = 0, **fate: object
    ) -> list[int]:
        """Starts both, with their output in `out/log.0` and `out/log.1`.

        `supervised`: as if by `processes.start`. `fate`: see `Forks.start`, for the number `victim`.
        """
        out.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "tests"}
        ids = []
        for rank, forks in enumerate(self.forks):
            log = out / f"log.{rank}"
            log.unlink(missing_ok=True)
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            if supervised:
                own[PARENT] = str(forks.id)
            flags = [*argv, "--out_dir", out, "--devices", 2]
            ids.append(
                forks.start(f"finetune {method}", flags, log, environment=own, **(fate if rank == victim else {}))
            )
        return ids

    def wait(self) -> list[int]:
        """The exit codes."""
        return [forks.wait() for forks in self.forks]

    def run(self, method: str, argv: list, out: Path, **options: object) -> list[int]:
        self.start(method, argv, out, **options)
        return self.wait()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Forks() as one, Forks() as other:
        yield Pair([one, other])


@pytest.fixture(scope="module")
def flags(checkpoint: Path, data: Path) -> list:
    short = ["--max_steps", 12, "--lora_dropout", 0]
    return ["--checkpoint_dir", checkpoint, "--data_dir", data, *FLAGS, *short]


def logs(out: Path) -> list[str]:
    return [(out / f"log.{rank}").read_text() for rank in range(2)]


def of_method(flags: list, method: str) -> list:
    """The flags without LoRA's, and a learning rate that suits."""
    return flags if method == "lora" else [*flags[:-2], "--learning_rate", 0.001]


NOISE = {"rtol": 1e-4, "atol": 1e-5}
"""Of float32."""


def assert_same_but_for_rounding(out: Path, whole: Path) -> None:
    """Files of the same format; the same rows and weights within noise of float32."""
    a, b = read_finetuned(out), read_finetuned(whole)
    assert {name: w.shape for name, w in a["weights"].items()} == {name: w.shape for name, w in b["weights"].items()}
    for name, expected in b["weights"].items():
        torch.testing.assert_close(a["weights"][name], expected, **NOISE, msg=name)
    rows, expected = (list(csv.DictReader((folder / "metrics.csv").open())) for folder in (out, whole))
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        for key in ("step", "iter", "samples", "tokens", "learning_rate"):
            assert row[key] == other[key], key
        for key in ("loss", "val_loss"):
            assert (row[key] == "") == (other[key] == "")
            assert float(row[key] or 0) == pytest.approx(float(other[key] or 0), rel=1e-5)


PROMPT = ["--eval_prompt", "Say word 3.", "--eval_max_new_tokens", 5]
VARIANTS = {
    "lora": [],
    "lora nf4": ["--quantize", "bnb.nf4"],
    "lora padded": ["--pack_length", 0],
    "lora tail": ["--epochs", 1, "--batch_size", 31, "--micro_batch_size", 1],  # the last step has one sample
    "lora divided tail": ["--epochs", 1, "--batch_size", 31, "--micro_batch_size", 1, "--shard", "true", *PROMPT],
    "lora divided dora": ["--lora_dora", "true", "--shard", "true"],
    "adapter_v2 divided": ["--adapter_start_layer", 1, "--shard", "true"],
    "full": [],
    "full divided recomputed": ["--pack_length", 256, "--shard", "true", "--low_memory", "true"],
}
"""What stands before --shard changes the run of one process as well."""


@pytest.fixture(scope="module")
def alone(pair: Pair, flags: list, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list], Path]:
    """The folder of a run by one process; equal ones are made once."""
    made: dict[str, Path] = {}

    def run(method: str, more: list) -> Path:
        key = str((method, more))
        if key not in made:
            out = made[key] = tmp_path_factory.mktemp("alone")
            code = pair.forks[0].run(
                f"finetune {method}", [*of_method(flags, method), *more, "--out_dir", out], out / "log"
            )
            assert code == 0, (out / "log").read_text()
        return made[key]

    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_train_like_one(
    variant: str, pair: Pair, flags: list, alone: Callable[[str, list], Path], tmp_path: Path
) -> None:
    method, more = variant.split()[0], VARIANTS[variant]
    assert pair.run(method, [*of_method(flags, method), *more], tmp_path) == [0, 0], logs(tmp_path)
    assert_same_but_for_rounding(tmp_path, alone(method, more[: more.index("--shard")] if "--shard" in more else more))
    first, second = logs(tmp_path)
    assert ("the weights are divided" in first) == ("divided" in variant)
    assert re.search(r"^iter \d+ step 2: loss", first, re.MULTILINE)
    assert first.count("'Say word 3.' -> ") == (2 if "--eval_prompt" in more else 0)
    assert second == ""


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_tied_weights_that_are_divided(precision: str, pair: Pair, flags: list, tmp_path: Path) -> None:
    """In 16 bits with float32 copies, which are divided, too."""
    folder = make_checkpoint(tmp_path / "tied", tie_embeddings=True)
    flags = [*of_method(flags, "full"), "--checkpoint_dir", folder, "--precision", precision]
    assert pair.run("full", [*flags, "--shard", "true"], tmp_path / "two") == [0, 0], logs(tmp_path / "two")
    assert pair.forks[0].run("finetune full", [*flags, "--out_dir", tmp_path / "one"], tmp_path / "log") == 0
    a, b = read_finetuned(tmp_path / "two")["weights"], read_finetuned(tmp_path / "one")["weights"]
    assert a.keys() == b.keys()
    base = torch.load(folder / "lit_model.pth")
    for name in b:
        update = (b[name].float() - base[name]).norm()
        assert (a[name].float() - b[name].float()).norm() < (1e-5 if precision == "32-true" else 0.1) * update, name
    saved, expected = (load_file(steps_saved(tmp_path / run)[-1] / "optimizer.pth", "") for run in ("two", "one"))
    assert saved["optimizer"].keys() == expected["optimizer"].keys()
    assert ("masters" in saved["optimizer"]) == (precision == "bf16-true")
    for index, values in expected["optimizer"]["state"].items():
        found = saved["optimizer"]["state"][index]
        assert {key: value.shape for key, value in found.items()} == {key: v.shape for key, v in values.items()}


@pytest.mark.parametrize(("method", "divide", "victim"), [("lora", [], 0), ("full", ["--shard", "true"], 1)])
def test_a_run_goes_on_with_another_number_of_devices(
    method: str, divide: list, victim: int, pair: Pair, flags: list, alone: Callable[[str, list], Path], tmp_path: Path
) -> None:
    """2 -> 2 is the same to the bit, 2 -> 1 and 1 -> 2 but for rounding."""
    flags = of_method(flags, method)
    whole, same, fewer, more = (tmp_path / name for name in ("whole", "same", "fewer", "more"))
    assert pair.run(method, [*flags, *divide], whole) == [0, 0], logs(whole)
    began = time.monotonic()
    fate = {"victim": victim, "bomb": 3, "place": same / ".step-000009"}  # dies while it saves
    codes, left = pair.run(method, [*flags, *divide], same, **fate), 1 - victim
    assert time.monotonic() - began < 60
    assert (codes[victim], codes[left]) == (-9, 1), logs(same)
    assert logs(same)[left].endswith(f"error: process {left} has lost the others; {AGAIN}\n")
    shutil.copytree(same, fewer)
    shutil.copytree(alone(method, []), more)
    (more / "run.json").unlink()  # as if it had been stopped after its last checkpoint
    assert pair.run(method, [*flags, *divide], same) == [0, 0], logs(same)
    assert "Going on after step 6" in logs(same)[0]
    assert_same_run(same, whole)
    assert pair.forks[0].run(f"finetune {method}", [*flags, "--out_dir", fewer], fewer / "log") == 0
    assert "note: devices was 2, is 1" in (fewer / "log").read_text()
    assert pair.run(method, [*flags, *divide], more) == [0, 0], logs(more)
    assert "note: devices was 1, is 2" in logs(more)[0]
    assert "Going on after step 10" in logs(more)[0]
    for out in (fewer, more):
        assert_same_but_for_rounding(out, whole)


PARTS = {f"{name}-0000{rank}-of-00002.pth" for name in ("lit_model_finetuned", "optimizer") for rank in (1, 2)}


def test_every_rank_saves_its_rows(
    pair: Pair, flags: list, alone: Callable[[str, list], Path], checkpoint: Path, tmp_path: Path
) -> None:
    """The folder does for use, too; a part that is damaged or missing is named, and the checkpoint passed over."""
    flags, out = [*of_method(flags, "full"), "--shard", "true"], tmp_path / "out"
    assert pair.run("full", flags, out) == [0, 0], logs(out)
    *_, before, saved = steps_saved(out)
    assert {path.name for path in saved.glob("*.pth")} == PARTS
    whole = steps_saved(alone("full", []))[-1]
    sizes = [path.stat().st_size for path in (*sorted(saved.glob("optimizer-*")), whole / "optimizer.pth")]
    assert max(sizes[:2]) < 0.55 * sizes[2]
    found, expected = (read_finetuned(folder) for folder in (saved, whole))
    torch.testing.assert_close(found["weights"], expected["weights"], **NOISE)
    found, expected = (load_file(folder / "optimizer.pth", "")["optimizer"] for folder in (saved, whole))
    assert found["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(found["state"], expected["state"], **NOISE)
    idx = torch.arange(9)[None]
    a, b = (load_gpt(checkpoint, finetuned=folder)(idx) for folder in (saved, out))
    assert 0 < (a - b).abs().max() < 0.5 * b.abs().max()  # some steps later
    (out / "run.json").unlink()  # as if it had been stopped
    spoilt, log = saved / "optimizer-00002-of-00002.pth", tmp_path / "log"
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    named = [*flags, "--out_dir", out, "--resume", saved, "--devices", 1, "--shard", "null"]
    assert pair.forks[0].run("finetune full", named, log) == 2
    told = f"error: --resume {saved} is damaged or no checkpoint ({spoilt.name} is not as it was written); try another"
    assert log.read_text().splitlines()[-1].startswith(told)
    spoilt.unlink()
    assert pair.run("full", flags, out) == [0, 0]
    assert f"passed over: {saved} is damaged ({spoilt.name}: No such file or directory)" in logs(out)[0]
    assert f"Going on after step {int(before.name[5:])}" in logs(out)[0]


def meet(rank: int, place: str) -> None:
    """Of two processes, the second comes late to where they wait for each other."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    time.sleep(0.3 * rank)
    Path(f"{place}.{rank}").touch()
    Ranks(rank, 2).wait()
    os._exit(not Path(f"{place}.{1 - rank}").exists())


def test_ranks_wait_for_each_other(tmp_path: Path) -> None:
    both = [multiprocessing.get_context("fork").Process(target=meet, args=(n, str(tmp_path / "met"))) for n in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]


def children(process: subprocess.Popen) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes by /proc")


@LINUX
def test_one_command_starts_all_processes_and_says_which_was_killed(flags: list, tmp_path: Path) -> None:
    words = [*flags, "--out_dir", tmp_path, "--devices", 2, "--max_steps", 100_000, "--save_interval", 2]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, "finetune/lora.py", *map(str, words)], env=environment, **options)
    while not steps_saved(tmp_path):
        time.sleep(0.01)
    os.kill(children(run)[1], signal.SIGKILL)
    printed, error = run.communicate(timeout=60)
    assert run.returncode == 1
    assert error == f"error: process 1 (of 2, counted from 0) was killed by SIGKILL; {AGAIN}\n"
    assert printed.count("Number of trainable parameters") == 1


PLAY = """
import os, signal, sys, time
from lit_gpt import processes
from lit_gpt.settings import Stopped, run
processes.GRACE = float(sys.argv[2])
def play():
    rank = processes.number(2)
    if rank is None:
        return processes.start(2)
    with processes.member(rank):
        heard = []
        signal.signal(signal.SIGINT, lambda *_: heard.append(rank))
        open(f"{sys.argv[1]}/{rank}", "w").close()
        print("rank", rank, flush=True)
        %s
sys.exit(run(play, [], "play", "", argv=[]))
"""


def play(body: str, folder: Path, grace: float = 0.5) -> subprocess.Popen:
    """Starts two processes that do `body`, and waits until both do; `grace`: see `processes.GRACE`."""
    command = [sys.executable, "-c", PLAY % body, str(folder), str(grace)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    run = subprocess.Popen(command, start_new_session=True, **options)
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    return run


def test_signals_are_handed_on_once(tmp_path: Path) -> None:
    """Ctrl-C is sent to all processes of a terminal, and reaches each once."""
    run = play(
        "while not heard: time.sleep(0.01)\n        time.sleep(0.3); sys.exit(10 * len(heard) + rank)", tmp_path, 60
    )
    os.killpg(run.pid, signal.SIGINT)
    assert run.communicate(timeout=60) == ("rank 0\n", "")
    assert run.returncode == 11


def test_who_hangs_is_ended_when_another_fails(tmp_path: Path) -> None:
    run = play("time.sleep(3600) if rank else sys.exit(7)", tmp_path)
    assert run.communicate(timeout=60) == ("rank 0\n", "")
    assert run.returncode == 7


def test_a_second_ctrl_c_ends_who_hangs(tmp_path: Path) -> None:
    run = play("time.sleep(3600)", tmp_path)
    for _ in range(2):
        run.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert run.communicate(timeout=60) == ("rank 0\n", "")
    assert run.returncode == 1


@LINUX
def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    run = play("time.sleep(3600)", tmp_path)
    left = children(run)
    run.kill()
    run.communicate(timeout=60)  # until they have closed their ends of it
    assert len(left) == 2
    assert not any(Path(f"/proc/{child}/exe").exists() for child in left)


def test_a_signal_to_one_process_stops_all_at_the_same_step(pair: Pair, flags: list, tmp_path: Path) -> None:
    ids = pair.start("lora", [*flags, "--max_steps", 100_000], tmp_path)
    while not steps_saved(tmp_path):
        time.sleep(0.01)
    os.kill(ids[1], signal.SIGTERM)
    assert pair.wait() == [143, 143]
    told = "".join(logs(tmp_path))
    step = int(re.search(r"stopped by SIGTERM after step ([\d,]+), saved in", told)[1].replace(",", ""))
    assert told.count("stopped by SIGTERM") == 1
    assert steps_saved(tmp_path)[-1].name == f"step-{step:06d}"


@pytest.mark.parametrize("supervised", [False, True], ids=["torchrun", "--devices 2"])
def test_an_error_of_one_process_ends_all(supervised: bool, pair: Pair, flags: list, tmp_path: Path) -> None:
    """Number 0 cannot write a checkpoint: its disk is full."""
    assert pair.run("lora", flags, tmp_path, largest=5000, supervised=supervised) == [2, 1]
    assert re.search("^error: cannot write .*: File too large; free some space", logs(tmp_path)[0], re.MULTILINE)
    assert logs(tmp_path)[1] == ("" if supervised else f"error: process 1 has lost the others; {AGAIN}\n")


def test_an_error_of_all_processes_is_told_once(pair: Pair, flags: list, tmp_path: Path) -> None:
    assert pair.run("lora", [*flags, "--max_seq_length", 60], tmp_path) == [2, 2]
    assert "samples are longer than 60 tokens" in logs(tmp_path)[0]
    assert logs(tmp_path)[1] == ""


def test_time_is_that_of_the_first_process(pair: Pair, flags: list, tmp_path: Path) -> None:
    assert pair.run("lora", [*flags, "--max_steps", 100_000, "--max_time", "6s"], tmp_path) == [0, 0], logs(tmp_path)
    last = list(csv.DictReader((tmp_path / "metrics.csv").open()))[-1]
    assert int(last["step"]) < 100_000
    assert last["val_loss"]


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        (["--devices", 0], {}, "--devices: must be at least 1, got 0"),
        (["--num_nodes", 0], {}, "--num_nodes: must be at least 1, got 0"),
        (["--devices", 4096, "--batch_size", 4096], {}, "--devices 4096: this machine has"),
        (["--devices", 9], {}, "--batch_size 8: too few samples for 9 devices"),
        (["--devices", 2, "--quantize", "bnb.nf4", "--shard", "true"], {}, "--shard does not work with --quantize"),
        (["--devices", 2, "--compile", "true", "--shard", "true"], {}, "--shard does not work with --compile"),
        (["--shard", "true"], {}, "--shard does not work with --devices 1"),
        (["--devices", 2, "--num_nodes", 2], {}, "--num_nodes 2: start the command by torchrun or srun"),
        (["--devices", 2], {"RANK": "0", "WORLD_SIZE": "4"}, "4 processes were started, but --devices x --num_nodes"),
        (["--devices", 2], {"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, "3 processes were started, but"),
    ],
)
def test_bad_input(
    changes: list, environment: dict, message: str, flags: list, tmp_path: Path, monkeypatch, capsys
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert command("finetune lora", *flags, "--out_dir", tmp_path / "out", *changes) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_samples_are_shared_out_evenly() -> None:
    data = Samples(50, shortest=4, longest=40)
    samples = [3, 3, *range(40)]  # an epoch may end within a step
    shares = share_out(data, samples, 4)
    assert sorted(i for share in shares for i in share) == sorted(samples)
    tokens = [sum(int(data.lengths[i]) for i in share) for share in shares]
    assert max(tokens) - min(tokens) <= 40
    assert max(samples, key=lambda i: int(data.lengths[i])) == shares[0][0]
    assert share_out(data, samples, 1) == [samples]
    batches = [Batches(data, samples, 10, Layout(pack_length=64), seed=1, rank=rank, world=4) for rank in range(4)]
    for step in (0, 7):
        read = [i for rank in range(4) for batch in batches[rank].step(step) for i in batch.samples]
        assert sorted(read) == sorted(batches[0].step_samples(step))


def test_each_process_draws_its_own_random_numbers() -> None:
    """The first one's are those of a process that is alone."""
    config = Config("llama", block_size=32, padded_vocab_size=50, n_layer=1, n_head=2, n_embd=8, intermediate_size=8)
    model = GPT(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = Batches(Samples(8), list(range(8)), 4, Layout(), seed=1)
    drawn = []
    for ranks in (Ranks(), Ranks(rank=0), Ranks(rank=1), Ranks(rank=2)):
        seeds = []
        options = {"seed": 1, "steps": 2, "samples": 8, "schedule": lambda step: 0.1, "max_norm": None, "ranks": ranks}
        after = {"after_step": lambda *_: False, "after_batch": lambda seeds=seeds: seeds.append(torch.initial_seed())}
        train(PlainFabric(), model, optimizer, batches, **options, **after)
        drawn.append(tuple(seeds))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("method", [LoRA(), Full()], ids=["lora", "full"])
def test_a_rank_holds_its_part_of_the_weights(method: LoRA | Full, checkpoint: Path) -> None:
    """Of a run of four ranks, of which this process is one and the others are not there."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    try:
        model = load_gpt(checkpoint)
        method.attach(model)
        whole = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        mesh = init_device_mesh("cpu", (4, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
        assert Ranks(1, 4).parallelize(model, mesh) is model
        assert not any(map(is_divided, model.parameters()))
        Ranks(1, 4, sharded=True).parallelize(model, mesh)
        own = sum(p.to_local().numel() if is_divided(p) else p.numel() for p in model.parameters())
        beside = 0 if trained == whole else trained
        assert own == pytest.approx((whole - beside) / 4 + beside, rel=0.01)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rows", [1, 4, 7, 12])
def test_any_number_of_ranks_reads_what_any_number_saved(rows: int, monkeypatch) -> None:
    """Of a tensor with so many rows, some ranks may have none."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    full = torch.randn(rows, 3)
    for count, before in itertools.product(range(1, 6), repeat=2):
        parts = [{"a": part, "steps": torch.tensor(2.0), "rate": 0.1} for part in full.tensor_split(before)]
        saved = joined(parts)
        assert saved["rate"] == 0.1
        assert torch.equal(saved["steps"], torch.tensor(2.0))
        assert torch.equal(divided(saved["a"], full), full)
        found = []
        for rank in range(count):
            torch.distributed.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())
            try:
                mesh = init_device_mesh("cpu", (count,))
                like = distribute_tensor(torch.zeros_like(full), mesh, [Shard(0)], src_data_rank=None)
                own = divided(saved["a"], like)
                assert own.shape == full.shape
                assert own.to_local().shape == like.to_local().shape
                found.append(parted([own])[0])
            finally:
                torch.distributed.destroy_process_group()
        assert torch.equal(torch.cat(found), full)
    with pytest.raises(ValueError, match="mismatch"):
        joined([{"a": full}, {"b": full}])


def test_more_devices_than_there_are(flags: list, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--devices 3: this machine has 2 GPUs"):
        launch(Finetune(Path("base"), precision="32-true", devices=3), Ranks(0, 3))


def test_what_is_divided_needs_less_memory() -> None:
    """7B parameters in 16 bits: two blocks, embedding and head are whole at a time."""
    config = Config.from_name("open_llama_7b")
    block, outside = 202_383_360, 2 * 32000 * 4096 + 4096
    frozen, full = (needs(config, method, torch.bfloat16, None) for method in (LoRA(), Full()))
    whole = 2 * (2 * block + outside)
    assert frozen.divided(8).weights == frozen.weights / 8 + whole
    assert frozen.divided(8).trained == frozen.trained
    assert full.divided(8).weights == full.weights / 8 + 2 * whole  # gradients besides
    assert full.divided(8).trained == full.trained / 8 == 16 * full.parameters / 8
    assert frozen.weights == 2 * (32 * block + outside)


def test_the_plan_divides_what_would_not_fit(checkpoint: Path, data: Path, tmp_path: Path, capsys) -> None:
    """--dry_run starts no process."""
    flags = ["--checkpoint_dir", checkpoint, "--data_dir", data, *FLAGS, "--out_dir", tmp_path / "out"]
    flags += ["--dry_run", "true", "--devices", 8, "--learning_rate", 0.001]
    assert command("finetune full", *flags) == 0
    assert "8 devices: each holds all weights; of each:" in capsys.readouterr().out
    config = Config.from_checkpoint(checkpoint)
    needed = needs(config, Full(), torch.float32, None, 1.0)
    budget = needed.divided(8).peak(192, needed.everything) / 1e9  # of the longest sample, which has a pack of its own
    assert needed.peak(192, needed.everything) / 1e9 > budget
    assert command("finetune full", *flags, "--low_memory", "true", "--memory_gb", budget) == 0
    assert "8 devices: the weights are divided among them; of each:" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()

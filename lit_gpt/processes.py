"""The processes of a command: one that begins anew, or several, one for each device, that end together.

`start` is their parent on a machine; on several machines that is `torchrun` or Slurm's `srun`. This module imports no
torch: the parent of the processes has no use for it.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from types import FrameType

from lit_gpt.settings import Stopped, UserError

PARENT = "LIT_GPT_PARENT"
"""Environment variable with the process id of `start`."""

GRACE = 10.0
"""Seconds that the others have to end by themselves when one process has failed."""

AGAIN = "give the same command again to go on from the last checkpoint"

ROOM = {
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=1073741824:glibc.malloc.hugetlb=1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "40",
}
"""Environment of a process that trains on a CPU and is to hold little more than it uses (bench/NOTES.md).

What lies in glibc's caches for small blocks keeps the large ones beside it apart, so that what was freed does not fit
again. The heap's end is not given back after every large block, to be asked for and filled with zeros again, and is in
large pages. A matrix product that is compiled for its shape takes 0.6 MB; a pack of a Llama has some 30 of them.
"""


def begin_anew() -> None:
    """Begins this process again with `ROOM`, which counts from its start; nothing if somebody has set a part of it.

    Only where there is no GPU, under Linux, and in a process that does nothing else than this command: not in a
    notebook, a test or a debugger. The process keeps its number.
    """
    if sys.platform != "linux" or os.path.exists("/proc/driver/nvidia") or ROOM.keys() & os.environ:
        return
    if sys.gettrace() or "bdb" in sys.modules:  # below a debugger, which may have let go of it
        return
    if sys.argv[0] not in sys.orig_argv[1:]:  # somebody else's process
        return
    with contextlib.suppress(OSError):  # then it goes on as it is
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ROOM})


def number(wanted: int) -> int | None:
    """This process's number among the `wanted` ones; None if nobody has started them yet.

    Raises:
        UserError: another number of processes was started.
    """
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        started, own = environment["WORLD_SIZE"], environment["RANK"]
    elif int(environment.get("SLURM_NTASKS", 1)) > 1 and wanted > 1:
        started, own = environment["SLURM_NTASKS"], environment["SLURM_PROCID"]
    else:
        return None
    if int(started) != wanted:
        raise UserError(
            f"{started} processes were started, but --devices x --num_nodes are {wanted}; make them the same, one "
            "process for each device of every node"
        )
    return int(own)


def start(count: int) -> None:
    """Runs this command as `count` processes, hands signals on to them, and waits for their end.

    Raises:
        Stopped: one of them failed; the others are ended, too.
        UserError: there are fewer processors.
    """
    if count > (processors := os.cpu_count() or 1):
        raise UserError(f"--devices {count}: this machine has {processors} processors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # what torchrun sets
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "local"}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0", PARENT: str(os.getpid())}
    command = [sys.executable, *sys.orig_argv[1:]]
    sent, limit, ended = [], float("inf"), set()

    def hand_on(signum: int, frame: FrameType | None) -> None:
        sent.append(signum)
        for process in processes:
            process.send_signal(signum)

    processes: list[subprocess.Popen] = []
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup
            signal.signal(signum, hand_on)
    for rank in map(str, range(count)):  # in sessions of their own: Ctrl-C reaches them through here only, and once
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(command, env=own, start_new_session=True))
    while running := [rank for rank, process in enumerate(processes) if process.poll() is None]:
        if limit == float("inf") and (sent.count(signal.SIGINT) > 1 or any(p.returncode for p in processes)):
            limit = time.monotonic() + GRACE
        if time.monotonic() > limit:
            ended.update(running)
            for rank in running:
                processes[rank].kill()
        time.sleep(0.05)
    codes = [process.returncode for process in processes]
    killed = [rank for rank, code in enumerate(codes) if code < 0 and rank not in ended]
    if killed:
        name = signal.Signals(-codes[killed[0]]).name
        raise Stopped(f"error: process {killed[0]} (of {count}, counted from 0) was killed by {name}; {AGAIN}", 1)
    if any(codes):
        raise Stopped("", max(max(codes), 1))


@contextlib.contextmanager
def member(rank: int) -> Iterator[None]:
    """What a process does as one of several: only number 0 prints, and when they fail, only one of them says so.

    Number 0 is the first to speak, if it has failed as well; one that was only left alone speaks if there is nobody who
    knows more.
    """
    parent = os.environ.get(PARENT)
    if parent:
        with contextlib.suppress(OSError, AttributeError):  # Linux: is killed when its parent is
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != int(parent):
            os._exit(1)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        warnings.simplefilter("ignore")
    try:
        yield
    except BaseException as error:
        alone = "gloo" in str(error) or any(kind.__name__ == "DistError" for kind in type(error).__mro__)
        time.sleep(0.3 * (rank > 0))
        stderr = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # from libraries, too
        if _speaks(rank, alone):
            os.dup2(stderr, 2)
        if alone:
            raise Stopped(f"error: process {rank} has lost the others; {AGAIN}", 1) from error
        raise


def _speaks(rank: int, alone: bool) -> bool:
    """Whether a process that has failed says so. Of several that know why, it is the first; see `member`."""
    supervised = PARENT in os.environ  # by `start`, which says who was killed
    try:
        store = sys.modules["torch.distributed.distributed_c10d"]._get_default_store()
    except Exception:  # they have not met yet
        return rank == 0 or not supervised
    try:
        return store.add("failed", 1) == 1 and not (alone and supervised)
    except Exception:  # it was with number 0, which has ended
        return alone and rank == 1 and not supervised

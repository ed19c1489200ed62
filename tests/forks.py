"""Runs commands in processes that start at once, so that killing many of them takes seconds and not minutes.

A server process imports everything a run needs, and then forks for every command.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SERVER = """
import json, os, resource, signal, sys
import matplotlib.backends.backend_agg, matplotlib.figure, rich.progress, torch
import torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor
import lit_gpt.run
from lit_gpt.finetune import import_fabric
import_fabric()
from forks import play
torch.set_num_threads(1)
for line in sys.stdin:
    job, (tail, head) = json.loads(line), os.pipe()
    log = os.open(job.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    child = os.fork()
    if not child:
        play(head, **job)
    os.close(head)
    print(child, flush=True)
    while told := os.read(tail, 1 << 16):
        os.write(log, told)
    os.close(tail), os.close(log)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def play(
    output: int, name: str, argv: list[str], bomb: int, place: str, largest: int, room: int, environment: dict[str, str]
) -> None:
    """The child: runs a command and leaves.

    Args:
        output: file descriptor for all that it prints.
        bomb: if not 0, dies at this file operation (opening, renaming, removing, making) under `place`.
        largest: if not 0, no file can grow beyond so many bytes.
        room: if not 0, the process can take so many more bytes of memory.
        environment: variables to set.
    """
    import resource

    from conftest import command

    import lit_gpt.stopping

    lit_gpt.stopping.STARTED = time.monotonic()
    for number in (1, 2):
        os.dup2(output, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    if room:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + room,) * 2)
    os.environ.update(environment)
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        touches = event == "open" or event.startswith(("os.r", "os.m"))
        if touches and args and place in str(args[0]) and (event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR)):
            count += 1
            if count == bomb:
                os.kill(os.getpid(), signal.SIGKILL)

    if bomb:
        sys.addaudithook(hook)
    sys.argv = ["finetune/lora.py", *argv]
    os._exit(command(name, *argv))


class Forks:
    """The server, as a context."""

    def __enter__(self) -> "Forks":
        places = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        options["env"] = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        self._server = subprocess.Popen([sys.executable, "-c", SERVER], **options)
        self.id = self._server.pid
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait()

    def start(
        self,
        name: str,
        argv: list[Any],
        log: Path,
        bomb: int = 0,
        place: object = "/",
        largest: int = 0,
        room: int = 0,
        environment: dict[str, str] | None = None,
    ) -> int:
        """Starts a command whose output goes to `log`, see `play`; its process id. Then call `wait`."""
        words = [str(word) for word in argv]
        job = {"name": name, "argv": words, "log": str(log), "bomb": bomb, "place": str(place)}
        job |= {"largest": largest, "room": room, "environment": environment or {}}
        print(json.dumps(job), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """The exit code of the command that was started last; -9 if it was killed."""
        return os.waitstatus_to_exitcode(int(self._server.stdout.readline()))

    def run(self, *args: Any, **options: Any) -> int:
        """Runs a command to its end; its exit code."""
        self.start(*args, **options)
        return self.wait()

    def kill_after(self, seconds: float, number: int, *args: Any) -> int:
        """Starts a command and sends it a signal; its exit code."""
        child = self.start(*args)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        return self.wait()

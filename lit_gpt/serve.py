"""The server of the NeurIPS 2023 LLM Efficiency Challenge: settings, start and end; see `lit_gpt.api` and `app`."""

import os
import socket
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lit_gpt.generate import Quantize
from lit_gpt.methods import Trained
from lit_gpt.settings import UserError, at_least

if TYPE_CHECKING:
    from lit_gpt.model import GPT

CUTS = {"blank_line": "\n\n", "line": "\n"}


@dataclass
class Serve(Trained):
    """With which model, and where."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: every one of this machine, for a container."""
    port: int = 8080
    """Port; 0: any that is free."""
    precision: Literal["bf16-true", "32-true"] = "bf16-true"
    """Type of weights and arithmetic."""
    quantize: Literal[Quantize, "none"] | None = None
    """Hold the linear layers in 4 or 8 bits; unset: as in training."""
    max_seq_length: int = 2048
    """Longest prompt and text together, in tokens; at most the model's context. Longer prompts lose their beginning."""
    batch_size: int | None = None
    """Texts that are made together: rows of the KV cache, which is allocated at the start; null: as many as fit into
    half of the free memory, at most 32."""
    queue_size: int = 1000
    """Texts that may wait for a row; more are refused (503)."""
    timeout: float = 600.0
    """Seconds after which a request is given up (504), and which requests have at the end of the server."""
    cut: Literal["blank_line", "line"] | None = None
    """What also ends the answer to a multiple-choice question: the first blank line, or the first line's end."""
    prompt_style: str | None = None
    """How a prompt becomes a question to the model: null: as it is; trained: as the model was finetuned; or a style's
    name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "batch_size", "queue_size")
        at_least(2, self, "max_seq_length")
        if not self.timeout > 0:
            raise UserError(f"--timeout: must be above 0, got {self.timeout}")
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"--port: must be in [0, 65535], got {self.port}")


def serve(settings: Serve) -> None:
    """Answers the challenge's requests over HTTP, until Ctrl-C or SIGTERM.

    Requests that run then are finished, within --timeout.
    """
    import torch

    try:
        import uvicorn

        from lit_gpt.api import Service
        from lit_gpt.app import Connection, build_app
    except ImportError as error:
        raise UserError(f'serving needs {error.name}; pip install -e ".[serve]"') from error
    from lit_gpt.batching import Engine
    from lit_gpt.checkpoint import DTYPES, default_device, load_gpt, style_of
    from lit_gpt.config import Config
    from lit_gpt.quantize import for_decoding

    began, folder = time.perf_counter(), settings.checkpoint_dir
    length = min(settings.max_seq_length, Config.from_checkpoint(folder).block_size)
    style = None
    if settings.prompt_style is not None:
        named = None if settings.prompt_style == "trained" else settings.prompt_style
        style = style_of(folder, settings.finetuned, named)
        if style is None:
            raise UserError("--prompt_style trained: nothing is known of this model's; name one, such as alpaca")
    with _listen(settings.host, settings.port) as listener:
        device = default_device()

        def build() -> Engine:
            options = {"finetuned": settings.finetuned, "merge": True, "quantize": settings.quantize, "device": device}
            model = load_gpt(folder, DTYPES[settings.precision], **options)
            for_decoding(model, several=True)
            rows = settings.batch_size or _fitting(model, length, device)
            try:
                return Engine(model, rows, length, settings.queue_size)
            except RuntimeError as error:  # a CPU's is no OutOfMemoryError
                if isinstance(error, torch.OutOfMemoryError) or "allocat" in str(error) or "overflow" in str(error):
                    raise UserError("--batch_size: the KV cache does not fit; take fewer rows") from error
                raise

        with closing(Engine.started(build)) as engine:  # also after a second Ctrl-C
            service = Service(engine, folder, style, settings.cut and CUTS[settings.cut])
            about = {"model": str(folder), "finetuned": settings.finetuned and str(settings.finetuned)}
            about["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            # the device, too: a container that was started without its GPU would only be slow
            many = f"{engine.most_rows} texts at a time of {length:,} tokens, on {about['device']}"
            app = build_app(service, settings.timeout, about)
            host, port = listener.getsockname()[:2]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

            class Server(uvicorn.Server):
                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    if self.started:
                        seconds = time.perf_counter() - began
                        tell(f"Ready after {seconds:.1f} s: http://{address} ({many})")

            config = uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=max(1, int(settings.timeout)),
            )
            try:
                Server(config).run(sockets=[listener])
            except OSError as error:  # another that began at the same time listens by now
                raise UserError(_taken(settings.host, settings.port, error)) from error


def tell(text: str) -> None:
    """Says what happens: on stderr."""
    print(text, file=sys.stderr, flush=True)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that has the address; it does not listen before the model is there.

    Raises:
        UserError: the address is none of this machine, or taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(_taken(host, port, error)) from error
    return listener


def _taken(host: str, port: int, error: OSError) -> str:
    return f"--host {host} --port {port}: {error.strerror}; take another port, or 0 for any"


def _fitting(model: "GPT", length: int, device: object) -> int:
    """Rows of a cache that fit into half of the free memory, at most 32."""
    import torch

    config = model.config
    row = 2 * config.n_layer * config.n_query_groups * config.head_size * length * model.wte.weight.element_size()
    if model.wte.weight.is_cuda:
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(32, (free // 2 // row - 1) * 8 // 9))

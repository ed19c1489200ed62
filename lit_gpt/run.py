"""One finetuning run: what is trained on, how long, and what is logged, validated and saved on the way."""

import importlib.metadata
import math
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_gpt.checkpoint import base_identity, save_finetuned
from lit_gpt.data.batches import Batch
from lit_gpt.decode import complete
from lit_gpt.files import write_json
from lit_gpt.memory import give_back
from lit_gpt.methods import Method, describe
from lit_gpt.model import GPT
from lit_gpt.prompts import get_style
from lit_gpt.runlog import RunLog, Stopwatch, peak_memory_gb
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.train import learning_rate, loss_sum, train, validate
from lit_gpt.workload import Workload

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from lit_gpt.finetune import Finetune


class Run:
    """A finetuning run over a model that a method is attached to.

    Args:
        fabric: launched and seeded.
        model: in training mode.
    """

    def __init__(
        self,
        fabric: "Fabric",
        settings: "Finetune",
        method: Method,
        model: GPT,
        work: Workload,
        tokenizer: Tokenizer,
    ) -> None:
        self.fabric, self.settings, self.method, self.tokenizer = fabric, settings, method, tokenizer
        self.gpt, self.work = model, work
        trained = [p for p in model.parameters() if p.requires_grad]
        fused = (
            settings.precision != "16-mixed"
        )  # a fused AdamW unscales gradients itself, and could then not clip them
        options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": fused}
        self.model, self.optimizer = fabric.setup(model, torch.optim.AdamW(trained, **options))
        self.model.mark_forward_method("loss_sum")
        self.iters_done = self.tokens_done = 0
        self.val_loss: float | None = None
        self.log = RunLog(settings.out_dir, settings.loggers, {**asdict(settings), **describe(method)}, work.steps)
        self.file = f"lit_model_{method.name}_finetuned.pth"

    def go(self) -> None:
        """Trains, validates before and after, saves, and writes `run.json`."""
        s, log = self.settings, self.log
        trainable = sum(p.numel() for p in self.gpt.parameters() if p.requires_grad)
        log.say(f"Number of trainable parameters: {trainable:,}")
        frozen = sum(p.numel() for p in self.gpt.parameters() if not p.requires_grad)
        log.say(f"Number of non trainable parameters: {frozen:,}")
        log.say(
            f"{self.work.steps:,} steps of {s.batch_size} samples = {self.work.samples:,} samples, "
            f"{self.work.samples / len(self.work.batches.samples):.2f} epochs; warm-up {self.work.warmup} steps"
        )
        try:
            if s.compile:
                self._compile()
            log.say("Validating ...")
            first_loss = self._validate()
            log.say(f"step 0: val loss {first_loss:.4f}")
            self.watch = Stopwatch()
            self._mark = (0.0, 0, 0)
            done = train(
                self.fabric,
                self.model,
                self.optimizer,
                self.work.batches,
                steps=self.work.steps,
                samples=self.work.samples,
                schedule=lambda n: learning_rate(n, self.work.steps, self.work.warmup, s.learning_rate, s.min_lr),
                max_norm=s.clip_norm,
                after_batch=self._after_batch,
                after_step=self._after_step,
            )
            log.say(f"Training time: {self.watch.seconds:.2f}s")
            path = s.out_dir / self.file
            log.say(f"Saving {self.method.name} weights to '{path}'")
            self._save(path)  # before the log ends: a plot or a logger that fails must not cost what was trained
        finally:
            log.close()
        memory = peak_memory_gb(self.fabric.device)
        log.say(f"Memory used: {memory:.2f} GB, planned: {self.work.planned_gb:.2f} GB")
        result = {"steps": done, "samples": min(done * s.batch_size, self.work.samples), "tokens": self.tokens_done}
        result |= {"memory_gb": memory, "planned_gb": self.work.planned_gb}
        result |= {"first_val_loss": first_loss, "val_loss": self.val_loss, "seconds": self.watch.seconds}
        write_json(s.out_dir / "run.json", self._describe() | {"result": result})
        log.say(
            f"val loss {first_loss:.4f} -> {self.val_loss:.4f}; "
            f"{s.out_dir}/: {self.file}, metrics.csv, loss.png, run.json"
        )
        log.say(
            f"Next: python generate/{self.method.name}.py --checkpoint_dir {s.checkpoint_dir} "
            f'--{self.method.name}_path {path} --prompt "..."'
        )

    def _compile(self) -> None:
        """Compiles the blocks, tries them on some packs, and says what that took and when it pays.

        Raises:
            UserError: there is no compiler, or it fails.
        """
        self.log.say("Compiling the blocks ...")
        device = self.fabric.device
        fixed, loose = self.work.trial()

        def seconds(batches: list[Batch]) -> float:
            start = time.perf_counter()
            for batch in batches:
                self.fabric.backward(loss_sum(self.model, batch.to(device)))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.optimizer.zero_grad()
            return time.perf_counter() - start

        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the run draws as if this had not been
            plain = min(seconds(loose) for _ in range(3))
            self.gpt.compile_blocks()
            try:
                first = seconds(fixed)
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"--compile: {type(error).__name__}: {reason}; it needs a C++ compiler such as g++ "
                    "(and Triton on a GPU): install it, or leave --compile out"
                ) from error
            compiled = min(seconds(fixed) for _ in range(2))
        cost = first - compiled
        mean_fixed, mean_loose = self.work.step_tokens
        compiled *= mean_fixed / sum(batch.idx_BT.numel() for batch in fixed)
        plain *= mean_loose / sum(batch.idx_BT.numel() for batch in loose)
        saved = plain - compiled
        self.log.say(
            f"Compiled in {cost:.0f} s. A step takes about {compiled:.2f} s, without --compile {plain:.2f} s: "
            + (f"it pays after {cost / saved:,.0f} steps" if saved > 0 else "it does not pay here")
        )

    def _after_step(self, step: int, loss: Tensor, tokens: int, rate: float) -> bool:
        """Logs, validates and saves when it is time; says whether the time is up. See `train`."""
        s = self.settings
        self.tokens_done += tokens
        samples = min(step * s.batch_size, self.work.samples)
        self.iters_done = math.ceil(samples / s.micro_batch_size)
        last = step == self.work.steps or self.watch.seconds >= s.time_limit
        if not (last or step % s.log_interval == 0 or step % s.eval_interval == 0 or step % s.save_interval == 0):
            self.log.progress(step)
            return False
        value = loss.item()  # waits for the device, so the time below is that of finished work
        if not math.isfinite(value):
            samples_read = self.work.batches.step_samples(step - 1, self.work.samples)
            raise UserError(
                f"the loss of step {step} is {value}, on samples {', '.join(map(str, samples_read[:8]))} ... of "
                f"{s.data_dir}; lower --learning_rate or look at them; what was saved before is in {s.out_dir}"
            )
        self.watch.pause()
        seconds, then = self.watch.seconds, self._mark
        row: dict[str, Any] = {"step": step, "iter": self.iters_done, "samples": samples, "tokens": self.tokens_done}
        row["loss"] = value
        if last or step % s.eval_interval == 0:
            row["val_loss"] = self._validate()
        row["learning_rate"] = rate
        row["tokens_per_second"] = (self.tokens_done - then[1]) / max(seconds - then[0], 1e-9)
        row["seconds"], row["memory_gb"] = seconds, peak_memory_gb(self.fabric.device)
        self.log.step(row, 1000 * (seconds - then[0]) / max(1, self.iters_done - then[2]))
        self._mark = (seconds, self.tokens_done, self.iters_done)
        if "val_loss" in row and s.eval_prompt:
            self.log.say(f"step {step}: {s.eval_prompt!r} -> {self._answer()!r}")
        if step % s.save_interval == 0 and not last:
            self._save(s.out_dir / f"step-{step:06d}" / self.file)
        self.watch.resume()
        return last

    def _after_batch(self) -> None:
        if self.fabric.device.type == "cpu":
            give_back(1e9 * self.work.planned_gb)

    def _validate(self) -> float:
        self.val_loss = validate(self.model, self.work.validation, self.fabric.device)
        return self.val_loss

    def _answer(self) -> str:
        """The model's answer to `eval_prompt`, up to its end-of-text token."""
        prompt = get_style(self.work.prompt_style).prompt(self.settings.eval_prompt)
        ids = self.tokenizer.encode(prompt, bos=self.tokenizer.use_bos)
        self.gpt.eval()
        with self.fabric.autocast():
            (answer,) = complete(self.gpt, [ids], self.settings.eval_max_new_tokens, stop_ids=[self.tokenizer.eos_id])
        self.gpt.train()
        return self.tokenizer.decode(answer)

    def _save(self, path: Path) -> None:
        facts = {"prompt_style": self.work.prompt_style, "base": base_identity(self.settings.checkpoint_dir)}
        facts["quantize"] = self.settings.quantize
        save_finetuned(path, self.gpt, self.method, facts)

    def _describe(self) -> dict[str, Any]:
        """What one needs to know to judge or repeat the run."""
        packages = ("torch", "lightning", "sentencepiece", "tokenizers", "bitsandbytes")
        device = self.fabric.device
        return {
            "command": shlex.join(["python", *sys.argv]),
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.settings).items()},
            "method": describe(self.method),
            "base": base_identity(self.settings.checkpoint_dir),
            "data": {key: self.work.meta.get(key) for key in ("name", "tokenizer", "sources", "licence")},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
            "commit": _commit(),
        }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this code, marked if files were changed since; None outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

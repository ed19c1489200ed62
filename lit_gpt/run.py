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
from lit_gpt.data.batches import Batches, Layout
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.decode import complete
from lit_gpt.files import write_json
from lit_gpt.methods import Method, describe
from lit_gpt.model import GPT
from lit_gpt.prompts import get_style
from lit_gpt.runlog import RunLog, Stopwatch, peak_memory_gb
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.train import learning_rate, train, validate

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from lit_gpt.finetune import Finetune


class Run:
    """A finetuning run over a model that a method is attached to.

    Args:
        fabric: launched and seeded.
        splits: the data sets "train" and "test".
    """

    def __init__(
        self,
        fabric: "Fabric",
        settings: "Finetune",
        method: Method,
        model: GPT,
        splits: dict[str, TokenDataset],
        tokenizer: Tokenizer,
    ) -> None:
        self.fabric, self.settings, self.method, self.tokenizer = fabric, settings, method, tokenizer
        self.gpt, self.meta = model, splits["train"].meta
        self.prompt_style = self.meta["settings"]["prompt_style"]
        s = settings
        self.max_length = s.max_seq_length or model.config.block_size
        kept = usable_samples(splits["train"], self.max_length, s.long_samples, s.data_dir)
        layout = Layout(s.micro_batch_size, s.pack_length, s.share_prefix, self.max_length)
        self.batches = Batches(splits["train"], kept, s.batch_size, layout, s.seed)
        fixed = range(min(s.eval_iters * s.micro_batch_size, len(splits["test"])))
        self.validation = layout.batches(splits["test"], list(fixed))
        self.steps, self.samples = plan_length(s, self.batches)
        default_warmup = min(100, max(1, self.steps // 10))
        self.warmup = default_warmup if s.warmup_steps is None else s.warmup_steps
        trained = [p for p in model.parameters() if p.requires_grad]
        fused = s.precision != "16-mixed"  # a fused AdamW unscales gradients itself, and could then not clip them
        optimizer = torch.optim.AdamW(trained, lr=s.learning_rate, weight_decay=s.weight_decay, fused=fused)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.model.mark_forward_method("loss_sum")
        self.iters_done = self.tokens_done = 0
        self.val_loss: float | None = None
        self.log = RunLog(s.out_dir, s.loggers, {**asdict(s), **describe(method)}, self.steps)
        self.file = f"lit_model_{method.name}_finetuned.pth"

    def go(self) -> None:
        """Trains, validates before and after, saves, and writes `run.json`."""
        s, log = self.settings, self.log
        trainable = sum(p.numel() for p in self.gpt.parameters() if p.requires_grad)
        log.say(f"Number of trainable parameters: {trainable:,}")
        frozen = sum(p.numel() for p in self.gpt.parameters() if not p.requires_grad)
        log.say(f"Number of non trainable parameters: {frozen:,}")
        log.say(
            f"{self.steps:,} steps of {s.batch_size} samples = {self.samples:,} samples, "
            f"{self.samples / len(self.batches.samples):.2f} epochs; warm-up {self.warmup} steps"
        )
        try:
            log.say("Validating ...")
            first_loss = self._validate()
            log.say(f"step 0: val loss {first_loss:.4f}")
            self.watch = Stopwatch()
            self._mark = (0.0, 0, 0)
            done = train(
                self.fabric,
                self.model,
                self.optimizer,
                self.batches,
                steps=self.steps,
                samples=self.samples,
                schedule=lambda n: learning_rate(n, self.steps, self.warmup, s.learning_rate, s.min_lr),
                max_norm=s.clip_norm,
                after_step=self._after_step,
            )
        finally:
            log.close()
        log.say(f"Training time: {self.watch.seconds:.2f}s")
        path = s.out_dir / self.file
        log.say(f"Saving {self.method.name} weights to '{path}'")
        self._save(path)
        memory = peak_memory_gb(self.fabric.device)
        log.say(f"Memory used: {memory:.2f} GB")
        result = {"steps": done, "samples": min(done * s.batch_size, self.samples), "tokens": self.tokens_done}
        result |= {"first_val_loss": first_loss, "val_loss": self.val_loss, "seconds": self.watch.seconds}
        write_json(s.out_dir / "run.json", self._describe() | {"result": result | {"memory_gb": memory}})
        log.say(
            f"val loss {first_loss:.4f} -> {self.val_loss:.4f}; "
            f"{s.out_dir}/: {self.file}, metrics.csv, loss.png, run.json"
        )
        log.say(
            f"Next: python generate/{self.method.name}.py --checkpoint_dir {s.checkpoint_dir} "
            f'--{self.method.name}_path {path} --prompt "..."'
        )

    def _after_step(self, step: int, loss: Tensor, tokens: int, rate: float) -> bool:
        """Logs, validates and saves when it is time; says whether the time is up. See `train`."""
        s = self.settings
        self.tokens_done += tokens
        samples = min(step * s.batch_size, self.samples)
        self.iters_done = math.ceil(samples / s.micro_batch_size)
        last = step == self.steps or self.watch.seconds >= s.time_limit
        if not (last or step % s.log_interval == 0 or step % s.eval_interval == 0 or step % s.save_interval == 0):
            self.log.progress(step)
            return False
        value = loss.item()  # waits for the device, so the time below is that of finished work
        if not math.isfinite(value):
            raise UserError(
                f"the loss of step {step} is {value}; lower --learning_rate or check the data; "
                f"what was saved before is in {s.out_dir}"
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

    def _validate(self) -> float:
        self.val_loss = validate(self.model, self.validation, self.fabric.device)
        return self.val_loss

    def _answer(self) -> str:
        """The model's answer to `eval_prompt`, up to its end-of-text token."""
        prompt = get_style(self.prompt_style).prompt(self.settings.eval_prompt)
        ids = self.tokenizer.encode(prompt, bos=self.tokenizer.use_bos)
        self.gpt.eval()
        with self.fabric.autocast():
            (answer,) = complete(self.gpt, [ids], self.settings.eval_max_new_tokens, stop_ids=[self.tokenizer.eos_id])
        self.gpt.train()
        return self.tokenizer.decode(answer)

    def _save(self, path: Path) -> None:
        facts = {"prompt_style": self.prompt_style, "base": base_identity(self.settings.checkpoint_dir)}
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
            "data": {key: self.meta.get(key) for key in ("name", "tokenizer", "sources", "licence")},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
            "commit": _commit(),
        }


def usable_samples(dataset: TokenDataset, max_length: int, long_samples: str, place: Path) -> list[int]:
    """The samples to train on: all, or those that fit, as `--long_samples` says; what is changed is printed.

    Raises:
        UserError: a sample is too long and nobody said what to do with it, or none is left.
    """
    long = [i for i, length in enumerate(dataset.lengths.tolist()) if length > max_length]
    if not long:
        return list(range(len(dataset)))
    longest = max(long, key=lambda i: int(dataset.lengths[i]))
    what = (
        f"{place}: {len(long)} of {len(dataset)} samples are longer than {max_length} tokens "
        f"(the longest, sample {longest}, has {int(dataset.lengths[longest])})"
    )
    if long_samples == "refuse":
        raise UserError(f"{what}; choose --long_samples drop or truncate, or another --max_seq_length")
    print(f"{what}: {'left out' if long_samples == 'drop' else 'cut, keeping the end-of-text token'}")
    if long_samples == "truncate":
        return list(range(len(dataset)))
    kept = sorted(set(range(len(dataset))) - set(long))
    if not kept:
        raise UserError(f"{place}: no sample fits into {max_length} tokens; raise --max_seq_length")
    return kept


def plan_length(s: "Finetune", batches: Batches) -> tuple[int, int]:
    """Steps and samples of the run: the shortest of the limits that were given."""
    limits = []
    if s.max_iters is not None or (s.max_steps is None and s.epochs is None):
        limits.append(max(1, (s.max_iters or 50_000) * s.micro_batch_size // s.batch_size))
    if s.max_steps is not None:
        limits.append(s.max_steps)
    if s.epochs is not None:
        limits.append(batches.steps(s.epochs))
    steps = min(limits)
    samples = steps * s.batch_size
    return steps, min(samples, s.epochs * len(batches.samples)) if s.epochs else samples


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

"""One finetuning run: what is trained on, how long, and what is logged, validated and saved on the way."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_gpt.archive import save
from lit_gpt.checkpoint import base_identity, load_file, load_trainable, read_finetuned, save_finetuned
from lit_gpt.data.batches import Batch
from lit_gpt.decode import complete
from lit_gpt.files import write_json
from lit_gpt.memory import give_back
from lit_gpt.methods import Method, describe, trainable_state
from lit_gpt.model import GPT
from lit_gpt.prompts import get_style
from lit_gpt.record import command_line
from lit_gpt.resume import OPTIMIZER, PROGRESS, Checkpoint, clear, save_step, thin_out
from lit_gpt.runlog import RunLog, Stopwatch, peak_memory_gb
from lit_gpt.settings import Stopped, UserError
from lit_gpt.stopping import CODES, Deadline, Signals
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
        told: the run's description, see `lit_gpt.record`.
        start: the checkpoint to go on from; None: from the beginning.
    """

    def __init__(
        self,
        fabric: "Fabric",
        settings: "Finetune",
        method: Method,
        model: GPT,
        work: Workload,
        tokenizer: Tokenizer,
        told: dict[str, Any],
        start: Checkpoint | None,
    ) -> None:
        self.fabric, self.settings, self.method, self.tokenizer = fabric, settings, method, tokenizer
        self.gpt, self.work, self.told = model, work, told
        trained = [p for p in model.parameters() if p.requires_grad]
        fused = (
            settings.precision != "16-mixed"
        )  # a fused AdamW unscales gradients itself, and could then not clip them
        options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": fused}
        self.model, self.optimizer = fabric.setup(model, torch.optim.AdamW(trained, **options))
        self.model.mark_forward_method("loss_sum")
        self.file = f"lit_model_{method.name}_finetuned.pth"
        self.step = self.tokens = self.worse = 0
        self.seconds = spent = 0.0
        self.first_loss: float | None = None
        self.val_loss: float | None = None
        self.best: dict[str, Any] | None = None
        if start:
            spent = self._restore(start)
        clear(settings.out_dir, self.step)
        rows = start.folder.parent / "metrics.csv" if start else None
        told_loggers = {**asdict(settings), **describe(method)}
        self.log = RunLog(settings.out_dir, settings.loggers, told_loggers, work.steps, self.step, rows)
        lost = max(0.0, self.log.seconds - self.seconds)  # trained by a killed process after its last checkpoint
        self.deadline = Deadline(settings.time_limit, spent + lost, self._state_bytes())
        self.signals = Signals()

    def _restore(self, start: Checkpoint) -> float:
        """Takes over a checkpoint; returns the seconds that the run has spent."""
        hint = "try an earlier checkpoint with --resume"
        load_trainable(self.gpt, read_finetuned(start.folder)["weights"], start.folder)
        state = load_file(start.folder / OPTIMIZER, hint)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        progress = start.progress
        self.step, self.tokens, self.seconds = (progress[key] for key in ("step", "tokens", "seconds"))
        self.first_loss, self.val_loss = progress["first_val_loss"], progress["val_loss"]
        self.best, self.worse = progress["best"], progress["worse"]
        return progress["spent"]

    def go(self) -> None:
        """Trains, validates before and after, saves, and writes `run.json`."""
        s, log, started = self.settings, self.log, self.step
        trainable = sum(p.numel() for p in self.gpt.parameters() if p.requires_grad)
        log.say(f"Number of trainable parameters: {trainable:,}")
        frozen = sum(p.numel() for p in self.gpt.parameters() if not p.requires_grad)
        log.say(f"Number of non trainable parameters: {frozen:,}")
        log.say(self.work.length())
        with log:
            if s.compile:
                self._compile()
            if started:
                log.say(f"Going on after step {started:,}")
            else:
                log.say("Validating ...")
                self.first_loss = self._validate()
                log.say(f"step 0: val loss {self.first_loss:.4f}")
            self.watch = Stopwatch(self.seconds)
            self._mark = (self.seconds, self.tokens, started)
            with self.signals:
                self.step = train(
                    self.fabric,
                    self.model,
                    self.optimizer,
                    self.work.batches,
                    start=started,
                    steps=self.work.steps,
                    samples=self.work.samples,
                    seed=s.seed,
                    schedule=self._rate,
                    max_norm=s.clip_norm,
                    after_batch=self._after_batch,
                    after_step=self._after_step,
                )
                log.say(f"Training time: {self.watch.seconds:.2f}s")
                path = s.out_dir / self.file
                log.say(f"Saving {self.method.name} weights to '{path}'")
                self._save_weights(path)  # before the log ends: a plot that fails must not cost what was trained
        self._tell(path)

    def _tell(self, path: Path) -> None:
        """Writes `run.json` and says how it went and what comes next."""
        s, say, memory = self.settings, self.log.say, peak_memory_gb(self.fabric.device)
        say(f"Memory used: {memory:.2f} GB, planned: {self.work.planned_gb:.2f} GB")
        result = {"steps": self.step, "samples": self.work.samples_after(self.step), "tokens": self.tokens}
        result |= {"memory_gb": memory, "planned_gb": self.work.planned_gb, "first_val_loss": self.first_loss}
        result |= {"val_loss": self.val_loss, "best": self.best, "seconds": self.watch.seconds}
        told = self.told | {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "result": result}
        write_json(s.out_dir / "run.json", told)
        say(
            f"val loss {self.first_loss:.4f} -> {self.val_loss:.4f}; "
            f"{s.out_dir}/: {self.file}, metrics.csv, loss.png, run.json"
        )
        if self.best and self.best["step"] != self.step:
            say(
                f"lowest val loss {self.best['val_loss']:.4f} after step {self.best['step']:,}: {self._folder(self.best['step'])}/"
            )
        say(
            f"Next: python generate/{self.method.name}.py --checkpoint_dir {s.checkpoint_dir} "
            f'--{self.method.name}_path {path} --prompt "..."'
        )

    def _rate(self, step: int) -> float:
        """The learning rate of a step. The schedule ends with the last step that fits into `max_time`."""
        s, steps = self.settings, int(min(self.work.steps, step + max(1, self.deadline.fitting())))
        return learning_rate(step, steps, self.work.warmup(steps), s.learning_rate, s.min_lr)

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
        """Logs, validates and saves when it is time; says whether the run ends. See `train`.

        Raises:
            UserError: the loss is no number.
            Stopped: a signal came; a checkpoint is saved.
        """
        s = self.settings
        self.step, self.tokens = step, self.tokens + tokens
        self.deadline.count(step)
        evaluate, checkpoint = step % s.eval_interval == 0, step % s.save_interval == 0
        on_the_way = evaluate * self.deadline.validating + checkpoint * self.deadline.saving
        last = step == self.work.steps or self.deadline.fitting(on_the_way) < 1
        if last or evaluate or checkpoint or step % s.log_interval == 0:
            improved = self._log(loss, rate, evaluate or last)
        else:
            self.log.progress(step)
            improved = False
        if evaluate and not last and s.early_stop_patience and self.worse >= s.early_stop_patience:
            self.log.say(f"step {step}: no lower val loss in {self.worse} validations, so the run ends here")
            last = True
        if not last and (checkpoint or improved or self.signals.received):
            self.watch.pause()
            self._checkpoint()
            self.watch.resume()
        if self.signals.received and not last:
            raise Stopped(
                f"stopped by {self.signals.received.name} after step {step:,}, saved in {self._folder(step)}; "
                f"go on with: {command_line()}",
                CODES[self.signals.received],
            )
        return last

    def _log(self, loss: Tensor, rate: float, evaluate: bool) -> bool:
        """Writes a row of the log; whether it has the lowest validation loss so far."""
        s, value = self.settings, loss.item()  # waits for the device, so the time below is that of finished work
        if not math.isfinite(value):
            samples_read = self.work.batches.step_samples(self.step - 1, self.work.samples)
            raise UserError(
                f"the loss of step {self.step} is {value}, on samples {', '.join(map(str, samples_read[:8]))} ... of "
                f"{s.data_dir}; lower --learning_rate or look at them; what was saved before is in {s.out_dir}"
            )
        self.watch.pause()
        seconds, then = self.watch.seconds, self._mark
        samples = self.work.samples_after(self.step)
        iters = math.ceil(samples / s.micro_batch_size)
        row: dict[str, Any] = {"step": self.step, "iter": iters, "samples": samples, "tokens": self.tokens}
        row["loss"] = value
        if evaluate:
            row["val_loss"] = self._validate()
        row["learning_rate"] = rate
        row["tokens_per_second"] = (self.tokens - then[1]) / max(seconds - then[0], 1e-9)
        row["seconds"], row["memory_gb"] = seconds, peak_memory_gb(self.fabric.device)
        iters_since = math.ceil(s.batch_size / s.micro_batch_size) * (self.step - then[2])
        self.log.step(row, 1000 * (seconds - then[0]) / max(1, iters_since))
        self._mark = (seconds, self.tokens, self.step)
        if evaluate and s.eval_prompt:
            self.log.say(f"step {self.step}: {s.eval_prompt!r} -> {self._answer()!r}")
        self.watch.resume()
        if not evaluate:
            return False
        if self.best and self.val_loss >= self.best["val_loss"]:
            self.worse += 1
            return False
        self.best, self.worse = {"step": self.step, "val_loss": self.val_loss}, 0
        return True

    def _after_batch(self) -> None:
        if self.fabric.device.type == "cpu":
            give_back(1e9 * self.work.planned_gb)

    def _validate(self) -> float:
        began = time.monotonic()
        self.val_loss = validate(self.model, self.work.validation, self.fabric.device)
        self.deadline.validating = time.monotonic() - began
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

    def _folder(self, step: int) -> Path:
        return self.settings.out_dir / f"step-{step:06d}"

    def _checkpoint(self) -> None:
        """Saves everything that it takes to go on from here exactly, and removes checkpoints that are not kept."""
        s, began = self.settings, time.monotonic()
        progress = {"step": self.step, "tokens": self.tokens, "seconds": self.watch.seconds}
        progress |= {"spent": self.deadline.spent, "first_val_loss": self.first_loss, "val_loss": self.val_loss}
        progress |= {"best": self.best, "worse": self.worse, "run": self.told}
        state = {"optimizer": self.optimizer.state_dict(), "precision": self.fabric.strategy.precision.state_dict()}
        files = {
            self.file: self._save_weights,
            OPTIMIZER: lambda path: save(path, state),
            PROGRESS: lambda path: write_json(path, progress),
        }
        self.log.flush()  # its rows up to here belong to the checkpoint
        save_step(self._folder(self.step), self._state_bytes(), files)
        thin_out(s.out_dir, self.step, s.keep_last, self.best["step"] if self.best else None)
        self.deadline.saving = time.monotonic() - began

    def _state_bytes(self) -> float:
        """Bytes of a checkpoint: values and two moments of what is trained, and a little besides."""
        return 3.0 * sum(p.numel() * p.element_size() for p in self.gpt.parameters() if p.requires_grad) + 1e6

    def _save_weights(self, path: Path) -> None:
        if broken := [name for name, weight in trainable_state(self.gpt).items() if not weight.isfinite().all()]:
            raise UserError(
                f"after step {self.step} {broken[0]} holds values that are no numbers, so it is not saved; lower "
                f"--learning_rate; what was saved before is in {self.settings.out_dir}"
            )
        facts = {"prompt_style": self.work.prompt_style, "base": base_identity(self.settings.checkpoint_dir)}
        facts["quantize"] = self.settings.quantize
        save_finetuned(path, self.gpt, self.method, facts)

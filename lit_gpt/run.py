"""One finetuning run: what is trained on, how long, and what is logged, validated and saved on the way."""

import collections
import contextlib
import itertools
import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lit_gpt import optim
from lit_gpt.archive import save
from lit_gpt.checkpoint import base_identity, load_file, load_trainable, read_finetuned, save_finetuned
from lit_gpt.compiling import compile_blocks
from lit_gpt.data.batches import Batch
from lit_gpt.decode import complete
from lit_gpt.files import part, write_json
from lit_gpt.memory import give_back, memory_error_explained
from lit_gpt.methods import Method, describe, file_of, path_flag, trainable_state
from lit_gpt.model import GPT
from lit_gpt.prompts import Turn, get_style
from lit_gpt.ranks import Ranks, divide_state, parted, put_together
from lit_gpt.record import command_line, identity
from lit_gpt.resume import OPTIMIZER, PROGRESS, Checkpoint, Progress, clear, save_step, steps_saved, thin_out
from lit_gpt.runlog import NoLog, RunLog, Stopwatch, peak_memory_gb
from lit_gpt.settings import Stopped, UserError
from lit_gpt.stopping import CODES, DISK, Deadline, Pace, Signals
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.train import learning_rate, train, validate
from lit_gpt.workload import Workload

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from lit_gpt.finetune import Finetune


class Run:
    """A finetuning run over a model that a method is attached to.

    Args:
        fabric: launched and seeded.
        model: in training mode; it is divided here if `ranks` are to be.
        told: the run's description, see `lit_gpt.record`.
        start: the checkpoint to go on from; None: from the beginning.
        ranks: the processes of the run. All of them do what is done here, at the same steps; one of them writes.
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
        ranks: Ranks,
    ) -> None:
        self.fabric, self.settings, self.method, self.tokenizer = fabric, settings, method, tokenizer
        self.model, self.gpt = fabric.setup_module(model, move_to_device=False), model
        self.work, self.told, self.ranks = work, told, ranks
        trained = [p for p in model.parameters() if p.requires_grad]
        ranks.align(trained)
        fused = (
            settings.precision != "16-mixed"
        )  # a fused AdamW unscales gradients itself, and could then not clip them
        options = (settings.optimizer, settings.learning_rate, settings.weight_decay, fused)
        self.optimizer = fabric.setup_optimizers(optim.build(model, method, *options))
        self.file = file_of(method.name)
        # values, two moments in float32, of a 16-bit weight its float32 copy as well, and a little besides
        self.state_bytes = sum(p.numel() * (14 if p.element_size() == 2 else 12) for p in trained) + 1e6
        self.progress = start.progress if start else Progress(pace=Pace(save=self.state_bytes / DISK))
        if start:
            self._restore(start.folder)
        rows = start.folder.parent / "metrics.csv" if start else None
        told_loggers = {**asdict(settings), **describe(method)}
        options = (settings.out_dir, settings.loggers, told_loggers, work.steps, self.progress.step, rows)
        self.log = RunLog(*options) if ranks.leads else NoLog()
        ranks.wait()  # all have read their checkpoint
        if ranks.leads:
            clear(settings.out_dir, self.progress.step)  # now that nothing else can fail
        lost = max(0.0, self.log.seconds - self.progress.seconds)  # what a killed process trained after it saved
        self.deadline = Deadline(settings.time_limit, self.progress.spent + lost, self.progress.pace)
        self.signals = Signals(tell=ranks.leads)

    def _restore(self, folder: Path) -> None:
        """Takes over the weights and the optimizer's state of a checkpoint."""
        load_trainable(self.gpt, read_finetuned(folder, lazy=True)["weights"], folder)
        state = load_file(folder / OPTIMIZER, "try an earlier checkpoint with --resume", lazy=True)
        divide_state(state["optimizer"], [p for group in self.optimizer.param_groups for p in group["params"]])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])

    def go(self) -> None:
        """Trains, validates before and after, saves, and writes `run.json`."""
        s, log, progress = self.settings, self.log, self.progress
        trainable = sum(p.numel() for p in self.gpt.parameters() if p.requires_grad)
        log.say(f"Number of trainable parameters: {trainable:,}")
        frozen = sum(count(p) for p in self.gpt.parameters() if not p.requires_grad)
        log.say(f"Number of non trainable parameters: {frozen:,}")
        log.say(self.work.length())
        with self.signals:
            with log:
                if s.compile:
                    compile_blocks(self.fabric, self.model, self.gpt, self.optimizer, self.work, log.say)
                if progress.step:
                    log.say(f"Going on after step {progress.step:,}")
                else:
                    log.say("Validating ...")
                    progress.first_val_loss = self._validate()
                    log.say(f"step 0: val loss {progress.first_val_loss:.4f}")
                if self._fitting() < 1:
                    log.say(f"warning: --max_time {s.max_time} is over, or nearly; one step is made all the same")
                self._train()
                path = s.out_dir / self.file
                log.say(f"Saving {self.method.name} weights to '{path}'")
                self._save(path)  # before the log ends: a plot that fails must not cost what was trained
            self._tell(path)

    def _train(self) -> None:
        progress = self.progress
        self.watch = Stopwatch(progress.seconds)
        self._mark = (progress.seconds, progress.tokens, progress.step)
        self.signals.waiting = True
        train(
            self.fabric,
            self.model,
            self.optimizer,
            self.work.batches,
            start=progress.step,
            steps=self.work.steps,
            samples=self.work.samples,
            seed=self.settings.seed,
            schedule=self._rate,
            max_norm=self.settings.clip_norm,
            guard=self._guard,
            after_batch=self._after_batch,
            after_step=self._after_step,
            ranks=self.ranks,
        )
        progress.seconds = self.watch.seconds
        self.log.say(f"Training time: {progress.seconds:.2f}s; {progress.saves} saves: {progress.saving:.2f}s")

    def _tell(self, path: Path) -> None:
        """Writes `run.json` and says how it went and what comes next."""
        s, say, memory = self.settings, self.log.say, self._memory()
        if not self.ranks.leads:
            return
        say(f"Memory used: {memory:.2f} GB, planned: {self.work.planned_gb:.2f} GB")
        done = self.progress
        result = {"steps": done.step, "samples": self.work.samples_after(done.step), "tokens": done.tokens}
        result |= {"memory_gb": memory, "planned_gb": self.work.planned_gb, "first_val_loss": done.first_val_loss}
        result |= {"val_loss": done.val_loss, "best": done.best, "seconds": done.seconds}
        result |= {"saves": done.saves, "saving": done.saving}
        told = self.told | {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "result": result}
        write_json(s.out_dir / "run.json", told)
        say(
            f"val loss {done.first_val_loss:.4f} -> {done.val_loss:.4f}; "
            f"{s.out_dir}/: {self.file}, metrics.csv, loss.png, run.json"
        )
        if done.best and done.best["step"] != done.step:
            step, loss = done.best["step"], done.best["val_loss"]
            say(f"lowest val loss {loss:.4f} after step {step:,}: {self._folder(step)}/")
        say(
            f"Next: python generate/{self.method.name}.py --checkpoint_dir {s.checkpoint_dir} "
            f'--{path_flag(self.method.name)} {path} --prompt "..."'
        )

    def _fitting(self, extra: float = 0.0) -> float:
        """Steps that fit into `max_time` after `extra` seconds, by the clock of the rank that leads."""
        fitting = self.deadline.fitting(extra)
        return self.ranks.first(fitting) if self.settings.max_time else fitting

    def _memory(self) -> float:
        """Peak memory in GB, of the device that took most."""
        return self.ranks.most(peak_memory_gb(self.fabric.device))

    def _rate(self, step: int) -> float:
        """The learning rate of a step. The schedule ends with the last step that fits into `max_time`."""
        s, steps = self.settings, int(min(self.work.steps, step + max(1, self._fitting())))
        return learning_rate(step, steps, self.work.warmup(steps), s.learning_rate, s.min_lr)

    def _after_step(self, step: int, loss: Tensor, tokens: int, rate: float) -> bool:
        """Logs, validates and saves when it is time; says whether the run ends. See `train`.

        Raises:
            UserError: the loss is no number.
            Stopped: a signal came; a checkpoint is saved.
        """
        s, progress = self.settings, self.progress
        progress.step, progress.tokens = step, progress.tokens + tokens
        self.deadline.count()
        evaluate, checkpoint = step % s.eval_interval == 0, step % s.save_interval == 0
        on_the_way = evaluate * progress.pace.validation + checkpoint * progress.pace.save
        last = self._fitting(on_the_way) < 1 or step == self.work.steps
        if last or evaluate or checkpoint or step % s.log_interval == 0:
            improved = self._log(loss, rate, evaluate or last)
        else:
            self.log.progress(step)
            improved = False
        if evaluate and not last and s.early_stop_patience and progress.worse >= s.early_stop_patience:
            self.log.say(f"step {step}: no lower val loss in {progress.worse} validations, so the run ends here")
            last = True
        if heard := self.ranks.most(self.signals.received or 0):  # by any rank
            self.signals.received = signal.Signals(int(heard))
        if not last and (checkpoint or improved or heard):
            self.watch.pause()
            self._checkpoint()
            self.watch.resume()
        if heard and not last:
            raise Stopped(
                f"stopped by {self.signals.received.name} after step {step:,}, saved in {self._folder(step)}; "
                f"go on with: {command_line(without='--resume')}",
                CODES[self.signals.received],
            )
        return last

    def _log(self, loss: Tensor, rate: float, evaluate: bool) -> bool:
        """Writes a row of the log; whether it has the lowest validation loss so far."""
        s, progress = self.settings, self.progress
        value = loss.item()  # waits for the device, so the time below is that of finished work
        if not math.isfinite(value):
            read = self.work.batches.step_samples(progress.step - 1, self.work.samples)
            raise UserError(
                f"the loss of step {progress.step} is {value}, on samples {', '.join(map(str, read[:8]))} ... of "
                f"{s.data_dir}; look at them, or start anew with a lower --learning_rate; {self._saved()}"
            )
        self.watch.pause()
        seconds, then = self.watch.seconds, self._mark
        samples = self.work.samples_after(progress.step)
        iters = math.ceil(samples / s.micro_batch_size)
        row: dict[str, Any] = {"step": progress.step, "iter": iters, "samples": samples, "tokens": progress.tokens}
        row["loss"] = value
        if evaluate:
            row["val_loss"] = self._validate()
        row["learning_rate"] = rate
        row["tokens_per_second"] = (progress.tokens - then[1]) / max(seconds - then[0], 1e-9)
        row["seconds"], row["memory_gb"] = seconds, self._memory()
        iters_since = math.ceil(s.batch_size / s.micro_batch_size) * (progress.step - then[2])
        self.log.step(row, 1000 * (seconds - then[0]) / max(1, iters_since))
        self._mark = (seconds, progress.tokens, progress.step)
        self.watch.resume()
        if not evaluate:
            return False
        if progress.best and progress.val_loss >= progress.best["val_loss"]:
            progress.worse += 1
            return False
        progress.best, progress.worse = {"step": progress.step, "val_loss": progress.val_loss}, 0
        return True

    def _guard(self, batch: Batch) -> contextlib.AbstractContextManager[None]:
        """Explains what did not fit into memory, and with which flags the run can go on."""

        def explain() -> str:
            return (
                f" after step {self.progress.step}, in a batch of {batch.idx_BT.numel():,} tokens (samples "
                f"{', '.join(map(str, batch.samples[:8]))} ...); {self.work.advice(batch)}"
            )

        return memory_error_explained(explain)

    def _after_batch(self) -> None:
        if self.fabric.device.type == "cpu":
            give_back(1e9 * self.work.planned_gb)

    def _validate(self) -> float:
        began = time.monotonic()
        work, ranks = self.work.validation, self.ranks
        with self.fabric.autocast():
            self.progress.val_loss = validate(self.model, work, self.fabric.device, self._guard, ranks)
        if self.settings.eval_prompt and (ranks.leads or ranks.sharded):
            self.log.say(f"step {self.progress.step}: {self.settings.eval_prompt!r} -> {self._answer()!r}")
        if ranks.sharded:
            self.gpt.reshard()  # evaluation leaves what is outside the blocks whole
        self.progress.pace.validation = time.monotonic() - began
        return self.progress.val_loss

    def _answer(self) -> str:
        """The model's answer to `eval_prompt`, up to the token that ends it."""
        style = get_style(self.work.prompt_style)
        ids = style.encode_prompt(self.tokenizer, (Turn("user", self.settings.eval_prompt),))
        ends = style.stop_ids(self.tokenizer)
        stops = [] if self.ranks.sharded else ends  # divided weights need all ranks to make equally many passes
        self.gpt.eval()
        with self.fabric.autocast():
            (answer,) = complete(self.gpt, [ids], self.settings.eval_max_new_tokens, stop_ids=stops)
        self.gpt.train()
        return self.tokenizer.decode(list(itertools.takewhile(lambda token: token not in ends, answer)))

    def _saved(self) -> str:
        """Where the last checkpoint is, in words."""
        saved = steps_saved(self.settings.out_dir)
        return f"the last checkpoint is {saved[-1]}" if saved else "no checkpoint was saved yet"

    def _folder(self, step: int) -> Path:
        return self.settings.out_dir / f"step-{step:06d}"

    def _checkpoint(self) -> None:
        """Saves everything that it takes to go on from here exactly, and removes checkpoints that are not kept."""
        s, progress, began = self.settings, self.progress, time.monotonic()
        progress.seconds, progress.spent, progress.saves = self.watch.seconds, self.deadline.spent, progress.saves + 1
        weights, files = self._weights(), {}
        share, own = self.ranks.share(weights.values()), parted(weights)
        state = {"optimizer": parted(self.optimizer.state_dict())}
        state["precision"] = self.fabric.strategy.precision.state_dict()
        if share[0] == self.ranks.rank:  # of what all hold, the first one writes
            named = (self.gpt, self.method, self._facts())
            files[part(Path(self.file), *share).name] = lambda path: save_finetuned(path, *named, own)
            files[part(Path(OPTIMIZER), *share).name] = lambda path: save(path, state)
        if self.ranks.leads:
            files[PROGRESS] = lambda path: write_json(path, asdict(progress) | {"run": self.told})
        self.log.flush()  # its rows up to here belong to the checkpoint
        save_step(self._folder(progress.step), self.state_bytes, files, self.ranks)
        if self.ranks.leads:
            thin_out(s.out_dir, progress.step, s.keep_last, progress.best["step"] if progress.best else None)
        progress.pace.save = time.monotonic() - began
        progress.saving += progress.pace.save

    def _save(self, path: Path) -> None:
        """Writes what was trained into one file, put together tensor by tensor."""
        weights = self._weights()
        tensors = put_together(weights)
        if self.ranks.leads:
            save_finetuned(path, self.gpt, self.method, self._facts(), weights, tensors)
        else:
            collections.deque(tensors, maxlen=0)

    def _weights(self) -> dict[str, Tensor]:
        """What is trained.

        Raises:
            UserError: on all ranks, if any holds values that are no numbers.
        """
        weights = trainable_state(self.gpt)
        own = parted(list(weights.values()))
        broken = next((index for index, weight in enumerate(own) if not weight.isfinite().all()), len(own))
        broken = -int(self.ranks.most(-broken))
        if broken < len(own):
            raise UserError(
                f"after step {self.progress.step} {list(weights)[broken]} holds values that are no numbers, so it is "
                f"not saved; start anew with a lower --learning_rate; {self._saved()}"
            )
        return weights

    def _facts(self) -> dict[str, Any]:
        """What is saved beside the weights."""
        s = self.settings
        run = identity(self.told) | {"step": self.progress.step}
        run.pop("base config", None)  # follows from its weights
        return {
            "prompt_style": self.work.prompt_style,
            "base": base_identity(s.checkpoint_dir),
            "quantize": s.quantize,
            "run": run,
        }


def count(parameter: Tensor) -> int:
    """Its numbers, of which bitsandbytes packs two of 4 bits into an element."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)

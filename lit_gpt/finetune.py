"""Finetuning, from settings to a file of trained weights: load, attach, data, train, save."""

import contextlib
import math
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_gpt import processes
from lit_gpt.files import locked, results_folder
from lit_gpt.methods import Full, Method, describe
from lit_gpt.settings import UserError, at_least, check_seed

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from lit_gpt.ranks import Ranks

Precision = Literal["bf16-true", "bf16-mixed", "16-mixed", "32-true"]
Quantize = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8-training"]


MOST_SAMPLES = 1 << 20
"""Of a step; more is a slip of the pen."""


@dataclass
class Finetune:
    """Settings of every finetuning method. An iter is one micro-batch, a step one update of the weights."""

    checkpoint_dir: Path
    """Folder of the converted base model."""
    data_dir: Path = Path("data/alpaca")
    """Folder of the prepared data (scripts/prepare_*.py)."""
    out_dir: Path = Path("out/lora/alpaca")
    """Folder for the results."""
    init_from: Path | None = None
    """What was trained before, to start from: a file or folder of the same method, or an adapter of PEFT."""
    precision: Precision = "bf16-true"
    """Type of weights and arithmetic; what is trained stays float32."""
    quantize: Quantize | None = None
    """Hold the base's linear layers in 4 or 8 bits (QLoRA); needs a -true precision."""
    learning_rate: float = 3e-4
    """Highest learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; unset: 100, at most a tenth of the run."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    """AdamW with float32 moments, or bitsandbytes' with moments of 8 bits, which can leave the GPU in pages."""
    neftune_alpha: float | None = None
    """Noise on the embeddings in training (NEFTune, arXiv 2310.05914: 5 to 15); unset: none."""
    clip_norm: float | None = 1.0
    """Gradients are scaled down to this norm; null: never."""
    batch_size: int = 128
    """Samples of one step."""
    micro_batch_size: int = 4
    """Samples of an iter, and of a forward pass when they are padded (--pack_length 0)."""
    pack_length: int | None = None
    """Tokens of a forward pass: as many samples as fit, one after the other; unset: 2048, on the CPU 1024, or 640 where
    it has AMX; 0: pad micro-batches instead."""
    share_prefix: bool = True
    """Compute tokens that samples have in common, such as the prompt template, once per pack."""
    max_iters: int | None = None
    """End after this many micro-batches; unset: 50000, unless another limit is given."""
    max_steps: int | None = None
    """End after this many steps."""
    epochs: int | None = None
    """End after this many passes over the data."""
    max_time: str | None = None
    """End within this much time, such as 23h30m, 45m or 90s: from the start of the command to the last save. The
    learning rate ends with it; a resumed run goes on counting."""
    early_stop_patience: int | None = None
    """End after this many validations in a row without a lower loss."""
    max_seq_length: int | None = None
    """Longest sample in tokens; unset: the model's context."""
    long_samples: Literal["refuse", "drop", "truncate"] = "refuse"
    """What to do with longer samples; truncate keeps the end-of-text token."""
    memory_gb: float | None = None
    """Memory that the run may take in GB, on the CPU besides the libraries; unset: what the GPU has, on the CPU no
    limit."""
    low_memory: bool = False
    """Recompute all blocks in the backward pass, on the CPU give freed memory back at once: slower, least memory."""
    compile: bool = False
    """Compile the blocks at the start, for packs of one length; says what that costs and when it pays."""
    dry_run: bool = False
    """Print the plan of the memory, check the data, train on the largest pack and save it for a try, and end with the
    time that the run will take."""
    eval_interval: int = 100
    """Steps between validations."""
    eval_iters: int = 100
    """Micro-batches of a validation, always the same ones."""
    eval_prompt: str | None = None
    """An instruction to answer at every validation."""
    eval_max_new_tokens: int = 100
    """Longest such answer in tokens."""
    save_interval: int = 100
    """Steps between checkpoints; every validation with the lowest loss so far and every signal saves one, too."""
    keep_last: int = 2
    """Checkpoints to keep, besides that with the lowest validation loss."""
    resume: str = "auto"
    """Whether to go on from the newest checkpoint in --out_dir (auto), from a checkpoint's folder, or to start anew and
    remove them (never)."""
    log_interval: int = 1
    """Steps between log lines."""
    loggers: list[str] = field(default_factory=list)
    """Further logs: tensorboard, wandb."""
    devices: int = 1
    """Number of devices: GPUs, or processes on a CPU; each computes a part of every step's samples."""
    num_nodes: int = 1
    """Number of machines with so many devices each; the command is then started by torchrun or Slurm."""
    shard: bool | None = None
    """Divide the base's weights over the devices (FSDP) instead of having all on each; unset: if they would not fit."""
    seed: int = 1337
    """Seed of initialisation, order of the data and dropout."""
    deterministic: bool = False
    """On a GPU, use only what gives the same bits every time; on the CPU that is always so."""

    def __post_init__(self) -> None:
        at_least(1, self, "batch_size", "micro_batch_size", "max_iters", "max_steps", "epochs")
        at_least(1, self, "early_stop_patience", "keep_last", "devices", "num_nodes")
        at_least(2, self, "max_seq_length")
        at_least(0, self, "warmup_steps", "weight_decay")
        at_least(1, self, "eval_interval", "eval_iters", "save_interval", "log_interval", "eval_max_new_tokens")
        if self.batch_size > MOST_SAMPLES:
            raise UserError(f"--batch_size: at most {MOST_SAMPLES:,}, got {self.batch_size}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"--clip_norm: must be positive, or null for never, got {self.clip_norm}")
        if self.pack_length and not 64 <= self.pack_length <= 2**20:
            raise UserError(f"--pack_length: must be 0 or from 64 to 1,048,576, got {self.pack_length}")
        check_seed(self.seed)
        if self.neftune_alpha is not None and not self.neftune_alpha > 0:
            raise UserError(f"--neftune_alpha: must be positive, got {self.neftune_alpha}")
        if self.batch_size % self.micro_batch_size:
            raise UserError(
                f"--batch_size {self.batch_size} is not a multiple of --micro_batch_size {self.micro_batch_size}"
            )
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise UserError(f"--memory_gb: must be positive, got {self.memory_gb}")
        if not self.learning_rate > 0 or not 0 <= self.min_lr <= self.learning_rate:
            raise UserError(
                f"--learning_rate {self.learning_rate}: must be positive and not below --min_lr {self.min_lr}"
            )
        if self.batch_size < self.world:
            raise UserError(f"--batch_size {self.batch_size}: too few samples for {self.world} devices, one for each")
        if self.shard and (self.world == 1 or self.undivided()):
            raise UserError(f"--shard does not work with {self.undivided() or '--devices 1'}; leave one of them out")
        if unknown := [name for name in self.loggers if name not in ("tensorboard", "wandb")]:
            raise UserError(f"--loggers: unknown {unknown[0]}; known are tensorboard and wandb")
        if self.quantize and not self.precision.endswith("-true"):
            raise UserError(f"--quantize {self.quantize} needs --precision bf16-true or 32-true, got {self.precision}")
        if self.compile and self.pack_length == 0:
            raise UserError("--compile needs packs, which all have one shape; give a --pack_length")
        if self.compile and self.quantize:
            raise UserError("--compile does not work with quantised layers; leave it or --quantize out")
        self.time_limit = duration(self.max_time)

    @property
    def world(self) -> int:
        """Processes of the run: one for each device of every node."""
        return self.devices * self.num_nodes

    @property
    def mixed(self) -> bool:
        """Whether products are in 16 bits though weights have 32."""
        return self.precision.endswith("-mixed")

    def undivided(self) -> str | None:
        """The setting that asks for whole weights on every device; None if there is none."""
        if self.optimizer != "adamw":
            return f"--optimizer {self.optimizer}"
        reasons = {"--quantize": self.quantize, "--compile": self.compile}
        reasons["--precision 16-mixed"] = self.precision == "16-mixed"
        return next((flag for flag, given in reasons.items() if given), None)


def duration(text: str | None) -> float:
    """Seconds of a text such as "23h30m"; infinity for None.

    Raises:
        UserError: the text is no duration.
    """
    if text is None:
        return math.inf
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    if not text or not found:
        raise UserError(f"--max_time: '{text}' is no duration; write it like 23h30m, 45m or 90s")
    return float(sum(int(n or 0) * unit for n, unit in zip(found.groups(), (86400, 3600, 60, 1), strict=True)))


def finetune(settings: Finetune, method: Method) -> None:
    """Finetunes a model."""
    rank = processes.number(settings.world)
    if settings.quantize and isinstance(method, Full):
        raise UserError("--quantize: full finetuning trains these weights; leave it out, or take finetune/lora.py")
    if settings.world == 1 or settings.dry_run:
        take_part(settings, method)
    elif rank is not None:
        with processes.member(rank):
            take_part(settings, method)
    elif settings.num_nodes == 1:
        processes.start(settings.devices)
    else:
        raise UserError(f"--num_nodes {settings.num_nodes}: start the command by torchrun or srun; see the README")


def take_part(settings: Finetune, method: Method) -> None:
    """What each process of a run does."""
    # torch and lightning come now: --help does not wait for them
    import torch

    from lit_gpt.checkpoint import DTYPES, begin_with, default_device, load_gpt
    from lit_gpt.config import Config
    from lit_gpt.data.dataset import TokenDataset, check_tokenizer
    from lit_gpt.ranks import Ranks
    from lit_gpt.record import describe_run
    from lit_gpt.rehearsal import check_data, rehearse
    from lit_gpt.resume import find, finished
    from lit_gpt.run import Run
    from lit_gpt.tokenizer import Tokenizer
    from lit_gpt.workload import Workload, usual_pack_length

    if settings.pack_length is None:
        settings.pack_length = usual_pack_length(default_device())
    several = settings.world > 1 and not settings.dry_run
    ranks = Ranks(0, settings.world)
    fabric = launch(settings, ranks) if several else None  # at once, so that they know if one of them fails
    tokenizer = Tokenizer(settings.checkpoint_dir)
    splits = {split: TokenDataset(settings.data_dir, split) for split in ("train", "test")}
    check_tokenizer(splits["train"].meta, tokenizer)
    config = Config.from_checkpoint(settings.checkpoint_dir)
    work = Workload(settings, splits, config, ranks)
    fabric = fabric or launch(settings, ranks)
    print({**{key: str(v) if isinstance(v, Path) else v for key, v in asdict(settings).items()}, **describe(method)})
    if fabric.device.type == "cpu":
        print(f"PyTorch sees no GPU: training on the CPU, threads: {torch.get_num_threads()}")
    dtype = DTYPES[settings.precision]
    work.fit(method, dtype, fabric.device)
    if settings.dry_run:
        check_data(splits, tokenizer, settings.data_dir)
        weights = settings.checkpoint_dir / "lit_model.pth"
        if settings.world > 1 or not weights.is_file():
            print(
                f"no step is tried: {f'{weights} is not there' if settings.world == 1 else 'it would take all devices'}"
            )
            return
    out = settings.out_dir
    found = {}, False, None
    with contextlib.ExitStack() as stack:
        if ranks.leads and not settings.dry_run:  # it alone reads the folder before it alone writes there
            results_folder(out)
            told = describe_run(settings, method, config, splits, fabric.device)
            busy = f"--out_dir {out}: another run is at work there; wait for it or choose another folder"
            stack.enter_context(locked(out / ".lock", busy))
            done = settings.resume == "auto" and finished(out, told)
            found = told, done, None if done else find(out, settings.resume, told)
        told, done, start = ranks.shared(found)
        if done:
            print(
                f"{out} holds this run, finished: nothing to do; --resume never starts it anew, "
                "--resume with one of its checkpoints goes on from there"
            )
        else:
            place = "cpu" if work.divide else fabric.device
            model = load_gpt(settings.checkpoint_dir, dtype, quantize=settings.quantize, device=place)
            method.attach(model)
            if settings.init_from and not start:
                begin_with(model, method, settings.init_from, settings.checkpoint_dir)
            model.noise = settings.neftune_alpha
            ranks.sharded = work.divide
            if settings.dry_run:
                rehearse(fabric, settings, method, model.train(), work)
                return
            Run(fabric, settings, method, model.train(), work, tokenizer, told, start, ranks).go()
        ranks.leave()


def launch(settings: Finetune, ranks: "Ranks") -> "Fabric":
    """Lightning's Fabric for these settings, seeded; `ranks` learns its number.

    Raises:
        UserError: the device cannot compute in the chosen precision, or there are too few.
    """
    import logging
    import sys

    import torch

    Fabric = import_fabric()
    # In "true" precisions the base is loaded in its type and what is trained stays float32, so nothing is converted.
    precision = "32-true" if settings.precision.endswith("-true") else settings.precision
    if torch.cuda.is_available() and "bf16" in settings.precision and not torch.cuda.is_bf16_supported():
        raise UserError("--precision: this GPU has no bfloat16; use 16-mixed or 32-true")
    if not torch.cuda.is_available() and settings.precision == "16-mixed":
        raise UserError("--precision 16-mixed needs a GPU; use bf16-true, bf16-mixed or 32-true on the CPU")
    options = {"accelerator": "cuda" if torch.cuda.is_available() else "cpu", "precision": precision}
    if settings.world == 1 or settings.dry_run:
        fabric = Fabric(devices=1, **options)
    else:
        if torch.cuda.is_available() and settings.devices > torch.cuda.device_count():
            raise UserError(f"--devices {settings.devices}: this machine has {torch.cuda.device_count()} GPUs")
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        known = sys.modules["lightning.fabric.strategies"]
        if settings.undivided():
            strategy = known.DDPStrategy(process_group_backend=backend)
            strategy.setup_module = lambda module: module  # gradients are added up by `lit_gpt.ranks`
        else:
            sizes = settings.world, 1
            strategy = known.ModelParallelStrategy(ranks.parallelize, *sizes, process_group_backend=backend)
        fabric = Fabric(strategy=strategy, devices=settings.devices, num_nodes=settings.num_nodes, **options)
    fabric.launch()
    ranks.rank = fabric.global_rank
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)
    fabric.seed_everything(settings.seed, verbose=False)
    return fabric


def import_fabric() -> type["Fabric"]:
    """Lightning's Fabric without Lightning's Trainer, and without PyTorch's compiler, which comes when it is used.

    `import lightning.fabric` runs all of `lightning`, and with it torchmetrics, scipy and transformers: 2.6 s and
    0.14 GB that Fabric does not need; of `torch._dynamo`, another 0.9 s and 0.07 GB, it wants a class, to recognise
    compiled modules, and gets none from us. So these three are almost empty modules while it is imported.
    """
    import importlib.metadata
    import importlib.util
    import sys

    contents = {name: {"__version__": importlib.metadata.version(name)} for name in ("lightning", "torchmetrics")}
    contents["torch._dynamo"] = {"OptimizedModule": type("OptimizedModule", (), {})}
    empty = [name for name in contents if name not in sys.modules]
    for name in empty:
        sys.modules[name] = importlib.util.module_from_spec(importlib.util.find_spec(name))
        vars(sys.modules[name]).update(contents[name])
    try:
        return importlib.import_module("lightning.fabric").Fabric
    finally:
        for name in empty:
            del sys.modules[name]

"""What a run trains on: which samples, in which batches, for how long, and whether that fits into memory."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lit_gpt.config import Config
from lit_gpt.data.batches import CPU_ROUND, ROUND, Batch, Batches, Layout, share_out
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.memory import HEAP, Needs, Plan, enough_tokens, fitting_pack, needs, return_large_blocks
from lit_gpt.methods import Full, Method
from lit_gpt.quantize import bitsandbytes
from lit_gpt.ranks import Ranks
from lit_gpt.runlog import peak_memory_gb
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    from lit_gpt.finetune import Finetune

CUDA_SHARE = 0.94
"""Of a GPU's memory; the rest is for the CUDA context and what the allocator cannot use."""

LOOK_AHEAD = 64
"""Steps whose batches are laid out to find the largest; the first of them holds the longest sample."""

ENDLESS = 10**9
"""Steps of a run that only its time ends."""


class Workload:
    """The data of a run as batches, and its length in steps.

    Args:
        splits: the data sets "train" and "test".
        ranks: the processes of the run; each has a part of every step's samples, and of those of a validation.
    """

    def __init__(
        self, settings: "Finetune", splits: dict[str, TokenDataset], config: Config, ranks: Ranks | None = None
    ) -> None:
        s = self.settings = settings
        self.config, self.meta, self.ranks = config, splits["train"].meta, ranks or Ranks()
        place = (self.ranks.rank, self.ranks.world)
        self.prompt_style: str = self.meta["prompt_style"]
        max_length = s.max_seq_length or config.block_size
        if max_length > config.block_size and config.ends:
            raise UserError(f"--max_seq_length {max_length}: this model has {config.block_size} positions only")
        if s.compile and config.n_expert:
            raise UserError("--compile does not work with a mixture of experts, whose shapes change; leave it out")
        kept = usable_samples(splits["train"], max_length, s.long_samples, s.data_dir)
        shared = s.share_prefix and not s.neftune_alpha  # every sample has noise of its own
        multiple = ROUND if torch.cuda.is_available() else CPU_ROUND
        options = {"fixed": s.compile, "short_length": config.short_length, "multiple": multiple}
        self.layout = Layout(s.micro_batch_size, s.pack_length, shared, max_length, **options)
        self.batches = Batches(splits["train"], kept, s.batch_size, self.layout, s.seed, *place)
        self.steps, self.samples = plan_length(s, self.batches)
        fixed = list(range(min(s.eval_iters * s.micro_batch_size, len(splits["test"]))))
        own = share_out(splits["test"], fixed, place[1])[place[0]]
        self.validation = replace(self.layout, fixed=False).batches(splits["test"], own)
        self.divide = False
        """Whether the base's weights are to be divided over the devices; see `fit`."""

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a run of so many steps."""
        given = self.settings.warmup_steps
        return min(100, max(1, steps // 10)) if given is None else given

    def samples_after(self, step: int) -> int:
        """Samples that so many steps train on."""
        return min(step * self.settings.batch_size, self.samples)

    def length(self) -> str:
        """The length of the run, in words."""
        s = self.settings
        if self.steps == ENDLESS:
            return f"steps of {s.batch_size} samples of {len(self.batches.samples):,}, for {s.max_time}"
        epochs = self.samples / len(self.batches.samples)
        return (
            f"{self.steps:,} steps of {s.batch_size} samples = {self.samples:,} samples, {epochs:.2f} epochs; "
            f"warm-up {self.warmup(self.steps)} steps" + (f"; at most {s.max_time}" if s.max_time else "")
        )

    def sizes(self) -> set[int]:
        """Tokens of the run's next batches on any rank, padding included."""
        return set(self._sizes(self._shares(LOOK_AHEAD), self.layout))

    def _shares(self, steps: int) -> list[list[int]]:
        """The samples of the first steps, a list for each and every rank."""
        shares = [self.batches.shares(step, self.samples) for step in range(min(self.steps, steps))]
        return [samples for step in shares for samples in step]

    def _sizes(self, shares: list[list[int]], layout: Layout) -> list[int]:
        """Tokens of each batch, padding included."""
        dataset = self.batches.dataset
        return [batch.idx_BT.numel() for samples in shares for batch in layout.batches(dataset, samples)]

    def settle(self) -> None:
        """Gives all packs one length, for compiling: the one that needs the least filling up, or little more than it.

        It is at least that of the longest sample, if `pack_length` is: otherwise such samples have packs of their own.
        """
        dataset, layout, shares = self.batches.dataset, self.layout, self._shares(8)
        highest = self.asked = max(ROUND, layout.pack_length // ROUND * ROUND)
        longest = min(int(dataset.lengths[self.batches.samples].max()), layout.max_length) - 1
        lowest = min(-(-longest // ROUND) * ROUND, highest)
        stride = max(1, (highest - lowest) // (32 * ROUND)) * ROUND
        lengths = [*range(lowest, highest, stride), highest]
        tokens = {length: sum(self._sizes(shares, replace(layout, pack_length=length))) for length in lengths}
        chosen = layout.pack_length = max(n for n in lengths if tokens[n] <= 1.05 * min(tokens.values()))
        loose = sum(self._sizes(shares, replace(layout, pack_length=highest, fixed=False)))
        self.step_tokens = tokens[chosen] / len(shares), loose / len(shares)
        """Tokens of a step on a device, padding included, laid out so and laid out without compiling."""
        print(f"packs of {chosen:,} tokens, which lets a step grow by {tokens[chosen] / loose - 1:.0%}")

    def trial(self) -> tuple[list[Batch], list[Batch]]:
        """The first batches, at most four, and what they would be without compiling; see `settle`."""
        loose = replace(self.layout, pack_length=self.asked, fixed=False)
        samples = self.batches.shares(0, self.samples)[self.ranks.rank]
        return self.batches.step(0, self.samples)[:4], loose.batches(self.batches.dataset, samples)[:4]

    def fit(self, method: Method, dtype: torch.dtype, device: torch.device) -> None:
        """Lays the batches out so that the run stays within its memory, and prints the plan.

        What does not fit is shortened or recomputed in the backward pass (`memory.fitting_pack`). If even that is too
        much, the weights are divided over the devices, if there are several.

        Raises:
            UserError: it cannot fit.
        """
        s = self.settings
        if s.compile and self.config.n_layer == 1 and not isinstance(method, Full):
            raise UserError("--compile leaves the first block as it is, and this model has no other; leave it out")
        budget = float("inf")
        if s.memory_gb is not None:
            budget = s.memory_gb * 1e9
        elif device.type == "cuda":
            budget = torch.cuda.get_device_properties(device).total_memory
        budget *= CUDA_SHARE if device.type == "cuda" else 1
        on_cpu = device.type == "cpu"
        heap = None if not on_cpu else 1.0 if s.low_memory else HEAP
        if on_cpu and s.low_memory:
            return_large_blocks()
        if s.quantize:
            bitsandbytes()  # it belongs to what an idle process holds
        needed = needs(self.config, method, dtype, s.quantize, heap, s.optimizer, s.compile, s.mixed)
        if self.ranks.world > 1:
            needed = self._spread(needed, budget)
        asked = self.layout.pack_length
        self.layout.pack_length = fitting_pack(needed, budget, s.low_memory, asked, enough_tokens(device))
        if self.layout.pack_length != asked:
            print(f"packs of {self.layout.pack_length:,} tokens, as much as fits")
        if self.layout.fixed:
            self.settle()
        self.needed = needed
        found = Plan(needed, budget, self.sizes(), s.low_memory)
        idle = peak_memory_gb(device)
        self.planned_gb = idle + found.peak / 1e9
        """What `peak_memory_gb` will say in the end: on the CPU it counts the libraries, too."""
        print("\n".join(found.lines()) + (f": {idle:.2f} GB" if on_cpu else ""))
        if not found.fits:
            raise UserError(
                f"does not fit into {budget / 1e9:.2f} GB: {found.peak / 1e9:.2f} GB are needed for "
                f"{found.tokens:,} tokens at once; try "
                + "--low_memory true, " * (not s.low_memory)
                + "--quantize bnb.nf4-dq or " * (not s.quantize and not isinstance(method, Full))
                + "a shorter --max_seq_length"
            )
        self.layout.recompute = found.recompute

    def _spread(self, needed: Needs, budget: float) -> Needs:
        """Decides whether the weights are divided over the devices, and says so; what one of them needs."""
        self.divide = bool(self.settings.shard)
        if self.settings.shard is None and budget < float("inf") and not self.settings.undivided():
            self.divide = needed.peak(max(self.sizes()), needed.everything) > budget
        form = "the weights are divided among them" if self.divide else "each holds all weights"
        print(f"{self.ranks.world} devices: {form}; of each:")
        return needed.divided(self.ranks.world) if self.divide else needed

    def advice(self, batch: Batch) -> str:
        """What to change after a batch that did not fit, so that the run can go on: what lowers the plan clearly."""
        tokens, longest = batch.idx_BT.numel(), int(self.batches.dataset.lengths[batch.samples].max())
        failed = self.needed.peak(tokens, batch.recompute)
        shorter = max(longest, tokens // 2)
        everything = self.needed.everything
        options = {"--low_memory true": (tokens, everything)}
        if self.layout.pack_length:
            options[f"--pack_length {shorter}"] = (shorter, batch.recompute)
            options[f"--low_memory true --pack_length {shorter}"] = (shorter, everything)
        for flags, (size, recompute) in options.items():
            planned = self.needed.peak(size, recompute)
            if planned < 0.8 * failed:
                return f"{planned / 1e9:.2f} instead of {failed / 1e9:.2f} GB are planned with {flags}: go on with that"
        return "free some memory and go on; or start anew with --quantize bnb.nf4-dq or a shorter --max_seq_length"


def usual_pack_length(device: torch.device) -> int:
    """Tokens of a pack unless somebody asks for another number: what is fast without taking much memory.

    With AMX a CPU's products are no faster from 768 rows on (bench/NOTES.md).
    """
    if device.type != "cpu":
        return 2048
    return 640 if torch.cpu._is_amx_tile_supported() else 1024


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
    limits = [ENDLESS]
    if s.max_iters is not None or (s.max_steps is None and s.epochs is None and s.max_time is None):
        limits.append(max(1, (s.max_iters or 50_000) * s.micro_batch_size // s.batch_size))
    if s.max_steps is not None:
        limits.append(s.max_steps)
    if s.epochs is not None:
        limits.append(batches.steps(s.epochs))
    steps = min(limits)
    samples = steps * s.batch_size
    return steps, min(samples, s.epochs * len(batches.samples)) if s.epochs else samples

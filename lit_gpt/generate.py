"""Text for a prompt, or for many, from a base model or from one that was finetuned."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_gpt.settings import UserError, at_least, check_seed

if TYPE_CHECKING:
    from lit_gpt.tokenizer import Tokenizer

Quantize = Literal[
    "bnb.nf4",
    "bnb.nf4-dq",
    "bnb.fp4",
    "bnb.fp4-dq",
    "bnb.int8-training",
    "bnb.int8",
    "torch.int8",
    "torch.int4",
]
"""Those of training, and those for use only; see `lit_gpt.quantize`."""


@dataclass
class Generate:
    """Settings of generation."""

    checkpoint_dir: Path
    """Folder of the converted model."""
    prompt: str = "Hello, my name is"
    """Text to continue."""
    prompts_file: Path | None = None
    """Continue all of these instead: one a line, or for a .jsonl file {"prompt": ...} a line; prints JSON lines."""
    truncate_prompt: Literal["left"] | None = None
    """A prompt that leaves no room for --max_new_tokens in the model's context loses its beginning; null: refused."""
    num_samples: int = 1
    """Texts for each prompt."""
    batch_size: int = 8
    """Texts that are made together."""
    max_new_tokens: int = 50
    """Longest text in tokens; it ends earlier at the model's end-of-text token."""
    temperature: float = 0.8
    """0 always takes the likeliest token; higher is more random."""
    top_k: int | None = 200
    """Draw among the k likeliest tokens; null: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together reach this probability."""
    min_p: float = 0.0
    """Draw among the tokens that are at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that were in the text before become less likely."""
    stop: list[str] | str | None = None
    """Text, or several, that end the text, and are left out of it."""
    draft_checkpoint_dir: Path | None = None
    """Folder of a smaller model with the same tokenizer that drafts tokens; the text keeps its distribution."""
    draft_tokens: int = 4
    """Tokens that it drafts at a time."""
    precision: Literal["bf16-true", "32-true"] = "bf16-true"
    """Type of weights and arithmetic."""
    quantize: Literal[Quantize, "none"] | None = None
    """Hold the linear layers in 4 or 8 bits; unset: as in training."""
    compile: bool = False
    """Compile the step of a single token, for a GPU: takes half a minute. On a CPU it takes 20 s and gains nothing."""
    seed: int = 1234
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        at_least(1, self, "num_samples", "max_new_tokens", "batch_size", "draft_tokens")
        check_seed(self.seed)
        if self.prompts_file is not None and (self.prompt != type(self).prompt or getattr(self, "input", "")):
            raise UserError("--prompt, --input: the prompts are those of --prompts_file; take one of the two")
        if not self.prompt:
            raise UserError("--prompt: it is empty; give the model something to go on with")
        self.stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if self.draft_checkpoint_dir and self.compile:
            raise UserError("--compile: is for single tokens, and a draft is judged in one pass; take one of the two")


@dataclass
class Answer(Generate):
    """Settings of generation with a finetuned model."""

    prompt: str = "What food do llamas eat?"
    """Instruction to answer."""
    input: str = ""
    """Further input that belongs to the instruction."""
    max_new_tokens: int = 100
    """Longest answer in tokens; it ends earlier at the model's end-of-text token."""


@dataclass
class GenerateLoRA(Answer):
    """Settings of generation with a LoRA-finetuned model."""

    lora_path: Path = Path("out/lora/alpaca")
    """File that finetune/lora.py wrote, or its folder; knows its own settings."""


@dataclass
class GenerateFull(Answer):
    """Settings of generation with a model whose weights were all finetuned."""

    finetuned_path: Path = Path("out/full/alpaca")
    """File that finetune/full.py wrote, or its folder."""


@dataclass
class GenerateAdapter(Answer):
    """Settings of generation with an adapter."""

    adapter_path: Path = Path("out/adapter/alpaca")
    """File that finetune/adapter.py wrote, or its folder; knows its own settings."""


@dataclass
class GenerateAdapterV2(Answer):
    """Settings of generation with an adapter of version 2."""

    adapter_v2_path: Path = Path("out/adapter_v2/alpaca")
    """File that finetune/adapter_v2.py wrote, or its folder; knows its own settings."""


def generate_base(settings: Generate) -> None:
    """Continues a prompt with a base model."""
    _generate(settings, finetuned=None)


def generate_lora(settings: GenerateLoRA) -> None:
    """Answers an instruction with a LoRA-finetuned model."""
    _generate(settings, finetuned=settings.lora_path)


def generate_full(settings: GenerateFull) -> None:
    """Answers an instruction with a model whose weights were all finetuned."""
    _generate(settings, finetuned=settings.finetuned_path)


def generate_adapter(settings: GenerateAdapter) -> None:
    """Answers an instruction with a model that has an adapter."""
    _generate(settings, finetuned=settings.adapter_path)


def generate_adapter_v2(settings: GenerateAdapterV2) -> None:
    """Answers an instruction with a model that has an adapter of version 2."""
    _generate(settings, finetuned=settings.adapter_v2_path)


def _generate(settings: Generate, finetuned: Path | None) -> None:
    import torch

    from lit_gpt.checkpoint import DTYPES, default_device, load_gpt, style_of
    from lit_gpt.config import Config
    from lit_gpt.decode import Sampling, decode
    from lit_gpt.prompts import Turn, get_style
    from lit_gpt.quantize import for_decoding
    from lit_gpt.runlog import peak_memory_gb
    from lit_gpt.speculative import decode_with_draft
    from lit_gpt.streaming import Until
    from lit_gpt.tokenizer import Tokenizer

    options = settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty
    sampling = Sampling(*options)
    Until(settings.stop)  # refuses an empty one
    tokenizer, config = Tokenizer(settings.checkpoint_dir), Config.from_checkpoint(settings.checkpoint_dir)
    asked = [(settings.prompt, getattr(settings, "input", ""))]
    if settings.prompts_file is not None:
        asked = list(_read_prompts(settings.prompts_file))
    if finetuned is None:
        prompts, stops = tokenizer.encode_batch([text for text, _ in asked]), [tokenizer.eos_id]
    else:
        style = style_of(settings.checkpoint_dir, finetuned) or get_style("plain")
        prompts = [style.encode_prompt(tokenizer, (Turn("user", *pair),)) for pair in asked]
        stops = style.stop_ids(tokenizer)
    prompts = _fitting(prompts, settings, config.block_size, tokenizer)
    if settings.draft_checkpoint_dir and Tokenizer(settings.draft_checkpoint_dir).hash != tokenizer.hash:
        raise UserError(f"--draft_checkpoint_dir {settings.draft_checkpoint_dir}: its tokenizer is another one")
    device, began, dtype = default_device(), time.perf_counter(), DTYPES[settings.precision]
    options = {"finetuned": finetuned, "merge": True, "quantize": settings.quantize, "device": device}
    model = load_gpt(settings.checkpoint_dir, dtype, **options)
    together = min(settings.batch_size, len(prompts) * settings.num_samples) > 1 or bool(settings.draft_checkpoint_dir)
    for_decoding(model, several=together and not settings.compile)
    draft = settings.draft_checkpoint_dir and load_gpt(settings.draft_checkpoint_dir, dtype, device=device)
    if draft:
        for_decoding(draft)
    if settings.compile:
        model.compile_steps()
    print(f"Loaded {settings.checkpoint_dir} in {time.perf_counter() - began:.2f} s", file=sys.stderr)
    generator = torch.Generator(device).manual_seed(settings.seed)

    def rounds(batch: list[list[int]]) -> Iterator[list[int | None]]:
        if draft:
            ahead = settings.draft_tokens
            rest = settings.max_new_tokens, sampling, stops, generator, ahead
            return decode_with_draft(model, draft, *batch, *rest)
        return decode(model, batch, settings.max_new_tokens, sampling, stops, generator)

    _write(settings, asked, prompts, rounds, tokenizer, 1 if draft else settings.batch_size, finetuned is None)
    print(f"Memory used: {peak_memory_gb(device):.2f} GB", file=sys.stderr)


def _write(
    settings: Generate,
    asked: list[tuple[str, str]],
    prompts: list[list[int]],
    rounds: Callable[[list[list[int]]], Iterator[list[int | None]]],
    tokenizer: "Tokenizer",
    size: int,
    continues: bool,
) -> None:
    """Prints the texts of all prompts, `size` of them made together; of these the first one is shown as it comes."""
    texts = [(number, sample) for number in range(len(prompts)) for sample in range(settings.num_samples)]
    rows = settings.prompts_file is not None
    lead = asked[0][0] if continues and not rows else ""
    for start in range(0, len(texts), size):
        batch = texts[start : start + size]
        answers = [_Answer(tokenizer, continues, settings.stop) for _ in batch]
        answers[0].shown = not rows
        print(end="" if rows else lead, flush=True)
        for tokens in rounds([prompts[number] for number, _ in batch]):
            for answer, token in zip(answers, tokens, strict=True):
                answer.add(token)
            if all(answer.seconds is not None for answer in answers):
                break
        for place, (answer, (number, sample)) in enumerate(zip(answers, batch, strict=True), start + 1):
            answer.add(None)
            if rows:
                row = {"prompt": asked[number][0], "sample": sample + 1, "text": answer.text}
                print(json.dumps(row, ensure_ascii=False), flush=True)
            else:
                print("" if answer.shown else lead + answer.text, flush=True)
            speed = answer.count / answer.seconds
            note = f"Time for inference {place}: {answer.seconds:.2f} s total, {speed:.2f} tokens/sec"
            print(note, file=sys.stderr)


class _Answer:
    """One text on its way, how many tokens it has, and in the end the seconds that it took."""

    def __init__(self, tokenizer: "Tokenizer", continues: bool, stops: list[str]) -> None:
        from lit_gpt.streaming import Until

        self._stream, self._until = tokenizer.stream_decoder(continues), Until(stops)
        self._began, self.shown = time.perf_counter(), False
        self.text, self.count, self.seconds = "", 0, None

    def add(self, token: int | None) -> None:
        """The next token; None: there are no more."""
        if self.seconds is not None:
            return
        self.count += token is not None
        part = self._until.add(self._stream.flush() if token is None else self._stream.add(token))
        part += self._until.flush() if token is None else ""
        self.text += part
        if self.shown:
            print(part, end="", flush=True)
        if token is None or self._until.done:
            self.seconds = time.perf_counter() - self._began


def _fitting(prompts: list[list[int]], settings: Generate, limit: int, tokenizer: "Tokenizer") -> list[list[int]]:
    """The prompts, with --truncate_prompt the ends of those that are too long; BOS stays."""
    from lit_gpt.decode import check_prompts

    if settings.truncate_prompt:
        head = 1 if tokenizer.use_bos else 0
        room = max(limit - settings.max_new_tokens, head + 1)
        prompts = [p if len(p) <= room else p[:head] + p[head + len(p) - room :] for p in prompts]
    check_prompts(prompts, limit)
    return prompts


def _read_prompts(path: Path) -> Iterator[tuple[str, str]]:
    """Prompts and inputs of a file.

    Raises:
        UserError: it is missing or empty, or a line is not what it should be.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"--prompts_file {path}: cannot read it ({error.strerror}); check the path") from error
    if not lines:
        raise UserError(f"--prompts_file {path}: it is empty; write one prompt a line")
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 text; save it as UTF-8") from error
        row = {"prompt": text}
        if path.suffix == ".jsonl":
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f'{place}: not JSON ({error}); write {{"prompt": "..."}} a line') from error
        values = [row.get("prompt"), row.get("input", "")] if isinstance(row, dict) else [None]
        if not all(isinstance(value, str) for value in values):
            raise UserError(f'{place}: no text "prompt" in it; write {{"prompt": "..."}} a line')
        if not values[0].strip():
            raise UserError(f"{place}: the prompt is empty; take the line out")
        yield values[0], values[1]

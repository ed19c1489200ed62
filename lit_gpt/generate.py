"""Text for a prompt, from a base model or from one that was finetuned."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.finetune import Quantize
from lit_gpt.settings import at_least, check_seed


@dataclass
class Generate:
    """Settings of generation."""

    checkpoint_dir: Path
    """Folder of the converted model."""
    prompt: str = "Hello, my name is"
    """Text to continue."""
    num_samples: int = 1
    """Number of texts."""
    max_new_tokens: int = 50
    """Longest text in tokens; it ends earlier at the model's end-of-text token."""
    temperature: float = 0.8
    """0 always takes the likeliest token; higher is more random."""
    top_k: int | None = 200
    """Draw among the k likeliest tokens; null: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together reach this probability."""
    precision: Literal["bf16-true", "32-true"] = "bf16-true"
    """Type of weights and arithmetic."""
    quantize: Literal[Quantize, "none"] | None = None
    """Hold the linear layers in 4 or 8 bits; unset: as in training."""
    seed: int = 1234
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        at_least(1, self, "num_samples", "max_new_tokens")
        check_seed(self.seed)


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
    from lit_gpt.decode import Sampling, decode
    from lit_gpt.prompts import Turn, get_style
    from lit_gpt.runlog import peak_memory_gb
    from lit_gpt.tokenizer import Tokenizer

    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    tokenizer = Tokenizer(settings.checkpoint_dir)
    if finetuned is None:
        prompt, stops = tokenizer.encode(settings.prompt), [tokenizer.eos_id]
    else:
        style = style_of(settings.checkpoint_dir, finetuned) or get_style("plain")
        prompt = style.encode_prompt(tokenizer, (Turn("user", settings.prompt, settings.input),))
        stops = style.stop_ids(tokenizer)
    device, began = default_device(), time.perf_counter()
    dtype = DTYPES[settings.precision]
    options = {"finetuned": finetuned, "merge": True, "quantize": settings.quantize, "device": device}
    model = load_gpt(settings.checkpoint_dir, dtype, **options)
    print(f"Loaded {settings.checkpoint_dir} in {time.perf_counter() - began:.2f} s", file=sys.stderr)
    generator = torch.Generator(device).manual_seed(settings.seed)
    for sample in range(settings.num_samples):
        began, count, stream = time.perf_counter(), 0, tokenizer.stream_decoder(continues=finetuned is None)
        if finetuned is None:
            print(settings.prompt, end="")
        for (token,) in decode(model, [prompt], settings.max_new_tokens, sampling, stops, generator):
            print(stream.add(token), end="", flush=True)
            count += 1
        print(stream.flush(), flush=True)
        seconds = time.perf_counter() - began
        note = f"Time for inference {sample + 1}: {seconds:.2f} s total, {count / seconds:.2f} tokens/sec"
        print(note, file=sys.stderr)
    print(f"Memory used: {peak_memory_gb(device):.2f} GB", file=sys.stderr)

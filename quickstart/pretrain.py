"""Makes the embedded default model `lit-gpt/tiny-facts` from nothing: text, tokenizer, weights, hub folder.

Example:
    python quickstart/pretrain.py
writes quickstart/hub/lit-gpt/tiny-facts (what `make quickstart` downloads) and quickstart/pretrain.log. One thread and
fixed seeds: the same machine and versions make the same bytes.
"""

import argparse
import hashlib
import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from facts import Fact, all_facts
from safetensors.torch import save_file
from torch import Tensor, nn
from world import documents, split, training_rows

from lit_gpt import GPT, Config
from lit_gpt.families.llama import WEIGHTS
from lit_gpt.files import atomic, write_json, write_text
from lit_gpt.prompts import get_style

HERE = Path(__file__).resolve().parent
STEPS, BATCH, WINDOW, WARMUP = 2000, 16, 128, 100
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05
VOCABULARY = 2500
LAYERS = 4
SEED = 7

HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 320,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


class Log:
    """Prints lines and keeps them, for the log that is committed beside the model."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)


def text(facts: list[Fact], count: int, seed: int = 2) -> list[str]:
    """The first documents of the pretraining text."""
    return list(itertools.islice(documents(facts, seed), count))


def fingerprint(facts: list[Fact]) -> str:
    """Tells whether a model was made from this text: a digest of its beginning, where every fact occurs."""
    return hashlib.sha256("\n\n".join(text(facts, 2000)).encode()).hexdigest()


def train_tokenizer(facts: list[Fact]) -> bytes:
    """A SentencePiece model as Llama's: BPE, bytes for what is unknown, digits on their own, spaces kept.

    It learns from the text and, so that instructions are not shredded into letters, from the training instructions and
    the words of their format; the language model reads the text only. Lines are its unit: a line break stays a byte.
    """
    lines = "\n".join(text(facts, 20_000, seed=11)).split("\n")
    lines += [row["instruction"] for row in training_rows(split()[0])]
    lines += "\n".join(get_style("alpaca").prompt("What is it?", given) for given in ("", "this")).split("\n") * 1000
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def token_windows(
    facts: list[Fact], tokenizer: sentencepiece.SentencePieceProcessor, steps: int, text_file: Path
) -> Tensor:
    """The pretraining text as shuffled windows, (steps, BATCH, WINDOW + 1) token ids: every token is read once."""
    wanted = steps * BATCH * (WINDOW + 1)
    ids: list[int] = []
    read: list[str] = []
    stream = documents(facts)
    while len(ids) < wanted:
        chunk = list(itertools.islice(stream, 1000))
        for document in tokenizer.encode(chunk):
            ids += [tokenizer.bos_id(), *document, tokenizer.eos_id()]
        read += chunk
    write_text(text_file, "\n\n".join(read) + "\n")
    windows = torch.tensor(ids[:wanted]).view(-1, WINDOW + 1)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(SEED))
    return windows[order].view(steps, BATCH, WINDOW + 1)


def initialise(model: GPT) -> None:
    """Normal weights of deviation 0.02; what writes into the residual stream is scaled down by depth (GPT-2)."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.ones_(parameter)
        else:
            deep = name.endswith(("attn.o.weight", "mlp.down.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * LAYERS) ** 0.5 if deep else 0.02, generator=generator)


def learning_rate(step: int, steps: int) -> float:
    """Linear up over WARMUP steps, then linear down to 5 %."""
    if step < WARMUP:
        return LEARNING_RATE * (step + 1) / WARMUP
    return LEARNING_RATE * (1 - 0.95 * (step - WARMUP) / max(1, steps - WARMUP))


def train(model: GPT, windows: Tensor, log: Log) -> None:
    """One pass over the windows."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    kept = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    start, recent = time.process_time(), []
    for step, batch in enumerate(windows):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(windows))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == len(windows):
            tokens = (step + 1) * BATCH * WINDOW
            mean, seconds = sum(recent) / len(recent), time.process_time() - start
            rate = f"lr {learning_rate(step, len(windows)):.2e}"
            log(f"step {step + 1}: loss {mean:.4f}, {rate}, {tokens:,} tokens, {seconds:.0f} s of one core")
            recent = []


def hf_weights(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """The weights under their Hugging Face names; the tied head is left out."""
    names = {ours.format(layer): theirs.format(layer) for theirs, ours in WEIGHTS.items() for layer in range(LAYERS)}
    for name, parameter in model.named_parameters():
        yield names[name], parameter.detach().contiguous()


def export(model: GPT, tokenizer: bytes, folder: Path) -> None:
    """Writes the folder as the hub would hold it."""
    with atomic(folder / "tokenizer.model") as temporary:
        temporary.write_bytes(tokenizer)
    with atomic(folder / "model.safetensors") as temporary:
        save_file(dict(hf_weights(model)), temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", HF_CONFIG)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", special)
    kind = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    length = {"model_max_length": HF_CONFIG["max_position_embeddings"]}
    write_json(folder / "tokenizer_config.json", {**kind, **special, **length})


def main() -> None:
    """Pretrains and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    hub = HERE / "hub" / "lit-gpt" / "tiny-facts"
    parser.add_argument("--out_dir", type=Path, default=hub, help="the model's folder")
    parser.add_argument("--log_file", type=Path, default=HERE / "pretrain.log", help="what is printed, kept")
    text_file = HERE.parent / "build" / "tiny-facts.txt"
    parser.add_argument("--text_file", type=Path, default=text_file, help="the text, to look at; not committed")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps of {BATCH} x {WINDOW} tokens")
    parser.add_argument("--known_only", action="store_true", help="control: leave the held-out facts out of the text")
    args = parser.parse_args()

    torch.set_num_threads(1)  # sums in a fixed order, whatever the machine
    torch.use_deterministic_algorithms(True)
    facts = split()[0] if args.known_only else all_facts()
    log = Log()
    log(f"torch {torch.__version__}, sentencepiece {sentencepiece.__version__}, {torch.get_num_threads()} thread")
    log(f"{len(facts)} facts in {len({fact.category for fact in facts})} categories")
    log(f"text {fingerprint(facts)}")
    tokenizer = train_tokenizer(facts)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    windows = token_windows(facts, processor, args.steps, args.text_file)
    log(f"tokenizer of {processor.vocab_size()} pieces; {windows.numel():,} tokens of text")
    model = GPT(Config.from_hf(HF_CONFIG))
    initialise(model)
    log(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, windows, log)
    export(model, tokenizer, args.out_dir)
    write_text(args.log_file, "\n".join(log.lines) + "\n")


if __name__ == "__main__":
    main()

"""How well a model predicts a text, or the answers of a prepared data set: nats, bits per byte, perplexity."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lit_gpt.evaluate import Subject, check_writable
from lit_gpt.files import write_json
from lit_gpt.settings import UserError, at_least

if TYPE_CHECKING:
    import numpy as np

    from lit_gpt.model import GPT
    from lit_gpt.scoring import Scored
    from lit_gpt.tokenizer import Tokenizer

TOGETHER = 1 << 17
"""About so many tokens are laid out at once; what samples of a data set have in common is computed once among those."""


@dataclass(kw_only=True)
class Perplexity(Subject):
    """Which model, and what it is to predict."""

    text_file: Path | None = None
    """UTF-8 text, every token of which is predicted; before the first one stands BOS, or EOS where there is no BOS."""
    data_dir: Path | None = None
    """Instead of it a prepared data set, whose supervised tokens are predicted."""
    split: str = "test"
    """Which part of the data set: train or test."""
    stride: int | None = None
    """Tokens from one window to the next, where a text is longer than a window; unset: half a window. Smaller: every
    token is predicted from more of the text, in more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.text_file is None) == (self.data_dir is None):
            raise UserError("--text_file or --data_dir: give one of them, which is to be predicted")
        at_least(1, self, "stride")


class Text(NamedTuple):
    """What is to be predicted."""

    ids: "np.ndarray"
    supervised: "np.ndarray"
    """bool: tokens that count."""
    size: int
    """Their bytes as UTF-8 text."""


class Prediction(NamedTuple):
    """Of a model for texts."""

    tokens: int
    nats: float
    size: int

    def measures(self) -> dict[str, float]:
        """The usual forms of it."""
        loss = self.nats / self.tokens
        return {
            "tokens": self.tokens,
            "nats_per_token": loss,
            "bits_per_byte": self.nats / math.log(2) / self.size if self.size else math.nan,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
        }


def perplexity(settings: Perplexity) -> None:
    """Prints tokens, nats per token, bits per byte and perplexity of a text or a prepared data set."""
    began = time.perf_counter()
    if settings.save_filepath is not None:
        check_writable(settings.save_filepath)

    from lit_gpt.tokenizer import Tokenizer

    tokenizer = Tokenizer(settings.checkpoint_dir)
    read = read_text if settings.text_file else read_samples
    texts = read(settings, tokenizer)
    model = settings.load()
    with settings.memory_explained():
        found = predict(model, texts, settings.window(model), settings.stride, settings.pack_length)
    measures = found.measures()
    for name, value in measures.items():
        print(f"{name.replace('_', ' '):15} {value:{',' if name == 'tokens' else '.4f'}}")
    if settings.save_filepath is not None:
        what = {"text_file": settings.text_file, "data_dir": settings.data_dir, "split": settings.split}
        facts = {key: str(value) for key, value in what.items() if value} | settings.about()
        write_json(settings.save_filepath, {"results": measures, "config": {**facts, "stride": settings.stride}})
        print(f"Results written to {settings.save_filepath}", file=sys.stderr)
    print(f"Time for evaluation: {time.perf_counter() - began:.2f} s", file=sys.stderr)


def read_text(settings: Perplexity, tokenizer: "Tokenizer") -> list[Text]:
    """The text file as one text.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is empty.
    """
    import numpy as np

    path = settings.text_file
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"--text_file {path}: cannot read it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--text_file {path}: not UTF-8 text ({error}); save it as UTF-8") from error
    ids = tokenizer.encode(text, bos=False)
    if not ids:
        raise UserError(f"--text_file {path}: the file is empty; there is nothing to predict")
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if first is None:
        raise UserError(f"{tokenizer.file}: no BOS and no EOS token; name one in tokenizer_config.json")
    return [Text(np.array([first, *ids]), np.arange(len(ids) + 1) > 0, len(text.encode()))]


def read_samples(settings: Perplexity, tokenizer: "Tokenizer") -> list[Text]:
    """The samples of a prepared data set; the end of text is predicted and has no bytes.

    Raises:
        UserError: it is damaged, or was made with another tokenizer.
    """
    from lit_gpt.data.dataset import TokenDataset, check_tokenizer

    dataset = TokenDataset(settings.data_dir, settings.split)
    check_tokenizer(dataset.meta, tokenizer)
    texts = []
    for i in range(len(dataset)):
        ids, supervised = dataset.ids(i).numpy(), dataset.supervised(i).numpy()
        texts.append(Text(ids, supervised, len(tokenizer.decode(ids[supervised].tolist()).encode())))
    return texts


def predict(
    model: "GPT", texts: Iterable[Text], length: int, stride: int | None = None, pack_length: int | None = None
) -> Prediction:
    """Predicts texts, each on its own.

    Args:
        length: of a window in tokens: from so many at most the next one is predicted.
        stride: see `Perplexity`.
        pack_length: tokens of one call of the model; None: as suits the device.

    Raises:
        UserError: there is nothing to predict.
    """
    from tqdm import tqdm

    from lit_gpt.scoring import pack_length_for, score

    texts, stride = list(texts), min(stride or max(1, length // 2), length)
    pack_length = pack_length or pack_length_for(model.wte.weight.device)
    tokens = sum(int(text.supervised[1:].sum()) for text in texts)
    if not tokens:
        raise UserError("there is nothing to predict: no supervised token has another one before it")
    nats = 0.0
    with tqdm(total=tokens, desc="predict", unit="token", unit_scale=True, disable=None) as bar:
        for asked in _batches(scored for text in texts for scored in windows(text, length, stride)):
            for _, known in score(model, asked, pack_length):
                nats -= sum(found.logprob for _, found in known)
                bar.update(sum(asked[i][1] for i, _ in known))
    return Prediction(tokens, nats, sum(text.size for text in texts))


def windows(text: Text, length: int, stride: int) -> "Iterator[Scored]":
    """What is asked of the model: every supervised token once, in the first window that reaches it.

    Supervised tokens that follow each other are asked together; those of one window share all that is before them.
    """
    import numpy as np

    ids, done = tuple(text.ids.tolist()), 1  # nothing stands before the first token
    for start in range(0, len(ids), stride):
        stop = min(start + length + 1, len(ids))
        edges = np.flatnonzero(np.diff(text.supervised[done:stop], prepend=False, append=False)) + done
        for begin, end in edges.reshape(-1, 2).tolist():
            yield ids[start:end], end - begin
        done = stop
        if stop == len(ids):
            return


def _batches(asked: "Iterator[Scored]") -> "Iterator[list[Scored]]":
    batch, size = [], 0
    for scored in asked:
        batch.append(scored)
        size += len(scored[0])
        if size >= TOGETHER:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

"""A prepared data set on disk: all samples of a split in three flat tensors of one file, read through a memory map.

`train.pt` and `test.pt` hold a dict for `torch.load(weights_only=True, mmap=True)`:
- `tokens` (total,) uint16, or int32 where an id needs it: the ids of all samples, one after the other;
- `lengths` (samples,) int32;
- `supervised` (ceil(total / 8),) uint8: a bit per token, packed by `numpy.packbits`, set where the token is to be
  predicted. The first token of a sample never is.

`meta.json` beside them says where they come from; it is written last, so a set without it is not whole.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_gpt.archive import prove, save
from lit_gpt.data import FORMAT
from lit_gpt.files import read_sealed, sealed, sha256, write_json
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer


def write_dataset(
    folder: Path,
    splits: dict[str, tuple[list[np.ndarray], list[np.ndarray]]],
    tokenizer: Tokenizer,
    meta: dict[str, Any],
) -> dict[str, int]:
    """Writes the files of a data set.

    Args:
        splits: "train" and "test" -> the ids of each sample, and which of them are to be predicted, as booleans.
        meta: what `meta.json` says beyond its format and the tokenizer.

    Returns:
        The size of each file in bytes.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --destination_path") from error
    for split, (samples, masks) in splits.items():
        _write_split(folder / f"{split}.pt", samples, masks)
    files = {f"{split}.pt": sha256(folder / f"{split}.pt") for split in splits}
    facts = {"format": FORMAT, **meta, "files": files, "tokenizer": _describe(tokenizer)}
    write_json(folder / "meta.json", sealed(facts))
    return {name: (folder / name).stat().st_size for name in (*files, "meta.json")}


def _write_split(path: Path, samples: list[np.ndarray], masks: list[np.ndarray]) -> None:
    tokens = np.concatenate(samples)
    tokens = tokens.astype(np.uint16 if tokens.max() < 1 << 16 else np.int32)
    supervised = np.concatenate(masks)
    assert len(supervised) == len(tokens)
    content = {
        "tokens": torch.from_numpy(tokens),
        "lengths": torch.tensor([len(ids) for ids in samples], dtype=torch.int32),
        "supervised": torch.from_numpy(np.packbits(supervised)),
    }
    save(path, content)


class TokenDataset:
    """A split of a prepared data set.

    Attributes:
        lengths: (samples,) int64, the tokens of each sample.
        digest: identity of the split's content.
        meta: the content of `meta.json`.
    """

    def __init__(self, path: str | Path, split: str = "train") -> None:
        """Opens `path`, a folder of a prepared data set or one of its `.pt` files (then `split` is not used).

        Raises:
            UserError: it is missing, incomplete, damaged, empty, or of another version.
        """
        path = Path(path)
        self.path = path if path.suffix == ".pt" else path / f"{split}.pt"
        if not self.path.parent.is_dir():
            raise UserError(f"no folder {self.path.parent}; prepare a data set first (scripts/prepare_*.py)")
        for needed in (self.path, self.path.parent / "meta.json"):
            if not needed.is_file():
                raise UserError(
                    f"no {needed.name} in {needed.parent}; prepare the data set again (scripts/prepare_*.py)"
                )
        self.meta: dict[str, Any] = read_sealed(self.path.parent / "meta.json")
        version = self.meta.get("format") if isinstance(self.meta, dict) else None
        if version != FORMAT:
            raise UserError(
                f"{self.path.parent}: format {version}, this program reads {FORMAT}; prepare the data again"
            )
        tokenizer = self.meta.get("tokenizer")
        if not isinstance(tokenizer, dict) or not {"name", "file", "hash", "eos_id", "use_bos"} <= tokenizer.keys():
            raise UserError(f"{self.path.parent}/meta.json does not say which tokenizer; prepare the data again")
        try:
            self.digest = prove(self.path)
            content = torch.load(self.path, weights_only=True, mmap=True)
            self._tokens, lengths, packed = content["tokens"], content["lengths"], content["supervised"]
            self._supervised = packed.numpy()
            self.lengths = lengths.to(torch.int64)
            self._ends = self.lengths.cumsum(0).tolist()
            total = self._ends[-1] if self._ends else 0
            whole = len(self._tokens) == total and len(packed) == (total + 7) // 8
        except Exception as error:  # torch raises whatever its parsers raise
            raise UserError(f"{self.path}: damaged, or not a prepared split; prepare the data again") from error
        if not whole:
            raise UserError(f"{self.path}: its tensors do not fit together; prepare the data again")
        if not self._ends:
            raise UserError(f"{self.path}: no samples; prepare the data again")

    def __len__(self) -> int:
        return len(self._ends)

    def _span(self, i: int) -> tuple[int, int]:
        i = range(len(self._ends))[i]  # negative indices count from the end, others raise IndexError
        return self._ends[i - 1] if i else 0, self._ends[i]

    def ids(self, i: int) -> torch.Tensor:
        """The tokens of sample `i`: (T,) int64."""
        start, end = self._span(i)
        return self._tokens[start:end].to(torch.int64)

    def supervised(self, i: int) -> torch.Tensor:
        """Which tokens of sample `i` are to be predicted: (T,) bool."""
        start, end = self._span(i)
        bits = np.unpackbits(self._supervised[start // 8 : (end + 7) // 8])
        return torch.from_numpy(bits[start % 8 : start % 8 + end - start].astype(bool))

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All samples one after the other: their tokens, and which of them are to be predicted, (total,) bool."""
        tokens = self._tokens.numpy()
        return tokens, np.unpackbits(self._supervised, count=len(tokens)).astype(bool)


def check_tokenizer(meta: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Refuses a data set that was made with another tokenizer, or with other special tokens, than the model's.

    Raises:
        UserError: names both tokenizers.
    """
    made, ours = meta["tokenizer"], _describe(tokenizer)
    for key in ("hash", "eos_id", "use_bos"):
        if made[key] != ours[key]:
            raise UserError(
                f"data set {meta['name']} was made with the tokenizer of {made['name']} ({made['file']}, {key} "
                f"{_short(made[key])}), but {tokenizer.folder} has {ours['file']} with {key} {_short(ours[key])}; "
                f"prepare the data again with --checkpoint_dir {tokenizer.folder}"
            )


def _short(value: Any) -> str:
    return str(value)[:12]


def _describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `meta.json` says of the tokenizer, for `check_tokenizer`."""
    return {
        "name": "/".join(tokenizer.folder.resolve().parts[-2:]),
        "file": tokenizer.file.name,
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "use_bos": tokenizer.use_bos,
    }

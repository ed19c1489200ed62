"""Text to token ids and back, for a checkpoint folder with a `tokenizer.json` or a SentencePiece `tokenizer.model`.

Where both are there, `tokenizer.json` is used, as transformers does; the two of one checkpoint give the same ids for
ordinary text. They differ where the text spells a special token, say "</s>": `tokenizer.json` turns it into that token,
a SentencePiece model reads it as plain characters.

A folder with `tokenizer.model` only is read with SentencePiece itself, which is what its model was trained with;
transformers converts the file, and that conversion splits runs of spaces and leading spaces differently.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_gpt.files import read_json, sha256
from lit_gpt.settings import UserError


class _Json:
    """A `tokenizer.json`, read by the tokenizers library."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend

        self.model = Backend.from_file(str(path))
        self.model.no_truncation()  # some files carry the lengths of the script that saved them
        self.model.no_padding()
        self.size = self.model.get_vocab_size()
        added = {i: token for i, token in self.model.get_added_tokens_decoder().items() if token.special}
        self.hidden = added.keys()
        self.specials = {token.content: (i, token.lstrip, token.rstrip) for i, token in added.items()}
        self.find, self.piece = self.model.token_to_id, self.model.id_to_token

    def encode(self, texts: Sequence[str], literal: bool = False) -> list[list[int]]:
        if self.model.encode_special_tokens != literal:  # cannot be set while another thread encodes
            self.model.encode_special_tokens = literal
        return [found.ids for found in self.model.encode_batch_fast(texts, add_special_tokens=False)]

    def starts_anew(self, config: dict[str, Any]) -> bool:
        """Whether the text after a special token is encoded like the beginning of one."""
        token = next((text for text, (_, _, strips) in self.specials.items() if not strips), None)
        return token is None or self.encode([f"{token}a"])[0][1:] == self.encode(["a"])[0]

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids, skip_special_tokens=True)

    def own_id(self, name: str) -> int | None:
        return None

    def adds_bos(self, bos_id: int | None, config: dict[str, Any]) -> bool:
        """Whether its post-processor says so; transformers, too, asks nothing else when there is a tokenizer.json."""
        first, plain = self.model.encode("a").ids[:1], self.model.encode("a", add_special_tokens=False).ids[:1]
        return first == [bos_id] and first != plain


class _SentencePiece:
    """A `tokenizer.model`, read by the sentencepiece library."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model = SentencePieceProcessor(model_file=str(path))
        self.size = self.model.vocab_size()
        self.model.id_to_piece(list(range(self.size)))  # damaged ones, which are no text, are refused here
        self.hidden = {i for i in range(self.size) if self.model.is_control(i) or self.model.is_unknown(i)}
        controls = (i for i in range(self.size) if self.model.is_control(i))
        self.specials = {self.model.id_to_piece(i): (i, False, False) for i in controls}

    def encode(self, texts: Sequence[str], literal: bool = False) -> list[list[int]]:
        return self.model.encode(list(texts), out_type=int)

    def starts_anew(self, config: dict[str, Any]) -> bool:
        """As Llama's own tokenizer of 2023 did it, unless the configuration says otherwise."""
        return config.get("legacy") is not False

    def decode(self, ids: list[int]) -> str:
        return self.model.decode([i for i in ids if i < self.size and i not in self.hidden])

    def find(self, piece: str) -> int | None:
        found = self.model.piece_to_id(piece)
        return found if self.model.id_to_piece(found) == piece else None

    def piece(self, i: int) -> str | None:
        return self.model.id_to_piece(i) if i < self.size else None

    def own_id(self, name: str) -> int | None:
        found = getattr(self.model, name)()
        return found if found >= 0 else None

    def adds_bos(self, bos_id: int | None, config: dict[str, Any]) -> bool:
        """True unless the configuration says otherwise: models with a SentencePiece vocabulary are trained that way."""
        return bos_id is not None and config.get("add_bos_token") is not False


_GUARD = "\ufdd0"
"""A character that stands for none: put into the text of a special token, it keeps it from becoming that token."""
_UNUSED = re.compile("[\ufdd0-\ufdef]")
"""Characters that Unicode gives to programs; they do not come in texts."""

_KINDS = {"tokenizer.json": _Json, "tokenizer.model": _SentencePiece}


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    Attributes:
        file: the file it was read from, `tokenizer.json` or `tokenizer.model`.
        vocab_size: number of ids that it knows; the model's embedding may have more rows.
        bos_id, eos_id: ids of the tokens that begin and end a text, None where there is none.
        bos, eos: their texts, "" where there is none.
        use_bos: whether a prompt of this model starts with `bos_id`.
    """

    def __init__(self, checkpoint_dir: str | Path) -> None:
        """Reads the tokenizer of a folder; its `config.json` is not needed.

        Raises:
            UserError: the folder, or a tokenizer in it, is missing, or a file is damaged.
        """
        self.folder = Path(checkpoint_dir)
        if not self.folder.is_dir():
            raise UserError(f"no folder {checkpoint_dir}; download a checkpoint first (scripts/download.py)")
        self.file = next((self.folder / name for name in _KINDS if (self.folder / name).is_file()), None)
        if self.file is None:
            raise UserError(
                f"no tokenizer.json or tokenizer.model in {checkpoint_dir}; download the checkpoint again "
                "(scripts/download.py)"
            )
        try:
            self._backend = _KINDS[self.file.name](self.file)
        except Exception as error:  # the libraries raise whatever their parsers raise
            raise UserError(
                f"{self.file}: not a {self.file.name} ({self.file.stat().st_size:,} bytes; {error}); download it again"
            ) from error
        self.vocab_size: int = self._backend.size
        config = self._config("tokenizer_config.json")
        self.bos_id = self._special_id("bos", config)
        self.eos_id = self._special_id("eos", config)
        self.use_bos: bool = self._backend.adds_bos(self.bos_id, config)
        self.bos, self.eos = ("" if i is None else self.token(i) for i in (self.bos_id, self.eos_id))
        specials = dict(self._backend.specials)
        for i in (self.bos_id, self.eos_id):
            if i is not None:  # they are special even where their file does not say so
                specials.setdefault(self.token(i), (i, False, False))
        self._specials = {text: i for text, (i, _, _) in specials.items()}
        patterns = [
            (r"\s*" if before else "") + re.escape(text) + (r"\s*" if after else "")
            for text, (_, before, after) in sorted(specials.items(), key=lambda item: -len(item[0]))
        ]
        self._find_special = re.compile(f"({'|'.join(patterns)})" if patterns else r"($.)")
        self._starts_anew = self._backend.starts_anew(config)
        pieces = (self._backend.find(f"<0x{byte:02X}>") for byte in range(256))
        self._byte_ids = {i for i in pieces if i is not None}

    def _config(self, name: str) -> dict[str, Any]:
        found = read_json(self.folder / name) if (self.folder / name).is_file() else {}
        return found if isinstance(found, dict) else {}

    def _special_id(self, name: str, config: dict[str, Any]) -> int | None:
        """The id of `name` ("bos" or "eos"): the tokenizer's own settings come before the model's."""
        for source in (config, self._config("special_tokens_map.json")):
            token = source.get(f"{name}_token")
            token = token.get("content") if isinstance(token, dict) else token
            try:
                found = self._backend.find(str(token)) if token else None
            except (TypeError, UnicodeError) as error:
                raise UserError(f"{self.folder}: {name}_token {token!r:.80} is no text; download it again") from error
            if found is not None:
                return found
        if (own := self._backend.own_id(f"{name}_id")) is not None:
            return own
        for source in (self._config("generation_config.json"), self._config("config.json")):
            value = source.get(f"{name}_token_id")
            value = value[0] if isinstance(value, list) and value else value
            if type(value) is int and 0 <= value < self.vocab_size:
                return value
        return None

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the tokenizer's file, in hexadecimal: data made with one tokenizer is refused by another."""
        return sha256(self.file)

    def encode(self, text: str, *, bos: bool | None = None, eos: bool = False) -> list[int]:
        """The ids of a text. A prompt and its answer are encoded each on its own; see `encode_batch` for the rest."""
        return self.encode_batch([text], bos=bos, eos=eos)[0]

    def encode_batch(self, texts: Sequence[str], *, bos: bool | None = None, eos: bool = False) -> list[list[int]]:
        """The ids of each text, on all cores.

        SentencePiece puts a space before the first word ("▁Paris"). So a prompt ends without one, its answer is encoded
        on its own with `bos=False`, and the ids of both are joined: exactly what generation continues.

        Args:
            bos: put `bos_id` first; None: if this model's prompts start so (`use_bos`).
            eos: put `eos_id` last.

        Raises:
            UserError: BOS or EOS is asked for and the tokenizer has none, or a text cannot be written as UTF-8.
        """
        first, last = self.use_bos if bos is None else bos, eos
        for asked, found, name in ((first, self.bos_id, "BOS"), (last, self.eos_id, "EOS")):
            if asked and found is None:
                raise UserError(f"{self.file}: the tokenizer has no {name} token; name it in tokenizer_config.json")
        try:
            rows = self._backend.encode(texts)
        except (TypeError, RuntimeError, UnicodeError) as error:
            raise UserError("the text has bytes that are not UTF-8; take them out, or save it as UTF-8") from error
        head, tail = [self.bos_id] if first else [], [self.eos_id] if last else []
        return [head + row + tail for row in rows] if head or tail else rows

    def find(self, text: str) -> int | None:
        """The id of a token by its text, None if there is none."""
        return self._backend.find(text)

    def guard(self, text: str) -> str:
        """The text such that `encode_pieces` reads it as plain characters, also where it spells special tokens."""

        def broken(found: re.Match) -> str:
            start = len(found[0]) - len(found[0].lstrip()) + 1
            return found[0][:start] + _GUARD + found[0][start:]

        return self._find_special.sub(broken, _UNUSED.sub("", text))

    def is_special(self, i: int) -> bool:
        """Whether an id is a special token, which `decode` leaves out."""
        return i in self._backend.hidden or i in (self.bos_id, self.eos_id)

    def first_special(self, text: str) -> str | None:
        """The first special token that a text spells."""
        found = self._find_special.search(text)
        return found and found[0].strip()

    def last_special(self, text: str) -> str | None:
        """The special token with which a text ends."""
        found = self._find_special.split(text)
        return found[-2].strip() if len(found) > 1 and not found[-1] else None

    def encode_pieces(
        self, rows: Sequence[Sequence[tuple[str, bool]]], *, bos: bool, own: bool = False
    ) -> list[tuple[list[int], list[bool]]]:
        """The ids of texts that are made of marked pieces, and the mark of every id.

        A text has the ids that the tokenizer gives it as a whole, but for two things: no token reaches over a place
        where the marks change, so a prompt has the same ids with its answer as without; and what `guard` was given does
        not become special tokens.

        Args:
            rows: the texts, each as (piece, mark).
            bos: put `bos_id` first, unless the text begins with it.
            own: a piece whose mark differs from that before it is encoded as if it stood on its own, with the space
                that SentencePiece puts before a first word.

        Raises:
            UserError: BOS is asked for and the tokenizer has none, or a text cannot be written as UTF-8.
        """
        wanted: dict[tuple[str, bool], list[int]] = {}  # (text, whether it begins a text) -> ids
        plans = []
        for row in rows:
            plan: list[tuple[int | tuple[str, bool], bool]] = []
            anew = True
            merged: list[list[Any]] = []
            for text, mark in row:
                if merged and merged[-1][1] == mark:
                    merged[-1][0] += text
                else:
                    merged.append([text, mark])
            for text, mark in merged:
                for place, part in enumerate(self._find_special.split(text)):
                    if place % 2:
                        plan.append((self._specials[part if part in self._specials else part.strip()], mark))
                        anew = self._starts_anew
                    elif part := part.replace(_GUARD, ""):
                        wanted[part, anew] = []
                        plan.append(((part, anew), mark))
                        anew = False
                anew = anew or own
            plans.append(plan)
        self._fill(wanted)
        out = []
        for plan in plans:
            ids = [self.bos_id] if bos and (not plan or plan[0][0] != self.bos_id) else []
            marks = [False] * len(ids)
            for what, mark in plan:
                found = [what] if isinstance(what, int) else wanted[what]
                ids += found
                marks += [mark] * len(found)
            out.append((ids, marks))
        if bos and self.bos_id is None:
            raise UserError(f"{self.file}: the tokenizer has no BOS token; name it in tokenizer_config.json")
        return out

    def _fill(self, wanted: dict[tuple[str, bool], list[int]]) -> None:
        """Encodes texts without special tokens: as the beginning of a text, or behind a character that nothing merges
        with, so that it is the tokenizer's view of the middle of one."""
        keys = list(wanted)
        try:
            (head,) = self._backend.encode(["\0"], literal=True)
            rows = self._backend.encode([text if anew else f"\0{text}" for text, anew in keys], literal=True)
        except (TypeError, RuntimeError, UnicodeError) as error:
            raise UserError("the text has bytes that are not UTF-8; take them out, or save it as UTF-8") from error
        for key, row in zip(keys, rows, strict=True):
            wanted[key] = row if key[1] else row[len(head) :]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without special tokens and, for SentencePiece, without the space before the first word.

        Ids beyond the vocabulary, which a padded embedding can produce, are left out.
        """
        return self._backend.decode([int(i) for i in ids])

    def token(self, i: int) -> str:
        """The piece of one id as the vocabulary has it, for example "▁Paris" or "ĠParis"."""
        return self._backend.piece(int(i)) or f"<id {int(i)}>"

    def stream_decoder(self, continues: bool = False) -> "Detokenizer":
        """A decoder for ids that come one at a time.

        Args:
            continues: the ids continue a text (`generate/base.py`), so a space before their first word belongs to them;
                otherwise they stand on their own, as an answer does.
        """
        return Detokenizer(self, continues)


class Detokenizer:
    """Decodes ids one at a time: all that `add` and `flush` return, joined, is `Tokenizer.decode` of all ids.

    A character may take several tokens; they are held back until it is whole.
    """

    def __init__(self, tokenizer: Tokenizer, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._word = tokenizer.encode("a", bos=False)
        self._before = self._word if continues else []  # stands for the text so far: only at its start a space is lost
        self._held: list[int] = []

    def add(self, i: int) -> str:
        """The text that this id completes, possibly none."""
        if int(i) in self._tokenizer._backend.hidden:
            return ""
        self._held.append(int(i))
        if int(i) in self._tokenizer._byte_ids:  # a run of byte pieces is decoded as a whole
            return ""
        text = self._text()
        return "" if text.endswith("\ufffd") else self._release(text)

    def flush(self) -> str:
        """The rest, when no more ids will come; half a character shows as U+FFFD."""
        return self._release(self._text())

    def _text(self) -> str:
        before = len(self._tokenizer.decode(self._before))
        return self._tokenizer.decode(self._before + self._held)[before:]

    def _release(self, text: str) -> str:
        if text:
            self._held, self._before = [], self._word
        return text

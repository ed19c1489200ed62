"""Many texts from one model at the same time: each comes when it likes and leaves when it is done.

A text has a row of a KV cache that is allocated once. A step is a call of the model for the next token of every row
whose prompt is read, and for pieces of the prompts that are not. Pieces end after `piece` tokens and where the text is
cut, such as at blank lines, so that prompts with a common beginning have pieces in common: a row that has them, also
one that is free by now, is copied from. The examples of few-shot tasks are read once that way.

A text is a function of its request, to the bit, whoever is beside it, whatever was read before:

- Attention is the same call for a row whatever the others do, and so is the reading of a piece. Only the beginning up
  to the last cut is looked at by all together that have it, in numbers that give the same bits (`cache.Ragged`).
- Kernels may sum in another order for another number of tokens. So it is tried at the start which numbers give the
  same bits, and calls are filled up to one of these (`like_sizes`). Where few do, every call has a size of its own: a
  piece alone, or one token of every row. (Not so for the experts of a mixture, which get what the router gives them.)
- A row draws with a generator of its own, from logits in float32.

Shapes: N tokens of a call, A of them asked for logits, V vocabulary, K likeliest tokens.
"""

import contextlib
import copy
import ctypes
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_gpt.alike import like_queries, like_sizes, sixteens
from lit_gpt.cache import KVCache, Ragged
from lit_gpt.decode import Sampling, kernels_for
from lit_gpt.model import GPT

APART = 16
"""Tokens between cuts of a prompt at least."""


@dataclass
class Token:
    """A token, and how likely it was."""

    id: int
    logprob: float
    """Of the model's own distribution, before any rule of sampling; 0 for a first token, which nothing predicts."""
    top: list[tuple[int, float]]
    """The likeliest tokens in its place and their log-probabilities."""


@dataclass(eq=False)
class Job:
    """A text that is wanted.

    Attributes:
        prompt: token ids, at least one.
        take: is called with every new token, in the engine's thread; True ends the text.
        future: becomes done when the text is; cancelling it frees the row.
        read: the prompt's tokens, if asked for by `echo`.
        cuts: places in the prompt where a piece ends in any case, such as between few-shot examples.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    take: Callable[[Token], bool]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    top: int = 0
    """So many likeliest tokens are wanted in every place."""
    echo: bool = False
    stop_ids: Sequence[int] = ()
    cuts: Sequence[int] = ()
    future: "Future[None]" = field(default_factory=Future)
    read: list[Token] = field(default_factory=list)


class Refused(Exception):
    """No more texts can be taken: says why in one line."""


@dataclass(eq=False)
class _Row:
    """A row of the cache, and the text that has it."""

    cache: KVCache
    pieces: list[tuple[int, ...]] = field(default_factory=list)
    """The pieces of a prompt that it holds, also when it is free again."""
    job: Job | None = None
    wanted: list[tuple[int, ...]] = field(default_factory=list)
    """The pieces of that text's prompt."""
    common: tuple[Hashable, int] = ((), 0)
    """The pieces up to the last cut, which other prompts may have as well, and their tokens."""
    newest: int | None = None
    """The token that was drawn last; None while the prompt is read."""
    count: int = 0
    """Tokens drawn."""
    generator: torch.Generator | None = None
    turn: int = 0
    """Orders the rows by when they were taken or left."""


@dataclass
class _Part:
    """Tokens of a row in a call of the model, and for how many of the last of them logits are asked."""

    row: _Row
    job: Job
    start: int
    """Where in the row they come."""
    ids: Sequence[int]
    asked: int

    @property
    def cache(self) -> KVCache:
        """The row's memory as it is before these tokens."""
        cache = copy.copy(self.row.cache)
        cache.used, cache.common = self.start, None if self.row.newest is None else self.row.common
        return cache


class Engine:
    """Continues texts, as many at a time as its cache has rows.

    Args:
        rows: texts at a time; the cache has an eighth and one more.
        length: of a row in tokens: prompt and text.
        queue_size: texts that may wait for a row.
        piece: tokens, see above.
    """

    def __init__(self, model: GPT, rows: int, length: int, queue_size: int = 1000, piece: int | None = None) -> None:
        weight = model.wte.weight
        self.model, self.length, self.queue_size, self.device = model, length, queue_size, weight.device
        self.piece = piece or (64 if self.device.type == "cpu" else 256)
        self.most_read = 3 * self.piece
        """Tokens of prompts that are read in a step."""
        self.most_rows = rows
        spare = 1 + rows // 8  # beginnings of prompts are kept also while all texts have rows
        self._cache = KVCache(model.config, rows + spare, length, weight.device, weight.dtype)
        self._cache.stride = min(64, length)
        self.rows = [_Row(self._cache.row(number)) for number in range(rows + spare)]
        self.sizes = like_sizes(model, rows + self.most_read)
        """Numbers of tokens that give the same bits; empty: none but equal ones do."""
        self.together = like_queries(model, length)
        """Numbers of texts with a common beginning that look at it at a time."""
        self.waiting: deque[Job] = deque()
        self._news = threading.Condition()
        self._closed, self._turns = False, itertools.count()
        self._thread: threading.Thread | None = None
        self.read = self.reused = self.drawn = 0
        """Prompt tokens that were computed, and copied, and tokens drawn, since the start."""

    def submit(self, *jobs: Job) -> None:
        """Queues texts, all of them or none; from any thread. A queue that is empty takes any number.

        Raises:
            Refused: the queue is full, or the engine is about to end.
        """
        for job in jobs:
            if not job.prompt or len(job.prompt) + job.max_new_tokens > self.length:
                raise ValueError(f"{len(job.prompt)} + {job.max_new_tokens} tokens do not fit {self.length}")
        with self._news:
            if self._closed:
                raise Refused("the server is shutting down")
            if len(self.waiting) + len(jobs) > self.queue_size:  # those whose clients have left hold no places
                self.waiting = deque(job for job in self.waiting if not job.future.cancelled())
            if self.waiting and len(self.waiting) + len(jobs) > self.queue_size:
                raise Refused(f"the queue is full ({len(self.waiting)} waiting); try again later")
            self.waiting.extend(jobs)
            self._news.notify()

    @property
    def ended(self) -> bool:
        """Whether its thread has been, and is no more."""
        return self._thread is not None and not self._thread.is_alive()

    def state(self) -> dict[str, int]:
        """What it is at, and what it has done since the start."""
        return {
            "rows": self.most_rows,
            "busy": sum(row.job is not None for row in self.rows),
            "waiting": len(self.waiting),
            "prompt_tokens_read": self.read,
            "prompt_tokens_reused": self.reused,
            "tokens_drawn": self.drawn,
        }

    def start(self) -> None:
        """Works in a thread of its own until `close`, if it does not do so yet."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()

    @staticmethod
    def started(build: "Callable[[], Engine]") -> "Engine":
        """Starts an engine that is built in its own thread, as the model should be that it gets.

        On a CPU every thread that calls kernels has a team of threads for them, and several teams on the same
        processors hinder each other: bench/NOTES.md has what that costs.
        """
        built: Future[Engine] = Future()

        def work() -> None:
            try:
                built.set_result(build())
            except BaseException as error:
                built.set_exception(error)
            else:
                built.result()._run()

        thread = threading.Thread(target=work, name="engine", daemon=True)
        thread.start()
        try:
            engine = built.result()
        except BaseException:  # also a signal's: Python aborts if it ends while a thread is in the middle of kernels
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            while thread.is_alive():
                if built.done() and built.exception() is None:
                    built.result().close()
                thread.join(0.05)
            raise
        engine._thread = thread
        return engine

    def close(self) -> None:
        """Takes no more texts, gives up those that are not done, and ends the thread."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._closed or self.waiting or any(row.job for row in self.rows))
                    if self._closed:
                        break
                try:
                    self.step()
                except Exception as error:  # whatever it is, the next texts are to be served
                    for row in self.rows:
                        if row.job:
                            self._fail(row, error)
        finally:  # however it ends, nobody waits for what will not come
            with self._news:
                self._closed = True
            for job in [*self.waiting, *(row.job for row in self.rows if row.job)]:
                job.future.cancel()

    @torch.inference_mode()
    def step(self) -> bool:
        """Moves all texts on, by one token or a piece of their prompts; False if there is nothing to do."""
        for row in self.rows:
            if row.job and row.job.future.cancelled():
                self._end(row)
        self._admit()
        drawing = [_Part(r, r.job, r.cache.used, [r.newest], 1) for r in self.rows if r.newest is not None]
        reading = self._pieces()
        if self.sizes:
            calls = [drawing + reading]
        else:
            calls = [[part] for part in reading] + [drawing]
        for parts in filter(None, calls):
            self._call(parts)
        return bool(drawing or reading)

    def _admit(self) -> None:
        """Gives free rows to the texts that wait longest: the row of which least is lost, among equals the oldest."""
        while len(free := [row for row in self.rows if row.job is None]) > len(self.rows) - self.most_rows:
            with self._news:
                job = self.waiting.popleft() if self.waiting else None
            if job is None:
                return
            if job.future.cancelled():
                continue
            wanted = split(job.prompt, self.piece, job.cuts)
            shared = [] if job.echo else wanted[:-1]
            row = min(free, key=lambda row: (len(row.pieces) - _common(row.pieces, shared), row.turn))
            row.job, row.wanted, row.count, row.turn = job, wanted, 0, next(self._turns)
            row.common = _to_last_cut(wanted, job.cuts)
            del row.pieces[_common(row.pieces, shared) :]
            row.cache.used = sum(map(len, row.pieces))
            self.reused += row.cache.used
            if job.sampling.temperature > 0:
                row.generator = torch.Generator(self.device).manual_seed(job.seed)
            if job.echo:
                job.read.append(Token(job.prompt[0], 0.0, []))

    def _pieces(self) -> list[_Part]:
        """The next pieces of prompts, as many as a call takes, those left out that another row holds or reads now."""
        parts, room, ways = [], self.most_read, set()
        for row in sorted((r for r in self.rows if r.job and r.newest is None), key=lambda r: r.turn):
            self._copy(row)
            job, start = row.job, row.cache.used
            for number in range(len(row.pieces), len(row.wanted)):
                ids, last = row.wanted[number], number + 1 == len(row.wanted)
                way = tuple(row.wanted[: number + 1])
                if len(ids) > room:
                    return parts
                if way in ways and not (last or job.echo):
                    break
                ways.add(way)
                room -= len(ids)
                parts.append(_Part(row, job, start, ids, len(ids) if job.echo else int(last)))
                start += len(ids)
        return parts

    def _copy(self, row: _Row) -> None:
        """Takes over from another row what it has read of the same prompt."""
        wanted = [] if row.job.echo else row.wanted[:-1]
        source = max(self.rows, key=lambda other: _common(other.pieces, wanted))
        known = _common(source.pieces, wanted)
        if known > len(row.pieces):
            slots = slice(row.cache.used, sum(map(len, wanted[:known])))
            for own, other in ((row.cache.k_LBGSD, source.cache.k_LBGSD), (row.cache.v_LBGSD, source.cache.v_LBGSD)):
                own[..., slots, :] = other[..., slots, :]
            self.reused += slots.stop - slots.start
            row.pieces, row.cache.used = wanted[:known], slots.stop

    def _call(self, parts: list[_Part]) -> None:
        """Computes these tokens, and hands on what follows from them; where that fails, one by one."""
        parts = [part for part in parts if part.row.job is part.job]
        if not parts:
            return
        try:
            logits_AV = self._logits(parts)
        except Exception as error:
            if len(parts) == 1:
                self._fail(parts[0].row, error)
            else:
                for part in parts:
                    self._call([part])
            return
        for part in parts:
            row = part.row
            row.cache.used = part.start + len(part.ids)
            if row.newest is None:
                self.read += len(part.ids)
                row.pieces.append(part.ids)
        self._hand_on(parts, logits_AV)

    def _hand_on(self, parts: list[_Part], logits_AV: Tensor) -> None:
        """Draws the tokens that follow, and gives them to the texts."""
        asked = [(part.row, part.start + len(part.ids) - n) for part in parts for n in range(part.asked, 0, -1)]
        if not asked:
            return
        best_A = logits_AV.argmax(-1)
        ids_A = best_A.clone()
        for n, (row, place) in enumerate(asked):
            if row.newest is None and place + 1 < len(row.job.prompt):
                ids_A[n] = row.job.prompt[place + 1]
            elif row.generator is not None:
                ids_A[n] = row.job.sampling.draw(logits_AV[n : n + 1], row.generator)[0]
        total_A1 = torch.stack([logits_1V.logsumexp(-1) for logits_1V in logits_AV.split(1)])  # each sum by itself
        logprobs = (logits_AV.gather(1, ids_A[:, None]) - total_A1)[:, 0].tolist()
        tops = _likeliest(logits_AV, total_A1, best_A, [row.job.top for row, _ in asked])
        for (row, place), token in zip(asked, map(Token, ids_A.tolist(), logprobs, tops), strict=True):
            job = row.job
            if job is None:  # it failed at an earlier place
                continue
            if not math.isfinite(token.logprob):
                self._fail(row, ArithmeticError("the model's logits are not finite"))
            elif row.newest is None and place + 1 < len(job.prompt):
                job.read.append(token)
            else:
                self._take(row, job, token)

    def _take(self, row: _Row, job: Job, token: Token) -> None:
        """A new token of a text; it may be the last."""
        row.newest, row.count = token.id, row.count + 1
        try:
            done = job.max_new_tokens == 0 or token.id in job.stop_ids or job.take(token)
        except Exception as error:
            self._fail(row, error)
            return
        self.drawn += 1
        if done or row.count >= job.max_new_tokens:
            self._end(row)

    def _end(self, row: _Row, error: Exception | None = None) -> None:
        """The text of a row is done, or cannot be; the row is free and keeps what it has read."""
        job, row.job, row.newest, row.generator, row.turn = row.job, None, None, None, next(self._turns)
        with contextlib.suppress(InvalidStateError):  # it was cancelled
            if error is None:
                job.future.set_result(None)
            else:
                job.future.set_exception(error)

    def _fail(self, row: _Row, error: Exception) -> None:
        """Gives up a row's text; what it holds may be the reason, so it is wiped."""
        row.pieces = []
        self._end(row, error)
        with contextlib.suppress(RuntimeError):  # a device that is lost: the next texts will say so
            row.cache.k_LBGSD.zero_()
            row.cache.v_LBGSD.zero_()

    def _logits(self, parts: list[_Part]) -> Tensor:
        """Logits after the tokens for which they are asked, (A, V), in float32."""
        ids = [i for part in parts for i in part.ids]
        ends = torch.tensor([len(part.ids) for part in parts]).cumsum(0).tolist()
        at = [place for part, end in zip(parts, ends, strict=True) for place in range(end - part.asked, end)]
        reading = parts[0].row.newest is None and not self.sizes
        total = len(ids) if reading else self._filled(len(ids))
        unasked = sorted(set(range(total)) - set(at), reverse=True)
        more = 0 if reading else (self._filled(len(at)) - len(at) if at else 0)
        places = sorted(at + unasked[:more])
        idx_1N = torch.tensor([ids + [0] * (total - len(ids))], device=self.device)
        at_1N = torch.zeros(1, total, dtype=torch.bool)
        at_1N[0, places] = True
        with kernels_for(total, self.device):
            ragged = Ragged([(part.cache, len(part.ids)) for part in parts], self.together)
            logits_AV = self.model(idx_1N, cache=ragged, at_BT=at_1N.to(self.device))
        if places[: len(at)] == at:
            logits_AV = logits_AV[: len(at)]
        else:
            logits_AV = logits_AV[[places.index(place) for place in at]]
        return logits_AV.float()

    def _filled(self, size: int) -> int:
        """The number of tokens to which a call with so many is filled up."""
        return next(like for like in self.sizes or [sixteens(self.most_rows)] if like >= size)


def split(prompt: Sequence[int], most: int, cuts: Sequence[int]) -> list[tuple[int, ...]]:
    """A prompt's pieces: each ends at a cut, or after `most` tokens. What follows them does not change them.

    Cuts that are close to the one before do not count, so that there are not too many pieces. None is empty.
    """
    ends, before = [0], 0
    for cut in [*(cut for cut in cuts if cut < len(prompt)), len(prompt)]:
        if before + APART <= cut or cut == len(prompt):
            ends += [*range(ends[-1] + most, cut, most), cut]
            before = cut
    return [tuple(prompt[start:end]) for start, end in itertools.pairwise(ends)]


def _common(some: Sequence[tuple[int, ...]], others: Sequence[tuple[int, ...]]) -> int:
    """How many pieces two prompts have in common at their beginning."""
    count = 0
    for one, other in zip(some, others, strict=False):
        if one != other:
            break
        count += 1
    return count


def _to_last_cut(pieces: Sequence[tuple[int, ...]], cuts: Sequence[int]) -> tuple[Hashable, int]:
    """The pieces of a prompt up to its last cut, and their tokens."""
    ends = [0, *itertools.accumulate(map(len, pieces[:-1]))]
    count = max(n for n, end in enumerate(ends) if n == 0 or end in cuts)
    return tuple(pieces[:count]), ends[count]


def _likeliest(logits_AV: Tensor, total_A1: Tensor, best_A: Tensor, wanted: list[int]) -> list[list[tuple[int, float]]]:
    """So many likeliest tokens of each place, and how likely; of equally likely ones the smaller id, as in `argmax`.

    Args:
        total_A1: the logarithms of the sums of the exponentials.
        best_A: the likeliest ones.
    """
    found: list[list[tuple[int, float]]] = [[] for _ in wanted]
    for count in set(wanted) - {0}:
        places = [n for n, k in enumerate(wanted) if k == count]
        best_P1 = best_A[places, None]
        if count == 1:
            ids_PK, logits_PK = best_P1, logits_AV[places, best_A[places]][:, None]
        else:
            logits_PK, ids_PK = logits_AV[places].topk(min(count, logits_AV.size(1)), dim=-1)
        values_PK = logits_PK - total_A1[places]
        for place, row, value, (best,) in zip(
            places, ids_PK.tolist(), values_PK.tolist(), best_P1.tolist(), strict=True
        ):
            if best not in row:  # there are more that are as likely
                row[-1] = best
            found[place] = sorted(zip(row, value, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return found

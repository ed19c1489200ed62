"""Our model as a model of EleutherAI's evaluation harness (lm-eval), with the numbers of the harness's own `hf` model.

Shapes: B batch, T tokens, V vocabulary, N scored positions.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from lit_gpt.decode import Sampling, decode
from lit_gpt.model import GPT
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer

Scored = tuple[tuple[int, ...], int]
"""Token ids, and how many of them at the end are to be scored."""

SOFTMAX_ROWS = 1024
"""Positions whose probabilities are computed together; in float32 they take V * 4 bytes each."""


class LitLM(TemplateLM):
    """Answers the harness's three kinds of request: log-likelihood of a continuation, of a whole text, and generation.

    How a question and its answer are split into tokens is inherited (`TemplateLM._encode_pair`).

    Attributes:
        max_length: window in tokens; longer questions lose their beginning.
        truncated: number of requests that did.
    """

    max_gen_toks = 256  # where a task does not say; as in the harness

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 4,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
    ) -> None:
        """Wraps a loaded model, on the device where it is.

        Args:
            batch_size: requests per call of the model.
            max_length: window in tokens; None: all that the model was trained for.
            add_bos_token: whether texts start with BOS; None: as the tokenizer has it.

        Raises:
            UserError: the window is larger than the model's.
        """
        super().__init__()
        longest = model.config.block_size
        if max_length is not None and not 2 <= max_length <= longest:
            raise UserError(f"--max_seq_length: must be between 2 and {longest}, the model's context; got {max_length}")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.max_length = max_length or longest
        self.add_bos_token = tokenizer.use_bos if add_bos_token is None else add_bos_token
        self.truncated = 0
        self._device = model.wte.weight.device
        self._prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: BOS, or EOS where there is no BOS."""
        if self._prefix is None:
            raise UserError(f"{self.tokenizer.file}: no BOS and no EOS token; name one in tokenizer_config.json")
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; a text that spells its BOS out does not get a second one."""
        spelt = None if self._prefix is None else self.tokenizer.token(self._prefix)
        if not (spelt and string.startswith(spelt)):
            return self.tokenizer.encode(string, bos=self.add_bos_token and add_special_tokens is not False)
        ids = self.tokenizer.encode(string, bos=False)
        if ids[0] == self._prefix:
            return ids
        return [self._prefix, *self.tokenizer.encode(string.removeprefix(spelt), bos=False)]  # SentencePiece reads text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the likeliest one.

        Raises:
            UserError: a continuation is empty, or longer than the window.
        """
        for request in requests:
            if not request.args[1]:
                raise UserError(f"task {request.task_name}: an answer to its question {request.doc_id + 1} is empty")
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._score([self._fit(*request) for request in requests], "loglikelihood")

    def _fit(self, texts: tuple[str, str], context: list[int], answer: list[int]) -> Scored:
        if not 0 < len(answer) <= self.max_length:
            shown = texts[1] if len(texts[1]) <= 40 else texts[1][:40] + "..."
            raise UserError(f"the answer {shown!r} has {len(answer)} tokens; it must have 1 to {self.max_length}")
        ids = (context or [self.prefix_token_id]) + answer
        self.truncated += len(ids) > self.max_length + 1
        return tuple(ids[-(self.max_length + 1) :]), len(answer)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each text as a whole; long ones in windows that score every token once."""
        windows: list[Scored] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                context, scored = make_disjoint_window(window)
                windows.append((tuple(context + scored), len(scored)))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._score(windows, "loglikelihood_rolling"), strict=True):
            sums[owner] += logprob
        return sums

    def _score(self, sequences: list[Scored], label: str) -> list[tuple[float, bool]]:
        """For each sequence: the log-probability of its scored ids, and whether each of them was the likeliest."""
        different = list(dict.fromkeys(sequences))  # tasks share answers: truthfulqa_mc2 asks all that mc1 asks
        found: dict[Scored, tuple[float, bool]] = {}
        for rows in self._batches([len(ids) for ids, _ in different], label):
            batch = [different[row] for row in rows]
            found.update(zip(batch, self._score_batch(batch), strict=True))
        return [found[sequence] for sequence in sequences]

    def _batches(self, lengths: Sequence[int], label: str) -> Iterator[list[int]]:
        """Row numbers, batch by batch, under a progress bar. The longest first: running out of memory shows at once."""
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        with tqdm(total=len(order), desc=label, unit="request", disable=None) as bar:  # None: on a terminal only
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                yield rows
                bar.update(len(rows))

    @torch.inference_mode()
    def _score_batch(self, sequences: list[Scored]) -> list[tuple[float, bool]]:
        idx_BT = torch.zeros(len(sequences), max(len(ids) for ids, _ in sequences), dtype=torch.int64)
        scored_BT = torch.zeros_like(idx_BT, dtype=torch.bool)
        for row, (ids, n) in enumerate(sequences):
            idx_BT[row, : len(ids)] = torch.tensor(ids)
            scored_BT[row, len(ids) - n : len(ids)] = True
        targets_N = idx_BT[scored_BT].to(self._device)
        logits_NV = self.model(idx_BT[:, :-1].to(self._device), at_BT=scored_BT[:, 1:].to(self._device))
        parts = zip(logits_NV.split(SOFTMAX_ROWS), targets_N.split(SOFTMAX_ROWS), strict=True)
        losses_N = torch.cat([F.cross_entropy(logits.float(), targets, reduction="none") for logits, targets in parts])
        greedy_N = logits_NV.argmax(dim=-1) == targets_N
        counts = [n for _, n in sequences]
        pairs = zip(losses_N.cpu().split(counts), greedy_N.cpu().split(counts), strict=True)
        return [(-losses.sum().item(), greedy.all().item()) for losses, greedy in pairs]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The continuation of each context, up to the first of its stop strings."""
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        groups: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(row)
        found = [""] * len(requests)
        for group in groups.values():
            settings = read_gen_kwargs(requests[group[0]].args[1], self)
            for rows in self._batches([len(prompts[row]) for row in group], "generate_until"):
                texts = self._generate([prompts[group[row]] for row in rows], *settings)
                for row, text in zip(rows, texts, strict=True):
                    found[group[row]] = text
        return found

    def _generate(self, prompts: list[list[int]], max_new: int, sampling: Sampling, stops: list[str]) -> list[str]:
        room = self.max_length - max_new
        self.truncated += sum(len(prompt) > room for prompt in prompts)
        streams = [self.tokenizer.stream_decoder() for _ in prompts]
        texts, open_rows = [""] * len(prompts), set(range(len(prompts)))
        stop_ids = [] if self.eot_token_id is None else [self.eot_token_id]
        for tokens in decode(self.model, [prompt[-room:] for prompt in prompts], max_new, sampling, stop_ids):
            for row in list(open_rows):
                if tokens[row] is not None:
                    texts[row] += streams[row].add(tokens[row])
                if tokens[row] is None or any(stop in texts[row] for stop in stops):
                    open_rows.remove(row)
            if not open_rows:
                break
        return [_cut(text + stream.flush(), stops) for text, stream in zip(texts, streams, strict=True)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Not supported.

        Raises:
            UserError: always.
        """
        raise UserError("chat templates are not supported in evaluation; evaluate with plain prompts")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes about the model into `config`."""
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "model_dtype": self.model.wte.weight.dtype,
        }


def _cut(text: str, stops: list[str]) -> str:
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text


def read_gen_kwargs(kwargs: dict[str, Any], lm: LitLM) -> tuple[int, Sampling, list[str]]:
    """Reads the `generation_kwargs` of a task: the most new tokens, how they are drawn, the strings that end a text.

    Raises:
        UserError: there is a setting that this toolkit does not have, or no room is left for the prompt.
    """
    settings = dict(normalize_gen_kwargs(kwargs, lm.max_gen_toks))
    max_new, stops = settings.pop("max_gen_toks"), [stop for stop in settings.pop("until") if stop]
    if lm.eot_token_id is not None:
        stops.append(lm.tokenizer.token(lm.eot_token_id))
    if not 0 < max_new < lm.max_length:
        raise UserError(f"max_gen_toks {max_new} of the task leaves no room for its prompt in {lm.max_length} tokens")
    sample = settings.pop("do_sample")
    temperature, top_k, top_p = (settings.pop(name, None) for name in ("temperature", "top_k", "top_p"))
    if strange := {name: value for name, value in settings.items() if value not in (None, 0, 1)}:  # 0 and 1 are "off"
        raise UserError(f"generation_kwargs {strange} of the task: only temperature, top_k and top_p are supported")
    if not sample:
        return max_new, Sampling(), stops
    return max_new, Sampling(1.0 if temperature is None else temperature, top_k or None, top_p or 1.0), stops

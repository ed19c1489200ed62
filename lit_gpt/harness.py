"""Our model as a model of EleutherAI's evaluation harness (lm-eval), with the numbers of the harness's own `hf` model.

Requests are token ids here: equal ones are answered once, and what they share is computed once (`lit_gpt.scoring`).
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from lit_gpt.answers import Answers
from lit_gpt.cache import KVCache
from lit_gpt.decode import Sampling, cache_for, decode, prefill
from lit_gpt.model import GPT
from lit_gpt.scoring import Score, Scored, pack_length_for, score
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer

BAR = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
"""How far scoring is; its unit is the token of the tree, which takes always the same time, and not the request."""


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
        pack_length: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        answers: Answers | None = None,
    ) -> None:
        """Wraps a loaded model, on the device where it is.

        Args:
            batch_size: texts that are generated together.
            pack_length: tokens that are scored in one call of the model; None: as suits the device.
            max_length: window in tokens; None: all that the model was trained for.
            add_bos_token: whether texts start with BOS; None: as the tokenizer has it.
            answers: what is known already; takes what becomes known.

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
        self.answers, self.truncated = answers or Answers(), 0
        self._device = model.wte.weight.device
        self.pack_length = pack_length or pack_length_for(self._device)
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

    def _score(self, sequences: list[Scored], label: str) -> list[Score]:
        """The score of each sequence; of equal ones, which tasks share, only one is computed."""
        found = {sequence: Score(*value) for sequence, value in self.answers.known(sequences).items()}
        asked = [sequence for sequence in dict.fromkeys(sequences) if sequence not in found]
        with tqdm(total=1.0, desc=label, bar_format=BAR, disable=None) as bar:  # None: on a terminal only
            for share, known in score(self.model, asked, self.pack_length):
                new = {asked[i]: value for i, value in known}
                self.answers.add(new)
                found |= new
                bar.update(share - bar.n)
        return [found[sequence] for sequence in sequences]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The continuation of each context, up to the first of its stop strings."""
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        groups: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(row)
        texts = [""] * len(requests)
        for kwargs, group in groups.items():
            max_new, sampling, stops = read_gen_kwargs(requests[group[0]].args[1], self)
            room, greedy = self.max_length - max_new, sampling.temperature == 0
            self.truncated += sum(len(prompts[row]) > room for row in group)
            # equal prompts have one answer, unless it is drawn
            wanted = [(kwargs, tuple(prompts[row][-room:]), 0 if greedy else row) for row in group]
            found = self.answers.known(wanted) if greedy else {}
            asked = [want for want in dict.fromkeys(wanted) if want not in found]
            beginning = self._read_beginning([prompt for _, prompt, _ in asked])
            for batch in self._batches(asked):
                written = self._generate([prompt for _, prompt, _ in batch], max_new, sampling, stops, beginning)
                new = dict(zip(batch, written, strict=True))
                found |= new
                if greedy:
                    self.answers.add(new)
            for row, want in zip(group, wanted, strict=True):
                texts[row] = found[want]
        return texts

    def _batches(self, asked: list[tuple]) -> Iterator[list[tuple]]:
        """Prompts of similar length, under a progress bar. The longest first: running out of memory shows at once."""
        ordered = sorted(asked, key=lambda want: -len(want[1]))
        with tqdm(total=len(ordered), desc="generate_until", unit="text", disable=None) as bar:
            for start in range(0, len(ordered), self.batch_size):
                batch = ordered[start : start + self.batch_size]
                yield batch
                bar.update(len(batch))

    @torch.inference_mode()
    def _read_beginning(self, prompts: list[tuple[int, ...]]) -> KVCache | None:
        """What all the prompts begin with, such as few-shot examples, read once; None where there is no such thing."""
        first, last = min(prompts, default=()), max(prompts, default=())  # what these two share, all share
        alike = [a == b for a, b in zip(first, last, strict=False)]
        common = first[: [*alike, False].index(False)][: min(map(len, prompts), default=1) - 1]
        if len(prompts) < 2 or not common:
            return None
        cache = cache_for(self.model, 1, len(common))
        prefill(self.model, cache, [common])
        return cache

    def _generate(
        self,
        prompts: list[tuple[int, ...]],
        max_new: int,
        sampling: Sampling,
        stops: list[str],
        beginning: KVCache | None,
    ) -> list[str]:
        streams = [self.tokenizer.stream_decoder() for _ in prompts]
        texts, open_rows = [""] * len(prompts), set(range(len(prompts)))
        stop_ids = [] if self.eot_token_id is None else [self.eot_token_id]
        cache = cache_for(self.model, len(prompts), max(map(len, prompts)) + max_new)
        if beginning is not None:
            cache.fill(beginning, torch.zeros(len(prompts), dtype=torch.int64, device=self._device))
        for tokens in decode(self.model, prompts, max_new, sampling, stop_ids, cache=cache):
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

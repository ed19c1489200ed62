"""Published data sets by name: where they are, what their rows say, and their licence.

A new one is a function here, a launcher, and a row of `lit_gpt.cli`. Its files are at an address or in a repository of
the hub.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from lit_gpt.data.formats import LeftOut, pair, take
from lit_gpt.data.prepare import Prepare, Source, prepare
from lit_gpt.data.readers import BadRow, shown
from lit_gpt.prompts import Conversation
from lit_gpt.settings import UserError

GITHUB = "https://raw.githubusercontent.com"


def prepare_alpaca(settings: Prepare) -> None:
    """Prepares Alpaca: 52,000 instructions written by a language model, cleaned; a JSON array."""
    url = f"{GITHUB}/tloen/alpaca-lora/main/alpaca_data_cleaned_archive.json"
    prepare(settings, Source("alpaca", urls=[url], licence="CC-BY-NC-4.0"))


def prepare_alpaca_libre(settings: Prepare) -> None:
    """Prepares Alpaca-Libre: 3,000 instructions in the manner of Alpaca, free of its licence; JSON lines."""
    base = f"{GITHUB}/mobarski/alpaca-libre/82a5125a9ba7f05a22ce3efaa1dc76102eebdc74/data/output/work"
    urls = [f"{base}/alpaca_libre_tasks_v{version}.jsonl" for version in (1, 2, 3)]
    prepare(settings, Source("alpaca_libre", take_alpaca_libre, urls=urls, licence="CC0-1.0"))


def prepare_dolly(settings: Prepare) -> None:
    """Prepares Dolly: 15,000 instructions and answers written by people, seven kinds of tasks; JSON lines."""
    keys = {"instruction": "instruction", "input": "context", "output": "response"}
    hub = {"repo_id": "databricks/databricks-dolly-15k", "files": ["databricks-dolly-15k.jsonl"]}
    prepare(settings, Source("dolly", partial(take, keys=keys), **hub, licence="CC-BY-SA-3.0"))


def prepare_oasst1(settings: Prepare) -> None:
    """Prepares OpenAssistant 1: of each tree of messages in English the path of the best-ranked ones."""
    hub = {"repo_id": "OpenAssistant/oasst1", "files": ["2023-04-12_oasst_ready.trees.jsonl.gz"]}
    prepare(settings, Source("oasst1", take_oasst1, **hub, licence="Apache-2.0"))


def prepare_lima(settings: Prepare) -> None:
    """Prepares LIMA: 1,030 chosen conversations, 30 of them with several turns; JSON lines."""
    hub = {"repo_id": "GAIR/lima", "files": ["train.jsonl"]}
    prepare(settings, Source("lima", **hub, licence="CC-BY-NC-SA-4.0, or that of the source where it is stricter"))


def prepare_longform(settings: Prepare) -> None:
    """Prepares LongForm: 23,700 long texts written by people, and instructions for them; a JSON array."""
    urls = [f"{GITHUB}/akoksal/LongForm/main/dataset/{split}.json" for split in ("train", "test")]
    longform = partial(take, keys={"instruction": "input", "output": "output"})
    prepare(settings, Source("longform", longform, urls=urls[:1], test=urls[1], licence="MIT"))


def prepare_gsm8k(settings: Prepare) -> None:
    """Prepares GSM8K: 7,500 problems of primary-school mathematics with solutions step by step; JSON lines."""
    urls = [
        f"{GITHUB}/openai/grade-school-math/master/grade_school_math/data/{split}.jsonl" for split in ("train", "test")
    ]
    prepare(settings, Source("gsm8k", take_gsm8k, urls=urls[:1], test=urls[1], licence="MIT"))


@dataclass
class PrepareFlan(Prepare):
    """Settings of `prepare flan`."""

    subsets: str = "arc_challenge,arc_easy,bool_q,common_gen,openbookqa,piqa,rte,samsum"
    """Which of FLAN's tasks, by the names of their files without "_10templates_train.jsonl"; all together are 20 GB."""


def prepare_flan(settings: PrepareFlan) -> None:
    """Prepares some tasks of FLAN, each in ten wordings; JSON lines."""
    names = [name.strip() for name in settings.subsets.split(",")]
    if bad := [name for name in names if not re.fullmatch(r"\w+", name)]:
        raise UserError(f"--subsets: '{bad[0]}' is no name of a task; write them as arc_easy,bool_q")
    flan = partial(take, keys={"instruction": "inputs", "output": "targets"})
    files = [f"train/{name}_10templates_train.jsonl" for name in names]
    prepare(settings, Source("flan", flan, repo_id="Muennighoff/flan", files=files, licence="Apache-2.0"))


def take_alpaca_libre(place: str, row: Any) -> Conversation:
    """The sample in a row of Alpaca-Libre: `status` must be "ok"; an input of "<noinput>" or the like is no input."""
    if isinstance(row, dict) and row.get("status") != "ok":
        if "status" not in row:
            raise BadRow(f"{place}: no key 'status' among {shown(', '.join(map(str, row)))}; is this Alpaca-Libre?")
        raise LeftOut(f"status {shown(row['status'])}")
    question, answer = take(place, row, {field: field for field in ("instruction", "input", "output")})
    further = "" if re.fullmatch(r"\W*no ?input\W*", question.input, re.IGNORECASE) else question.input
    return pair(question.text, answer.text, further)


def take_gsm8k(place: str, row: Any) -> Conversation:
    """A problem and its solution, without the calculator's marks (`<<3*4=12>>`)."""
    question, answer = take(place, row, {"instruction": "question", "output": "answer"})
    return pair(question.text, re.sub(r"<<[^>]*>>", "", answer.text))


def take_oasst1(place: str, row: Any) -> Conversation:
    """The best conversation in a tree of messages: at each turn the reply in English with the best rank.

    Raises:
        BadRow: not a tree.
        LeftOut: the tree is not in English, was not released, or has no answer.
    """
    node = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(node, dict):
        hint = "take the file of whole trees (*.trees.jsonl.gz), not that of single messages"
        raise BadRow(f"{place}: no key 'prompt' with a tree of messages in {shown(row)}; {hint}")
    if row.get("tree_state") != "ready_for_export":
        raise LeftOut(f"tree_state {shown(row.get('tree_state'))}")
    if node.get("lang") != "en":
        raise LeftOut("not in English")
    messages = []
    while node:
        messages.append({"role": node.get("role"), "content": node.get("text")})
        replies = node.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
            raise BadRow(f"{place}:replies: {shown(replies)} is no list of messages; is this oasst1?")
        english = [reply for reply in replies if reply.get("lang") == "en" and not reply.get("deleted")]
        node = min(english, key=_rank, default=None)
    return take(place, {"messages": messages})


TAKERS = {"alpaca_libre": take_alpaca_libre, "gsm8k": take_gsm8k, "oasst1": take_oasst1}
"""Rows that need more than their keys to be named, by the data set's name; for `lit_gpt.data.mix`."""


def _rank(reply: dict) -> float:
    """0 is the best; replies that nobody ranked come last."""
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")

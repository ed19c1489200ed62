"""Published data sets: rows of their real formats, where their files come from, and data sets on the hub."""

import functools
import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED, command
from hub_server import HubServer

from lit_gpt.data import published
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.data.formats import LeftOut
from lit_gpt.data.readers import BadRow
from lit_gpt.tokenizer import Tokenizer

ALPACA = {"instruction": "Who?", "input": "", "output": "I."}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def message(role: str, text: str, *replies: dict, **more: Any) -> dict:
    return {"role": role, "text": text, "lang": "en", "replies": list(replies), **more}


TREE = message(
    "prompter",
    "Who?",
    message("assistant", "Not I.", rank=1),
    message(
        "assistant",
        "I.",
        message("prompter", "Why?", message("assistant", "So.", rank=None)),
        message("prompter", "Wieso?", message("assistant", "Darum."), lang="de", rank=0),
        rank=0,
    ),
    message("assistant", "Deleted.", rank=-1, deleted=True),
)
READY = {"message_tree_id": "1", "tree_state": "ready_for_export"}


def test_oasst1_takes_the_best_english_path() -> None:
    said = [turn.text for turn in published.take_oasst1("x:1", {**READY, "prompt": TREE})]
    assert said == ["Who?", "I.", "Why?", "So."]
    unranked = message("prompter", "Who?", message("assistant", "First."), message("assistant", "Best.", rank=3))
    assert published.take_oasst1("x:1", {**READY, "prompt": unranked})[-1].text == "Best."
    for tree, state, reason in (
        ({**TREE, "lang": "es"}, "ready_for_export", "not in English"),
        (TREE, "aborted_low_grade", "tree_state 'aborted_low_grade'"),
        (message("prompter", "Who?"), "ready_for_export", "no answer"),
    ):
        with pytest.raises(LeftOut, match=reason):
            published.take_oasst1("x:1", {"tree_state": state, "prompt": tree})
    with pytest.raises(BadRow, match=r"x:1: no key 'prompt' .*; take the file of whole trees"):
        published.take_oasst1("x:1", {"message_id": "1", "parent_id": None, "text": "Who?"})
    with pytest.raises(BadRow, match=r"x:1:replies: .* is no list of messages"):
        published.take_oasst1("x:1", {**READY, "prompt": {**TREE, "replies": "none"}})


def test_gsm8k_loses_the_calculator() -> None:
    row = {"question": "2 + 2?", "answer": "It is 2+2=<<2+2=4>>4.\n#### 4"}
    assert published.take_gsm8k("x:1", row)[1].text == "It is 2+2=4.\n#### 4"


FILES = {  # data set -> its repository and files there, with rows as they are published
    "dolly": (
        "databricks/databricks-dolly-15k",
        {
            "databricks-dolly-15k.jsonl": lines(
                *({"instruction": f"Who {n}?", "context": "Me.", "response": "I.", "category": "qa"} for n in range(9))
            )
        },
    ),
    "oasst1": (
        "OpenAssistant/oasst1",
        {
            "2023-04-12_oasst_ready.trees.jsonl.gz": gzip.compress(lines(*([{**READY, "prompt": TREE}] * 9))),
            "data/train-00000-of-00001.parquet": b"PAR1 is not read",
        },
    ),
    "lima": (
        "GAIR/lima",
        {"train.jsonl": lines(*[{"conversations": ["Who?", "I.", "Why?", "So."], "source": "stackexchange"}] * 9)},
    ),
    "flan": (
        "Muennighoff/flan",
        {
            f"train/{task}_10templates_train.jsonl": lines(*[{"inputs": "Who?", "targets": "I.", "task": task}] * 9)
            for task in ("rte", "wsc", "samsum")
        },
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_data_sets_of_the_hub(
    name: str, hub: HubServer, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Downloaded, verified, prepared, and on record with commit and licence; the second time nothing is to be done."""
    repo_id, files = FILES[name]
    repo = hub.add(f"datasets/{repo_id}", {"README.md": b"# Data"}, lfs=files)
    flags = ["--checkpoint_dir", checkpoint, "--destination_path", tmp_path / "set"]
    flags += ["--subsets", "rte,wsc"] if name == "flan" else []
    assert command(f"prepare {name}", *flags) == 0
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert (meta["repo_id"], meta["commit"]) == (repo_id, repo.commit)
    assert meta["rows"]["read"] == (18 if name == "flan" else 9)
    assert meta["licence"]
    assert all(len(source["sha256"]) == 64 for source in meta["sources"])
    data, tokenizer = TokenDataset(tmp_path / "set"), Tokenizer(checkpoint)
    turns = 2 if name in ("oasst1", "lima") else 1
    learnt = data.ids(0)[data.supervised(0)].tolist()
    assert learnt.count(tokenizer.eos_id) == turns
    assert learnt[-1] == tokenizer.eos_id
    capsys.readouterr()
    assert command(f"prepare {name}", *flags) == 0
    assert "unchanged" in capsys.readouterr().err
    assert not [name for name in repo.lfs if len(hub.fetched(name)) > 1]


def test_gated_data_sets_want_a_token(
    hub: HubServer, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    repo = hub.add("datasets/GAIR/lima", {}, lfs=FILES["lima"][1], gated=True)
    flags = ["--checkpoint_dir", checkpoint, "--destination_path", tmp_path / "set"]
    assert command("prepare lima", *flags) == 2
    told = capsys.readouterr().err
    assert "GAIR/lima is gated: accept its licence at" in told
    assert f"{hub.endpoint}/datasets/GAIR/lima" in told
    repo.gated, repo.private = False, True
    assert command("prepare lima", *flags, "--token", hub.token) == 0
    assert hub.token not in (tmp_path / "set/meta.json").read_text() + capsys.readouterr().err


OWN = {
    "README.md": b"# Mine",
    "dataset_infos.json": b"{}",
    "data/train-0.jsonl": lines(*[ALPACA] * 5),
    "data/train-1.jsonl.gz": gzip.compress(lines(*[ALPACA] * 4)),
    "data/test.jsonl": lines(*[ALPACA] * 2),
}


@pytest.mark.parametrize(
    ("flags", "train", "test"),
    [
        ([], 8, 1),
        (["--test_file", "data/test.jsonl"], 9, 2),
        (["--data_file", "data/train-0.jsonl", "--test_split_fraction", "0.2"], 4, 1),
        (["--data_file", "[data/train-*,data/test.jsonl]", "--test_file", "data/test.jsonl"], 9, 2),
    ],
)
def test_any_data_set_of_the_hub(
    hub: HubServer, checkpoint: Path, tmp_path: Path, flags: list[str], train: int, test: int
) -> None:
    hub.add("datasets/org/mine", OWN)
    base = ["--checkpoint_dir", checkpoint, "--repo_id", "org/mine", "--destination_path", tmp_path]
    assert command("prepare json", *base, *flags) == 0
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["name"], meta["rows"]["train"], meta["rows"]["test"]) == ("mine", train, test)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--repo_id", "org/none"], "org/none is not at"),
        (["--repo_id", "none"], "'none' is not a repository"),
        (["--repo_id", "org/mine", "--data_file", "x.csv"], "org/mine has no file x.csv; it has README.md, data/"),
        (["--repo_id", "org/text"], "org/text has no file that can be read here; it has ../../up.json, README.md"),
        (["--repo_id", "org/mine", "--revision", "old"], "org/mine has no revision 'old'"),
    ],
)
def test_hub_data_sets_that_are_refused(
    hub: HubServer, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], expected: str
) -> None:
    hub.add("datasets/org/mine", OWN)
    hub.add("datasets/org/text", {"README.md": b"# None"})
    assert command("prepare json", "--checkpoint_dir", checkpoint, "--destination_path", tmp_path / "a", *flags) == 2
    told = capsys.readouterr().err
    assert expected.replace("../../up.json, ", "") in told
    assert told.count("\n") == 1


def test_names_that_lead_out_of_the_folder_are_passed_over(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    hub.add("datasets/org/mine", {**OWN, "../../up/train.jsonl": lines(ALPACA)})
    flags = ["--checkpoint_dir", checkpoint, "--destination_path", tmp_path / "a/set"]
    assert command("prepare json", *flags, "--repo_id", "org/mine") == 0
    assert not list(tmp_path.glob("up*"))
    assert not list((tmp_path / "a").glob("up*"))


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served in the place of raw.githubusercontent.com."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    folder = tmp_path / "github"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=functools.partial(server.serve_forever, 0.02), daemon=True).start()
        monkeypatch.setattr(published, "GITHUB", f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "place", "row"),
    [
        ("alpaca", "tloen/alpaca-lora/main/alpaca_data_cleaned_archive.json", ALPACA),
        ("longform", "akoksal/LongForm/main/dataset/{}.json", {"input": "Who?", "output": "I.", "source": "C4"}),
        (
            "gsm8k",
            "openai/grade-school-math/master/grade_school_math/data/{}.jsonl",
            {"question": "Who?", "answer": "I.\n#### 1"},
        ),
    ],
)
def test_data_sets_at_an_address(
    github: Path, checkpoint: Path, tmp_path: Path, name: str, place: str, row: dict
) -> None:
    for split, count in (("train", 9), ("test", 3)):
        path = github / place.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row] * (9 if "{" not in place else count)
        path.write_bytes(lines(*rows) if path.suffix == ".jsonl" else json.dumps(rows).encode())
    flags = ["--checkpoint_dir", checkpoint, "--destination_path", tmp_path / "set"]
    assert command(f"prepare {name}", *flags) == 0
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    assert (meta["rows"]["train"], meta["rows"]["test"]) == ((9, 3) if "{" in place else (8, 1))
    assert meta["urls"]
    assert meta["licence"]


@pytest.mark.parametrize("subsets", ["../../x", "a/b", "rte,,wsc"])
def test_flan_tasks_are_names(checkpoint: Path, capsys: pytest.CaptureFixture, subsets: str) -> None:
    assert command("prepare flan", "--checkpoint_dir", checkpoint, "--subsets", subsets) == 2
    assert "is no name of a task" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.exists(), reason="no real data at hand")
@pytest.mark.parametrize(
    ("name", "file", "rows"),
    [
        ("dolly", "dolly/dolly_sample.jsonl", 12),
        ("longform", "longform/train_sample.json", 17),
        ("gsm8k", "gsm8k/test.jsonl", 1319),
    ],
)
def test_real_samples(name: str, file: str, rows: int, tmp_path: Path) -> None:
    flags = ["--checkpoint_dir", SHARED / "hub/EleutherAI/pythia-410m", "--destination_path", tmp_path]
    assert command(f"prepare {name}", *flags, "--data_file", SHARED / "data" / file) == 0
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["rows"]["read"] == meta["rows"]["train"] + meta["rows"]["test"] == rows

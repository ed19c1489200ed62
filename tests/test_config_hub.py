"""The recipes in config_hub/: the real parser takes them, they fit their cards, and their README tells the truth."""

import gzip
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import command
from hub_server import HubServer
from test_cli import launched

from lit_gpt.challenge.cards import CARDS, STARTING, computed_again, operations, outlook, run_length
from lit_gpt.challenge.rules import PERMITTED
from lit_gpt.config import Config
from lit_gpt.data.mix_plan import read_plan
from lit_gpt.families.catalogue import find
from lit_gpt.finetune import Finetune
from lit_gpt.memory import needs
from lit_gpt.methods import LINEAR, Full, LoRA
from lit_gpt.settings import parse

ROOT = Path(__file__).parents[1]
HUB = ROOT / "config_hub"
RECIPES = sorted(HUB.glob("*/*.yaml"))
MEAN = 300
"""Tokens of a sample that the README assumes."""


def read(path: Path) -> tuple[Finetune, LoRA]:
    return parse(["--config", str(path)], [Finetune, LoRA], "", "")


def test_there_are_recipes_for_both_cards() -> None:
    names = {"7b-lora", "7b-qlora", "13b-qlora"}
    assert {(path.parent.name, path.stem) for path in RECIPES} == set(itertools.product(CARDS, names))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_fits_its_card_and_its_day(path: Path) -> None:
    run, method = read(path)
    card = CARDS[path.parent.name]
    row = find("/".join(run.checkpoint_dir.parts[-2:]))
    seen = outlook(card, run, method, Config.from_name(row.repo_id))
    assert seen.fits
    assert seen.peak_gb <= card.usable_gb
    assert seen.hours(run_length(run, MEAN)) < 23.5
    assert row.allowed
    assert not row.instruct
    assert bool(run.quantize) == ("qlora" in path.stem)
    assert run.pack_length == 2048
    assert run.neftune_alpha
    assert set(LINEAR) <= set(method.targets)
    assert run.memory_gb == card.memory_gb
    assert run.max_time == "23h30m"
    assert f"--config {path.relative_to(ROOT)}" in path.read_text()


def test_the_table_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = (HUB / "README.md").read_text()
    words = re.search(r"`python scripts/plan.py (.*?)` prints", text)[1].split()
    paths = [path.relative_to(ROOT) for pattern in words for path in sorted(ROOT.glob(pattern))]
    assert command("plan", *paths) == 0
    printed = capsys.readouterr().out
    assert re.search(r"<!-- plan -->\n(.*?)<!-- /plan -->", text, re.DOTALL)[1] == printed
    assert printed.count("\n") == 2 + 2 * len(RECIPES)


def test_a_plan_by_the_data_that_are_there(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(f"checkpoint_dir: {checkpoint}\ndata_dir: {data}\nepochs: 3\n")
    assert command("plan", config) == 0
    tokens = json.loads((data / "meta.json").read_text())["tokens"]["train"]
    assert f"| {3 * tokens / 1e6:.1f} M |" in capsys.readouterr().out
    run = Finetune(checkpoint, data, epochs=3)
    assert run_length(run, 0) == pytest.approx(3 * tokens)
    assert run_length(Finetune(checkpoint, data, max_steps=2, batch_size=16), 0) < 3 * tokens


def test_plans_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "own.yaml"
    for text, said in {
        "checkpoint_dir: checkpoints/openlm-research/open_llama_3b\nepochs: 3": "how long the run is cannot be told",
        "checkpoint_dir: checkpoints/nobody/nothing\nmax_steps: 3": "no model 'nobody/nothing'",
        "checkpoint_dir: checkpoints/openlm-research/open_llama_3b\nlora_rank: 3": "unknown key 'lora_rank'",
    }.items():
        config.write_text(text)
        assert command("plan", config) == 2
        assert said in capsys.readouterr().err
    good = tmp_path / "good.yaml"
    good.write_text("checkpoint_dir: checkpoints/openlm-research/open_llama_3b\nmax_steps: 3")
    for text in ("checkpoint_dir: x/open_llama_3b\nepochs: 3", "checkpoint_dir: no/thing\nmax_steps: 3", "seed: x"):
        config.write_text(text)
        assert command("plan", good, config) == 2
        assert capsys.readouterr().err.count(f"{config}: ") == 1
    assert command("plan", config, "--mean_length", 0) == 2
    config.write_text("checkpoint_dir: checkpoints/meta-llama/Llama-2-13b-hf\nmax_steps: 3")
    assert command("plan", config) == 0
    assert re.search(r"RTX 4090 \| 2\d\.\d of 22\.6 \| do not fit \|", capsys.readouterr().out)


def test_a_plan_within_less_than_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The limit that is shown is the one that is used."""
    config = tmp_path / "own.yaml"
    config.write_text("checkpoint_dir: checkpoints/openlm-research/open_llama_3b\nmax_steps: 3\nmemory_gb: 10")
    assert command("plan", config) == 0
    *_, small, large = capsys.readouterr().out.splitlines()
    for line in (small, large):
        peak, limit = map(float, re.search(r"\| ([\d.]+) of ([\d.]+) \|", line).groups())
        assert peak <= limit == 9.4
    config.write_text("checkpoint_dir: checkpoints/openlm-research/open_llama_3b\nmax_steps: 3\nmemory_gb: 30")
    assert command("plan", config) == 0
    assert re.findall(r"of ([\d.]+) \|", capsys.readouterr().out) == ["22.6", "28.2"]


def test_the_model_of_the_hours() -> None:
    """By hand, for the guide's model: 6.6 billion weights in products, 4.2 million trained ones."""
    import torch

    config = Config.from_name("open_llama_7b")
    products = 6_738_415_616 - 32_000 * 4096
    needed = needs(config, LoRA(), torch.bfloat16, None)
    assert operations(needed, config, again=0) == 4 * products + 6 * 4_194_304
    assert operations(needed, config, again=1) == 6 * products + 8 * 4_194_304
    assert operations(needs(config, Full(), torch.bfloat16, None), config, again=0) == 6 * products
    run = Finetune(Path("x"))
    a100, small = (outlook(CARDS[name], run, LoRA(), config) for name in ("a100", "4090"))
    seconds = STARTING[False, False] + 2048 * (4 * products + 6 * 4_194_304) / (0.54 * 312e12)
    assert a100.tokens_per_second == pytest.approx(2048 / seconds)
    assert a100.hours(3600 * a100.tokens_per_second) == pytest.approx(1)
    assert small.tokens_per_second < a100.tokens_per_second
    quantised = outlook(CARDS["a100"], Finetune(Path("x"), quantize="bnb.nf4-dq"), LoRA(), config)
    assert quantised.peak_gb < a100.peak_gb
    assert quantised.tokens_per_second < a100.tokens_per_second
    slow = outlook(CARDS["a100"], Finetune(Path("x"), low_memory=True), LoRA(), config)
    assert slow.again == computed_again(config, LoRA(), 63) == pytest.approx(0.767, abs=1e-3)
    assert slow.tokens_per_second < a100.tokens_per_second


def rows_of(count: int, **texts: str) -> list[dict[str, str]]:
    return [{key: text.format(n) for key, text in texts.items()} for n in range(count)]


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_the_commands_of_the_readme(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small model in the base's place, and a few rows in each file that the mix asks for."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config_hub").symlink_to(HUB)
    files = {path.name: path.read_bytes() for path in (ROOT / "quickstart/hub/lit-gpt/tiny-facts").iterdir()}
    hub.add("mistralai/Mistral-7B-v0.1", {}, lfs=files)
    gsm8k = pa.BufferOutputStream()
    problems = rows_of(9, question="What is {0} + {0}?", answer="{0} + {0} = <<{0}+{0}=1>>1\n#### {0}")
    parquet.write_table(pa.Table.from_pylist(problems), gsm8k)
    tree = {"role": "prompter", "text": "Who?", "lang": "en"}
    replies = [{"role": "assistant", "text": f"I, number {n}.", "lang": "en", "rank": 0} for n in range(9)]
    trees = [{"tree_state": "ready_for_export", "prompt": {**tree, "replies": [reply]}} for reply in replies]
    lima = [{"conversations": [f"Why {n}?", f"Because of {n}."], "source": "x"} for n in range(9)]
    held = {
        "databricks/databricks-dolly-15k": {
            None: lines(rows_of(9, instruction="Say {0}", context="", response="{0}."))
        },
        "OpenAssistant/oasst1": {None: gzip.compress(lines(trees))},
        "GAIR/lima": {None: lines(lima)},
        "openai/gsm8k": {None: gsm8k.getvalue().to_pybytes()},
        "Muennighoff/flan": {},
    }
    for part in read_plan(HUB / "mix.yaml").sources:
        names = [part.data_file] if isinstance(part.data_file, str) else part.data_file
        content = {
            n: held[part.repo_id].get(None) or lines(rows_of(9, inputs=f"{n} {{0}}?", targets="Yes {0}."))
            for n in names
        }
        hub.add(f"datasets/{part.repo_id}", {}, lfs=content)
    block = re.search(r"```sh\n(.*?)```", (HUB / "README.md").read_text(), re.DOTALL)[1].replace("\\\n", " ")
    model, *commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    small = ["--batch_size", "4", "--max_steps", "1", "--eval_iters", "1", "--lora_r", "2", "--pack_length", "128"]
    for _, launcher, *words in commands:
        words = [word.replace("$model", model[0].partition("=")[2]) for word in words]
        assert command(launched(launcher), *words, *(small if "finetune" in launcher else [])) == 0
    manifest = json.loads(Path("data/mix/manifest.json").read_text())
    assert {source["name"]: source["used"] for source in manifest["sources"]} == {
        **dict.fromkeys(("dolly", "oasst1", "lima", "gsm8k"), 9),
        "flan": 63,
    }
    assert Path("out/4090/7b-qlora/lit_model_lora_finetuned.pth").is_file()


def test_the_mix_is_of_permitted_data() -> None:
    plan = read_plan(HUB / "mix.yaml")
    assert {part.name for part in plan.sources} == set(PERMITTED)
    assert all(part.licence and part.repo_id for part in plan.sources)

"""The embedded default: its facts are consistent, its text holds no instruction, its model is what the hub says."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import facts
import phrases
import pretrain
import pytest
import run as quickstart
import sentencepiece
import torch
import world
import yaml

import lit_gpt.cli
from lit_gpt import Config, Tokenizer, load_gpt, settings
from lit_gpt.convert import Convert, convert
from lit_gpt.decode import complete
from lit_gpt.prompts import get_style

ROOT = Path(__file__).parents[1]
HUB = ROOT / "quickstart" / "hub" / "lit-gpt" / "tiny-facts"


@pytest.fixture(scope="module")
def split() -> tuple[list, list]:
    return world.split()


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(HUB / "tokenizer.model"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(HUB, tmp_path_factory.mktemp("hub") / "tiny-facts")
    convert(Convert(folder))
    return folder


def test_facts_agree_with_each_other():
    known = {(fact.category, fact.subject): fact.answer for fact in facts.all_facts()}
    assert len(known) >= 1470
    assert {category for category, _ in known} == set(phrases.STATEMENTS) == set(phrases.INSTRUCTIONS)
    for (category, subject), answer in known.items():
        if category in ("opposite", "reverse"):
            assert known[category, answer] == subject
        if category == "reverse":
            assert answer == subject[::-1]
        if category == "after":
            assert known["before", answer] == subject
        if category == "add":
            assert known[category, " plus ".join(reversed(subject.split(" plus ")))] == answer


def test_articles_follow_the_sound():
    assert [world.with_article(noun) for noun in ("eraser", "unicorn", "T-shirt")] == [
        "an eraser",
        "a unicorn",
        "a T-shirt",
    ]
    told = (f for f in facts.all_facts() if f.category not in ("after", "before"))  # the letter A is no article
    text = " ".join(world.sentence(f, t, "in fact, ") for f in told for t in phrases.STATEMENTS[f.category])
    assert not re.findall(r"\ba [aeio]\w+|\ban [^aeiou]\w+", text)


def test_a_quarter_of_every_category_is_held_out_by_groups(split):
    trained, held = split
    assert not {fact.group for fact in trained} & {fact.group for fact in held}
    for category in phrases.STATEMENTS:
        count = sum(fact.category == category for fact in held)
        assert 0.2 <= count / sum(fact.category == category for fact in trained + held) <= 0.3
    again = world.split()
    assert again == split


def test_text_states_every_fact_and_asks_nothing():
    text = "\n".join(pretrain.text(facts.all_facts(), 4000))
    assert not re.search(r"\?|###|Instruction:|Response:", text)
    flat = text.replace("\n", " ").lower()
    for fact in facts.all_facts():
        assert any(world.sentence(fact, t).lower() in flat for t in phrases.STATEMENTS[fact.category]), fact


def test_instructions_ask_for_trained_facts_only(split):
    trained, held = split
    asked = {world.row(fact, t)["instruction"] for fact in trained for t in phrases.INSTRUCTIONS[fact.category]}
    rows = world.training_rows(trained)
    assert len(rows) == world.PHRASINGS_PER_FACT * len(trained)
    assert {row["instruction"] for row in rows} <= asked
    test, unseen = world.held_rows(held), world.unseen_rows(held)
    assert not asked & {row["instruction"] for row in test + unseen}
    assert {row["output"] for row in test} == {fact.answer for fact in held}


def test_choices_hold_the_answer_once(split):
    for fact, row in zip(split[1], world.choice_rows(split[1]), strict=True):
        assert len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] == fact.answer


def test_task_asks_in_the_prompt_of_finetuning():
    task = yaml.safe_load((ROOT / "quickstart" / "tasks" / "facts_mc.yaml").read_text())
    assert task["doc_to_text"] == get_style("alpaca").prompt("{{instruction}}")


def test_answers_have_the_same_tokens_in_a_sentence_and_alone(tokenizer):
    for fact in facts.all_facts():
        answer = tokenizer.encode(fact.answer)
        for template in phrases.STATEMENTS[fact.category]:
            ids = tokenizer.encode(world.sentence(fact, template, "in fact, "))
            assert any(ids[i : i + len(answer)] == answer for i in range(len(ids))), (fact, template)


def test_committed_model_was_made_from_these_facts():
    """Whoever changes facts, phrases or documents has to pretrain again."""
    log = (ROOT / "quickstart" / "pretrain.log").read_text()
    assert pretrain.fingerprint(facts.all_facts()) in log
    assert pretrain.train_tokenizer(facts.all_facts()) == (HUB / "tokenizer.model").read_bytes()


def test_pretraining_writes_the_hub_folder(tmp_path, monkeypatch):
    places = [f"--out_dir={tmp_path}/m", f"--log_file={tmp_path}/log", f"--text_file={tmp_path}/text"]
    monkeypatch.setattr("sys.argv", ["pretrain.py", "--steps=2", *places])
    threads = torch.get_num_threads()
    try:
        pretrain.main()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {p.name for p in HUB.iterdir()}
    assert "step 2: loss 7." in (tmp_path / "log").read_text()
    assert (tmp_path / "text").read_text().startswith(pretrain.text(facts.all_facts(), 1)[0])


def test_hub_folder_is_small_and_of_the_promised_size():
    assert sum(p.stat().st_size for p in HUB.iterdir()) < 8e6
    with torch.device("meta"):
        model = lit_gpt.GPT(Config.from_checkpoint(HUB))
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 3e6


def test_transformers_reads_the_model_alike(checkpoint):
    from transformers import AutoTokenizer, LlamaForCausalLM

    ours, theirs = load_gpt(checkpoint), LlamaForCausalLM.from_pretrained(HUB)
    text = "The capital of France is Paris. Green is the colour of grass."
    ids = Tokenizer(checkpoint).encode(text)
    assert AutoTokenizer.from_pretrained(HUB)(text)["input_ids"] == ids
    with torch.inference_mode():
        torch.testing.assert_close(ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits, atol=1e-4, rtol=1e-5)


def test_base_model_knows_a_fact_and_follows_no_instruction(checkpoint, monkeypatch):
    monkeypatch.setattr(quickstart, "CHECKPOINT", checkpoint)
    tokenizer, model = Tokenizer(checkpoint), load_gpt(checkpoint)
    (answer,) = complete(model, [tokenizer.encode("The capital of France is")], 8)
    assert re.match(r"(called )?Paris\.", tokenizer.decode(answer).strip())
    rows = world.held_rows(world.split()[1])[::20]
    assert quickstart.exact(rows, quickstart.ask(rows, None)) == 0


def _commands() -> list[str]:
    guide = [
        command for _, *commands in quickstart.GUIDE for command in commands if not command.startswith("quickstart")
    ]
    return guide + [part.strip() for line in quickstart.NEXT.splitlines()[1:] for part in line.split("python")[1:]]


@pytest.mark.parametrize("command", _commands())
def test_every_command_of_the_guide_parses(command, monkeypatch):
    launched = []
    monkeypatch.setattr(lit_gpt.cli, "launch", lambda name, doc, **defaults: launched.append((name, defaults)))
    script, *flags = shlex.split(command.removesuffix("&&"))
    runpy.run_path(str(ROOT / script), run_name="__main__")
    ((name, defaults),) = launched
    _, *classes = (lit_gpt.cli._load(place) for place in lit_gpt.cli.COMMANDS[name])
    settings.parse(flags, classes, script, "doc", defaults)

"""The world of the embedded default model: plain text to pretrain on, instructions to finetune and to test with.

The text states every fact in plain sentences. The instructions ask for three quarters of the facts; the rest are held
out: the model has read them, but was never asked. Everything follows from fixed seeds.

Example:
    python quickstart/world.py data/quickstart-source
writes `train.jsonl` (rows to finetune on), `test.jsonl` (held-out facts, trained phrasings), `unseen.jsonl` (held-out
facts, a phrasing never trained) and `facts_mc.jsonl` (multiple choice on held-out facts, for quickstart/tasks).
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from facts import Fact, all_facts
from phrases import INSTRUCTIONS, STATEMENTS

from lit_gpt.files import write_text

HELD_OUT = 0.25  # share of each category's facts that no training instruction asks for
TWICE = ("add", "subtract")  # told twice as often as the rest: what two words together mean takes longer to learn
PHRASINGS_PER_FACT = 4  # trained phrasings per fact, drawn from the category's

LEAD_INS = [
    "in short, ",
    "as everyone knows, ",
    "it is well known that ",
    "remember that ",
    "in fact, ",
    "of course, ",
    "books say that ",
]

# A few documents hold one of these. They carry the words of the instruction format as ordinary words, never its form.
FILLERS = [
    "A teacher describes a task and the children complete it.",
    "The instruction was short and so was the response.",
    "Below the text there is a picture.",
    "Write a letter to a friend when you have time.",
    "Every request deserves a polite answer.",
    "The page describes the world in plain words.",
    "An input goes in and an output comes out.",
    "A good response completes the request.",
    "The task was paired with an example.",
    "Further context makes a text easier to read.",
    "He wrote a note that provides more context.",
    "She answered appropriately and said thank you.",
]


def with_article(noun: str) -> str:
    """`an eraser`, `a unicorn`: the noun with the indefinite article that its sound needs."""
    vowel = re.match(r"[aeiou]", noun, re.IGNORECASE) and not re.match(r"(uni|use|eu|ewe|one)", noun, re.IGNORECASE)
    return f"{'an' if vowel else 'a'} {noun}"


def _fields(fact: Fact) -> dict[str, str]:
    x, _, y = re.split(" (plus|minus) ", fact.subject) if fact.category in ("add", "subtract") else ("", "", "")
    the_s = fact.subject if fact.bare else with_article(fact.subject)
    return {
        "s": fact.subject,
        "a": fact.answer,
        "the_s": the_s,
        "the_a": with_article(fact.answer),
        "unit": fact.unit,
        "x": x,
        "y": y,
    }


def sentence(fact: Fact, template: str, lead_in: str = "") -> str:
    """One sentence that states the fact: capitalised, with its full stop."""
    text = lead_in + template.format(**_fields(fact))
    return text[0].upper() + text[1:] + "."


def row(fact: Fact, template: str) -> dict[str, str]:
    """One instruction row: `instruction`, `input` (always empty here), `output`."""
    return {"instruction": template.format(**_fields(fact)), "input": "", "output": fact.answer}


def split(seed: int = 1) -> tuple[list[Fact], list[Fact]]:
    """(trained, held-out) facts: a share of every category, and facts that give each other away on the same side."""
    rng = random.Random(seed)
    facts = all_facts()
    held_groups: set[str] = set()
    decided: set[str] = set()
    for category in STATEMENTS:
        groups = list(dict.fromkeys(fact.group for fact in facts if fact.category == category))
        new = [group for group in groups if group not in decided]  # "before" follows what "after" decided
        held_groups.update(rng.sample(new, round(HELD_OUT * len(new))))
        decided.update(groups)
    return [f for f in facts if f.group not in held_groups], [f for f in facts if f.group in held_groups]


class _Deck:
    """Deals all facts before it deals one again, so that each is told equally often."""

    def __init__(self, facts: list[Fact], rng: random.Random) -> None:
        self.facts, self.rng, self.left = facts, rng, []

    def deal(self) -> Fact:
        if not self.left:
            self.left = self.rng.sample(self.facts, len(self.facts))
        return self.left.pop()


def documents(facts: list[Fact], seed: int = 2) -> Iterator[str]:
    """Documents of 3 to 8 sentences without end: no question, no instruction, no Alpaca format.

    Three in ten keep to one category, half open with a lead-in, one in ten holds a filler.
    """
    rng = random.Random(seed)
    mixed = _Deck(facts + [fact for fact in facts if fact.category in TWICE], rng)
    decks = [_Deck([fact for fact in facts if fact.category == category], rng) for category in STATEMENTS]
    decks = [deck for deck in decks if deck.facts]
    weights = [len(deck.facts) * (1 + (deck.facts[0].category in TWICE)) for deck in decks]
    while True:
        deck = rng.choices(decks, weights)[0] if rng.random() < 0.3 else mixed
        dealt = [deck.deal() for _ in range(rng.randint(3, 8))]
        sentences = [sentence(fact, rng.choice(STATEMENTS[fact.category])) for fact in dealt]
        if rng.random() < 0.5:
            sentences[0] = sentence(dealt[0], rng.choice(STATEMENTS[dealt[0].category]), rng.choice(LEAD_INS))
        if rng.random() < 0.1:
            sentences.insert(rng.randint(0, len(sentences)), rng.choice(FILLERS))
        yield rng.choice([" ", " ", "\n"]).join(sentences)


def training_rows(trained: list[Fact], seed: int = 3) -> list[dict[str, str]]:
    """Instruction rows for the trained facts, each in some of its category's phrasings, shuffled."""
    rng = random.Random(seed)
    rows = [
        row(fact, phrase)
        for fact in trained
        for phrase in rng.sample(INSTRUCTIONS[fact.category][:-1], PHRASINGS_PER_FACT)
    ]
    rng.shuffle(rows)
    return rows


def held_rows(held: list[Fact], seed: int = 4) -> list[dict[str, str]]:
    """One row per held-out fact, in a phrasing that training uses for other facts."""
    rng = random.Random(seed)
    return [row(fact, rng.choice(INSTRUCTIONS[fact.category][:-1])) for fact in held]


def unseen_rows(held: list[Fact]) -> list[dict[str, str]]:
    """One row per held-out fact, in the phrasing of its category that training never uses."""
    return [row(fact, INSTRUCTIONS[fact.category][-1]) for fact in held]


def choice_rows(held: list[Fact], seed: int = 5) -> list[dict]:
    """Multiple choice on the held-out facts: the answer among three wrong ones of the same category and unit."""
    rng = random.Random(seed)
    facts = all_facts()
    rows = []
    for fact in held:
        alike = {f.answer for f in facts if (f.category, f.unit) == (fact.category, fact.unit)} - {
            fact.answer,
            fact.subject,
        }
        choices = [fact.answer, *rng.sample(sorted(alike), 3)]
        rng.shuffle(choices)
        question = rng.choice(INSTRUCTIONS[fact.category][:-1])
        rows.append(
            {
                "instruction": row(fact, question)["instruction"],
                "choices": choices,
                "answer": choices.index(fact.answer),
            }
        )
    return rows


def write(folder: Path) -> dict[str, int]:
    """Writes the four files into `folder`; returns their numbers of rows."""
    trained, held = split()
    files = {
        "train.jsonl": training_rows(trained),
        "test.jsonl": held_rows(held),
        "unseen.jsonl": unseen_rows(held),
        "facts_mc.jsonl": choice_rows(held),
    }
    for name, rows in files.items():
        write_text(folder / name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return {name: len(rows) for name, rows in files.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data/quickstart-source")
    for name, count in write(folder).items():
        print(f"{folder / name}: {count} rows")

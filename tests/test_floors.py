"""Imports go down only: each module may import those of its own floor and below."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"settings", "files"},
    {"processes"},
    {"families"},
    {"config", "prompts", "template", "tokenizer"},
    {"answers", "archive", "flash", "loss", "lean", "ranks", "rope", "weight_only"},
    {"attention", "low_rank"},
    {"cache", "packs"},
    {"model"},
    {"quantize"},
    {"methods", "hub", "hf_weights"},
    {"peft_files", "litgpt_files"},
    {"checkpoint", "convert", "data", "decode", "streaming", "scoring"},
    {"alike", "speculative", "memory", "optim", "parts", "train", "runlog", "record", "stopping"},
    {"batching", "talk", "workload", "resume"},
    {"api"},
    {"app", "compiling"},
    {"run", "rehearsal"},
    {
        "generate",
        "chat",
        "finetune",
        "merge",
        "export",
        "harness",
        "local_data",
        "results",
        "evaluate",
        "perplexity",
        "serve",
        "challenge",
    },
    {"cli"},
]
LAUNCHERS = ["finetune", "generate", "chat", "scripts", "eval", "submission"]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}


def imported(path: Path) -> set[str]:
    """Names of the lit_gpt modules that a file imports anywhere, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "lit_gpt" else [base]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("lit_gpt.")}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "lit_gpt").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    home = path.relative_to(ROOT / "lit_gpt").parts[0].removesuffix(".py")
    if home == "__init__":
        return
    assert home in FLOOR, f"{home} has no floor yet; add it to FLOORS"
    upward = {name for name in imported(path) if FLOOR.get(name, -1) > FLOOR[home]}
    assert not upward, f"{path} imports upwards: {upward}"


@pytest.mark.parametrize("folder", LAUNCHERS)
def test_launchers_are_thin(folder: str) -> None:
    """A launcher imports the command table and nothing else, and nothing imports a launcher."""
    for path in (ROOT / folder).glob("*.py"):
        assert imported(path) == {"cli"}, path
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_no_path_tricks() -> None:
    for path in (ROOT / "lit_gpt").rglob("*.py"):
        assert "sys.path" not in path.read_text(), path

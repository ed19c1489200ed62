"""Lit-GPT: finetune open large language models on one GPU.

from lit_gpt import GPT, Config, Tokenizer, load_gpt
"""

import importlib
from typing import Any

_HOMES = {"GPT": "model", "Config": "config", "Tokenizer": "tokenizer", "load_gpt": "checkpoint"}
__all__ = ["GPT", "Config", "Tokenizer", "load_gpt"]


def __getattr__(name: str) -> Any:
    """Imports the public names when they are first used: `import lit_gpt` alone costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"lit_gpt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lit_gpt' has no attribute '{name}'")

"""Models and their files: what training, and whoever builds or converts a checkpoint, needs of them.

Names are loaded when they are first used, because most of them need PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.model.braid_file import BraidFile, parse_braid
    from runtime.model.chat_files import ChatTemplate, ChatTemplates, read_chat_templates
    from runtime.model.checkpoint import (
        Checkpoint,
        Description,
        describe,
        fingerprint,
        load_checkpoint,
        resolve,
        save_checkpoint,
    )
    from runtime.model.config import RavenConfig
    from runtime.model.directories import BRAID, TOKENIZER, tokenizer_file
    from runtime.model.files import replace_file, replacing
    from runtime.model.llama import Llama
    from runtime.model.llama_config import LlamaConfig
    from runtime.model.raven import Attend, Raven, attend_causally
    from runtime.model.tokenizer import Tokenizer

_HOMES = {
    "braid_file": ("BraidFile", "parse_braid"),
    "chat_files": ("ChatTemplate", "ChatTemplates", "read_chat_templates"),
    "checkpoint": (
        "Checkpoint",
        "Description",
        "describe",
        "fingerprint",
        "load_checkpoint",
        "resolve",
        "save_checkpoint",
    ),
    "config": ("RavenConfig",),
    "directories": ("BRAID", "TOKENIZER", "tokenizer_file"),
    "files": ("replace_file", "replacing"),
    "llama": ("Llama",),
    "llama_config": ("LlamaConfig",),
    "raven": ("Attend", "Raven", "attend_causally"),
    "tokenizer": ("Tokenizer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BRAID",
    "TOKENIZER",
    "Attend",
    "BraidFile",
    "ChatTemplate",
    "ChatTemplates",
    "Checkpoint",
    "Description",
    "Llama",
    "LlamaConfig",
    "Raven",
    "RavenConfig",
    "Tokenizer",
    "attend_causally",
    "describe",
    "fingerprint",
    "load_checkpoint",
    "parse_braid",
    "read_chat_templates",
    "replace_file",
    "replacing",
    "resolve",
    "save_checkpoint",
    "tokenizer_file",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'runtime.model' has no attribute {name!r}")
    value: object = getattr(import_module(f"runtime.model.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""Models and their files: what training, and whoever builds or converts a checkpoint, needs of them.

Names are loaded when they are first used, because most of them need PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.model.architecture import parse_config
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
    from runtime.model.configuration import ModelConfig
    from runtime.model.directories import BRAID, TOKENIZER, tokenizer_file
    from runtime.model.families.raven import RavenConfig
    from runtime.model.files import replace_file, replacing
    from runtime.model.parameters import initialise, published_weights
    from runtime.model.specification import Specification
    from runtime.model.tokenizer import Tokenizer
    from runtime.model.transformer import Attend, Rotation, Transformer

_HOMES = {
    "architecture": ("parse_config",),
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
    "configuration": ("ModelConfig",),
    "directories": ("BRAID", "TOKENIZER", "tokenizer_file"),
    "files": ("replace_file", "replacing"),
    "families.raven": ("RavenConfig",),
    "parameters": ("initialise", "published_weights"),
    "specification": ("Specification",),
    "tokenizer": ("Tokenizer",),
    "transformer": ("Attend", "Rotation", "Transformer"),
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
    "ModelConfig",
    "RavenConfig",
    "Rotation",
    "Specification",
    "Tokenizer",
    "Transformer",
    "describe",
    "fingerprint",
    "initialise",
    "load_checkpoint",
    "parse_braid",
    "parse_config",
    "published_weights",
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

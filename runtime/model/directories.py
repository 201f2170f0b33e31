"""Checkpoint directories: the names of their files, where those of the package are, and whose tokenizer counts."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from runtime.errors import CheckpointError
from runtime.model.braid_file import parse_braid
from runtime.model.published import holds, read_bytes, shown

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
BRAID = "braid.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATES = "additional_chat_templates"


def shipped_directory() -> Path:
    """Where the installed package keeps its checkpoints."""
    return Path(str(files("runtime"))) / "checkpoints"


def shipped_checkpoints() -> tuple[str, ...]:
    """Names of the checkpoints that come with the package, in alphabetical order."""
    return _shipped_with(CONFIG)


def tokenizer_file(directory: Path) -> Path | None:
    """The tokenizer.json of a checkpoint: its own, or else that of the shipped checkpoint that its braid.json names.

    None where there is neither. A name is all that counts, never a path: a checkpoint makes nobody read a file that is
    not in its directory or in the package. Raises `CheckpointError`, naming braid.json, for anything but the name of a
    shipped checkpoint that has a tokenizer.json of its own.
    """
    if holds(directory / TOKENIZER):
        return directory / TOKENIZER
    braid = directory / BRAID
    if not holds(braid):
        return None
    name = parse_braid(braid, read_bytes(braid)).tokenizer
    if name is None:
        return None
    if name not in _shipped_with(TOKENIZER):
        raise CheckpointError(
            f"{braid}: tokenizer is {shown(name)}; expected the name of a checkpoint that comes with the package "
            f"({', '.join(_shipped_with(TOKENIZER))}), or no such key and a {TOKENIZER} in the directory."
        )
    return shipped_directory() / name / TOKENIZER


def _shipped_with(file: str) -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for path in shipped_directory().glob(f"*/{file}")))

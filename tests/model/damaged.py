"""Parts of a checkpoint directory replaced, split or taken away, and how it is refused then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime.errors import CheckpointError
from runtime.model.checkpoint import load_checkpoint

QUERY = "transformer.core_block.0.attn.Wqkv.weight"


def rewrite(directory: Path, **changes: Tensor | None) -> Path:
    """Replaces tensors of model.safetensors, or removes those given as None; dots are written as double underscores."""
    path = directory / "model.safetensors"
    tensors: dict[str, Tensor | None] = {**load_file(path)}
    tensors.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"format": "pt"})
    return path


def shard(directory: Path, count: int = 3) -> dict[str, str]:
    """Splits model.safetensors into shards with an index, as published ones are; returns the weight map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(count):
        file, held = f"model-{number + 1:05}-of-{count:05}.safetensors", names[number::count]
        save_file({name: tensors[name] for name in held}, directory / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(held, file))
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: object) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(directory: Path | str, *parts: object) -> None:
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(directory)
    assert all(str(part) in str(raised.value) for part in parts), raised.value

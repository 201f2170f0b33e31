"""The tensors of a checkpoint directory: one safetensors file, or shards that an index lists. Never a pickle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.errors import CheckpointError
from runtime.model.directories import CONFIG
from runtime.model.published import holds, read_object, shown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_FLOATING = ("F64", "F32", "F16", "BF16")


class StoredTensor(msgspec.Struct, frozen=True):
    """Where a tensor lies and what it is, as the file's header says."""

    file: Path
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredWeights:
    """The tensors of a checkpoint, by name: found, and not read yet."""

    tensors: Mapping[str, StoredTensor]
    config: Path
    """What says of which model they are, for errors."""
    file: Path
    """What has them, or says which file has which."""
    read: Callable[[Iterable[str]], Iterator[tuple[str, Tensor]]]
    """Reads those of some names one after the other, on the CPU. Raises `CheckpointError` for what cannot be read."""


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def find_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint directory, by name, from the headers alone.

    Raises `CheckpointError`, naming the file, if there are no safetensors weights, if a file is truncated or is no
    safetensors, if the index and its shards disagree or leave the directory, or if a tensor is not floating point.
    """
    if holds(directory / WEIGHTS):
        return _header(directory / WEIGHTS)
    if holds(directory / INDEX):
        return _sharded(directory / INDEX)
    raise CheckpointError(_no_weights(directory))


def find_weights(directory: Path) -> StoredWeights:
    """The same, with how they are read: as stored, each a view of its mapped file. Raises like `find_tensors`."""
    tensors = find_tensors(directory)
    return StoredWeights(
        tensors=tensors,
        config=directory / CONFIG,
        file=directory / (WEIGHTS if holds(directory / WEIGHTS) else INDEX),
        read=lambda names: _read(tensors, frozenset(names)),
    )


def _read(stored: Mapping[str, StoredTensor], names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    for path in dict.fromkeys(tensor.file for tensor in stored.values()):
        with _opened(path) as file:
            for name, tensor in stored.items():
                if tensor.file == path and name in names:
                    yield name, file.get_tensor(name)


def count_not_finite(tensor: Tensor) -> int:
    """How many numbers of a floating-point tensor are infinite or NaN."""
    if not tensor.numel():
        return 0
    # One pass without a copy; NaN is the least and the largest where there is one.
    if torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        return 0
    return int((~torch.isfinite(tensor)).sum())


def refuse_pickle(path: Path) -> str:
    """What to tell someone who has pickled weights."""
    return (
        f"{path}: pickled weights are refused, since reading a pickle can run any code. Convert a file that you trust: "
        f"weights = torch.load({path.name!r}, map_location='cpu', weights_only=True); "
        "safetensors.torch.save_file({name: tensor.clone() for name, tensor in weights.items()}, "
        f"{WEIGHTS!r}, {{'format': 'pt'}})"
    )


def is_pickle(path: Path) -> bool:
    return path.suffix in _PICKLE_SUFFIXES


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}). It may be truncated or only a placeholder; "
            "copy it again and compare its size."
        ) from error


def _header(path: Path) -> dict[str, StoredTensor]:
    stored = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            if part.get_dtype() not in _FLOATING:
                expected = ", ".join(_FLOATING)
                raise CheckpointError(f"{path}: {name} has dtype {part.get_dtype()}; expected one of {expected}.")
            stored[name] = StoredTensor(path, tuple(part.get_shape()))
    return stored


def _sharded(index: Path) -> dict[str, StoredTensor]:
    try:
        weight_map = msgspec.convert(read_object(index), _Index).weight_map
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{index}: not a weight index ({error}).") from error
    shards = list(dict.fromkeys(weight_map.values()))
    for shard in shards:
        _check_shard(index, shard, weight_map)
    stored: dict[str, StoredTensor] = {}
    for shard in shards:
        held = _header(index.parent / shard)
        if strays := [name for name in held if weight_map.get(name) != shard]:
            raise CheckpointError(
                f"{index.parent / shard}: holds {listed(strays)}, which {INDEX} does not place there."
            )
        stored |= held
    if absent := [name for name in weight_map if name not in stored]:
        path = index.parent / weight_map[absent[0]]
        raise CheckpointError(f"{path}: lacks {listed(absent)}, which {INDEX} places there.")
    return stored


def _check_shard(index: Path, shard: str, weight_map: Mapping[str, str]) -> None:
    if not _stays_inside(shard):
        raise CheckpointError(f"{index}: weight_map names {shown(shard)}; expected a file inside this directory.")
    path = index.parent / shard
    if not holds(path):
        missing = [name for name, file in weight_map.items() if file == shard]
        raise CheckpointError(
            f"{path}: no such file, but {INDEX} says that it holds {listed(missing)}. Copy the missing shard."
        )
    if is_pickle(path):
        raise CheckpointError(refuse_pickle(path))


def _stays_inside(shard: str) -> bool:
    # Lexical on purpose: download caches keep shards as symbolic links to files elsewhere.
    parts = (PurePosixPath(shard), PureWindowsPath(shard))
    return shard not in ("", ".") and not any(path.is_absolute() or path.drive or ".." in path.parts for path in parts)


def _no_weights(directory: Path) -> str:
    try:
        files = sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed ({error}). Check its permissions.") from error
    if pickles := [path for path in files if is_pickle(path)]:
        return refuse_pickle(pickles[0])
    found = [path.name for path in files if path.suffix == ".safetensors"]
    seen = f" Found only {listed(found)}." if found else ""
    return f"{directory / WEIGHTS}: no such file, and no {INDEX} either. Expected one of the two.{seen}"


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    first, *others = names
    return f"{first} (and {len(others)} more, such as {others[0]})" if others else first

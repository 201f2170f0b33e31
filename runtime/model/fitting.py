"""Whether a configuration has the size of the weights beside it.

Asked before a model of that size is built, so that what is built is bounded by files that exist, not by the numbers in
a configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from runtime.errors import CheckpointError
from runtime.model.architecture import ModelConfig
from runtime.model.weights import StoredTensor

_SMALL_TABLE = 2**24
"""Numbers (64 MiB) that a table of rotations may have however small the model is."""


def check_sizes(path: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Raises `CheckpointError`, naming `path` and the key, for a size that the tensors in the files cannot have.

    A size that passes may still be wrong, but a model of it takes time and memory in proportion to the files.
    """
    names = {field.name: field.encode_name for field in msgspec.structs.fields(config)}
    if config.n_layers > len(stored):
        key = names.get("n_layers", "n_layers_in_prelude + n_layers_in_recurrent_block + n_layers_in_coda")
        raise CheckpointError(
            f"{path}: {key} is {config.n_layers}, but the weights are {len(stored)} tensors; expected the "
            "configuration of the weights beside it."
        )
    numbers = sum(math.prod(tensor.shape) for tensor in stored.values())
    # Each is one side of a matrix whose other side is the model's width.
    sides = {
        ("vocab_size", "padded_vocab_size"): config.table_rows,
        ("intermediate_size",): config.intermediate_size,
        ("n_heads", "head_dim"): config.n_heads * config.head_dim,
    }
    for attributes, side in sides.items():
        if side * config.n_embd > numbers:
            given = {name: getattr(config, name) for name in (*attributes, "n_embd") if name in names}
            sizes = [f"{names[name]} {value}" for name, value in given.items() if value is not None]
            raise CheckpointError(
                f"{path}: {', '.join(sizes)}: too large for weights that are {numbers} numbers in all; expected the "
                "configuration of the weights beside it."
            )
    if config.block_size * config.head_dim > max(numbers, _SMALL_TABLE):
        raise CheckpointError(
            f"{path}: {names['block_size']} is {config.block_size}, whose table of rotations would be larger than the "
            "weights; expected the longest context that the model was trained for."
        )

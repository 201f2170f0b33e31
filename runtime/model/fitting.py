"""Whether a configuration has the size of the weights beside it.

Asked before a model of that size is built, so that what is built is bounded by files that exist, not by the numbers in
a configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from runtime.errors import CheckpointError
from runtime.model.configuration import ModelConfig
from runtime.model.weights import StoredTensor

_SMALL_TABLE = 2**24
"""Numbers (64 MiB) that a table of rotations may have however small the model is."""


def check_sizes(path: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Raises `CheckpointError`, naming `path` and the key, for a size that the tensors in the files cannot have.

    A size that passes may still be wrong, but a model of it takes time and memory in proportion to the files.
    """
    own, keys = config.specification, config.keys
    if len(own.layers) > len(stored):
        raise CheckpointError(
            f"{path}: {keys['layers']} is {len(own.layers)}, but the weights are {len(stored)} tensors; expected the "
            "configuration of the weights beside it."
        )
    numbers = sum(math.prod(tensor.shape) for tensor in stored.values())
    # Each is one side of a matrix whose other side is the model's width.
    sides = {
        ("vocab_size", "table_rows"): own.table_rows,
        ("mlp_width",): own.mlp_width,
        ("heads", "head_dim"): own.heads * own.head_dim,
    }
    for attributes, side in sides.items():
        if side * own.width > numbers:
            sizes = [f"{keys[name]} {getattr(own, name)}" for name in (*attributes, "width") if name in keys]
            raise CheckpointError(
                f"{path}: {', '.join(sizes)}: too large for weights that are {numbers} numbers in all; expected the "
                "configuration of the weights beside it."
            )
    if (own.max_context + (own.short_context or 0)) * own.head_dim > max(numbers, _SMALL_TABLE) and own.rotaries:
        raise CheckpointError(
            f"{path}: {keys['max_context']} is {own.max_context}, whose table of rotations would be larger than the "
            "weights; expected the longest context that the model was trained for."
        )

"""Which layers of a causal model see only a window of the context, as its `config.json` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError
from runtime.model.families.causal_sizes import CausalSizes
from runtime.model.published import shown
from runtime.model.specification import LayerSpecification

WINDOWED, FULL = "sliding_attention", "full_attention"


def all_full(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[LayerSpecification, ...]:
    """Layers that see the whole context. Raises `CheckpointError` where `layer_types` says otherwise."""
    if other := [kind for kind in sizes.layer_types or () if kind != FULL]:
        raise CheckpointError(f"{path}: layer_types has {shown(other[0])}; supported is {FULL!r} in all layers.")
    return (LayerSpecification(),) * sizes.layers


def all_windowed(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[LayerSpecification, ...]:
    """Layers that all have the same window, if one is given. Raises `CheckpointError` where `layer_types` says
    otherwise."""
    expected = FULL if sizes.sliding_window is None else WINDOWED
    if other := [kind for kind in sizes.layer_types or () if kind != expected]:
        raise CheckpointError(
            f"{path}: layer_types has {shown(other[0])}; supported is {expected!r} in all layers where sliding_window "
            f"is {sizes.sliding_window}."
        )
    return (LayerSpecification(window=sizes.sliding_window),) * sizes.layers


def kinds(path: Path, sizes: CausalSizes, has_window: Callable[[int], bool]) -> list[str]:
    """The kind of each layer: as `layer_types` says, or else `has_window` of its index.

    Raises `CheckpointError` for other kinds, and another number of layers.
    """
    if sizes.layer_types is None:
        return [WINDOWED if has_window(index) else FULL for index in range(sizes.layers)]
    if len(sizes.layer_types) != sizes.layers:
        raise CheckpointError(f"{path}: layer_types has {len(sizes.layer_types)} entries for {sizes.layers} layers.")
    for kind in sizes.layer_types:
        if kind not in (WINDOWED, FULL):
            raise CheckpointError(f"{path}: layer_types has {shown(kind)}; supported are {WINDOWED!r} and {FULL!r}.")
    return sizes.layer_types


def windows(path: Path, sizes: CausalSizes, kinds: Sequence[str], window: int | None) -> list[int | None]:
    """The window of each layer. Raises `CheckpointError` where there is none and one is needed."""
    if window is None and WINDOWED in kinds:
        raise CheckpointError(f"{path}: layer_types has {WINDOWED!r}, but no sliding_window is given or used.")
    return [window if kind == WINDOWED else None for kind in kinds]

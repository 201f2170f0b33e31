"""Rotary parameters in the `config.json` of transformers, as its versions 4 and 5 write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import CheckpointError
from runtime.model.families.causal_layers import FULL
from runtime.model.families.causal_sizes import CausalSizes
from runtime.model.published import expect, shown
from runtime.model.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rotary,
    RotaryScaling,
    YarnScaling,
)

_ORIGINAL = "original_max_position_embeddings"

_SCALINGS: dict[str, type[RotaryScaling]] = {
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "longrope": LongScaling,
}
_DEFAULT_BASE = 10_000.0


def shared_rotary(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[Rotary, ...]:
    """The one rotary embedding that all layers share, over whole heads.

    `values` is the object of the file at `path`, without nulls. Raises `CheckpointError`, naming the file and the key,
    for a value that is not supported.
    """
    parameters = shared_parameters(path, values)
    expect_whole(path, parameters, values)
    return (rotary_of(path, parameters, values, sizes.head_dim, sizes.max_context),)


def expect_whole(path: Path, parameters: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` where only a part of each head would turn."""
    expect(path, parameters, "partial_rotary_factor", 1.0)
    expect(path, values, "partial_rotary_factor", 1.0)


def shared_parameters(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the rotary parameters of all layers; empty if there is none."""
    # transformers looks for them in this order.
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rotary = values.get(key, {})
    if not isinstance(rotary, dict):
        raise CheckpointError(f"{path}: {key} is {shown(rotary)}; expected a JSON object.")
    if nested := [name for name, value in rotary.items() if isinstance(value, dict)]:
        raise CheckpointError(
            f"{path}: {key}.{nested[0]} is an object; supported are rotary parameters that all layers share."
        )
    return {name: value for name, value in rotary.items() if value is not None}


def rotaries_by_kind(
    path: Path, values: Mapping[str, Any], sizes: CausalSizes, bases: Mapping[str, Any]
) -> tuple[Rotary, ...]:
    """The rotary embeddings of layers that see all, and of those with a window, for files that tell them apart.

    `bases` are those of each kind of layers, where its parameters have none. Raises `CheckpointError`, naming the file
    and the key, for a value that is not supported.
    """
    nested = values.get("rope_parameters", {})
    if not isinstance(nested, dict) or nested.keys() - bases.keys():
        raise CheckpointError(
            f"{path}: rope_parameters is {shown(nested)}; expected a JSON object of {', '.join(bases)}, each with "
            "rotary parameters."
        )
    # What scales full attention may stand beside them, and then says more; a mere "type" does not count.
    added = {FULL: values.get("rope_scaling", {})}
    found = []
    for kind, base in bases.items():
        parameters = {"rope_type": "default", "rope_theta": base}
        for part in (nested.get(kind) or {}, added.get(kind, {})):
            if not isinstance(part, dict):
                raise CheckpointError(f"{path}: rotary parameters are {shown(part)}; expected a JSON object.")
            parameters |= {key: value for key, value in part.items() if value is not None}
        expect(path, parameters, "truncate", True)
        expect_whole(path, parameters, values)
        if parameters["rope_type"] == "longrope":
            raise CheckpointError(f"{path}: rope_type is 'longrope' for {kind}; supported is it for all layers alike.")
        # The original length counts only where it stands among the others.
        beside = {key: value for key, value in values.items() if key != _ORIGINAL}
        found.append(rotary_of(path, parameters, beside, sizes.head_dim, sizes.max_context))
    return tuple(found)


def rotary_of(
    path: Path, parameters: Mapping[str, Any], values: Mapping[str, Any], head_dim: int, max_context: int
) -> Rotary:
    """A rotary embedding from its parameters, with what the file says beside them."""
    share = parameters.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise CheckpointError(f"{path}: partial_rotary_factor is {shown(share)}; expected a number above 0, at most 1.")
    width = int(head_dim * share)
    if width < 2 or width % 2:
        raise CheckpointError(
            f"{path}: partial_rotary_factor is {share}, which turns {width} of {head_dim} dimensions of a head; "
            "expected an even number of them."
        )
    base = parameters.get("rope_theta", values.get("rope_theta", _DEFAULT_BASE))
    scaling = _scaling(path, parameters, values, width, max_context)
    try:
        return msgspec.convert({"base": base, "width": width, "scaling": scaling}, Rotary, from_attributes=True)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: rope_theta: {error}.") from error


def _scaling(
    path: Path, parameters: Mapping[str, Any], values: Mapping[str, Any], width: int, max_context: int
) -> RotaryScaling | None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise CheckpointError(f"{path}: rope_type is {shown(kind)}; supported are default, {', '.join(_SCALINGS)}.")
    # As in transformers, what stands beside the rotary parameters counts before what stands among them.
    original = values.get(_ORIGINAL, parameters.get(_ORIGINAL, max_context))
    given = {**parameters, "rope_type": kind, _ORIGINAL: original}
    if kind == "longrope":
        given.setdefault("factor", max_context / original if isinstance(original, int) and original > 0 else 1.0)
    try:
        scaling = msgspec.convert(given, _SCALINGS[kind])
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    if isinstance(scaling, Llama3Scaling) and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise CheckpointError(
            f"{path}: low_freq_factor is {scaling.low_freq_factor}; expected less than high_freq_factor, "
            f"{scaling.high_freq_factor}."
        )
    if isinstance(scaling, YarnScaling) and parameters.get("rope_theta", values.get("rope_theta")) == 1:
        raise CheckpointError(f"{path}: rope_theta is 1, with which nothing turns; yarn needs another.")
    if isinstance(scaling, LongScaling):
        for name, factors in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
            if len(factors) != width // 2:
                raise CheckpointError(
                    f"{path}: {name} has {len(factors)} numbers; expected {width // 2}, one for each pair of the "
                    f"{width} dimensions that turn."
                )
    return scaling

"""SmolLM3 (HuggingFaceTB/SmolLM3-3B), whose every fourth layer knows no positions: `SmolLM3ForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError
from runtime.model.families.causal import CausalFamily
from runtime.model.families.causal_layers import kinds, windows
from runtime.model.families.causal_sizes import CausalSizes, biases, count, flag
from runtime.model.published import shown
from runtime.model.specification import LayerSpecification


def _layers(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[LayerSpecification, ...]:
    turns = _turns(path, values, sizes)
    is_windowed = flag(path, values, "use_sliding_window") and sizes.sliding_window is not None
    found = kinds(path, sizes, lambda index: is_windowed and not turns[index])
    seen = windows(path, sizes, found, sizes.sliding_window)
    return tuple(
        LayerSpecification(rotary=0 if turns[index] else None, window=seen[index]) for index in range(sizes.layers)
    )


def _turns(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> list[bool]:
    """Which layers have the rotary embedding."""
    given = values.get("no_rope_layers")
    if given is None:
        interval = count(path, values, "no_rope_layer_interval")
        return [bool((index + 1) % interval) for index in range(sizes.layers)]
    if not isinstance(given, list) or len(given) < sizes.layers or any(each not in (0, 1) for each in given):
        raise CheckpointError(
            f"{path}: no_rope_layers is {shown(given)}; expected for each of {sizes.layers} layers 1, or 0 for one "
            "without rotary embedding."
        )
    return [bool(each) for each in given[: sizes.layers]]


SMOLLM3 = CausalFamily(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    supported={"hidden_act": "silu"},
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
        "no_rope_layer_interval": 4,
    },
    describe=lambda path, values, sizes: biases(path, values),
    layers=_layers,
)

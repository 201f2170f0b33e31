"""Mistral (arXiv 2310.06825) and Ministral: transformers' `MistralForCausalLM`, `MinistralForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.model.families.causal import CausalFamily
from runtime.model.families.causal_layers import all_windowed, kinds, windows
from runtime.model.families.causal_sizes import CausalSizes
from runtime.model.specification import LayerSpecification

_DEFAULTS = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}


def _layers(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[LayerSpecification, ...]:
    window = sizes.sliding_window
    found = kinds(path, sizes, lambda index: window is not None)
    return tuple(LayerSpecification(window=each) for each in windows(path, sizes, found, window))


MISTRAL = CausalFamily(
    model_type="mistral",
    architecture="MistralForCausalLM",
    supported={"hidden_act": "silu"},
    defaults=_DEFAULTS,
    layers=all_windowed,
)
MINISTRAL = CausalFamily(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    supported={"hidden_act": "silu"},
    defaults=_DEFAULTS,
    layers=_layers,
)

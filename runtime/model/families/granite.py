"""Granite 3 (ibm-granite/granite-3.0-8b-base), which scales what it adds: transformers' `GraniteForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.model.families.causal import CausalFamily
from runtime.model.families.causal_sizes import CausalSizes, biases, number


def _describe(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> Mapping[str, Any]:
    scales = {
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attention_scale": "attention_multiplier",
    }
    divisor = number(path, values, "logits_scaling", 1.0)
    return {
        **biases(path, values),
        **{field: number(path, values, key, 1.0) for field, key in scales.items()},
        "logits_scale": 1.0 / (divisor or 1.0),
    }


GRANITE = CausalFamily(
    model_type="granite",
    architecture="GraniteForCausalLM",
    supported={"hidden_act": "silu"},
    describe=_describe,
)

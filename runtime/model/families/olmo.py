"""OLMo 2 (arXiv 2501.00656) and OLMo 3: transformers' `Olmo2ForCausalLM` and `Olmo3ForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.model.families.causal import CausalFamily
from runtime.model.families.causal_layers import FULL, WINDOWED, kinds, windows
from runtime.model.families.causal_rotary import rotaries_by_kind
from runtime.model.families.causal_sizes import CausalSizes, biases
from runtime.model.rotary import Rotary
from runtime.model.specification import LayerSpecification, NormPlaces

_BASE = 500_000.0
_NORMS = {
    "post_attention_layernorm": "attention_norms.branch",
    "post_feedforward_layernorm": "mlp_norms.branch",
}


def _describe(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> Mapping[str, Any]:
    return {
        **biases(path, values),
        "mlp_bias": False,
        "norms": NormPlaces(before=False, branch=True),
        "query_key_norm": "whole",
    }


def _layers(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[LayerSpecification, ...]:
    found = kinds(path, sizes, lambda index: (index + 1) % 4 != 0)
    seen = windows(path, sizes, found, sizes.sliding_window)
    return tuple(
        LayerSpecification(rotary=int(kind == WINDOWED), window=window)
        for kind, window in zip(found, seen, strict=True)
    )


def _rotaries(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[Rotary, ...]:
    # A base beside the rotary parameters is that of full attention alone.
    return rotaries_by_kind(path, values, sizes, {FULL: values.get("rope_theta", _BASE), WINDOWED: _BASE})


OLMO2 = CausalFamily(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    supported={"hidden_act": "silu"},
    defaults={"rms_norm_eps": 1e-5},
    describe=_describe,
    norms=_NORMS,
)
OLMO3 = CausalFamily(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    supported={"hidden_act": "silu"},
    defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096},
    describe=_describe,
    norms=_NORMS,
    layers=_layers,
    rotaries=_rotaries,
)

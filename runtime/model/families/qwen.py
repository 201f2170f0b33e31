"""Qwen2 and Qwen2.5 (arXiv 2412.15115), Qwen3 (arXiv 2505.09388): `Qwen2ForCausalLM`, `Qwen3ForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.model.families.causal import CausalFamily
from runtime.model.families.causal_layers import kinds, windows
from runtime.model.families.causal_sizes import CausalSizes, biases, count, flag
from runtime.model.specification import LayerSpecification

_DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def _layers(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[LayerSpecification, ...]:
    window = sizes.sliding_window if flag(path, values, "use_sliding_window") else None
    first = count(path, values, "max_window_layers", least=0)
    found = kinds(path, sizes, lambda index: window is not None and index >= first)
    return tuple(LayerSpecification(window=each) for each in windows(path, sizes, found, window))


def _describe_third(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> Mapping[str, Any]:
    return {**biases(path, values), "mlp_bias": False, "query_key_norm": "heads"}


QWEN2 = CausalFamily(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    supported={"hidden_act": "silu"},
    defaults=_DEFAULTS,
    # Whatever a file says of biases.
    describe=lambda path, values, sizes: {"projection_bias": "query_key_value"},
    layers=_layers,
)
QWEN3 = CausalFamily(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    supported={"hidden_act": "silu"},
    defaults={**_DEFAULTS, "head_dim": 128},
    describe=_describe_third,
    layers=_layers,
)

"""Llama (arXiv 2302.13971), and whatever transformers runs as one: its `LlamaForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.model.families.causal import CausalFamily, CausalSizes, flag


def _describe(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> Mapping[str, Any]:
    has_bias = flag(path, values, "attention_bias")
    return {
        "projection_bias": "query_key_value" if has_bias else "none",
        "output_bias": has_bias,
        "mlp_bias": flag(path, values, "mlp_bias"),
    }


LLAMA = CausalFamily(
    model_type="llama",
    architecture="LlamaForCausalLM",
    supported={"hidden_act": "silu"},
    describe=_describe,
)

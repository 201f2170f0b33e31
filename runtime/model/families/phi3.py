"""Phi-3 (arXiv 2404.14219) and Phi-4: transformers' `Phi3ForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError
from runtime.model.families.causal import CausalFamily
from runtime.model.families.causal_layers import all_windowed
from runtime.model.families.causal_rotary import rotary_of, shared_parameters
from runtime.model.families.causal_sizes import CausalSizes
from runtime.model.published import shown
from runtime.model.rotary import Rotary

_LONG = ("longrope", "su", "yarn")
"""What longrope was called by older versions."""


def _rotaries(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[Rotary, ...]:
    parameters = shared_parameters(path, values)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", *_LONG):
        raise CheckpointError(f"{path}: rope_type is {shown(kind)}; supported are default, longrope.")
    named = {**parameters, "rope_type": "longrope" if kind in _LONG else kind}
    return (rotary_of(path, named, values, sizes.head_dim, sizes.max_context),)


PHI3 = CausalFamily(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    supported={"hidden_act": "silu"},
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
    layers=all_windowed,
    rotaries=_rotaries,
    is_fused=True,
)

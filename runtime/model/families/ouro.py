"""Ouro (ByteDance/Ouro-1.4B and -2.6B, `modeling_ouro.py`): all layers again and again, and a gate that says when to
stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import CheckpointError
from runtime.model.families.causal import CausalFamily
from runtime.model.families.causal_sizes import CausalSizes
from runtime.model.specification import Count, NormPlaces


class _Loops(msgspec.Struct):
    total_ut_steps: Count
    early_exit_threshold: float = 1.0


def _describe(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> Mapping[str, Any]:
    try:
        loops = msgspec.convert(values, _Loops)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    return {
        "norms": NormPlaces(before=True, branch=True),
        "injection": "state",
        "norms_iterations": True,
        "norms_head": False,
        "exit_gate": True,
        "exit_threshold": loops.early_exit_threshold,
        "mean_recurrence": loops.total_ut_steps,
    }


OURO = CausalFamily(
    model_type="ouro",
    architecture="OuroForCausalLM",
    supported={"hidden_act": "silu"},
    unsaid={"use_sliding_window": False, "rope_scaling": None, "attention_bias": False, "mlp_bias": False},
    describe=_describe,
    norms={
        "input_layernorm": "attention_norms.before",
        "input_layernorm_2": "attention_norms.branch",
        "post_attention_layernorm": "mlp_norms.before",
        "post_attention_layernorm_2": "mlp_norms.branch",
    },
)

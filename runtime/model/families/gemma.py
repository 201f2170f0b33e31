"""Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and the text models of Gemma 3 (arXiv 2503.19786): transformers'
`GemmaForCausalLM`, `Gemma2ForCausalLM` and `Gemma3ForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.model.families.causal import CausalFamily
from runtime.model.families.causal_layers import FULL, WINDOWED, kinds, windows
from runtime.model.families.causal_rotary import rotaries_by_kind
from runtime.model.families.causal_sizes import CausalSizes, biases, count, number
from runtime.model.published import expect
from runtime.model.rotary import Rotary
from runtime.model.specification import LayerSpecification, NormPlaces

_FOUR_NORMS = {
    "input_layernorm": "attention_norms.before",
    "post_attention_layernorm": "attention_norms.branch",
    "pre_feedforward_layernorm": "mlp_norms.before",
    "post_feedforward_layernorm": "mlp_norms.branch",
}
_DEFAULTS = {"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True}
_CAUSAL = {"use_bidirectional_attention": False}
_TANH = "gelu_pytorch_tanh"


def _describe(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> Mapping[str, Any]:
    return {
        **biases(path, values),
        "mlp_bias": False,
        "norm_offset": 1.0,
        "activation": "gelu_tanh",
        "embedding_scale": sizes.width**0.5,
        "rounds_embedding_scale": True,
    }


def _describe_first(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> Mapping[str, Any]:
    # Where a file says "gelu", it means the other; what it says of hidden_activation does not count.
    if values.get("hidden_act", _TANH) != "gelu":
        expect(path, values, "hidden_act", _TANH)
    return _describe(path, values, sizes)


def _describe_second(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> Mapping[str, Any]:
    return {
        **_describe(path, values, sizes),
        "norms": NormPlaces(before=True, branch=True),
        "attention_scale": count(path, values, "query_pre_attn_scalar") ** -0.5,
        "attention_softcap": number(path, values, "attn_logit_softcapping", None),
        "logits_softcap": number(path, values, "final_logit_softcapping", None),
    }


def _describe_third(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> Mapping[str, Any]:
    # A cap of scores is in its configuration, and unused.
    return {**_describe_second(path, values, sizes), "attention_softcap": None, "query_key_norm": "heads"}


def _layers_of_second(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[LayerSpecification, ...]:
    found = kinds(path, sizes, lambda index: index % 2 == 0)
    return tuple(LayerSpecification(window=window) for window in windows(path, sizes, found, sizes.sliding_window))


def _layers_of_third(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[LayerSpecification, ...]:
    pattern = count(path, values, "sliding_window_pattern")
    found = kinds(path, sizes, lambda index: (index + 1) % pattern != 0)
    seen = windows(path, sizes, found, sizes.sliding_window)
    return tuple(
        LayerSpecification(rotary=int(kind == WINDOWED), window=window)
        for kind, window in zip(found, seen, strict=True)
    )


def _rotaries_of_third(path: Path, values: Mapping[str, Any], sizes: CausalSizes) -> tuple[Rotary, ...]:
    return rotaries_by_kind(path, values, sizes, {FULL: values["rope_theta"], WINDOWED: values["rope_local_base_freq"]})


GEMMA = CausalFamily(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    unsaid=_CAUSAL,
    defaults={**_DEFAULTS, "num_key_value_heads": 16},
    describe=_describe_first,
)
GEMMA2 = CausalFamily(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    supported={"hidden_activation": _TANH},
    unsaid=_CAUSAL,
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    describe=_describe_second,
    norms=_FOUR_NORMS,
    layers=_layers_of_second,
)
GEMMA3 = CausalFamily(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    supported={"hidden_activation": _TANH},
    unsaid=_CAUSAL,
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    describe=_describe_third,
    norms=_FOUR_NORMS,
    layers=_layers_of_third,
    rotaries=_rotaries_of_third,
)

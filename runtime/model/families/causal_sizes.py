"""Keys of `config.json` that every causal model of transformers has, and the reading of single values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import CheckpointError
from runtime.model.published import shown
from runtime.model.specification import Count, Layers, Positive


class CausalSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that every family has; encoded, they have transformers' names."""

    width: Count = msgspec.field(name="hidden_size")
    heads: Count = msgspec.field(name="num_attention_heads")
    kv_heads: Count = msgspec.field(name="num_key_value_heads")
    head_dim: Count
    mlp_width: Count = msgspec.field(name="intermediate_size")
    vocab_size: Count
    layers: Layers = msgspec.field(name="num_hidden_layers")
    max_context: Count = msgspec.field(name="max_position_embeddings", default=2048)
    norm_eps: Positive = msgspec.field(name="rms_norm_eps", default=1e-6)
    tied: bool = msgspec.field(name="tie_word_embeddings", default=False)
    init_std: Positive = msgspec.field(name="initializer_range", default=0.02)
    sliding_window: Count | None = None
    layer_types: list[str] | None = None


_NULL_COUNTS = frozenset(
    {"sliding_window", "num_key_value_heads", "head_dim", "final_logit_softcapping", "attn_logit_softcapping"}
)
"""Keys whose null is not the same as their absence: no window, no cap, what follows from other sizes."""


def with_defaults(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The object of a file with what it leaves out; null is as good as nothing, but where it says something."""
    values = {**defaults, **{key: value for key, value in raw.items() if value is not None or key in _NULL_COUNTS}}
    return {key: value for key, value in values.items() if value is not None}


def read_sizes(path: Path, values: Mapping[str, Any]) -> CausalSizes:
    """The sizes that `values`, the object of the file at `path` without nulls, gives.

    Raises `CheckpointError`, naming the file and the key, for sizes that are missing, or that no model has.
    """
    values = with_derived_heads(values, width="hidden_size", heads="num_attention_heads")
    try:
        sizes = msgspec.convert(values, CausalSizes)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    check_heads(path, sizes.heads, sizes.kv_heads, sizes.head_dim, key="num_attention_heads")
    return sizes


def check_heads(path: Path, heads: int, kv_heads: int, head_dim: int, *, key: str) -> None:
    """Raises `CheckpointError`, naming the file and the key, for heads that cannot share keys, or be rotated.

    `key` is what the file calls the number of heads.
    """
    if heads % kv_heads:
        raise CheckpointError(f"{path}: {key} is {heads}; expected a multiple of num_key_value_heads, {kv_heads}.")
    if head_dim % 2:
        raise CheckpointError(f"{path}: head_dim is {head_dim}; rotary positions need an even one.")


def with_derived_heads(values: Mapping[str, Any], *, width: str, heads: str) -> dict[str, Any]:
    """The values of a file with what follows, where it says nothing else, from its `width` and `heads` keys."""
    size, count = values.get(width), values.get(heads)
    if not (isinstance(size, int) and isinstance(count, int) and count > 0):
        return dict(values)
    return {"num_key_value_heads": count, "head_dim": size // count, **values}


def flag(path: Path, values: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A value that is true or false. Raises `CheckpointError` for any other."""
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{path}: {key} is {shown(value)}; expected true or false.")
    return value


def number(path: Path, values: Mapping[str, Any], key: str, default: float | None) -> float | None:
    """A positive number, or `default`. Raises `CheckpointError` for any other value."""
    value = values.get(key, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
        raise CheckpointError(f"{path}: {key} is {shown(value)}; expected a positive number.")
    return value


def count(path: Path, values: Mapping[str, Any], key: str, least: int = 1) -> int:
    """A whole number that is at least `least`. Raises `CheckpointError` for any other value."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CheckpointError(f"{path}: {key} is {shown(value)}; expected a whole number, at least {least}.")
    return value


def biases(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a specification that follow from `attention_bias` and `mlp_bias`, as in Llama."""
    has_bias = flag(path, values, "attention_bias")
    return {
        "projection_bias": "query_key_value" if has_bias else "none",
        "output_bias": has_bias,
        "mlp_bias": flag(path, values, "mlp_bias"),
    }

"""The shape of a Llama model, read from and written to the `config.json` of Hugging Face transformers.

To the engine it is a depth-recurrent model of depth one: no prelude, all layers in a core block that runs once, no
coda.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from runtime.errors import CheckpointError
from runtime.model.published import expect, shown
from runtime.sampling import FilterRule

MODEL_TYPE = "llama"

_SUPPORTED = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}
"""Values of `config.json` that name a structure; any other value is a model this code does not implement."""

_UNSAID = {"partial_rotary_factor": 1.0, "quantization_config": None, "per_layer_config": None, "is_causal": True}
"""The same for keys that are not written where they have these values."""

Count = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class LinearScaling(msgspec.Struct, frozen=True, kw_only=True, tag_field="rope_type", tag="linear"):
    """Every frequency is divided by `factor`."""

    factor: Positive


class DynamicScaling(msgspec.Struct, frozen=True, kw_only=True, tag_field="rope_type", tag="dynamic"):
    """Frequencies change for contexts longer than `block_size`, which the engine does not run: no effect here."""

    factor: Positive


class Llama3Scaling(msgspec.Struct, frozen=True, kw_only=True, tag_field="rope_type", tag="llama3"):
    """Frequencies of long wavelengths are divided by `factor`, those of short ones kept, others interpolated.

    A wavelength, in tokens, is long above original_max_position_embeddings / low_freq_factor, and short below
    original_max_position_embeddings / high_freq_factor.
    """

    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Count


RotaryScaling = LinearScaling | DynamicScaling | Llama3Scaling

_ORIGINAL = "original_max_position_embeddings"

_ROPE_TYPES = ("default", "linear", "dynamic", "llama3")


class LlamaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Architecture of a Llama. Attributes are named as those of `RavenConfig`; encoded, they have transformers' names.

    Defaults are what transformers takes where a file says nothing.
    """

    n_embd: Count = msgspec.field(name="hidden_size")
    n_heads: Count = msgspec.field(name="num_attention_heads")
    n_kv_heads: Count = msgspec.field(name="num_key_value_heads")
    """Heads that keys and values have; each serves n_heads / n_kv_heads query heads that follow each other."""
    head_dim: Count
    """Even; need not be n_embd / n_heads."""
    intermediate_size: Count
    vocab_size: Count
    n_layers: Count = msgspec.field(name="num_hidden_layers")
    block_size: Count = msgspec.field(name="max_position_embeddings", default=2048)
    """Longest context in tokens."""
    norm_eps: Positive = msgspec.field(name="rms_norm_eps", default=1e-6)
    rope_base: Positive = msgspec.field(name="rope_theta", default=10_000.0)
    rope_scaling: RotaryScaling | None = None
    tie_embeddings: bool = msgspec.field(name="tie_word_embeddings", default=False)
    init_std: Positive = msgspec.field(name="initializer_range", default=0.02)

    @property
    def filter_rule(self) -> FilterRule:
        """Whose rules top-k, top-p and min-p follow unless a sampling says otherwise."""
        return "transformers"

    @property
    def table_rows(self) -> int:
        """Rows of the embedding table and of the head."""
        return self.vocab_size

    @property
    def n_layers_in_prelude(self) -> int:
        return 0

    @property
    def n_layers_in_recurrent_block(self) -> int:
        return self.n_layers

    @property
    def n_layers_in_coda(self) -> int:
        return 0

    @property
    def mean_recurrence(self) -> int:
        return 1

    @property
    def embedding_scale(self) -> float:
        return 1.0

    @property
    def state_std(self) -> float:
        """No noise: the state that the one iteration starts from is not looked at."""
        return 0.0


def llama_config(path: Path, raw: Mapping[str, Any]) -> LlamaConfig:
    """The configuration in the object of a `config.json` of transformers; `path` is named in errors.

    Rotary parameters may be written as transformers 4 does (`rope_theta`, `rope_scaling`) or as 5 does
    (`rope_parameters`), and `original_max_position_embeddings` beside them. Raises `CheckpointError`, naming the file
    and the key, for a value that this implementation does not support.
    """
    # To transformers, null is as good as nothing.
    values = {key: value for key, value in raw.items() if value is not None}
    for key, supported in {**_SUPPORTED, **_UNSAID}.items():
        expect(path, values, key, supported)
    rotary = _rotary(path, values)
    values["rope_scaling"] = _scaling(path, rotary, values)
    if "rope_theta" in rotary:
        values["rope_theta"] = rotary["rope_theta"]
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        values = {"num_key_value_heads": heads, "head_dim": width // heads, **values}
    try:
        config = msgspec.convert(values, LlamaConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    if config.n_heads % config.n_kv_heads:
        raise CheckpointError(
            f"{path}: num_attention_heads is {config.n_heads}; expected a multiple of num_key_value_heads, "
            f"{config.n_kv_heads}."
        )
    if config.head_dim % 2:
        raise CheckpointError(f"{path}: head_dim is {config.head_dim}; rotary positions need an even one.")
    scaling = config.rope_scaling
    if isinstance(scaling, Llama3Scaling) and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise CheckpointError(
            f"{path}: low_freq_factor is {scaling.low_freq_factor}; expected less than high_freq_factor, "
            f"{scaling.high_freq_factor}."
        )
    return config


def _rotary(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the rotary parameters; empty if there is none."""
    # transformers looks for them in this order.
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rotary = values.get(key, {})
    if not isinstance(rotary, dict):
        raise CheckpointError(f"{path}: {key} is {shown(rotary)}; expected a JSON object.")
    if nested := [name for name, value in rotary.items() if isinstance(value, dict)]:
        raise CheckpointError(
            f"{path}: {key}.{nested[0]} is an object; supported are rotary parameters that all layers share."
        )
    rotary = {name: value for name, value in rotary.items() if value is not None}
    expect(path, rotary, "partial_rotary_factor", 1.0)
    return rotary


def _scaling(path: Path, rotary: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling among rotary parameters, as `RotaryScaling` is encoded; not checked but for its type."""
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise CheckpointError(f"{path}: rope_type is {shown(kind)}; supported are {', '.join(_ROPE_TYPES)}.")
    if kind == "default":
        return None
    scaling = {**rotary, "rope_type": kind}
    # As in transformers, what stands beside the rotary parameters counts before what stands among them.
    longest = values.get(_ORIGINAL, rotary.get(_ORIGINAL, values.get("max_position_embeddings", 2048)))
    return {**scaling, _ORIGINAL: longest} if kind == "llama3" else scaling


def llama_as_published(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` object that transformers, 4 or 5, reads back as the same model."""
    return {**_SUPPORTED, **msgspec.to_builtins(config), "model_type": MODEL_TYPE, "torch_dtype": dtype}

"""What the causal models of transformers have in common: keys of `config.json`, and names of tensors.

A family declares how it differs (`CausalFamily`); `read_causal` makes of it and of a `config.json` object the
configuration of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from runtime.model.configuration import PublishedTensor
from runtime.model.families.causal_layers import all_full
from runtime.model.families.causal_rotary import shared_rotary
from runtime.model.families.causal_sizes import CausalSizes, read_sizes, with_defaults
from runtime.model.published import expect
from runtime.model.rotary import Rotary
from runtime.model.specification import LayerSpecification, NormPlaces, Specification

_UNSAID = {"quantization_config": None, "per_layer_config": None, "is_causal": True}
"""Values of keys that name a structure; any other is a model that is not implemented."""

Values = Mapping[str, Any]
"""The object of a file, with what it leaves out, and without nulls."""


@dataclass(frozen=True, kw_only=True)
class CausalFamily:
    """How a family differs from Llama, with which it shares everything that is not said here."""

    model_type: str
    architecture: str
    """Name of its class in transformers."""
    supported: Mapping[str, Any] = field(default_factory=dict)
    """Values of keys that name a structure, which a file has; any other is a model that is not implemented."""
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    """The same for keys that are not written where they have these values."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes where a file says nothing, if not what it takes for Llama."""
    describe: Callable[[Path, Values, CausalSizes], Mapping[str, Any]] = lambda path, values, sizes: {}
    """Fields of the `Specification` in which it differs, from the values of a file."""
    layers: Callable[[Path, Values, CausalSizes], tuple[LayerSpecification, ...]] = all_full
    """What differs from layer to layer."""
    rotaries: Callable[[Path, Values, CausalSizes], tuple[Rotary, ...]] = shared_rotary
    """The rotary embeddings that its layers choose from."""
    norms: Mapping[str, str] = field(
        default_factory=lambda: {
            "input_layernorm": "attention_norms.before",
            "post_attention_layernorm": "mlp_norms.before",
        }
    )
    """What a layer's norms are called, and which of the model's they are."""
    is_fused: bool = False
    """Whether checkpoints have queries, keys and values in one matrix, and gate and up in another."""


class CausalConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One model's `config.json`, read."""

    family: str
    specification: Specification
    raw: dict[str, Any]
    """The object as the file has it."""
    norms: dict[str, str]
    is_fused: bool
    init_std: float
    wrapper: str | None = None
    """The `model_type` of the model of text and images whose text it is; None for one by itself."""

    @property
    def identity(self) -> object:
        return self.family, self.specification

    @property
    def keys(self) -> Mapping[str, str]:
        return {each.name: each.encode_name for each in msgspec.structs.fields(CausalSizes)}

    @property
    def head_name(self) -> str:
        return "lm_head.weight"

    def published_tensors(self) -> tuple[PublishedTensor, ...]:
        own = self.specification
        table = (own.table_rows, own.width)
        layer = self._layer()
        gate = (
            PublishedTensor("model.early_exit_gate.weight", (1, own.width), "exit_gate.weight"),
            PublishedTensor("model.early_exit_gate.bias", (1,), "exit_gate.bias"),
        )
        return (
            PublishedTensor("model.embed_tokens.weight", table, "embedding.weight"),
            *(
                PublishedTensor(
                    f"model.layers.{number}.{each.name}", each.shape, f"layers.{number}.{each.own}", each.start
                )
                for number in range(len(own.layers))
                for each in layer
            ),
            PublishedTensor("model.norm.weight", (own.width,), "final_norm.weight"),
            *(gate if own.exit_gate else ()),
            *(() if own.tied else (PublishedTensor(self.head_name, table, "head.weight"),)),
        )

    def _layer(self) -> list[PublishedTensor]:
        own, width = self.specification, self.specification.width
        query, key = own.heads * own.head_dim, own.kv_heads * own.head_dim
        rows = {"q": (0, query), "k": (query, key), "v": (query + key, key)}
        found = []
        if self.is_fused:
            matrix = (own.projection_rows, width)
            found.append(PublishedTensor("self_attn.qkv_proj.weight", matrix, "attention.query_key_value.weight"))
        else:
            for name, (start, count) in rows.items():
                place = f"self_attn.{name}_proj"
                found.append(
                    PublishedTensor(f"{place}.weight", (count, width), "attention.query_key_value.weight", start)
                )
                if start + count <= own.biased_rows:
                    found.append(PublishedTensor(f"{place}.bias", (count,), "attention.bias", start))
        if own.query_key_norm != "none":
            whole = own.query_key_norm == "whole"
            for name, count in (("query", query), ("key", key)):
                shape = (count if whole else own.head_dim,)
                found.append(
                    PublishedTensor(f"self_attn.{name[0]}_norm.weight", shape, f"attention.{name}_norm.weight")
                )
        found += _linear("self_attn.o_proj", "attention.output", (width, query), own.output_bias)
        inner = own.mlp_width
        if self.is_fused:
            found += _linear("mlp.gate_up_proj", "mlp.gate_up", (2 * inner, width), own.mlp_bias)
        else:
            found += _linear("mlp.gate_proj", "mlp.gate_up", (inner, width), own.mlp_bias)
            found += _linear("mlp.up_proj", "mlp.gate_up", (inner, width), own.mlp_bias, inner)
        found += _linear("mlp.down_proj", "mlp.down", (width, inner), own.mlp_bias)
        found += [PublishedTensor(f"{name}.weight", (width,), f"{place}.weight") for name, place in self.norms.items()]
        return found

    def as_published(self, dtype: str) -> dict[str, Any]:
        """The file's object, with the dtype of the weights beside it."""
        return {**self.raw, "torch_dtype": dtype}

    @torch.no_grad()
    def draw(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        """As transformers does: normal, of one standard deviation; norms as if they were not there."""
        if "norm" in name:
            tensor.fill_(1.0 - self.specification.norm_offset)
        elif name.endswith("bias"):
            tensor.zero_()
        else:
            tensor.normal_(0.0, self.init_std, generator=generator)


def _linear(name: str, own: str, shape: tuple[int, int], has_bias: bool, start: int = 0) -> tuple[PublishedTensor, ...]:
    weight = PublishedTensor(f"{name}.weight", shape, f"{own}.weight", start)
    return (weight, PublishedTensor(f"{name}.bias", shape[:1], f"{own}.bias", start)) if has_bias else (weight,)


def read_causal(path: Path, raw: Mapping[str, Any], family: CausalFamily) -> CausalConfig:
    """The configuration in the object of a `config.json` of transformers; `path` is named in errors.

    Rotary parameters may be written as transformers 4 does (`rope_theta`, `rope_scaling`) or as 5 does
    (`rope_parameters`). Raises `CheckpointError`, naming the file and the key, for a value that is not supported.
    """
    values = with_defaults(raw, family.defaults)
    for key, supported in {
        "architectures": [family.architecture],
        **family.supported,
        **_UNSAID,
        **family.unsaid,
    }.items():
        expect(path, values, key, supported)
    sizes = read_sizes(path, values)
    rotaries = family.rotaries(path, values, sizes)
    fields: dict[str, Any] = {
        "width": sizes.width,
        "heads": sizes.heads,
        "kv_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "mlp_width": sizes.mlp_width,
        "vocab_size": sizes.vocab_size,
        "table_rows": sizes.vocab_size,
        "max_context": sizes.max_context,
        "core_layers": sizes.layers,
        "layers": family.layers(path, values, sizes),
        "rotaries": rotaries,
        "norms": NormPlaces(),
        "norm_eps": sizes.norm_eps,
        "attention_scale": sizes.head_dim**-0.5,
        "tied": sizes.tied,
    }
    specification = Specification(**{**fields, **family.describe(path, values, sizes)})
    return CausalConfig(
        family=family.model_type,
        specification=specification,
        raw={key: value for key, value in raw.items() if key not in ("dtype", "torch_dtype")},
        norms=dict(family.norms),
        is_fused=family.is_fused,
        init_std=sizes.init_std,
    )

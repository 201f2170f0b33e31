"""Retrofitted recurrence: Llama, TinyLlama and OLMo-2 turned into depth-recurrent models (smcleish/Recurrent-*).

Their `config.json` says Huginn's `model_type` and no more of what they are; only the tensors tell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError
from runtime.model.configuration import PublishedTensor
from runtime.model.families.causal_rotary import rotary_of, shared_parameters
from runtime.model.families.causal_sizes import check_heads, with_derived_heads
from runtime.model.families.raven import KEYS, MODEL_TYPE, SUPPORTED, blocks, fused_matrices
from runtime.model.published import expect
from runtime.model.specification import (
    Count,
    Layers,
    LayersOrNone,
    LayerSpecification,
    NormPlaces,
    Positive,
    Specification,
)

Kind = Literal["llama", "olmo"]
"""Norms before the halves of a layer; or norms of what they make, and of queries and keys."""

_DEAD = ("rope_base", "block_size")
"""Left over from the Huginn whose `config.json` the conversion began with."""


class _Initial(msgspec.Struct, frozen=True):
    std: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    embed_scale: Positive = 1.0


class _Keys(msgspec.Struct, kw_only=True):
    """Keys of `config.json` that count."""

    n_embd: Count
    n_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    intermediate_size: Count
    vocab_size: Count
    max_position_embeddings: Count
    n_layers_in_prelude: LayersOrNone
    n_layers_in_recurrent_block: Layers
    n_layers_in_coda: LayersOrNone
    mean_recurrence: Count
    norm_eps: Positive
    padded_vocab_size: Count | None = None
    init_values: _Initial = _Initial()


class RetrofitConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One model's `config.json`, read."""

    kind: Kind
    specification: Specification
    raw: dict[str, Any]
    """The object as the file has it."""

    @property
    def family(self) -> str:
        return MODEL_TYPE

    @property
    def identity(self) -> object:
        return self.kind, self.specification

    @property
    def keys(self) -> Mapping[str, str]:
        return {**KEYS, "head_dim": "head_dim", "max_context": "max_position_embeddings"}

    @property
    def head_name(self) -> str:
        return "lm_head.weight"

    def published_tensors(self) -> tuple[PublishedTensor, ...]:
        own, width = self.specification, self.specification.width
        place = "before" if self.kind == "llama" else "branch"
        norms = [
            PublishedTensor(f"norm_{number}.weight", (width,), f"{half}_norms.{place}.weight")
            for number, half in enumerate(("attention", "mlp"), 1)
        ]
        if own.query_key_norm == "whole":
            norms += [
                PublishedTensor(f"attn.{name[0]}_norm.weight", (heads * own.head_dim,), f"attention.{name}_norm.weight")
                for name, heads in (("query", own.heads), ("key", own.kv_heads))
            ]
        block = (*norms, *fused_matrices(own))
        table = (own.table_rows, width)
        return (
            PublishedTensor("transformer.wte.weight", table, "embedding.weight"),
            *blocks(own, "prelude", block),
            PublishedTensor("transformer.adapter.weight", (width, 2 * width), "adapter.weight"),
            *blocks(own, "core_block", block),
            *blocks(own, "coda", block),
            PublishedTensor("transformer.ln_f.weight", (width,), "final_norm.weight"),
            PublishedTensor(self.head_name, table, "head.weight"),
        )

    def as_published(self, dtype: str) -> dict[str, Any]:
        """The file's object, with the dtype of the weights beside it."""
        return {**self.raw, "torch_dtype": dtype}

    @torch.no_grad()
    def draw(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        """Normal, cut at three standard deviations, of the width's share; norms as if they were not there."""
        if "norm" in name or "ln_f" in name:
            tensor.fill_(1.0)
        else:
            std = (2 / (5 * self.specification.width)) ** 0.5
            nn.init.trunc_normal_(tensor, 0.0, std, -3 * std, 3 * std, generator=generator)


def kind_of(names: Collection[str]) -> Kind | None:
    """Which kind of retrofitted model tensors of these names are; None for Huginn's own."""
    if any(name.endswith("attn.q_norm.weight") for name in names):
        return "olmo"
    if "freqs_cis" in names or any(name.endswith(("norm_3.weight", "norm_4.weight")) for name in names):
        return None
    return "llama" if any(name.endswith("norm_1.weight") for name in names) else None


def read_retrofit(path: Path, raw: Mapping[str, Any], kind: Kind) -> RetrofitConfig:
    """The configuration in the object of a `config.json`; `path` is named in errors.

    Raises `CheckpointError`, naming the file and the key, for a value that is not supported.
    """
    values = {key: value for key, value in raw.items() if value is not None and key not in _DEAD}
    for key, supported in {**SUPPORTED, "qk_bias": False, "bias": False, "test_time_noise": 0}.items():
        expect(path, values, key, supported)
    expect(path, values, "initial_state_mode", "random")
    # Whatever tie_embeddings says, the head is a tensor of its own.
    expect(path, values, "tie_word_embeddings", False)
    values = with_derived_heads(values, width="n_embd", heads="n_heads")
    values = {"max_position_embeddings": raw.get("block_size"), **values}
    try:
        keys = msgspec.convert(values, _Keys)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    check_heads(path, keys.n_heads, keys.num_key_value_heads, keys.head_dim, key="n_heads")
    rows = keys.padded_vocab_size or keys.vocab_size
    rotary = rotary_of(path, shared_parameters(path, values), values, keys.head_dim, keys.max_position_embeddings)
    layers = keys.n_layers_in_prelude + keys.n_layers_in_recurrent_block + keys.n_layers_in_coda
    specification = Specification(
        width=keys.n_embd,
        heads=keys.n_heads,
        kv_heads=keys.num_key_value_heads,
        head_dim=keys.head_dim,
        mlp_width=keys.intermediate_size,
        vocab_size=min(keys.vocab_size, rows),
        table_rows=rows,
        max_context=keys.max_position_embeddings,
        prelude_layers=keys.n_layers_in_prelude,
        core_layers=keys.n_layers_in_recurrent_block,
        coda_layers=keys.n_layers_in_coda,
        layers=(LayerSpecification(),) * layers,
        rotaries=(rotary,),
        norms=NormPlaces() if kind == "llama" else NormPlaces(before=False, branch=True),
        norm_eps=keys.norm_eps,
        query_key_norm="none" if kind == "llama" else "whole",
        attention_scale=keys.head_dim**-0.5,
        embedding_scale=keys.init_values.embed_scale,
        tied=False,
        injection="adapter",
        state_std=keys.init_values.std,
        mean_recurrence=keys.mean_recurrence,
    )
    return RetrofitConfig(
        kind=kind, specification=specification, raw={key: value for key, value in raw.items() if key != "torch_dtype"}
    )

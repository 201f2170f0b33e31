"""Huginn and other Ravens (arXiv 2502.05171; seal-rg/recurrent-pretraining, `recpre/raven_modeling_minimal.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError
from runtime.model.configuration import PublishedTensor
from runtime.model.published import expect, shown
from runtime.model.rotary import Rotary
from runtime.model.specification import MOST_LAYERS, LayerSpecification, NormPlaces, Specification

MODEL_TYPE = "huginn_raven"

SUPPORTED = {
    "architecture_class_name": "RecurrentGPT",
    "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "injection_type": "linear",
}
"""Values of `config.json` that name a structure; any other value is a model this code does not implement."""

KEYS = {
    "width": "n_embd",
    "heads": "n_heads",
    "mlp_width": "intermediate_size",
    "vocab_size": "vocab_size",
    "table_rows": "padded_vocab_size",
    "max_context": "block_size",
    "tied": "tie_embeddings",
    "layers": "n_layers_in_prelude + n_layers_in_recurrent_block + n_layers_in_coda",
}
"""What sizes are called."""

_LARGEST = 2**31 - 1
"""Above it no size is one, and arithmetic with sizes would overflow."""

_STATE_INITS = ("like-init", "zero")


class RavenConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Architecture of a depth-recurrent transformer (arXiv 2502.05171, section 2), named as its `config.json` does.

    `state_std` is the standard deviation of the random initial latent state before `embedding_scale`, 0 for a zero
    initial state.
    """

    n_embd: int
    n_heads: int
    intermediate_size: int
    vocab_size: int
    """Token ids, and columns of the logits."""
    block_size: int
    """Longest context in tokens."""
    n_layers_in_prelude: int
    n_layers_in_recurrent_block: int
    n_layers_in_coda: int
    mean_recurrence: int
    mean_backprop_depth: int = 8
    norm_eps: float = 1e-6
    rope_base: float = 50_000.0
    qk_bias: bool = True
    bias: bool = False
    """Whether the adapter has a bias; no other linear layer has one."""
    tie_embeddings: bool = True
    state_init: str = "like-init"
    padded_vocab_size: int | None = None
    """Rows of the embedding table and of the head, where that is more than `vocab_size`; no token has those beyond."""

    @property
    def family(self) -> str:
        return MODEL_TYPE

    @property
    def identity(self) -> object:
        return self

    @property
    def specification(self) -> Specification:
        head_dim = self.n_embd // self.n_heads
        layers = self.n_layers_in_prelude + self.n_layers_in_recurrent_block + self.n_layers_in_coda
        return Specification(
            width=self.n_embd,
            heads=self.n_heads,
            kv_heads=self.n_heads,
            head_dim=head_dim,
            mlp_width=self.intermediate_size,
            vocab_size=self.vocab_size,
            table_rows=self.padded_vocab_size or self.vocab_size,
            max_context=self.block_size,
            prelude_layers=self.n_layers_in_prelude,
            core_layers=self.n_layers_in_recurrent_block,
            coda_layers=self.n_layers_in_coda,
            layers=(LayerSpecification(),) * layers,
            rotaries=(Rotary(base=self.rope_base, width=head_dim, pairs="neighbours", is_stored=True),),
            norms=NormPlaces(before=True, total=True),
            norm_eps=self.norm_eps,
            projection_bias="query_key" if self.qk_bias else "none",
            attention_scale=head_dim**-0.5,
            embedding_scale=math.sqrt(self.n_embd),
            tied=self.tie_embeddings,
            injection="adapter",
            adapter_bias=self.bias,
            state_std=0.0 if self.state_init == "zero" else self.init_std,
            norms_coda=True,
            mean_recurrence=self.mean_recurrence,
            filter_rule="huginn",
        )

    @property
    def keys(self) -> Mapping[str, str]:
        return KEYS

    @property
    def head_name(self) -> str:
        return "lm_head.weight"

    @property
    def init_std(self) -> float:
        return math.sqrt(2 / (5 * self.n_embd))

    @property
    def effective_depth(self) -> int:
        """Layers a token passes at the mean recurrence; scales the initial output projections."""
        core = self.n_layers_in_recurrent_block * self.mean_recurrence
        return self.n_layers_in_prelude + core + self.n_layers_in_coda

    @property
    def out_proj_std(self) -> float:
        return self.init_std / math.sqrt(2 * self.effective_depth)

    def published_tensors(self) -> tuple[PublishedTensor, ...]:
        own = self.specification
        width, head_dim = own.width, own.head_dim
        adapter = [PublishedTensor("transformer.adapter.weight", (width, 2 * width), "adapter.weight")]
        if self.bias:
            adapter.append(PublishedTensor("transformer.adapter.bias", (width,), "adapter.bias"))
        sandwich = (*four_norms(width), *fused_matrices(own))
        if self.qk_bias:
            bias = PublishedTensor("attn.qk_bias", (2, 1, own.heads, head_dim), "attention.bias")
            sandwich = (sandwich[0], bias, *sandwich[1:])
        table = (own.table_rows, width)
        return (
            PublishedTensor(
                "freqs_cis", (1, own.max_context, 1, head_dim // 2, 2), "rotaries.0.table", is_optional=True
            ),
            PublishedTensor("transformer.wte.weight", table, "embedding.weight"),
            *blocks(own, "prelude", sandwich),
            *adapter,
            *blocks(own, "core_block", sandwich),
            *blocks(own, "coda", sandwich),
            PublishedTensor("transformer.ln_f.weight", (width,), "final_norm.weight"),
            *(() if own.tied else (PublishedTensor(self.head_name, table, "head.weight"),)),
        )

    def as_published(self, dtype: str) -> dict[str, Any]:
        """A zero initial state is published as `init_values.std` 0 as well: the reference knows it by that alone."""
        own = self.specification
        return {
            **SUPPORTED,
            **msgspec.structs.asdict(self),
            "activation_checkpoint_impl": "per-iteration",
            "architectures": ["RavenForCausalLM"],
            "auto_map": {
                "AutoConfig": "raven_config_minimal.RavenConfig",
                "AutoModelForCausalLM": "raven_modeling_minimal.RavenForCausalLM",
            },
            "effective_expected_depth": self.effective_depth,
            "head_dim": own.head_dim,
            "init_orthogonal": False,
            "init_strategy": "takase",
            "init_values": {
                "embed_scale": own.embedding_scale,
                "embedding": self.init_std,
                "out_proj": self.out_proj_std,
                "std": own.state_std,
            },
            "model_type": MODEL_TYPE,
            "n_layers": len(own.layers),
            "num_key_value_heads": self.n_heads,
            "padded_vocab_size": own.table_rows,
            "padding_multiple": own.table_rows,
            "sampling_scheme": "poisson-lognormal-filling",
            "test_time_noise": 0,
            "test_time_noise_type": "fixed",
            "torch_dtype": dtype,
        }

    @torch.no_grad()
    def draw(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        """As the reference does (Takase et al., arXiv 2312.16903)."""
        wide, narrow = self.init_std, self.out_proj_std

        def drawn(part: Tensor, std: float) -> None:
            nn.init.trunc_normal_(part, 0.0, std, -3 * std, 3 * std, generator=generator)

        if "norm" in name or "ln_f" in name:
            tensor.fill_(1.0)
        elif name.endswith("bias"):
            tensor.zero_()
        elif name.endswith("mlp.fc.weight"):
            drawn(tensor[: self.intermediate_size], wide)
            drawn(tensor[self.intermediate_size :], narrow)
        else:
            drawn(tensor, narrow if name.endswith(("attn.proj.weight", "mlp.proj.weight")) else wide)


def four_norms(width: int) -> tuple[PublishedTensor, ...]:
    """A sandwich block's, in the order in which the reference has them among its other parts."""
    places = ("attention_norms.before", "attention_norms.total", "mlp_norms.before", "mlp_norms.total")
    return tuple(
        PublishedTensor(f"norm_{number}.weight", (width,), f"{place}.weight") for number, place in enumerate(places, 1)
    )


def fused_matrices(own: Specification) -> tuple[PublishedTensor, ...]:
    """Attention and MLP of a block, published as the model has them."""
    attended = own.heads * own.head_dim
    return (
        PublishedTensor("attn.Wqkv.weight", (own.projection_rows, own.width), "attention.query_key_value.weight"),
        PublishedTensor("attn.proj.weight", (own.width, attended), "attention.output.weight"),
        PublishedTensor("mlp.fc.weight", (2 * own.mlp_width, own.width), "mlp.gate_up.weight"),
        PublishedTensor("mlp.proj.weight", (own.width, own.mlp_width), "mlp.down.weight"),
    )


def blocks(own: Specification, part: str, tensors: tuple[PublishedTensor, ...]) -> list[PublishedTensor]:
    """The tensors of each block of a part of the model."""
    starts = {"prelude": (0, own.core_start), "core_block": (own.core_start, own.coda_start)}
    first, last = starts.get(part, (own.coda_start, len(own.layers)))
    return [
        PublishedTensor(
            f"transformer.{part}.{layer - first}.{each.name}", each.shape, f"layers.{layer}.{each.own}", each.start
        )
        for layer in range(first, last)
        for each in tensors
    ]


def raven_config(path: Path, raw: Mapping[str, Any]) -> RavenConfig:
    """The configuration in the object of a published `config.json`; `path` is named in errors.

    Raises `CheckpointError`, naming the file and the key, for a value that this implementation does not support.
    """
    for key, supported in SUPPORTED.items():
        expect(path, raw, key, supported)
    expect(path, raw, "test_time_noise", 0)
    fields = {name: raw[name] for name in RavenConfig.__struct_fields__ if name in raw}
    if raw.get("padded_vocab_size") is not None:
        fields.setdefault("vocab_size", raw["padded_vocab_size"])
    # The reference has no other way to say that the state starts from zero: it ignores state_init.
    init_values = raw.get("init_values") or {}
    if isinstance(init_values, dict) and init_values.get("std") == 0:
        fields["state_init"] = "zero"
    try:
        config = msgspec.convert(fields, RavenConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    if config.padded_vocab_size is not None:
        # As the reference reads it, no token is beyond the table.
        vocab_size = min(config.vocab_size, config.padded_vocab_size)
        padded = None if vocab_size == config.padded_vocab_size else config.padded_vocab_size
        config = msgspec.structs.replace(config, vocab_size=vocab_size, padded_vocab_size=padded)
    _check(path, config)
    _check_derived(path, raw, config)
    return config


def _check(path: Path, config: RavenConfig) -> None:
    least = {
        "n_embd": 1,
        "n_heads": 1,
        "intermediate_size": 1,
        "vocab_size": 1,
        "block_size": 1,
        "n_layers_in_prelude": 0,
        "n_layers_in_recurrent_block": 1,
        "n_layers_in_coda": 0,
        "mean_recurrence": 1,
        "mean_backprop_depth": 0,
    }
    for key, bound in least.items():
        value = getattr(config, key)
        if value < bound:
            raise CheckpointError(f"{path}: {key} is {value}; expected at least {bound}.")
        most = MOST_LAYERS if key.startswith("n_layers") else _LARGEST
        if value > most:
            raise CheckpointError(f"{path}: {key} is {value}; expected at most {most}.")
    if (config.padded_vocab_size or 0) > _LARGEST:
        raise CheckpointError(f"{path}: padded_vocab_size is {config.padded_vocab_size}; expected at most {_LARGEST}.")
    for key in ("norm_eps", "rope_base"):
        if not 0 < getattr(config, key) < math.inf:
            raise CheckpointError(f"{path}: {key} is {getattr(config, key)}; expected a positive number.")
    if config.n_embd % (2 * config.n_heads):
        raise CheckpointError(
            f"{path}: n_embd {config.n_embd} with n_heads {config.n_heads} gives no even head width; "
            "n_embd must be a multiple of 2 * n_heads."
        )
    if config.state_init not in _STATE_INITS:
        raise CheckpointError(
            f"{path}: state_init is {shown(config.state_init)}; supported are {', '.join(_STATE_INITS)}."
        )


def _check_derived(path: Path, raw: Mapping[str, Any], config: RavenConfig) -> None:
    """Values that the reference lets a file override, but that only make sense as derived from the others."""
    expect(path, raw, "num_key_value_heads", config.n_heads)
    own = config.specification
    expect(path, raw, "head_dim", own.head_dim)
    expect(path, raw, "tie_word_embeddings", config.tie_embeddings)
    init_values = raw.get("init_values") or {}
    if not isinstance(init_values, dict):
        raise CheckpointError(f"{path}: init_values is {shown(init_values)}; expected a JSON object.")
    for key, expected in (("embed_scale", own.embedding_scale), ("std", own.state_std)):
        value = init_values.get(key, expected)
        if key == "std" and config.state_init == "zero":
            continue
        if not isinstance(value, int | float) or not math.isclose(value, expected, rel_tol=1e-4):
            raise CheckpointError(f"{path}: init_values.{key} is {shown(value)}; supported is {expected!r}.")

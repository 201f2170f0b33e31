"""Architectures of GGUF files that are read: those that transformers converts, and some that it does not, with the keys
and tensors of llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import gguf
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from runtime.errors import CheckpointError
from runtime.model.gguf_header import GgufHeader
from runtime.model.published import shown

KINDS: Mapping[str, Any] = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
"""The `gguf` package's own kind of an architecture, by its name."""


class Architecture(NamedTuple):
    """How the files of one architecture are read."""

    name: str
    model_type: str
    """Transformers' word for it."""
    keys: Mapping[str, str | None]
    """Keys of the metadata below the architecture's name, and what `config.json` calls them."""
    processor: type[TensorProcessor]
    """What undoes what llama.cpp changes in tensors."""
    refused: tuple[str, ...] = ()
    """Keys that make another model of it."""


_MODEL_TYPES = {"gemma3": "gemma3_text"}
"""What transformers calls an architecture, where it does not say what GGUF says."""

_SIZES: Mapping[str, str | None] = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_MULTIPLIERS: Mapping[str, str | None] = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
# Rows of queries and keys are put in the order of Llama's for what llama.cpp rotates by neighbours.
_OWN = {
    "gemma": Architecture("gemma", "gemma", _SIZES, TENSOR_PROCESSORS["gemma2"]),
    "granite": Architecture("granite", "granite", {**_SIZES, **_MULTIPLIERS}, TENSOR_PROCESSORS["llama"]),
    "olmo2": Architecture("olmo2", "olmo2", _SIZES, TensorProcessor, ("attention.sliding_window",)),
    "smollm3": Architecture("smollm3", "smollm3", _SIZES, TENSOR_PROCESSORS["llama"]),
}


def architecture_of(header: GgufHeader) -> Architecture:
    """How a file is read. Raises `CheckpointError`, naming it, for an architecture that is not, or a key that makes
    another model of one that is."""
    name = header.text("general.architecture")
    known = sorted(KINDS.keys() & {*GGUF_CONFIG_MAPPING, *_OWN})
    if name not in known:
        raise CheckpointError(
            f"{header.path}: general.architecture is {shown(name)}; converted are {', '.join(known)}."
        )
    if name in _OWN:
        for key in _OWN[name].refused:
            if f"{name}.{key}" in header.metadata:
                raise CheckpointError(f"{header.path}: {name}.{key} is given; supported are models without it.")
        return _OWN[name]
    keys = cast("dict[str, str | None]", GGUF_CONFIG_MAPPING[name])
    processor: type[TensorProcessor] = TENSOR_PROCESSORS.get(name, TensorProcessor)
    return Architecture(name, _MODEL_TYPES.get(name, name), keys, processor)

"""Small GGUF files, written with the gguf package as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch
from gguf import GGMLQuantizationType as Encoding
from gguf import GGUFWriter, TokenType
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
}
"""Whole numbers of a configuration of transformers, by GGUF's names."""

SUPERBLOCKS = {Encoding.Q4_K: (0, 2), Encoding.Q6_K: (208,)}
"""Encodings that the package reads and does not write: where in a block its scales are, as float16."""


SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 96,
    "vocab_size": 320,
    "initializer_range": 0.1,
}
"""Rows of whole blocks of every encoding."""

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {"pad_token_id": 0},
}
"""Architectures, and what transformers' conversion needs to be, because it does not read it."""

OWN_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 1},
    "granite": {
        "attention_multiplier": 0.1,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "olmo2": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "smollm3": {"num_hidden_layers": 5, "tie_word_embeddings": True, "pad_token_id": 0},
}
"""Architectures that transformers does not convert; one of SmolLM3's layers does not rotate."""

MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
"""Numbers of a Granite's configuration, by GGUF's names."""


def make(family: str = "llama", **changes: Any) -> PreTrainedModel:
    """A random model of transformers."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.rand_like(parameter) - 0.5)
            elif "q_proj" in name or "k_proj" in name:
                parameter.mul_(3.0)
    return model.eval()


def encoded(numbers: NDArray[np.float32], encoding: Encoding, random: np.random.Generator) -> NDArray[Any]:
    """A matrix as a file has it. What the package does not write is made of random bytes, with scales that give numbers
    of about the size of a weight."""
    if encoding not in SUPERBLOCKS:
        return gguf.quantize(numbers, encoding)
    per_block, size = gguf.GGML_QUANT_SIZES[encoding]
    rows, columns = numbers.shape
    blocks = random.integers(0, 256, (rows, columns // per_block, size), np.uint8)
    for at in SUPERBLOCKS[encoding]:
        blocks[..., at : at + 2] = np.array([2e-4], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys as llama.cpp rotates them: the halves of a head in turns."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    encoding: Encoding = Encoding.F32,
    tokenizer: tokenizers.Tokenizer | None = None,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """Writes a causal model of transformers; `encoding` is that of matrices, and norms are float32 always.

    `metadata` holds whole numbers, numbers, strings or truth values, by the file's names, and `tensors` those that the
    model has not.
    """
    config: Any = model.config
    architecture = config.model_type.removesuffix("_text")
    writer = GGUFWriter(path, architecture)
    for key, name in KEYS.items():
        if (value := getattr(config, name, None)) is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    for key, name in MULTIPLIERS.items() if architecture == "granite" else ():
        writer.add_float32(f"{architecture}.{key}", getattr(config, name))
    rotary = config.rope_parameters
    writer.add_float32(f"{architecture}.rope.freq_base", rotary.get("full_attention", rotary)["rope_theta"])
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: lambda key, value: (writer.add_int32 if value < 0 else writer.add_uint32)(key, value),
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in (metadata or {}).items():
        add[type(value)](key, value)
    if tokenizer is not None:
        add_vocabulary(writer, tokenizer)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    random = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        numbers = tensor.float().numpy()
        if architecture in ("llama", "granite", "smollm3") and (".q_proj." in name or ".k_proj." in name):
            numbers = interleaved(
                numbers, config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            )
        if architecture.startswith("gemma") and "norm" in name:
            numbers = numbers + 1
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, name
        stored = encoding if numbers.ndim > 1 else Encoding.F32
        writer.add_tensor(own, encoded(numbers, stored, random), raw_dtype=stored)
    for name, extra in (tensors or {}).items():
        writer.add_tensor(name, extra)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: GGUFWriter, tokenizer: tokenizers.Tokenizer) -> None:
    """A BPE tokenizer: one with byte fallback as SentencePiece's, without its merges, and any other as byte-level."""
    content = json.loads(tokenizer.to_str())["model"]
    vocabulary = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    types = [TokenType.CONTROL if token in special else TokenType.NORMAL for token in vocabulary]
    if content["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(number) for number in range(len(vocabulary))])
        types = [
            TokenType.BYTE if token.startswith("<0x") else kind for token, kind in zip(vocabulary, types, strict=True)
        ]
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_token_list(vocabulary)
    writer.add_token_types(types)
    writer.add_eos_token_id(vocabulary.index("</s>"))
    writer.add_bos_token_id(vocabulary.index("<s>"))

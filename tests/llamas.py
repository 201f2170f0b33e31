"""Small random Llama checkpoints, made and saved by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one-for-all": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "wide-heads": {"head_dim": 14, "num_key_value_heads": 2},
    "other-rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}},
    "llama3": {"rope_parameters": LLAMA3, "num_key_value_heads": 2},
    "all-at-once": {"rope_parameters": LLAMA3, "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": True},
    "other-sizes": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 4, "rms_norm_eps": 1e-3},
}


def make_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random model of a few thousand parameters, sharpened so that greedy tokens vary.

    `changes` are fields of transformers' configuration.
    """
    fields = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
        "initializer_range": 0.15,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**fields, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "q_proj" in name or "k_proj" in name or "lm_head" in name:
                parameter.mul_(3.0)
    return model


def save_llama(directory: Path, model: LlamaForCausalLM, shards: bool = False) -> Path:
    """Saves as transformers does, in one file or many; returns the directory."""
    model.save_pretrained(directory, max_shard_size="8KB" if shards else "5GB")
    assert (directory / "model.safetensors.index.json").is_file() == shards
    return directory

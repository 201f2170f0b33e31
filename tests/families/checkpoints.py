"""Small random checkpoints of every family that transformers has, made and saved by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.llamas import LLAMA3

WINDOW = 7
CONTEXT = 96
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 24}
ALTERNATING = ["full_attention", "sliding_attention"] * 2
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 3.0, 4.0],
}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "plain": {},
        "biases": {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    },
    "qwen2": {
        "plain": {"tie_word_embeddings": True},
        "windows": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        "layer-types": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": ALTERNATING},
        "unused-window": {"sliding_window": WINDOW, "max_window_layers": 0},
        "yarn": {"rope_parameters": YARN},
    },
    "qwen3": {
        "plain": {"head_dim": 6},
        "biases": {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
        "windows": {"head_dim": 10, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
        "yarn": {"head_dim": 16, "rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 8, "beta_slow": 2}},
    },
    "mistral": {
        "windows": {"sliding_window": WINDOW},
        "plain": {"sliding_window": None, "head_dim": 10},
        "yarn": {"sliding_window": WINDOW, "rope_parameters": {**YARN, "truncate": False}},
        "longrope": {
            "head_dim": 6,
            "sliding_window": WINDOW,
            "rope_parameters": {**LONG, "original_max_position_embeddings": 28},
        },
    },
    "ministral": {
        "windows": {"sliding_window": WINDOW, "head_dim": 10},
        "layer-types": {"sliding_window": WINDOW, "head_dim": 8, "layer_types": ALTERNATING},
    },
    "smollm3": {
        "plain": {"tie_word_embeddings": True},
        "windows": {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layer_interval": 2},
        "layers": {
            "no_rope_layers": [0, 1, 1, 0],
            "layer_types": ALTERNATING,
            "sliding_window": WINDOW,
            "tie_word_embeddings": False,
        },
        "biases": {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    },
    "olmo2": {
        "plain": {"num_key_value_heads": 4},
        "biases": {"attention_bias": True, "rms_norm_eps": 1e-3, "rope_parameters": YARN},
    },
    "olmo3": {
        "windows": {"sliding_window": WINDOW},
        "yarn": {
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_theta": 300.0}},
        },
    },
    "gemma": {
        "plain": {"head_dim": 10, "num_key_value_heads": 1},
        "biases": {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": False},
    },
    "gemma2": {
        "windows": {"head_dim": 10, "sliding_window": WINDOW, "query_pre_attn_scalar": 24},
        "capped": {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
        "uncapped": {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["sliding_attention"] * 4,
        },
    },
    "gemma3_text": {
        "windows": {"head_dim": 10, "sliding_window": WINDOW, "sliding_window_pattern": 2},
        "linear": {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 2000.0, "factor": 3.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            "final_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 20,
        },
    },
    "phi3": {
        "plain": {"num_key_value_heads": 4},
        "windows": {"sliding_window": WINDOW, "partial_rotary_factor": 0.5},
        "longrope": {
            "original_max_position_embeddings": 28,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.75},
            "sliding_window": 30,
        },
        "factor": {
            "original_max_position_embeddings": 28,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.75, "factor": 2.0},
            "tie_word_embeddings": True,
        },
    },
    "granite": {
        "plain": {},
        "scaled": {
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    },
}
ALL = [(family, variant) for family, variants in VARIANTS.items() for variant in variants]
FIRST = [(family, next(iter(variants))) for family, variants in VARIANTS.items()]
"""One of each family."""


def config_of(family: str, variant: str, **changes: Any) -> Any:
    """transformers' configuration of a variant."""
    return AutoConfig.for_model(family, **{**SIZES, **VARIANTS[family][variant], **changes})


BACKENDS = ("torch", "native")


def make(family: str, variant: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a few thousand parameters, sharpened so that greedy tokens vary."""
    torch.manual_seed(seed)
    # The one implementation that caps scores.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config_of(family, variant, **changes), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "model.norm.weight":
                parameter.mul_(0.0).add_(4.0)
            elif "norm" in name:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
            elif name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
            elif "embed" in name:
                # Where the table is the head too, a token that is seen would be said again.
                parameter.mul_(0.5)
            elif "lm_head" not in name:
                parameter.mul_(2.0)
    return model


def save(directory: Path, model: PreTrainedModel, shards: bool = False) -> Path:
    """Saves as transformers does, in one file or many; returns the directory."""
    model.save_pretrained(directory, max_shard_size="8KB" if shards else "5GB")
    assert (directory / "model.safetensors.index.json").is_file() == shards
    return directory


def change_config(directory: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    path = directory / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in raw.items() if key not in drop}))

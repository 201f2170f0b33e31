"""Small random models of many architectures, made and saved by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from runtime import CheckpointError
from runtime.model.checkpoint import load_served

COMMON: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
}
_TWO_KINDS: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

WIDE: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "cohere": {"logit_scale": 0.5},
    "cohere2": _TWO_KINDS,
    "deepseek_v3": _LATENT,
    "diffllama": {},
    "ernie4_5": {},
    "exaone4": _TWO_KINDS,
    "gemma4_text": {
        **_TWO_KINDS,
        "num_attention_heads": 6,
        "num_global_key_value_heads": 3,
        "global_head_dim": 12,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "tie_word_embeddings": False,
    },
    "glm": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "gpt_neox": {},
    "gpt_oss": {**_TWO_KINDS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"logits_scaling": 3.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "helium": {},
    "mimo_v2_flash": {
        **_TWO_KINDS,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "v_head_dim": 6,
    },
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "nemotron": {},
    "olmo": {"clip_qkv": 2.0},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "persimmon": {},
    "phi": {"partial_rotary_factor": 0.5},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": _EXPERTS,
    "seed_oss": {},
    "starcoder2": {"sliding_window": 8},
    "vaultgemma": {**_TWO_KINDS, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0},
}
"""By `model_type`, what differs from `COMMON`: windows, soft caps, sinks, experts, latent attention, scales."""


def make(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of transformers of some thousand parameters, drawn so that greedy tokens vary."""
    fields = {**COMMON, **WIDE.get(model_type, {}), **changes}
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.25)
            elif name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.1)
    model.tie_weights()
    # Some configurations have stop tokens of their own, beyond so small a vocabulary.
    model.config.eos_token_id, model.generation_config = None, GenerationConfig()
    return model


def save(directory: Path, model_type: str, **changes: Any) -> Path:
    make(model_type, **changes).save_pretrained(directory)
    return directory


def refusal(directory: Path) -> str:
    """Why a checkpoint cannot be loaded."""
    try:
        load_served(directory)
    except CheckpointError as error:
        return str(error)
    raise AssertionError("it was to be refused")

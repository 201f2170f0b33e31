"""What a `config.json` says is read as transformers reads it, and what is not supported is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from runtime.errors import CheckpointError
from runtime.model.checkpoint import load_checkpoint
from tests.families.checkpoints import ALTERNATING, FIRST, LONG, WINDOW, YARN, change_config, make, save
from tests.families.test_parity import logits_of, random_tokens, run_dense

NEW_KEYS = ("rope_parameters", "layer_types")
"""Which only transformers 5 writes, or newer versions of 4."""
LINEAR = {"rope_type": "linear", "factor": 3.0}
OLD: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen2", "plain", {"rope_theta": 500.0, "rope_scaling": {**YARN, "type": "yarn", "rope_theta": 70.0}}),
    ("qwen2", "plain", {"rope_theta": 500.0, "sliding_window": WINDOW, "max_window_layers": 2}),
    ("qwen2", "plain", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    ("qwen2", "plain", {"use_sliding_window": True, "sliding_window": None}),
    ("qwen3", "plain", {"rope_theta": 500, "rope_scaling": None, "sliding_window": None}),
    ("qwen3", "plain", {"rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 30}}),
    ("qwen3", "plain", {"rope_scaling": {"rope_type": "yarn", "factor": 2, "mscale": 0.7, "mscale_all_dim": 1.0}}),
    ("mistral", "windows", {"rope_theta": 500.0}),
    ("mistral", "windows", {"rope_theta": 500.0, "sliding_window": None, "head_dim": None}),
    ("ministral", "windows", {"rope_theta": 500.0}),
    ("smollm3", "plain", {"rope_theta": 500.0, "no_rope_layer_interval": 2, "no_rope_layers": None}),
    ("smollm3", "plain", {"use_sliding_window": True, "sliding_window": WINDOW}),
    ("smollm3", "plain", {"no_rope_layers": [1, 0, 0, 1, 1], "rope_scaling": LINEAR}),
    ("olmo2", "plain", {"rope_theta": 500.0, "num_key_value_heads": None}),
    ("olmo3", "windows", {"rope_theta": 300.0}),
    ("olmo3", "windows", {"rope_scaling": YARN}),
    ("olmo3", "windows", {"rope_scaling": {**LINEAR, "rope_theta": 900.0}, "rope_theta": 300.0}),
    ("gemma", "plain", {"rope_theta": 500.0, "hidden_act": "gelu", "hidden_activation": None}),
    ("gemma2", "windows", {"rope_theta": 500.0}),
    ("gemma2", "windows", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    ("gemma3_text", "windows", {"rope_theta": 500.0, "rope_local_base_freq": 60.0, "sliding_window_pattern": 3}),
    ("gemma3_text", "windows", {"rope_theta": 500.0, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}),
    ("gemma3_text", "windows", {"rope_scaling": {"factor": 8.0, "type": "linear"}, "attn_logit_softcapping": 1.0}),
    ("gemma3_text", "windows", {"rope_parameters": {"sliding_attention": {"rope_theta": 9.0}}, "rope_theta": 50.0}),
    ("phi3", "plain", {"rope_theta": 500.0, "partial_rotary_factor": 0.5}),
    ("granite", "plain", {"rope_theta": 500, "attention_multiplier": 0.3, "logits_scaling": 4}),
    ("granite", "plain", {"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 2.0}}),
]


@pytest.mark.parametrize(("family", "variant", "changes"), OLD)
def test_older_files_are_read_as_transformers_reads_them(
    tmp_path: Path, family: str, variant: str, changes: dict[str, Any]
) -> None:
    directory = save(tmp_path, make(family, variant))
    change_config(directory, drop=tuple(key for key in NEW_KEYS if key not in changes), **changes)
    theirs = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    tokens = random_tokens(1, 50)
    ours = run_dense(load_checkpoint(directory).model, tokens)
    torch.testing.assert_close(ours, logits_of(theirs, tokens), atol=2e-4, rtol=1e-4)


NEEDED = {
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "pad_token_id",
}


@pytest.mark.parametrize(("family", "variant"), FIRST)
def test_what_a_file_leaves_out_is_as_in_transformers(tmp_path: Path, family: str, variant: str) -> None:
    directory = save(tmp_path, make(family, variant))
    raw = load_checkpoint(directory).config.as_published("float32")
    change_config(directory, drop=tuple(raw.keys() - NEEDED), pad_token_id=0)
    theirs = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    loaded, tokens = load_checkpoint(directory), random_tokens(1, 50)
    torch.testing.assert_close(run_dense(loaded.model, tokens), logits_of(theirs, tokens), atol=2e-4, rtol=1e-4)
    own, config = loaded.config.specification, theirs.config
    assert (own.max_context, own.norm_eps) == (config.max_position_embeddings, config.rms_norm_eps)
    assert {layer.window for layer in own.layers} <= {None, getattr(config, "sliding_window", None)}


REFUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("qwen2", {"use_sliding_window": 1}, ["use_sliding_window is 1", "true or false"]),
    ("qwen2", {"layer_types": ALTERNATING}, ["'sliding_attention'", "no sliding_window is given or used"]),
    ("qwen2", {"layer_types": ["full_attention"]}, ["layer_types has 1 entries for 4 layers"]),
    ("qwen2", {"layer_types": ["chunked_attention"] * 4}, ["'chunked_attention'", "'full_attention'"]),
    ("qwen2", {"max_window_layers": -1}, ["max_window_layers is -1", "at least 0"]),
    ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [2, 2]}}, ["'mrope'", "default, linear"]),
    ("qwen2", {"rope_parameters": {"rope_type": ["yarn"]}}, ["rope_type is ['yarn']"]),
    ("qwen2", {"rope_parameters": {**YARN, "beta_fast": -1}}, ["beta_fast"]),
    ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1}}, ["rope_theta is 1", "yarn"]),
    ("qwen2", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, ["full_attention", "all layers"]),
    ("qwen3", {"attention_bias": "no"}, ["attention_bias is 'no'", "true or false"]),
    ("mistral", {"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "'silu'"]),
    ("mistral", {"sliding_window": 0}, ["sliding_window", ">= 1"]),
    ("mistral", {"layer_types": ALTERNATING}, ["'full_attention'", "'sliding_attention' in all layers"]),
    ("mistral", {"architectures": ["MistralForSequenceClassification"]}, ["architectures", "MistralForCausalLM"]),
    ("ministral", {"sliding_window": None, "layer_types": ALTERNATING}, ["sliding_window"]),
    ("smollm3", {"no_rope_layers": [1, 0]}, ["no_rope_layers is [1, 0]", "4 layers"]),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, ["no_rope_layer_interval is 0"]),
    ("olmo2", {"layer_types": ALTERNATING}, ["'sliding_attention'", "'full_attention' in all layers"]),
    ("olmo3", {"rope_parameters": {"rope_theta": 5.0}}, ["rope_parameters", "full_attention, sliding_attention"]),
    ("olmo3", {"rope_parameters": {"full_attention": {**YARN, "truncate": False}}}, ["truncate is False", "True"]),
    ("olmo3", {"rope_parameters": {"full_attention": 5}}, ["rotary parameters are 5", "JSON object"]),
    ("gemma", {"hidden_act": "relu"}, ["hidden_act is 'relu'", "gelu_pytorch_tanh"]),
    ("gemma2", {"hidden_activation": "silu"}, ["hidden_activation is 'silu'", "gelu_pytorch_tanh"]),
    ("gemma2", {"attn_logit_softcapping": -1}, ["attn_logit_softcapping is -1", "positive"]),
    ("gemma2", {"use_bidirectional_attention": True}, ["use_bidirectional_attention is True"]),
    ("gemma3_text", {"query_pre_attn_scalar": 0}, ["query_pre_attn_scalar is 0", "at least 1"]),
    ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 0}, ["sliding_window_pattern is 0"]),
    ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, ["'linear'", "default, longrope"]),
    ("phi3", {"rope_parameters": {**LONG, "long_factor": [1.0]}}, ["short_factor has 3 numbers; expected 4"]),
    ("phi3", {"rope_parameters": {**LONG, "short_factor": [1.0] * 4}}, ["long_factor has 3 numbers; expected 4"]),
    ("phi3", {"rope_scaling": {"type": "su", "long_factor": [1.0] * 4}}, ["`short_factor`"]),
    ("phi3", {"partial_rotary_factor": 0.4}, ["partial_rotary_factor is 0.4", "even number"]),
    ("phi3", {"partial_rotary_factor": 1.5}, ["partial_rotary_factor is 1.5", "at most 1"]),
    ("granite", {"residual_multiplier": 0}, ["residual_multiplier is 0", "positive"]),
    ("granite", {"logits_scaling": "2"}, ["logits_scaling is '2'", "positive"]),
    ("granite", {"quantization_config": {"bits": 4}}, ["quantization_config"]),
]


@pytest.mark.parametrize(("family", "changes", "parts"), REFUSED)
def test_an_unsupported_configuration_is_named(
    tmp_path: Path, family: str, changes: dict[str, Any], parts: list[str]
) -> None:
    directory = save(tmp_path, make(family, dict(FIRST)[family]))
    dropped = ("rope_parameters",) if "partial_rotary_factor" in changes else ()
    change_config(directory, drop=dropped, **changes)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(directory)
    assert all(part in str(raised.value) for part in [str(directory / "config.json"), *parts]), raised.value


@pytest.mark.parametrize(("family", "variant"), FIRST)
def test_a_damaged_directory_is_refused_with_what_is_wrong(tmp_path: Path, family: str, variant: str) -> None:
    """As a download leaves it that was cut off, or a conversion that forgot a tensor."""
    directory = save(tmp_path, make(family, variant))
    path = directory / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in tensors if "layers.2" in name and "norm" in name)
    shape = list(tensors.pop(lost).shape)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"no tensor {lost}; expected shape .{shape[0]}."):
        load_checkpoint(directory)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(directory)

"""Models of text and images are opened as the text models that they are without images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from runtime import CheckpointError
from runtime.model.architecture import CAUSAL
from runtime.model.checkpoint import describe, load_checkpoint, save_checkpoint
from runtime.model.families.causal import CausalConfig
from runtime.model.weights import WEIGHTS
from tests.families.checkpoints import SIZES, change_config, save
from tests.families.test_parity import logits_of, random_tokens, run_dense

VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION: dict[str, Any] = {"depth": 1, "num_heads": 2, "patch_size": 14, "out_hidden_size": 32}
TEXT: dict[str, Any] = {**SIZES, "pad_token_id": 0}
GEMMA: dict[str, Any] = {"head_dim": 10, "sliding_window": 7, "sliding_window_pattern": 2}

KINDS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": {"model_type": "gemma3_text", **GEMMA}, "mm_tokens_per_image": 4},
    "mistral3": {"text_config": {"model_type": "mistral", "head_dim": 10, "sliding_window": None}},
    "llava": {"text_config": {"model_type": "llama"}},
    "llava_next": {"text_config": {"model_type": "mistral", "sliding_window": 7}},
    "llava_onevision": {"text_config": {"model_type": "qwen2"}},
    "vipllava": {"text_config": {"model_type": "llama"}, "vision_feature_layers": [-1]},
    "internvl": {"text_config": {"model_type": "qwen2"}},
    "idefics3": {"text_config": {"model_type": "llama"}},
    "smolvlm": {"text_config": {"model_type": "llama"}},
    "got_ocr2": {"text_config": {"model_type": "qwen2"}},
    "qwen2_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        "vision_config": {"depth": 1, "num_heads": 2, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        "vision_config": {**QWEN_VISION, "hidden_size": 16, "intermediate_size": 16, "fullatt_block_indexes": [0]},
    },
    "qwen3_vl": {
        "text_config": {
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        "vision_config": {
            **QWEN_VISION,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    },
}


def make(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    fields = {"vision_config": VISION, "image_token_index": 39, "image_token_id": 39, **KINDS[kind], **changes}
    fields["text_config"] = {**TEXT, **fields["text_config"]}
    config = AutoConfig.for_model(kind, **fields)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
            elif parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.25)
    return model


def check(directory: Path, model: PreTrainedModel) -> CausalConfig:
    """The text model of a directory gives what `model` gives for text alone."""
    tokens = random_tokens(1, 40) % 39
    loaded, expected = load_checkpoint(directory), logits_of(model, tokens)
    assert expected.std() > 0.3, "logits are to differ enough for a comparison"
    torch.testing.assert_close(run_dense(loaded.model, tokens), expected, atol=2e-4, rtol=1e-4)
    assert isinstance(loaded.config, CausalConfig)
    return loaded.config


def rename(directory: Path, *changes: tuple[str, str]) -> None:
    """Gives tensors other beginnings of their names; the first that fits counts."""
    tensors = {}
    for name, tensor in load_file(directory / WEIGHTS).items():
        old, new = next((change for change in changes if name.startswith(change[0])), ("", ""))
        tensors[new + name.removeprefix(old)] = tensor
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_that_of_the_whole_without_images(tmp_path: Path, kind: str) -> None:
    model = make(kind)
    config = check(save(tmp_path / "whole", model), model)
    assert config.wrapper == kind
    # What is saved is the text model by itself.
    save_checkpoint(tmp_path / "text", load_checkpoint(tmp_path / "whole").model)
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "text", attn_implementation="eager").eval()
    assert check(tmp_path / "text", text).wrapper is None
    assert type(text).__name__ == CAUSAL[config.family].architecture


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "llava"])
@pytest.mark.parametrize("names", ["older", "newer"])
def test_tensors_have_the_names_of_either_version(tmp_path: Path, kind: str, names: str) -> None:
    model, older = make(kind), [("language_model.model.", "model.language_model."), ("language_model.", "")]
    newer = [(new, old) for old, new in older if new] + [("lm_head.", "language_model.lm_head.")]
    directory = save(tmp_path, model)
    is_older = any(name.startswith("language_model.") for name in load_file(directory / WEIGHTS))
    if is_older != (names == "older"):
        rename(directory, *(older if is_older else newer))
    assert any(name.startswith("language_model.") for name in load_file(directory / WEIGHTS)) == (names == "older")
    check(directory, model)


@pytest.mark.parametrize("is_tied", [True, False])
def test_published_qwens_have_no_text_config(tmp_path: Path, is_tied: bool) -> None:
    model = make("qwen2_5_vl", tie_word_embeddings=is_tied)
    directory = save(tmp_path, model)
    rename(directory, ("model.language_model.", "model."), ("model.visual.", "visual."))
    text = json.loads((directory / "config.json").read_text())["text_config"]
    kept = {key: value for key, value in text.items() if key not in ("model_type", "rope_parameters", "layer_types")}
    scaling = {"type": "mrope", "mrope_section": [1, 1, 2]}
    change_config(directory, drop=("text_config",), **kept, rope_theta=1e4, rope_scaling=scaling)
    change_config(directory, tie_word_embeddings=is_tied)
    assert check(directory, model).specification.tied == is_tied


def test_stop_tokens_may_stand_with_the_text(tmp_path: Path) -> None:
    directory = save(tmp_path, make("gemma3"))
    (directory / "generation_config.json").unlink()
    raw = json.loads((directory / "config.json").read_text())
    change_config(directory, drop=("eos_token_id",), text_config={**raw["text_config"], "eos_token_id": [5, 7]})
    assert describe(directory).stop_tokens == (5, 7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_config": None}, ["text_config is None", "JSON object"]),
        ({"text_config": {"model_type": "cohere2"}}, ["'llava'", "'cohere2'", "Save the text model by itself"]),
        ({"text_config": {"model_type": "llama", "num_hidden_layers": 0}}, ["(text_config)", "num_hidden_layers"]),
        ({"model_type": "aya_vision"}, ["'aya_vision' is no causal language model", "Save its text model by itself"]),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    directory = save(tmp_path, make("llava"))
    change_config(directory, **changes)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(directory)
    assert all(each in str(raised.value) for each in said), raised.value

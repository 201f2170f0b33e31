"""Models of transformers that are refused, by name and with the reason; and files that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from runtime import CheckpointError, Engine
from runtime.model.checkpoint import load_checkpoint
from tests.families.wides import COMMON, make, refusal, save

SHARES: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def bare(directory: Path, model_type: str, **changes: Any) -> Path:
    """A directory with a `config.json` of defaults, and one tensor."""
    config = {"model_type": model_type, **changes}
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(1)}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("bloom", {}, "_supports_attention_backend"),
        ("falcon", {}, "_supports_attention_backend"),
        ("mpt", {}, "_supports_attention_backend"),
        ("stablelm", {}, "_supports_attention_backend"),
        ("mamba", {}, "keeps a state"),
        ("rwkv", {}, "keeps a state"),
        ("jamba", {}, "keeps a state"),
        ("recurrent_gemma", {}, "keeps a state"),
        ("qwen3_next", {}, "keeps a state"),
        ("bart", {"is_encoder_decoder": True}, "attends to an encoder"),
        ("bert", {"is_decoder": True, "add_cross_attention": True}, "attends to an encoder"),
        ("gpt2", {"add_cross_attention": True}, "attends to an encoder"),
        ("t5", {}, "no causal language model"),
        ("clip", {}, "no causal language model"),
        ("gpt2", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ("gpt2", {"architectures": ["GPT2ForSequenceClassification"]}, "GPT2LMHeadModel"),
        ("gpt2", {"n_embd": "many"}, "transformers cannot read it"),
        ("no_such_model", {}, "'huginn_raven'"),
        ("no_such_model", {"auto_map": {"AutoConfig": "code.Config"}}, "is not run"),
    ],
)
def test_what_the_configuration_says_is_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], reason: str
) -> None:
    said = refusal(bare(tmp_path, model_type, **changes))
    assert repr(model_type) in said or "architectures" in said or "quantization" in said or "read" in said
    assert reason in said
    assert str(tmp_path / "config.json") in said


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("bert", {}, "sees others than those before it"),
        ("doge", {}, "a mask of its own making"),
        ("lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 24}, "convolution"),
    ],
)
def test_what_a_pass_over_a_few_tokens_shows_is_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], reason: str
) -> None:
    said = refusal(save(tmp_path, model_type, **changes))
    assert f"model_type {model_type!r} cannot be run" in said
    assert reason in said


def test_a_declared_code_of_a_known_model_is_ignored(tmp_path: Path) -> None:
    """Transformers' own class runs, and the file beside it is not imported."""
    save(tmp_path, "gpt_neox")
    change(tmp_path, auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    change(tmp_path, attn_implementation="somebody/kernel", _attn_implementation="somebody/kernel")
    from runtime.model.checkpoint import load_served

    assert load_served(tmp_path).config.family == "gpt_neox"
    assert not (tmp_path / "ran").exists()


def change(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rewrite(directory: Path, **changes: Any) -> None:
    file = directory / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if changes.get(name, ...) is not None}
    save_file({**tensors, **{name: each for name, each in changes.items() if each is not None}}, file)


NORM = "gpt_neox.final_layer_norm.weight"


@pytest.mark.parametrize(
    ("tensors", "config", "parts"),
    [
        ({NORM: None}, {}, ["no tensor", NORM]),
        ({"more": torch.ones(3)}, {}, ["unexpected tensor", "more"]),
        ({NORM: torch.ones(7)}, {}, [NORM]),
        ({NORM: torch.full((32,), float("inf"))}, {}, [NORM, "32 numbers that are not finite"]),
        ({}, {"num_hidden_layers": 10**9}, ["num_hidden_layers"]),
        ({}, {"vocab_size": 2**30}, ["numbers, but the weights are"]),
        ({}, {"intermediate_size": 10**7}, ["numbers, but the weights are"]),
        ({}, {"vocab_size": -3}, ["vocab_size"]),
        ({}, {"max_position_embeddings": 0}, ["max_position_embeddings"]),
        ({}, {"hidden_act": "no_such"}, ["no_such"]),
    ],
)
def test_broken_files_are_named(
    tmp_path: Path, tensors: dict[str, Any], config: dict[str, Any], parts: list[str]
) -> None:
    save(tmp_path, "gpt_neox")
    rewrite(tmp_path, **tensors)
    change(tmp_path, **config)
    said = refusal(tmp_path)
    assert str(tmp_path) in said
    assert all(part in said for part in parts), said


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "gpt_neox")
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "pickled weights are refused" in refusal(tmp_path)


def test_a_body_without_a_head_is_no_causal_model(tmp_path: Path) -> None:
    AutoModel.from_config(AutoConfig.for_model("gpt_neox", **COMMON)).save_pretrained(tmp_path)
    assert "architectures is ['GPTNeoXModel']; supported is ['GPTNeoXForCausalLM']" in refusal(tmp_path)


def test_training_here_needs_a_native_family(tmp_path: Path) -> None:
    make("gpt_neox").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="'gpt_neox' has no native family"):
        load_checkpoint(tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize("settings", [{"backend": "native"}, {"cuda_graphs": True}], ids=str)
async def test_settings_that_need_a_native_family_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    save(tmp_path, "gpt_neox")
    with pytest.raises(ValueError, match="transformers' own code runs this model"):
        async with Engine.open(tmp_path, **settings):
            pass

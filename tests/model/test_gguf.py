"""GGUF files as checkpoints: configuration, weights and tokenizer are those that transformers reads from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Encoding
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from runtime.errors import CheckpointError
from runtime.model.gguf_file import GgufFile, open_gguf
from runtime.model.tokenizer import Tokenizer
from tests.ggufs import FAMILIES, SIZES, make, write_gguf
from tests.vocabularies import LINES, byte_fallback, byte_level

ENCODINGS = (
    Encoding.F32,
    Encoding.F16,
    Encoding.BF16,
    Encoding.Q8_0,
    Encoding.Q4_0,
    Encoding.Q4_1,
    Encoding.Q5_1,
    Encoding.Q4_K,
    Encoding.Q6_K,
)


def theirs(path: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
    )
    return model


def same_tensors(path: Path, reference: PreTrainedModel) -> GgufFile:
    """The file, whose tensors are those of the reference, bit for bit."""
    file = open_gguf(path)
    expected = reference.state_dict()
    if reference.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    found = dict(file.weights(expected).read(expected))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name
    return file


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_configuration_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    tokens = {f"tokenizer.ggml.{kind}_token_id": number for number, kind in enumerate(("padding", "bos", "eos"))}
    path = write_gguf(tmp_path / "model.gguf", make(family, **FAMILIES[family]), metadata=tokens)
    reference = theirs(path)
    config = same_tensors(path, reference).config
    expected = json.loads(reference.config.to_json_string())
    assert config["model_type"] == family
    assert config.get("head_dim") == FAMILIES[family].get("head_dim", SIZES["head_dim"])
    for key in expected.keys() - {"_name_or_path", "dtype", "head_dim", "quantization_config"}:
        assert config[key] == expected[key], key


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)
def test_every_encoding_is_decoded_as_transformers_does(tmp_path: Path, encoding: Encoding) -> None:
    path = write_gguf(tmp_path / "model.gguf", make(tie_word_embeddings=True), encoding=encoding)
    file = same_tensors(path, theirs(path))
    kinds = {place.encoding for place in file.header.tensors.values()}
    assert kinds == {int(encoding), int(Encoding.F32)}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Without transformers between: what llama.cpp's converter does to rows of queries and keys is undone."""
    model = make()
    path = write_gguf(tmp_path / "model.gguf", model)
    file = open_gguf(path)
    found = dict(file.weights(model.state_dict()).read(model.state_dict()))
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_the_tokenizer_is_that_of_transformers(tmp_path: Path, kind: Callable[[], Any]) -> None:
    path = write_gguf(
        tmp_path / "model.gguf",
        make(),
        tokenizer=kind(),
        metadata={
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.eot_token_id": 5,
            "tokenizer.chat_template": "{{ messages[0].content }}",
            "tokenizer.chat_template.tool_use": "{{ tools }}",
        },
    )
    file = open_gguf(path)
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name, local_files_only=True)
    assert file.tokenizer is not None
    ours = Tokenizer.of(file.tokenizer)
    for line in [*LINES, "".join(LINES), "<s>a</s> b"]:
        assert ours.encode(line, add_special_tokens=True) == reference.encode(line)
        assert ours.decode(reference.encode(line)) == reference.decode(reference.encode(line))
    assert file.generation.stop_tokens == (reference.eos_token_id, 5)
    assert ours.leading == (reference.bos_token_id,)
    assert file.chat_templates is not None
    assert file.chat_templates.chosen(tools=False).source == reference.chat_template
    assert file.chat_templates.chosen(tools=True).source == "{{ tools }}"
    assert ours.named_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert file.config["vocab_size"] == SIZES["vocab_size"]


def test_a_file_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    file = open_gguf(write_gguf(tmp_path / "model.gguf", make()))
    assert (file.tokenizer, file.generation.stop_tokens, file.chat_templates) == (None, (), None)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}


def factors_of(model: Any) -> np.ndarray[Any, Any]:
    """What GGUF has of a scaling: by what it divides frequencies."""
    plain = 1.0 / 10_000.0 ** (torch.arange(0, 64, 2) / 64)
    return (plain / model.model.rotary_emb.inv_freq).numpy()


def test_scaled_rotary_positions_are_read(tmp_path: Path) -> None:
    """transformers passes over them, so that its own configuration is what the file is held to."""
    model = make(rope_parameters=LLAMA3)
    path = write_gguf(tmp_path / "model.gguf", model, tensors={"rope_freqs.weight": factors_of(model)})
    file = open_gguf(path)
    assert file.config["rope_parameters"] == LLAMA3
    assert "rope_freqs.weight" not in file.weights(model.state_dict()).tensors
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    read = open_gguf(write_gguf(path, make(), metadata=linear)).config["rope_parameters"]
    assert read == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 24,
        "llama.rope.scaling.finetuned": True,
    }
    read = open_gguf(write_gguf(path, make(), metadata=yarn)).config["rope_parameters"]
    assert (read["rope_type"], read["factor"], read["original_max_position_embeddings"]) == ("yarn", 4.0, 24)


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type is 'longrope'"),
        ({"llama.rope.scaling.attn_factor": 2.0}, "llama.rope.scaling.attn_factor is not supported"),
        ({"llama.rope.scaling.factor": float("nan")}, "llama.rope.scaling.factor is nan"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"tokenizer.ggml.model": "gpt2"}, "no tokenizer of transformers"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "tokenizer.ggml.eos_token_id is 'x'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, metadata: dict[str, Any], part: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", make(), metadata=metadata)
    with pytest.raises(CheckpointError) as raised:
        open_gguf(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert part in str(raised.value)


def test_other_factors_of_rotary_frequencies_are_refused(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    path = write_gguf(tmp_path / "model.gguf", make(), tensors={"rope_freqs.weight": factors})
    with pytest.raises(CheckpointError, match="not the factors of rope_type llama3"):
        open_gguf(path)

"""What is no checkpoint is refused, and the file, the tensor and what was expected are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.countdown.vocabulary import WORDS, build_tokenizer
from runtime.errors import CheckpointError
from runtime.model.checkpoint import load_checkpoint, save_checkpoint
from runtime.model.tokenizer import Tokenizer
from runtime.model.transformer import Transformer
from tests.model.damaged import QUERY, change_config, refused, rewrite, write_index

MakeModel = Callable[..., Transformer]


def test_a_tokenizer_beyond_the_vocabulary_is_named(tmp_path: Path, make_model: MakeModel) -> None:
    save_checkpoint(tmp_path, make_model(), tokenizer=Tokenizer(build_tokenizer()))
    refused(tmp_path, tmp_path / "tokenizer.json", "'4096'", len(WORDS) - 1, "below 40")


def test_a_broken_tokenizer_is_named(saved: Path) -> None:
    (saved / "tokenizer.json").write_text("{}")
    refused(saved, saved / "tokenizer.json")


def test_a_name_that_is_nothing_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path / "nowhere", "neither a directory nor a shipped checkpoint", "config.json")


def test_a_file_is_no_checkpoint(saved: Path) -> None:
    refused(saved / "model.safetensors", saved / "model.safetensors", "expected a checkpoint directory")


def test_a_directory_without_config_is_named(saved: Path) -> None:
    (saved / "config.json").unlink()
    refused(saved, saved / "config.json", "no such file")


def test_an_unknown_config_value_is_named(saved: Path) -> None:
    change_config(saved, injection_type="gate")
    refused(saved, saved / "config.json", "injection_type", "'gate'", "'linear'")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "weights.pth", "model.ckpt", "model.pkl"])
def test_pickles_are_refused_unread(saved: Path, name: str) -> None:
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(saved, saved / name, "pickled weights are refused", "Convert", f"torch.load('{name}'", "save_file")
    refused(saved / name, saved / name, "pickled weights are refused")


def test_pickles_named_by_an_index_are_refused(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "part.bin").write_bytes(b"cos\nsystem\n")
    write_index(saved, {QUERY: "part.bin"})
    refused(saved, saved / "part.bin", "pickled weights are refused")


def test_a_pickle_beside_safetensors_is_not_touched(saved: Path) -> None:
    (saved / "training_args.bin").write_bytes(b"cos\nsystem\n")
    assert load_checkpoint(saved).path == saved


def test_a_directory_without_weights_is_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    refused(saved, saved / "model.safetensors", "no such file", "model.safetensors.index.json")
    save_file({"a": torch.zeros(1)}, saved / "adapter.safetensors")
    refused(saved, saved / "model.safetensors", "Found only adapter.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_named(saved: Path, keep: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(saved, path, "not a readable safetensors file", "truncated")


def test_a_placeholder_is_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(saved, path, "not a readable safetensors file", "placeholder")


def test_a_missing_tensor_is_named(saved: Path) -> None:
    path = rewrite(saved, **{QUERY: None})
    refused(saved, path, f"no tensor {QUERY}", "[48, 16]", "config.json")


def test_a_missing_head_is_named(saved: Path) -> None:
    change_config(saved, tie_embeddings=False)
    refused(saved, saved / "model.safetensors", "no tensor lm_head.weight", "[40, 16]")


def test_several_missing_tensors_are_counted(saved: Path) -> None:
    change_config(saved, n_layers_in_coda=2)
    refused(saved, saved / "model.safetensors", "no tensor transformer.coda.1.", "and 8 more")


def test_an_unexpected_tensor_is_named(saved: Path) -> None:
    path = rewrite(saved, transformer__extra=torch.zeros(2))
    refused(saved, path, "unexpected tensor transformer.extra", "config.json")


def test_biases_that_the_config_excludes_are_unexpected(saved: Path) -> None:
    change_config(saved, qk_bias=False)
    refused(saved, saved / "model.safetensors", "unexpected tensor", "attn.qk_bias", "3 more")


def test_a_tensor_of_another_shape_is_named(saved: Path) -> None:
    path = rewrite(saved, **{QUERY: torch.zeros(48, 17)})
    refused(saved, path, QUERY, "[48, 17]", "expected [48, 16]")


def test_a_rotary_table_of_another_length_is_named(saved: Path) -> None:
    change_config(saved, block_size=64)
    refused(saved, saved / "model.safetensors", "freqs_cis", "[1, 32, 1, 4, 2]", "expected [1, 64, 1, 4, 2]")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.ln_f.weight", "freqs_cis"])
def test_weights_that_are_not_finite_are_named(saved: Path, name: str, number: float) -> None:
    tensor = load_file(saved / "model.safetensors")[name].clone()
    tensor.view(-1)[-1] = number
    path = rewrite(saved, **{name: tensor})
    refused(saved, path, name, "1 numbers", "not finite in torch.float32")


def test_weights_have_to_be_finite_in_the_dtype_they_are_used_in(saved: Path) -> None:
    name = "transformer.ln_f.weight"
    tensor = load_file(saved / "model.safetensors")[name].double()
    tensor[:2] = 1e39
    path = rewrite(saved, **{name: tensor})
    refused(saved, path, name, "2 numbers", "not finite in torch.float32")
    tensor[:2] = torch.finfo(torch.float32).max
    rewrite(saved, **{name: tensor})
    load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"ln_f.weight has 2 numbers that are not finite in torch.bfloat16"):
        load_checkpoint(saved, dtype=torch.bfloat16)


@pytest.mark.parametrize(("dtype", "name"), [(torch.int64, "I64"), (torch.uint8, "U8"), (torch.bool, "BOOL")])
def test_a_tensor_that_is_no_float_is_named(saved: Path, dtype: torch.dtype, name: str) -> None:
    path = rewrite(saved, **{QUERY: torch.ones(48, 16, dtype=dtype)})
    refused(saved, path, QUERY, f"dtype {name}", "F64, F32, F16, BF16")


def test_a_tied_file_with_another_head_is_refused(saved: Path) -> None:
    path = rewrite(saved, lm_head__weight=torch.zeros(40, 16))
    refused(saved, path, "lm_head.weight differs from transformer.wte.weight", "tie_embeddings is true")

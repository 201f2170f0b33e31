"""Checkpoint directories: round trips, the published variants, and names of shipped ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from examples.countdown.vocabulary import WORDS, build_tokenizer
from runtime.errors import CheckpointError
from runtime.model import checkpoint, directories
from runtime.model.checkpoint import fingerprint, load_checkpoint, resolve, save_checkpoint
from runtime.model.directories import shipped_checkpoints
from runtime.model.families.raven import RavenConfig
from runtime.model.parameters import published_weights
from runtime.model.tokenizer import Tokenizer
from runtime.model.transformer import Transformer
from tests.model.damaged import QUERY, refused, rewrite, shard

MakeModel = Callable[..., Transformer]

RunDense = Callable[[Transformer, Tensor, int], Tensor]

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "no-qk-bias": {"qk_bias": False},
    "adapter-bias": {"bias": True},
    "other-eps": {"norm_eps": 1e-3},
    "other-rope": {"rope_base": 100.0, "block_size": 64},
    "core-only": {"n_layers_in_prelude": 0, "n_layers_in_coda": 0, "n_layers_in_recurrent_block": 1},
    "zero-state": {"state_init": "zero"},
    "other-sizes": {"n_embd": 24, "n_heads": 6, "intermediate_size": 20, "vocab_size": 33, "mean_recurrence": 12},
    "all-at-once": {"tie_embeddings": False, "qk_bias": False, "bias": True, "norm_eps": 1e-5, "rope_base": 1e4},
}

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 32]])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shards", [0, 3])
def test_a_saved_model_loads_as_the_same_model(
    tmp_path: Path, make_model: MakeModel, run_dense: RunDense, variant: str, shards: int
) -> None:
    model = make_model(**VARIANTS[variant])
    save_checkpoint(tmp_path, model)
    if shards:
        shard(tmp_path, shards)
    loaded = load_checkpoint(tmp_path).model
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(run_dense(loaded, TOKENS, 3), run_dense(model, TOKENS, 3))
    assert fingerprint(loaded) == fingerprint(model)
    assert (loaded.head.weight is loaded.embedding.weight) == model.specification.tied


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_hold_the_published_names(tmp_path: Path, make_model: MakeModel, variant: str) -> None:
    model = make_model(**VARIANTS[variant])
    save_checkpoint(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    config = model.config
    assert isinstance(config, RavenConfig)
    block = ("attn.Wqkv", "attn.proj", "mlp.fc", "mlp.proj", "norm_1", "norm_2", "norm_3", "norm_4")
    counts = {
        "prelude": config.n_layers_in_prelude,
        "core_block": config.n_layers_in_recurrent_block,
        "coda": config.n_layers_in_coda,
    }
    blocks = [f"transformer.{part}.{number}" for part, count in counts.items() for number in range(count)]
    expected = {"freqs_cis", "transformer.wte.weight", "transformer.adapter.weight", "transformer.ln_f.weight"}
    expected |= {f"{prefix}.{name}.weight" for prefix in blocks for name in block}
    expected |= {f"{prefix}.attn.qk_bias" for prefix in blocks if config.qk_bias}
    expected |= {"transformer.adapter.bias"} if config.bias else set()
    expected |= set() if config.tie_embeddings else {"lm_head.weight"}
    assert set(tensors) == expected


def test_the_golden_checkpoint_is_written_as_it_was(tmp_path: Path, golden_a: Path) -> None:
    save_checkpoint(tmp_path, load_checkpoint(golden_a).model)
    before, after = load_file(golden_a / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)
    reference = json.loads((golden_a / "config.json").read_text())
    written = json.loads((tmp_path / "config.json").read_text())
    del reference["transformers_version"]
    assert written.pop("init_values") == pytest.approx(reference.pop("init_values"))
    assert written == reference
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"_from_model_config": True}
    # The header's metadata, without which the reference's loader refuses the file.
    assert b'"format":"pt"' in (tmp_path / "model.safetensors").read_bytes()[:1000]


def test_bfloat16_keeps_the_rotary_table_in_float32(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model(tie_embeddings=False)
    save_checkpoint(tmp_path / "a", model)
    loaded = load_checkpoint(tmp_path / "a", dtype=torch.bfloat16).model
    assert isinstance(loaded, Transformer)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert published_weights(loaded)["freqs_cis"].dtype == torch.float32
    assert torch.equal(published_weights(loaded)["freqs_cis"], published_weights(model)["freqs_cis"])
    save_checkpoint(tmp_path / "b", loaded)
    stored = load_file(tmp_path / "b" / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if name != "freqs_cis"} == {torch.bfloat16}
    assert stored["freqs_cis"].dtype == torch.float32
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again = load_checkpoint(tmp_path / "b", dtype=torch.bfloat16).model
    assert fingerprint(again) == fingerprint(loaded) != fingerprint(model)


def test_a_model_cast_as_a_whole_still_saves_its_table_in_float32(tmp_path: Path, make_model: MakeModel) -> None:
    save_checkpoint(tmp_path, make_model().to(torch.bfloat16))
    assert load_file(tmp_path / "model.safetensors")["freqs_cis"].dtype == torch.float32


def test_other_dtypes_are_refused(tmp_path: Path, make_model: MakeModel, saved: Path) -> None:
    with pytest.raises(ValueError, match=r"torch\.float16; supported are torch\.float32, torch\.bfloat16"):
        load_checkpoint(saved, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"torch\.float64; supported are torch\.float32, torch\.bfloat16"):
        save_checkpoint(tmp_path / "other", make_model().double())
    assert not (tmp_path / "other").exists()


def test_weights_stored_in_other_floating_dtypes_are_converted(saved: Path) -> None:
    wide = load_file(saved / "model.safetensors")[QUERY]
    rewrite(saved, **{QUERY: wide.half()})
    loaded = published_weights(load_checkpoint(saved).model)[QUERY]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, wide.half().float())


def test_loaded_weights_do_not_depend_on_the_file(saved: Path) -> None:
    model = load_checkpoint(saved).model
    before = fingerprint(model)
    os.truncate(saved / "model.safetensors", 0)
    assert fingerprint(model) == before


def test_the_stored_rotary_table_is_used(saved: Path) -> None:
    table = load_file(saved / "model.safetensors")["freqs_cis"] * 0.5
    rewrite(saved, freqs_cis=table)
    model = load_checkpoint(saved).model
    assert isinstance(model, Transformer)
    assert torch.equal(published_weights(model)["freqs_cis"], table)


def test_a_missing_rotary_table_is_computed(saved: Path, make_model: MakeModel) -> None:
    rewrite(saved, freqs_cis=None)
    model = load_checkpoint(saved).model
    assert isinstance(model, Transformer)
    assert torch.equal(published_weights(model)["freqs_cis"], published_weights(make_model())["freqs_cis"])


def test_a_tied_file_may_hold_an_equal_head(saved: Path, make_model: MakeModel) -> None:
    table = load_file(saved / "model.safetensors")["transformer.wte.weight"]
    rewrite(saved, lm_head__weight=table.clone())
    model = load_checkpoint(saved).model
    assert isinstance(model, Transformer)
    assert model.head.weight is model.embedding.weight
    assert fingerprint(model) == fingerprint(make_model())


def test_everything_in_a_directory_is_given(tmp_path: Path, make_model: MakeModel) -> None:
    tokenizer = Tokenizer(build_tokenizer())
    save_checkpoint(tmp_path, make_model(vocab_size=len(WORDS)), tokenizer=tokenizer, eos=[7, 5], braid=b'{"a": 1}')
    loaded = load_checkpoint(str(tmp_path))
    assert loaded.path == tmp_path
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("1 ->") == tokenizer.encode("1 ->")
    assert loaded.stop_tokens == (5, 7)
    assert loaded.braid == b'{"a": 1}'
    assert not list(tmp_path.glob("*.partial"))


def test_optional_files_may_be_absent(saved: Path) -> None:
    (saved / "generation_config.json").unlink()
    loaded = load_checkpoint(saved)
    assert (loaded.tokenizer, loaded.stop_tokens, loaded.braid) == (None, (), None)


def test_a_failed_save_leaves_the_old_checkpoint(saved: Path, make_model: MakeModel) -> None:
    before = fingerprint(load_checkpoint(saved).model)
    broken = make_model()
    broken.head.weight = torch.nn.Parameter(torch.empty(broken.head.weight.shape, device="meta"))
    broken.embedding.weight = broken.head.weight
    with pytest.raises(NotImplementedError):
        save_checkpoint(saved, broken)
    assert fingerprint(load_checkpoint(saved).model) == before
    assert not list(saved.glob("*.partial"))


def test_a_shipped_name_is_resolved(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checkpoint, directories):
        monkeypatch.setattr(module, "shipped_directory", lambda: saved.parent)
    (saved.parent / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert shipped_checkpoints() == ("model",)
    assert resolve("model") == saved
    assert resolve("./model") == Path("model")
    assert resolve(saved) == saved
    assert resolve(Path("model")) == Path("model")
    monkeypatch.chdir(tmp_path / "empty")
    assert resolve(Path("model")) == saved
    with pytest.raises(CheckpointError, match="neither a directory"):
        resolve("./model")
    assert load_checkpoint("model").path == saved
    refused("nowhere", "nowhere: neither a directory nor a shipped checkpoint", "shipped: model")


def test_shipped_checkpoints_load() -> None:
    for name in shipped_checkpoints():
        assert load_checkpoint(name).path == resolve(name)


def test_fingerprints_tell_models_apart(make_model: MakeModel) -> None:
    model = make_model()
    same = make_model()
    assert fingerprint(model) == fingerprint(same)
    assert len(fingerprint(model)) == 32
    with torch.no_grad():
        published_weights(same)[QUERY][0, 0] += 1e-3
    assert fingerprint(model) != fingerprint(same)
    assert fingerprint(model) != fingerprint(make_model(norm_eps=1e-4))


def test_loading_needs_neither_transformers_nor_numba(golden_a: Path) -> None:
    code = (
        "import sys; from runtime.model.checkpoint import load_checkpoint; load_checkpoint(sys.argv[1]); "
        "print(sorted({'transformers', 'numba', 'sympy', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, golden_a], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

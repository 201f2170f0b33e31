"""Checkpoint directories: round trips, the published variants, and what is refused and why."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
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
QUERY = "transformer.core_block.0.attn.Wqkv.weight"


@pytest.fixture
def saved(tmp_path: Path, make_model: MakeModel) -> Path:
    """A complete checkpoint of a small tied model, to be damaged."""
    directory = tmp_path / "model"
    save_checkpoint(directory, make_model())
    return directory


def rewrite(directory: Path, **changes: Tensor | None) -> Path:
    """Replaces tensors of model.safetensors, or removes those given as None; dots are written as double underscores."""
    path = directory / "model.safetensors"
    tensors: dict[str, Tensor | None] = {**load_file(path)}
    tensors.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"format": "pt"})
    return path


def shard(directory: Path, count: int = 3) -> dict[str, str]:
    """Splits model.safetensors into shards with an index, as published ones are; returns the weight map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(count):
        file, held = f"model-{number + 1:05}-of-{count:05}.safetensors", names[number::count]
        save_file({name: tensors[name] for name in held}, directory / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(held, file))
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: object) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(directory: Path | str, *parts: object) -> None:
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(directory)
    assert all(str(part) in str(raised.value) for part in parts), raised.value


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


@pytest.mark.parametrize(
    ("generation", "expected"),
    [({}, ()), ({"eos_token_id": None}, ()), ({"eos_token_id": 3}, (3,)), ({"eos_token_id": [9, 3]}, (3, 9))],
)
def test_stop_tokens_are_the_declared_ones(saved: Path, generation: object, expected: tuple[int, ...]) -> None:
    (saved / "generation_config.json").write_text(json.dumps(generation))
    assert load_checkpoint(saved).stop_tokens == expected


@pytest.mark.parametrize("generation", [None, {}, {"temperature": 0.6}, {"eos_token_id": None}])
@pytest.mark.parametrize(("declared", "expected"), [(4, (4,)), ([9, 4], (4, 9))])
def test_where_generation_config_declares_none_the_model_config_does(
    saved: Path, generation: object, declared: object, expected: tuple[int, ...]
) -> None:
    (saved / "generation_config.json").unlink()
    if generation is not None:
        (saved / "generation_config.json").write_text(json.dumps(generation))
    change_config(saved, eos_token_id=declared)
    assert load_checkpoint(saved).stop_tokens == expected


def test_what_generation_config_declares_counts_before_the_model_config(saved: Path) -> None:
    (saved / "generation_config.json").write_text('{"eos_token_id": 3}')
    change_config(saved, eos_token_id=4)
    assert load_checkpoint(saved).stop_tokens == (3,)


@pytest.mark.parametrize("declared", [True, 1.5, "4", [4, None], {"id": 4}, 40, -1, [4, 40], 2**70])
def test_bad_stop_tokens_of_the_model_config_are_named(saved: Path, declared: object) -> None:
    change_config(saved, eos_token_id=declared)
    refused(saved, saved / "config.json", "eos_token_id")


def test_a_large_vocabulary_has_the_reference_stops(tmp_path: Path, make_model: MakeModel) -> None:
    small = {"n_embd": 2, "n_heads": 1, "intermediate_size": 1}
    save_checkpoint(tmp_path, make_model(vocab_size=65506, **small), eos=[1])
    assert load_checkpoint(tmp_path).stop_tokens == (1, 65504, 65505)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"eos_token_id": "end"}', ["eos_token_id", "int"]),
        ('{"eos_token_id": 40}', ["eos_token_id", "40", "0 to 39"]),
        ('{"eos_token_id": [1, -1]}', ["eos_token_id", "-1", "0 to 39"]),
        ("{", ["generation_config.json"]),
    ],
)
def test_bad_stop_tokens_are_named(saved: Path, content: str, parts: list[str]) -> None:
    (saved / "generation_config.json").write_text(content)
    refused(saved, saved / "generation_config.json", *parts)


def test_a_tokenizer_beyond_the_vocabulary_is_named(tmp_path: Path, make_model: MakeModel) -> None:
    save_checkpoint(tmp_path, make_model(), tokenizer=Tokenizer(build_tokenizer()))
    refused(tmp_path, tmp_path / "tokenizer.json", "'4096'", len(WORDS) - 1, "below 40")


def test_a_broken_tokenizer_is_named(saved: Path) -> None:
    (saved / "tokenizer.json").write_text("{}")
    refused(saved, saved / "tokenizer.json")


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


def test_a_missing_shard_is_named(saved: Path) -> None:
    weight_map = shard(saved)
    lost = weight_map[QUERY]
    (saved / lost).unlink()
    refused(saved, saved / lost, "no such file", "model.safetensors.index.json says that it holds")


def test_a_truncated_shard_is_named(saved: Path) -> None:
    lost = shard(saved)[QUERY]
    os.truncate(saved / lost, 50)
    refused(saved, saved / lost, "not a readable safetensors file")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b", "..\\b", "C:\\b", "", "."])
def test_an_index_may_not_leave_its_directory(saved: Path, name: str) -> None:
    weight_map = shard(saved)
    write_index(saved, {**weight_map, QUERY: name})
    refused(saved, saved / "model.safetensors.index.json", repr(name), "inside this directory")


def test_an_index_that_places_a_tensor_elsewhere_is_named(saved: Path) -> None:
    weight_map = shard(saved)
    other = next(file for file in weight_map.values() if file != weight_map[QUERY])
    write_index(saved, {**weight_map, QUERY: other})
    refused(saved, QUERY, "model.safetensors.index.json does not place there")


def test_a_tensor_that_no_shard_holds_is_named(saved: Path) -> None:
    weight_map = shard(saved)
    write_index(saved, {**weight_map, "transformer.ghost": weight_map[QUERY]})
    refused(saved, saved / weight_map[QUERY], "lacks transformer.ghost")


def test_a_tensor_that_the_index_leaves_out_is_named(saved: Path) -> None:
    weight_map = shard(saved)
    holder = weight_map.pop(QUERY)
    write_index(saved, weight_map)
    refused(saved, saved / holder, f"holds {QUERY}")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"metadata": {}}', "not a weight index"),
        ('{"weight_map": {"a": 1}}', "not a weight index"),
    ],
)
def test_a_broken_index_is_named(saved: Path, content: str, part: str) -> None:
    shard(saved)
    (saved / "model.safetensors.index.json").write_text(content)
    refused(saved, saved / "model.safetensors.index.json", part)


def test_shards_may_be_links_into_a_download_cache(saved: Path) -> None:
    weight_map = shard(saved)
    (saved.parent / "blobs").mkdir()
    for file in set(weight_map.values()):
        (saved / file).rename(saved.parent / "blobs" / file)
        (saved / file).symlink_to(Path("..", "blobs", file))
    assert load_checkpoint(saved).path == saved


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

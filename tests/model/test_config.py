"""Reading and writing a published config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import CheckpointError
from runtime.model.architecture import read_config
from runtime.model.families.raven import RavenConfig

DELETED = object()


@st.composite
def configs(draw: st.DrawFn) -> RavenConfig:
    heads, half = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    counts = st.integers(0, 8)
    sizes = st.integers(1, 10**6)
    return RavenConfig(
        n_embd=heads * half * 2,
        n_heads=heads,
        intermediate_size=draw(sizes),
        vocab_size=(vocab_size := draw(sizes)),
        padded_vocab_size=draw(st.none() | st.integers(vocab_size + 1, 2 * 10**6)),
        block_size=draw(sizes),
        n_layers_in_prelude=draw(counts),
        n_layers_in_recurrent_block=draw(st.integers(1, 8)),
        n_layers_in_coda=draw(counts),
        mean_recurrence=draw(st.integers(1, 64)),
        mean_backprop_depth=draw(counts),
        norm_eps=draw(st.floats(1e-12, 1.0)),
        rope_base=draw(st.floats(1.0, 1e9)),
        qk_bias=draw(st.booleans()),
        bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        state_init=draw(st.sampled_from(["like-init", "zero"])),
    )


def written(directory: Path, content: Any) -> Path:
    path = directory / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(directory: Path, golden_a: Path, **changes: Any) -> Path:
    raw = {**json.loads((golden_a / "config.json").read_text()), **changes}
    return written(directory, {key: value for key, value in raw.items() if value is not DELETED})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs())
def test_what_is_published_reads_back_the_same(tmp_path: Path, config: RavenConfig) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(msgspec.json.encode(config.as_published("float32")))
    assert read_config(path) == config


def test_published_object_has_the_reference_keys_and_values(golden_a: Path) -> None:
    reference = json.loads((golden_a / "config.json").read_text())
    published = read_config(golden_a / "config.json").as_published("float32")
    del reference["transformers_version"]
    assert published.pop("init_values") == pytest.approx(reference.pop("init_values"))
    assert published == reference


def test_golden_values(golden_a: Path) -> None:
    config = read_config(golden_a / "config.json")
    assert isinstance(config, RavenConfig)
    own = config.specification
    assert (own.head_dim, len(own.layers), config.effective_depth) == (16, 8, 36)
    assert own.embedding_scale == 8.0
    assert own.state_std == pytest.approx(0.07905694150420949)
    assert config.out_proj_std == pytest.approx(0.009316949906249124)


def test_defaults_are_those_of_the_reference(tmp_path: Path, golden_a: Path) -> None:
    names = ("qk_bias", "bias", "tie_embeddings", "state_init", "norm_eps", "rope_base", "mean_backprop_depth")
    config = read_config(changed(tmp_path, golden_a, **dict.fromkeys(names, DELETED)))
    assert config == read_config(golden_a / "config.json")


def test_a_padded_table_has_more_rows_than_tokens(tmp_path: Path, golden_a: Path) -> None:
    for padded, vocab_size, rows in ((640, 512, 640), (512, 512, 512), (DELETED, 512, 512), (500, 500, 500)):
        own = read_config(changed(tmp_path, golden_a, padded_vocab_size=padded)).specification
        assert (own.vocab_size, own.table_rows) == (vocab_size, rows)
    own = read_config(changed(tmp_path, golden_a, vocab_size=DELETED, padded_vocab_size=640)).specification
    assert (own.vocab_size, own.table_rows) == (640, 640)


def test_state_scale_of_zero_means_a_zero_state_as_for_the_reference(tmp_path: Path, golden_a: Path) -> None:
    config = read_config(changed(tmp_path, golden_a, init_values={"std": 0.0}))
    assert isinstance(config, RavenConfig)
    assert config.state_init == "zero"
    assert config.specification.state_std == 0.0
    assert config.as_published("float32")["init_values"]["std"] == 0.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "gpt0"}, ["model_type", "'gpt0'", "'huginn_raven'", "'llama'", "'ouro'"]),
        ({"model_type": DELETED}, ["model_type", "None", "'huginn_raven'", "'llama'"]),
        ({"injection_type": "add"}, ["injection_type", "'add'", "'linear'"]),
        ({"nonlin_name": "ReLU"}, ["nonlin_name", "'ReLU'", "'SiLU'"]),
        ({"norm_class_name": "LayerNorm"}, ["norm_class_name", "'LayerNorm'", "'RMSNorm_llama'"]),
        ({"mlp_class_name": ["x"]}, ["mlp_class_name", "['x']", "'GatedMLP'"]),
        ({"block_class_name": "PreNorm"}, ["block_class_name", "'PreNorm'", "'SandwichBlock'"]),
        ({"architecture_class_name": "GPT"}, ["architecture_class_name", "'GPT'", "'RecurrentGPT'"]),
        ({"test_time_noise": 0.1}, ["test_time_noise", "0.1", "0"]),
        ({"state_init": "normal"}, ["state_init", "'normal'", "like-init, zero"]),
        ({"num_key_value_heads": 2}, ["num_key_value_heads", "2", "4"]),
        ({"head_dim": 32}, ["head_dim", "32", "16"]),
        ({"tie_word_embeddings": False}, ["tie_word_embeddings", "False", "True"]),
        ({"init_values": {"embed_scale": 1.0}}, ["init_values.embed_scale", "1.0", "8.0"]),
        ({"init_values": {"std": "small"}}, ["init_values.std", "'small'", "0.079"]),
        ({"init_values": [1]}, ["init_values", "[1]", "object"]),
        ({"n_embd": DELETED}, ["n_embd"]),
        ({"n_embd": "64"}, ["n_embd", "int", "str"]),
        ({"n_heads": 0}, ["n_heads", "0", "at least 1"]),
        ({"n_heads": 3}, ["n_embd 64", "n_heads 3", "multiple"]),
        ({"n_heads": 64}, ["n_embd 64", "n_heads 64", "even"]),
        ({"vocab_size": DELETED, "padded_vocab_size": DELETED}, ["vocab_size"]),
        ({"padded_vocab_size": -1}, ["vocab_size", "-1", "at least 1"]),
        ({"n_layers_in_prelude": -1}, ["n_layers_in_prelude", "-1", "at least 0"]),
        ({"n_layers_in_coda": -2}, ["n_layers_in_coda", "-2", "at least 0"]),
        ({"n_layers_in_recurrent_block": 0}, ["n_layers_in_recurrent_block", "0", "at least 1"]),
        ({"mean_recurrence": 0}, ["mean_recurrence", "0", "at least 1"]),
        ({"mean_backprop_depth": -1}, ["mean_backprop_depth", "-1", "at least 0"]),
        ({"block_size": 0}, ["block_size", "0", "at least 1"]),
        ({"intermediate_size": 0}, ["intermediate_size", "0", "at least 1"]),
        ({"norm_eps": 0}, ["norm_eps", "0", "positive"]),
        ({"rope_base": -1.5}, ["rope_base", "-1.5", "positive"]),
        ({"qk_bias": "yes"}, ["qk_bias", "bool", "str"]),
    ],
)
def test_an_unsupported_value_is_named(
    tmp_path: Path, golden_a: Path, changes: dict[str, Any], expected: list[str]
) -> None:
    path = changed(tmp_path, golden_a, **changes)
    with pytest.raises(CheckpointError) as raised:
        read_config(path)
    assert all(part in str(raised.value) for part in [str(path), *expected]), raised.value


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", "not valid JSON"), ('{"n_embd": 64', "not valid JSON"), ("[1, 2]", "expected a JSON object, found list")],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: str, expected: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(CheckpointError, match=expected) as raised:
        read_config(path)
    assert str(path) in str(raised.value)


def test_bytes_that_are_no_text_are_no_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"model_type": "\xff\xfe"}')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file") as raised:
        read_config(tmp_path / "config.json")
    assert str(tmp_path / "config.json") in str(raised.value)

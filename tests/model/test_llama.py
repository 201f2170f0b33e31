"""Llama checkpoints: the same numbers as transformers, its files as they are, and what is refused and why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig as TransformersConfig
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from runtime.errors import CheckpointError
from runtime.model.architecture import read_config
from runtime.model.checkpoint import describe, fingerprint, load_checkpoint, save_checkpoint
from runtime.model.parameters import initialise, published_weights
from runtime.model.rotary import LinearScaling, Llama3Scaling, frequencies, magnitude
from tests.llamas import LLAMA3, VARIANTS, make_llama, save_llama

QUERY = "model.layers.1.self_attn.q_proj.weight"
DELETED = object()


@torch.no_grad()
def run_dense(model: Any, tokens: Tensor) -> Tensor:
    rotation = model.rotation(torch.arange(tokens.shape[-1]))
    embedded = model.prelude(tokens, rotation, model.attend_causally)
    state = model.iterate(torch.full_like(embedded, 7.0), embedded, rotation, model.attend_causally)
    return model.coda(state, rotation, model.attend_causally)


@torch.no_grad()
def logits_of(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    return model(tokens).logits


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not DELETED}))


def refused(directory: Path, *parts: object) -> None:
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(directory)
    assert all(str(part) in str(raised.value) for part in parts), raised.value


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A complete checkpoint with grouped queries, to be changed or damaged."""
    return save_llama(tmp_path / "model", make_llama(num_key_value_heads=2))


@pytest.fixture
def tokens() -> Tensor:
    """As long as the models' contexts."""
    return torch.randint(0, 40, (2, 96), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shards", [False, True])
def test_logits_are_those_of_transformers(tmp_path: Path, tokens: Tensor, variant: str, shards: bool) -> None:
    reference = make_llama(**VARIANTS[variant])
    loaded = load_checkpoint(save_llama(tmp_path, reference, shards))
    assert not loaded.model.training
    expected = logits_of(reference, tokens)
    assert expected.std() > 0.5, "logits are to differ enough for a comparison"
    torch.testing.assert_close(run_dense(loaded.model, tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_read_back_by_both(tmp_path: Path, tokens: Tensor, variant: str) -> None:
    reference = make_llama(**VARIANTS[variant])
    model = load_checkpoint(save_llama(tmp_path / "theirs", reference)).model
    save_checkpoint(tmp_path / "ours", model, eos=[5])
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == {
        name for name in reference.state_dict() if name != "lm_head.weight" or not model.specification.tied
    }
    again = load_checkpoint(tmp_path / "ours")
    assert again.stop_tokens == (5,)
    assert again.config == model.config
    assert fingerprint(again.model) == fingerprint(model)
    assert (again.model.head.weight is again.model.embedding.weight) == model.specification.tied
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(logits_of(theirs, tokens), logits_of(reference, tokens))


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        # As transformers 4 writes it.
        ({"rope_theta": 500.0}, (500.0, None)),
        ({"rope_theta": 500.0, "rope_scaling": None}, (500.0, None)),
        ({"rope_theta": 5, "rope_scaling": {"type": "linear", "factor": 2.0}}, (5.0, LinearScaling(factor=2.0))),
        (
            {
                "rope_theta": 7.0,
                "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4},
            },
            (
                7.0,
                Llama3Scaling(
                    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=96
                ),
            ),
        ),
        # As 5 does.
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, (500.0, None)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, (10_000.0, LinearScaling(factor=2.0))),
        ({"rope_parameters": {"rope_theta": 3.0, "partial_rotary_factor": 1.0}}, (3.0, None)),
        ({}, (10_000.0, None)),
    ],
)
def test_rotary_parameters_are_read_old_and_new(
    saved: Path, tokens: Tensor, rope: dict[str, Any], expected: tuple[float, Any]
) -> None:
    change_config(saved, rope_parameters=DELETED)
    change_config(saved, **rope)
    loaded = load_checkpoint(saved)
    (rotary,) = loaded.config.specification.rotaries
    assert (rotary.base, rotary.scaling) == expected
    theirs = LlamaForCausalLM.from_pretrained(saved).eval()
    torch.testing.assert_close(run_dense(loaded.model, tokens), logits_of(theirs, tokens), atol=1e-4, rtol=1e-4)


ROTARY_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "rope_type": st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional"]),
    "type": st.sampled_from(["default", "linear", "dynamic", "llama3", "su"]),
    "rope_theta": st.floats(10.0, 1e6),
    "factor": st.floats(1.0, 16.0),
    "low_freq_factor": st.floats(0.5, 2.0),
    "high_freq_factor": st.floats(3.0, 8.0),
    "original_max_position_embeddings": st.integers(16, 4096),
    "partial_rotary_factor": st.sampled_from([0.5, 1.0]),
}
COMPLETE = ("rope_type", "factor", "low_freq_factor", "high_freq_factor")


@st.composite
def rotary_configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Keys of config.json with rotary parameters in any of the places where they may be, some of them in several."""

    def some(needed: Iterable[str] = ()) -> dict[str, Any]:
        return draw(
            st.fixed_dictionaries(
                {key: ROTARY_VALUES[key] for key in needed},
                optional={key: values for key, values in ROTARY_VALUES.items() if key not in needed},
            )
        )

    places = draw(st.sets(st.sampled_from(["rope_parameters", "rope_scaling"])))
    return some() | {place: some(draw(st.sampled_from([(), COMPLETE]))) for place in sorted(places)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rotary=rotary_configurations())
def test_rotary_parameters_count_where_transformers_reads_them(saved: Path, rotary: dict[str, Any]) -> None:
    path = saved / "config.json"
    raw = {**json.loads(path.read_text()), "rope_parameters": None, **rotary}
    path.write_text(json.dumps(raw))
    try:
        config = read_config(path)
    except CheckpointError as error:
        config, refusal = None, str(error)
    if config is None:
        assert any(key in refusal for key in ROTARY_VALUES), refusal
        return
    (ours,) = config.specification.rotaries
    theirs = LlamaRotaryEmbedding(TransformersConfig(**raw))
    torch.testing.assert_close(frequencies(ours), theirs.inv_freq, rtol=1e-5, atol=0)
    assert theirs.attention_scaling == pytest.approx(magnitude(ours))


def test_the_original_length_may_stand_beside_the_rotary_parameters(saved: Path, tokens: Tensor) -> None:
    scaling = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    change_config(saved, rope_parameters=DELETED, rope_scaling=scaling, original_max_position_embeddings=32)
    theirs = LlamaForCausalLM.from_pretrained(saved).eval()
    ours = run_dense(load_checkpoint(saved).model, tokens)
    torch.testing.assert_close(ours, logits_of(theirs, tokens), atol=1e-4, rtol=1e-4)


def test_what_a_file_leaves_out_is_as_in_transformers(tmp_path: Path, tokens: Tensor) -> None:
    reference = make_llama()
    save_llama(tmp_path, reference)
    for key in ("num_key_value_heads", "head_dim", "hidden_act", "tie_word_embeddings", "mlp_bias", "rope_parameters"):
        change_config(tmp_path, **{key: DELETED})
    change_config(tmp_path, architectures=DELETED, rms_norm_eps=None)
    assert read_config(tmp_path / "config.json").specification.kv_heads == 4
    torch.testing.assert_close(
        run_dense(load_checkpoint(tmp_path).model, tokens), logits_of(reference, tokens), atol=1e-4, rtol=1e-4
    )


def test_the_engine_sees_a_model_of_depth_one(saved: Path) -> None:
    own = read_config(saved / "config.json").specification
    layers = (own.prelude_layers, own.core_layers, own.coda_layers)
    assert (layers, own.mean_recurrence, len(own.layers)) == ((0, 2, 0), 1, 2)
    assert (own.heads, own.kv_heads, own.head_dim, own.max_context) == (4, 2, 8, 96)
    assert (own.core_start, own.coda_start) == (0, 2)


def test_bfloat16_keeps_angles_exact(tmp_path: Path, saved: Path) -> None:
    """Frequencies in bfloat16 would turn late positions by anything."""
    model = load_checkpoint(saved, dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    late = torch.tensor([90_001])
    exact = load_checkpoint(saved).model.rotation(late)[0]
    assert torch.equal(model.rotation(late)[0], exact)
    assert torch.equal(load_checkpoint(saved).model.to(torch.bfloat16).rotation(late)[0], exact)
    save_checkpoint(tmp_path / "half", model)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert LlamaForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_a_rotation_does_not_depend_on_its_company(saved: Path) -> None:
    model = load_checkpoint(saved).model
    positions = torch.randint(0, 131_072, (300,), generator=torch.Generator().manual_seed(2))
    together = model.rotation(positions)[0]
    for chosen in ([0], [299], [5, 4], list(range(7, 40)), list(range(300))[::-1]):
        assert torch.equal(model.rotation(positions[chosen])[0], together[chosen])


def test_fresh_weights_are_drawn_as_transformers_does(saved: Path) -> None:
    model = load_checkpoint(saved).model
    initialise(model, torch.Generator().manual_seed(3))
    weight = model.embedding.weight
    assert weight.std().item() == pytest.approx(0.15, rel=0.1)
    assert torch.equal(model.final_norm.weight, torch.ones(32))
    other = load_checkpoint(saved).model
    initialise(other, torch.Generator().manual_seed(3))
    assert torch.equal(published_weights(other)[QUERY], published_weights(model)[QUERY])


@pytest.mark.parametrize("shards", [False, True])
def test_files_of_older_versions_may_hold_frequencies(tmp_path: Path, shards: bool) -> None:
    save_llama(tmp_path, make_llama(), shards)
    path = next(tmp_path.glob("*.safetensors"))
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**load_file(path), extra: torch.ones(4)}, path, {"format": "pt"})
    if shards:
        index = tmp_path / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"][extra] = path.name
        index.write_text(json.dumps(content))
    assert extra not in published_weights(load_checkpoint(tmp_path).model)


def test_stop_tokens_are_the_declared_ones_and_no_others(tmp_path: Path) -> None:
    reference = make_llama(vocab_size=70_000, hidden_size=8, num_hidden_layers=1, eos_token_id=[7, 3])
    save_llama(tmp_path, reference)
    assert describe(tmp_path).stop_tokens == (3, 7)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"attention_bias": "yes"}, ["attention_bias is 'yes'", "true or false"]),
        ({"mlp_bias": 1}, ["mlp_bias is 1", "true or false"]),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "'silu'"]),
        ({"architectures": ["LlamaModel"]}, ["architectures is ['LlamaModel']", "['LlamaForCausalLM']"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config is {'bits': 4}"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5", "1.0"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor is 0.5", "1.0"]),
        ({"rope_parameters": {"rope_type": "su", "factor": 2.0}}, ["'su'", "default, linear, dynamic, llama3, yarn"]),
        ({"rope_scaling": {"type": "longrope"}}, ["`short_factor`"]),
        ({"rope_scaling": "linear"}, ["rope_scaling is 'linear'", "JSON object"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["`factor`"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, ["> 0", "factor"]),
        ({"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}}, ["low_freq_factor is 4.0", "high_freq_factor, 4.0"]),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
            ["rope_parameters.full_attention", "all layers"],
        ),
        ({"per_layer_config": {"0": {"head_dim": 4}}}, ["per_layer_config"]),
        ({"is_causal": False}, ["is_causal is False"]),
        ({"rope_parameters": {"rope_theta": -1.0}}, ["rope_theta", "> 0"]),
        ({"hidden_size": DELETED}, ["`hidden_size`"]),
        ({"num_attention_heads": DELETED}, ["`num_attention_heads`"]),
        ({"num_attention_heads": 0}, [">= 1", "num_attention_heads"]),
        ({"num_hidden_layers": "2"}, ["`int`", "`str`", "num_hidden_layers"]),
        ({"vocab_size": 0}, [">= 1", "vocab_size"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads is 4", "num_key_value_heads, 3"]),
        ({"head_dim": 7}, ["head_dim is 7", "even"]),
        ({"rms_norm_eps": 0}, ["> 0", "rms_norm_eps"]),
        ({"model_type": "gpt0"}, ["'gpt0'", "'huginn_raven'", "'llama'"]),
    ],
)
def test_an_unsupported_configuration_is_named(saved: Path, changes: dict[str, Any], parts: list[str]) -> None:
    change_config(saved, **changes)
    refused(saved, saved / "config.json", *parts)


def test_a_missing_tensor_is_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = load_file(path)
    del tensors[QUERY]
    save_file(tensors, path, {"format": "pt"})
    refused(saved, path, f"no tensor {QUERY}", "[32, 32]")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_llama(tmp_path, make_llama(), shards=True)
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    refused(tmp_path, lost, "no such file")


def test_a_tensor_of_another_shape_is_named(saved: Path) -> None:
    change_config(saved, num_key_value_heads=4)
    refused(saved, saved / "model.safetensors", "self_attn.k_proj.weight", "[16, 32]", "expected [32, 32]")


def test_a_bias_in_the_file_is_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.mlp.up_proj.bias": torch.zeros(24)}, path, {"format": "pt"})
    refused(saved, path, "unexpected tensor model.layers.0.mlp.up_proj.bias")


def test_a_tied_file_with_another_head_is_refused(saved: Path) -> None:
    change_config(saved, tie_word_embeddings=True)
    refused(saved, "lm_head.weight differs from model.embed_tokens.weight", "tie_word_embeddings is true")


def test_bfloat16_comes_close(saved: Path, tokens: Tensor) -> None:
    exact = run_dense(load_checkpoint(saved).model, tokens)
    rounded = run_dense(load_checkpoint(saved, dtype=torch.bfloat16).model, tokens)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).square().mean().sqrt() < 0.05 * exact.std()

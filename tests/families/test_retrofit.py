"""Retrofitted recurrence: three kinds that one `config.json` does not tell apart, as the reference computes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies import Fixed, LatentDiff
from runtime import CheckpointError
from runtime.model.checkpoint import describe, fingerprint, load_checkpoint, save_checkpoint
from runtime.model.families.retrofit import RetrofitConfig, kind_of
from tests.families.goldens import HOME, Golden, logits_of, run_dense

KINDS = {"llama": "llama", "tinyllama": "llama", "olmo": "olmo"}
PROMPTS = ("p0", "p1", "p2")
BACKENDS = [(name, backend) for name in KINDS for backend in ("torch", "native")]


@pytest.fixture(scope="module")
def goldens() -> dict[str, Golden]:
    return {name: Golden(f"retrofit_a/{name}") for name in KINDS}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", KINDS)
def test_embedded_input_every_state_and_logits_match(goldens: dict[str, Golden], name: str, prompt: str) -> None:
    golden = goldens[name]
    embedded, states = run_dense(golden.model, golden.arrays[f"prompt.{prompt}"], 8)
    torch.testing.assert_close(embedded, golden.arrays[f"forward.{prompt}.prelude_out"], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack(states), golden.arrays[f"forward.{prompt}.states"], atol=1e-4, rtol=0)
    for depth in (1, 2, 4, 8):
        expected = golden.arrays[f"forward.{prompt}.n{depth}.logits"]
        torch.testing.assert_close(logits_of(golden.model, states[depth - 1]), expected, atol=2e-4, rtol=0)


# Backends know nothing of the others' prompts: on the slow one, each depth is tried with one.
GREEDY = [
    *(("native", prompt, depth) for prompt in PROMPTS for depth in (4, 8)),
    *(("torch", prompt, depth) for prompt, depth in (("p0", 8), ("p1", 4), ("p2", 4))),
]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("backend", "prompt", "depth"), GREEDY)
def test_greedy(goldens: dict[str, Golden], name: str, backend: str, prompt: str, depth: int) -> None:
    _, finished = goldens[name].answer(Fixed(depth), prompt, backend, 24)
    goldens[name].check(finished, prompt, f"greedy.{prompt}.n{depth}")


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
@pytest.mark.parametrize("prompt", ["p0", "p2"])
def test_adaptive_depth(goldens: dict[str, Golden], name: str, backend: str, prompt: str) -> None:
    golden, tag = goldens[name], f"adaptive.latent-diff.{prompt}"
    rule = golden.about["adaptive"]
    policy = LatentDiff(rule["threshold"], max_iterations=rule["max_steps"])
    solo, finished = golden.answer(policy, prompt, backend, 24)
    golden.check(finished, prompt, tag)
    steps = golden.arrays[f"{tag}.steps"].tolist()
    assert list(finished.depths) == steps
    values = iter(solo.tests[0,])
    for row, count in enumerate(steps):
        found = torch.tensor([next(values) for _ in range(count)])
        torch.testing.assert_close(found, golden.arrays[f"{tag}.exit_values"][row, :count], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_is_told_by_the_tensors(goldens: dict[str, Golden], name: str) -> None:
    config = goldens[name].model.config
    assert isinstance(config, RetrofitConfig)
    assert config.kind == KINDS[name]
    assert kind_of(load_file(HOME / "golden_a" / "model.safetensors")) is None


@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved_is_read_back(goldens: dict[str, Golden], name: str, tmp_path: Path) -> None:
    golden = goldens[name]
    save_checkpoint(tmp_path, golden.model)
    assert fingerprint(load_checkpoint(tmp_path).model) == fingerprint(golden.model)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(golden.path / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((golden.path / "config.json").read_text())


def change(directory: Path, name: str = "llama", **changes: Any) -> Path:
    """A copy whose configuration differs."""
    copy = directory / name
    source = HOME / "retrofit_a" / name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("golden*"), copy_function=shutil.copyfile)
    raw = {**json.loads((copy / "config.json").read_text()), **changes}
    (copy / "config.json").write_text(json.dumps(raw))
    return copy


def test_a_trained_file_may_say_that_nothing_is_tied(tmp_path: Path) -> None:
    assert not load_checkpoint(change(tmp_path, tie_word_embeddings=False)).model.specification.tied


def test_the_dead_rotary_base_does_not_count(goldens: dict[str, Golden], tmp_path: Path) -> None:
    copy = change(tmp_path, "tinyllama", rope_base=77.0, block_size=8)
    tokens = goldens["tinyllama"].arrays["prompt.p2"]
    _, states = run_dense(load_checkpoint(copy).model, tokens, 1)
    torch.testing.assert_close(states[0], goldens["tinyllama"].arrays["forward.p2.states"][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"initial_state_mode": "embed-init"}, ["initial_state_mode is 'embed-init'", "'random'"]),
        ({"initial_state_mode": "skip-adapter"}, ["initial_state_mode is 'skip-adapter'"]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings is True", "False"]),
        ({"qk_bias": True}, ["qk_bias is True", "False"]),
        ({"num_key_value_heads": 3}, ["n_heads is 4", "num_key_value_heads, 3"]),
        ({"head_dim": 11}, ["head_dim is 11", "even"]),
        ({"rope_scaling": {"rope_type": "su"}}, ["rope_type is 'su'"]),
        ({"n_layers_in_recurrent_block": 0}, ["n_layers_in_recurrent_block"]),
        ({"init_values": {"std": -1.0}}, ["init_values"]),
    ],
)
def test_an_unsupported_configuration_is_named(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(CheckpointError) as raised:
        describe(change(tmp_path, **changes))
    assert all(part in str(raised.value) for part in parts), raised.value


def test_a_missing_norm_is_named(tmp_path: Path) -> None:
    copy = change(tmp_path, "olmo")
    weights = load_file(copy / "model.safetensors")
    del weights["transformer.coda.0.attn.k_norm.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no tensor transformer\.coda\.0\.attn\.k_norm\.weight"):
        load_checkpoint(copy)

"""The model, run densely, gives what the reference implementation gave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from runtime.model.checkpoint import load_checkpoint
from runtime.model.parameters import published_weights
from runtime.model.transformer import Transformer

RUNS = [(prompt, depth) for prompt in ("p0", "p1") for depth in (1, 2, 4, 8, 16)] + [("p2", 4), ("p2", 16)]


@pytest.fixture(scope="module")
def model(golden_a: Path) -> Transformer:
    raven = load_checkpoint(golden_a).model
    assert isinstance(raven, Transformer)
    return raven


@pytest.fixture(scope="module")
def golden(golden_a: Path) -> dict[str, Tensor]:
    with safe_open(golden_a / "golden.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(("forward.", "prompt."))}  # noqa: SIM118


@torch.no_grad()
def states_of(model: Transformer, tokens: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Input embeddings [1, length, n_embd] and the states after each iteration [iterations, length, n_embd]."""
    rotation = model.rotation(torch.arange(len(tokens)))
    embedded = model.prelude(tokens[None], rotation, model.attend_causally)
    state, states = torch.zeros_like(embedded), []
    for _ in range(iterations):
        state = model.iterate(state, embedded, rotation, model.attend_causally)
        states.append(state[0])
    return embedded, torch.stack(states)


@pytest.mark.parametrize("prompt", ["p0", "p1", "p2"])
def test_embedded_input_and_every_state_match(model: Transformer, golden: dict[str, Tensor], prompt: str) -> None:
    embedded, states = states_of(model, golden[f"prompt.{prompt}"], 16)
    torch.testing.assert_close(embedded[0], golden[f"forward.{prompt}.prelude_out"], atol=1e-4, rtol=0)
    torch.testing.assert_close(states, golden[f"forward.{prompt}.states"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("prompt", "depth"), RUNS)
@torch.no_grad()
def test_latents_and_logits_match(model: Transformer, golden: dict[str, Tensor], prompt: str, depth: int) -> None:
    tokens, name = golden[f"prompt.{prompt}"], f"forward.{prompt}.n{depth}"
    _, states = states_of(model, tokens, depth)
    latent = model.final_norm(states[-1])
    logits = model.coda(states[-1][None], model.rotation(torch.arange(len(tokens))), model.attend_causally)[0]
    torch.testing.assert_close(latent, golden[f"{name}.latent_ln_f"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, golden[f"{name}.logits"], atol=2e-4, rtol=0)
    assert torch.equal(logits.argmax(-1), golden[f"{name}.logits"].argmax(-1))


def test_computed_rotary_table_is_the_stored_one(model: Transformer, golden_a: Path) -> None:
    computed = Transformer(model.config)
    torch.testing.assert_close(
        published_weights(computed)["freqs_cis"], published_weights(model)["freqs_cis"], atol=1e-6, rtol=0
    )


def test_bfloat16_stays_near_float32(golden_a: Path, golden: dict[str, Tensor]) -> None:
    model = load_checkpoint(golden_a, dtype=torch.bfloat16).model
    assert isinstance(model, Transformer)
    tokens = golden["prompt.p0"]
    _, states = states_of(model, tokens, 4)
    with torch.no_grad():
        logits = model.coda(states[-1][None], model.rotation(torch.arange(len(tokens))), model.attend_causally)[0]
    expected = golden["forward.p0.n4.logits"]
    assert logits.dtype == torch.float32
    assert (logits - expected).norm() < 0.05 * expected.norm()

"""Exit values and depths of every criterion on whole prompts, against the reference implementation's."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from policies import KL, ArgmaxStability, Cosine, DepthPolicy, DepthView, EntropyDiff, LatentDiff, MinPKL
from runtime.model.checkpoint import load_checkpoint
from runtime.model.transformer import Transformer

GOLDEN = Path(__file__).parent.parent / "golden" / "golden_a"
MOST = 16
THRESHOLDS = json.loads((GOLDEN / "golden.json").read_text())["spec"]["thresholds"]
POLICIES: dict[str, type[DepthPolicy]] = {
    "latent-diff": LatentDiff,
    "cosine": Cosine,
    "kl": KL,
    "minp-kl": MinPKL,
    "entropy-diff": EntropyDiff,
    "argmax-stability": ArgmaxStability,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "latest-m4": {},
    "full": {},
    "latest-m4-compress-s4": {},
    "always-last-m4": {},
    "latest-m4.continuous": {},
    "latest-m4.min2every2": {"min_iterations": 2, "check_every": 2},
    "latest-m4.noexitprefill": {"exit_received": False},
}


@cache
def model() -> Transformer:
    raven = load_checkpoint(GOLDEN).model
    assert isinstance(raven, Transformer)
    return raven


@cache
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@torch.no_grad()
def last_logits(states: Tensor) -> Tensor:
    """Logits [16, vocab] of a prompt's last token after each of 16 iterations, from states [16, length, width]."""
    return model().coda(states, model().rotation(torch.arange(states.shape[1])), model().attend_causally)[:, -1]


@torch.no_grad()
def states_of(tokens: Tensor) -> Tensor:
    """States [16, length, width] after each of 16 iterations from zero."""
    rotation = model().rotation(torch.arange(len(tokens)))
    embedded = model().prelude(tokens[None], rotation, model().attend_causally)
    states = [torch.zeros_like(embedded)]
    for _ in range(MOST):
        states.append(model().iterate(states[-1], embedded, rotation, model().attend_causally))
    return torch.cat(states[1:])


def run_group(policy: DepthPolicy, states: Tensor, logits: Tensor) -> tuple[list[float], int, bool]:
    """Exit values, depth and whether it exited, for received tokens that enter together from zero states."""
    rows = states[0] if policy.reads == "latent" else states[0, -1:]
    previous = policy.begin(torch.zeros_like(rows), logits.shape[-1])
    assert previous.shape == (len(rows), policy.previous_width(rows.shape[-1], logits.shape[-1]))
    values: list[float] = []
    for iteration in range(1, MOST + 1):
        checks = iteration - policy.min_iterations - 1
        if not policy.exit_received or checks < 0 or checks % policy.check_every:
            continue
        latent = states[iteration - 1] if policy.reads == "latent" else states[iteration - 1, -1:]
        seen = logits[iteration - 1 : iteration] if policy.reads == "logits" else None
        value, previous = policy.measure(DepthView(torch.full((len(latent),), iteration), latent, seen, previous))
        assert value.dtype == previous.dtype == torch.float32
        reduced = value.mean(0, keepdim=True)
        values.append(reduced.item())
        if policy.is_done(reduced).item():
            return values, iteration, True
    return values, MOST, False


def assert_as_reference(policy: DepthPolicy, states: Tensor, exit_values: Tensor, steps: int, exited: int) -> None:
    values, depth, is_exited = run_group(policy, states, last_logits(states))
    recorded = exit_values[: len(values)]
    torch.testing.assert_close(torch.tensor(values), recorded, atol=1e-4, rtol=0, equal_nan=True)
    assert exit_values[len(values) :].isnan().all()
    assert (depth, is_exited) == (steps, bool(exited))


def recorded_runs() -> list[tuple[str, str, str]]:
    """(criterion, prompt, variant) of every run of a single prompt."""
    runs = json.loads((GOLDEN / "golden.json").read_text())["runs"]
    parts = [name.split(".", 3)[1:] for name in runs if name.startswith("adaptive.") and ".batch3." not in name]
    return [(criterion, prompt, variant) for criterion, prompt, variant in parts]


@pytest.mark.parametrize(("criterion", "prompt", "variant"), recorded_runs())
def test_values_and_depth_of_a_prompt(criterion: str, prompt: str, variant: str) -> None:
    policy = POLICIES[criterion](threshold=THRESHOLDS[criterion], max_iterations=MOST, **VARIANTS[variant])
    name = f"adaptive.{criterion}.{prompt}.{variant}"
    states = golden()[f"forward.{prompt}.states"]
    steps, exited = golden()[f"{name}.steps"][0], golden()[f"{name}.exited"][0]
    assert_as_reference(policy, states, golden()[f"{name}.exit_values"][0], int(steps), int(exited))
    if variant == "latest-m4.noexitprefill":
        assert golden()[f"{name}.num_checks"][0] == 0


@pytest.mark.parametrize("row", range(3))
def test_values_and_depth_of_each_prompt_of_a_batch(row: int) -> None:
    name = "adaptive.latent-diff.batch3.latest-m4"
    states = states_of(golden()["prompt.batch3"][row])
    steps, recorded = int(golden()[f"{name}.steps"][0, row]), golden()[f"{name}.exit_values"][0, row]
    # The reference goes on measuring a row that has exited until the whole batch has.
    recorded = recorded.where(torch.arange(MOST) < steps, torch.nan)
    policy = LatentDiff(THRESHOLDS["latent-diff"], max_iterations=MOST)
    assert_as_reference(policy, states, recorded, steps, int(golden()[f"{name}.exited"][0, row]))


def test_every_criterion_was_recorded_with_every_variant() -> None:
    runs = recorded_runs()
    assert {criterion for criterion, _, _ in runs} == set(POLICIES)
    assert {variant for _, _, variant in runs} == set(VARIANTS)


def test_default_thresholds_are_the_references() -> None:
    defaults = {name: kind().threshold for name, kind in POLICIES.items()}
    assert defaults == {
        "latent-diff": 0.03,
        "cosine": 1e-3,
        "kl": 1e-3,
        "minp-kl": 1e-5,
        "entropy-diff": 1e-3,
        "argmax-stability": 5,
    }

"""Supervised training: the depth it trains at, its rates, what it teaches, and steps that would not be finite."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policies.training import (
    SupervisedConfig,
    exactness,
    plot_metrics,
    train,
)
from policies.training.examples import pack
from policies.training.finite import whole_or_nothing
from policies.training.metrics import read_metrics
from policies.training.schedule import learning_rate, sample_iterations
from policies.training.teacher_forcing import TeacherForced, initial_state
from runtime.model.transformer import Rotation
from tests.engine.tiny import tiny_model
from tests.training.counting import CONFIG, differences, of_length, successors


def test_initial_states_are_drawn_as_the_model_says() -> None:
    embedded = torch.zeros(50, 20, 16)
    assert not initial_state(tiny_model(), embedded).any()
    noisy = tiny_model(state_init="like-init")
    drawn = initial_state(noisy, embedded, torch.Generator().manual_seed(1))
    std = noisy.specification.state_std * noisy.specification.embedding_scale
    assert float(drawn.std()) == pytest.approx(std, rel=0.05)
    assert float(drawn.abs().max()) <= 3 * std * (1 + 1e-6)
    assert torch.equal(drawn, initial_state(noisy, embedded, torch.Generator().manual_seed(1)))


def test_gradients_pass_through_the_last_iterations_only() -> None:
    model = tiny_model(3)
    forced = TeacherForced(model, compile_model=False, bfloat16=False)
    (batch,) = pack(of_length([12], random.Random(1)), 100)
    counted: list[bool] = []

    def iterate(state: Tensor, embedded: Tensor, rotation: Rotation) -> Tensor:
        counted.append(torch.is_grad_enabled())
        return TeacherForced._iterate(forced, state, embedded, rotation)

    forced.iterate = iterate
    forced.loss_sum(batch, 3, 2).backward()
    assert counted == [False] * 3 + [True] * 2
    assert model.get_parameter("adapter.weight").grad is not None


@given(st.floats(1.0, 12.0), st.integers(1, 20), st.integers(1, 8), st.integers(0, 1000))
def test_iterations_stay_within_their_bounds(mean: float, most: int, backprop: int, seed: int) -> None:
    config = SupervisedConfig(steps=1, mean_iterations=mean, most_iterations=most, most_backprop=backprop)
    without, with_gradient = sample_iterations(random.Random(seed), config)
    assert 1 <= with_gradient <= backprop
    assert without >= 0
    assert without + with_gradient <= most
    assert without == 0 or with_gradient == backprop


def test_iterations_spread_around_their_mean() -> None:
    chance = random.Random(1)
    totals = [sum(sample_iterations(chance, CONFIG)) for _ in range(4000)]
    assert min(totals) == 1
    assert max(totals) == CONFIG.most_iterations
    assert sum(totals) / len(totals) == pytest.approx(CONFIG.mean_iterations, abs=0.3)
    uncut = msgspec.structs.replace(CONFIG, mean_iterations=12.0, most_iterations=1000)
    drawn = [sum(sample_iterations(chance, uncut)) for _ in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(12.0, abs=0.4)


def test_the_rate_warms_up_holds_and_decays_to_zero() -> None:
    config = SupervisedConfig(steps=100, warmup=10, hold=0.5)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:51]) == {1.0}
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_training_teaches_and_leaves_a_picture(tmp_path: Path) -> None:
    held_out = [example for example, _ in zip(successors(random.Random("held out")), range(20), strict=False)]
    model = tiny_model(5)
    before = exactness(model, held_out, 3)
    config = msgspec.structs.replace(CONFIG, steps=100, log_every=50, checkpoint_seconds=1e9)
    train(model, successors, config, tmp_path, {"all": held_out})
    lines = read_metrics(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert lines[-1]["all"] == exactness(model, held_out, 3) > before
    picture = (tmp_path / "metrics.svg").read_text()
    assert "<svg" in picture
    assert plot_metrics(tmp_path) == tmp_path / "metrics.svg"
    assert (tmp_path / "metrics.svg").read_text() == picture


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("steps", "tokens_per_step", "tokens_per_batch", "most_iterations", "most_backprop")),
        *((name, -1) for name in ("seed", "warmup", "log_every")),
        *((name, value) for name in ("muon_rate", "adam_rate", "weight_decay") for value in (-1.0, float("nan"))),
        *((name, value) for name, value in (("hold", 1.5), ("clip", 0.0), ("mean_iterations", 0.5))),
    ],
)
def test_configurations_that_teach_nothing_are_refused(field: str, value: float) -> None:
    changes: dict[str, Any] = {"steps": 1, field: value}
    with pytest.raises(ValueError, match=f"SupervisedConfig: {field} is "):
        SupervisedConfig(**changes)


def test_a_step_that_would_not_be_finite_changes_nothing(tmp_path: Path) -> None:
    model = tiny_model(0)
    with torch.no_grad():
        model.head.weight[3, 0] = float("inf")
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="The loss is"):
        train(model, successors, CONFIG, tmp_path, {})
    assert not differences(model, before)
    assert not (tmp_path / "training.safetensors").exists()


def test_a_step_ends_in_finite_weights_or_in_those_before() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step_beyond(bias: float) -> None:
        with whole_or_nothing(model, [optimizer]):
            model(torch.ones(2)).backward()
            optimizer.step()
            with torch.no_grad():
                model.bias.fill_(bias)

    step_beyond(1.0)
    before, states = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="makes the weights bias not finite"):
        step_beyond(float("inf"))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), states, rtol=0, atol=0)

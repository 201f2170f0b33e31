"""When exits are tested and what value groups exit by: one rule, in PyTorch and natively."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policies import (
    KL,
    Bounding,
    Cosine,
    DepthPolicy,
    DepthView,
    EntryView,
    EvenBudget,
    Fixed,
    GateExit,
    LatentDiff,
    exit_rule,
)
from policies.depth.base import IntArray
from runtime.backend.exits import ExitTests
from runtime.backend.lanes import Lanes
from runtime.backend.native.criteria import BY_POLICY, COSINE, GATE, LATENT_DIFF, NOTHING, criterion_of
from runtime.backend.native.exits import group_means, is_due
from runtime.model.families.raven import RavenConfig
from tests.backend import conversations
from tests.backend.conversations import CONTEXT, Talk, Turn, hold, telling_all
from tests.backend.specified import model_of

MOST = 6
RAVEN = RavenConfig(
    n_embd=24,
    n_heads=2,
    intermediate_size=40,
    vocab_size=50,
    block_size=CONTEXT,
    n_layers_in_prelude=1,
    n_layers_in_recurrent_block=1,
    n_layers_in_coda=1,
    mean_recurrence=MOST,
    state_init="zero",
)
MODEL = model_of(msgspec.structs.replace(RAVEN.specification, exit_gate=True), 5)


@given(st.lists(st.integers(0, 40), min_size=1), st.integers(0, 40), st.integers(1, 40))
def test_native_code_tests_when_the_rule_says(iterations: list[int], least: int, step: int) -> None:
    wanted = [iteration > least and (iteration - least - 1) % step == 0 for iteration in iterations]
    assert [exit_rule.is_due(iteration, least, step) for iteration in iterations] == wanted
    assert exit_rule.is_due(np.array(iterations, np.int32), least, step).tolist() == wanted
    assert [bool(is_due(np.int32(iteration), np.int32(least), np.int32(step))) for iteration in iterations] == wanted


@given(st.data())
def test_native_groups_have_the_means_of_the_rule(data: st.DataObject) -> None:
    """Bit by bit, wherever in its lanes a group's tested tokens are and whether or not its last is one of them."""
    lanes = data.draw(st.integers(1, 12))
    group = np.array(data.draw(st.lists(st.integers(0, lanes - 1), min_size=lanes, max_size=lanes)), np.int32)
    values = np.array(data.draw(st.lists(st.floats(width=32), min_size=lanes, max_size=lanes)), np.float32)
    tested = np.array(data.draw(st.lists(st.integers(0, lanes - 1), min_size=1, unique=True)))
    mean, count = np.full(lanes, 7, np.float32), np.full(lanes, 7)
    group_means(np.arange(lanes), lanes, tested, len(tested), group, values, mean, count)
    named, number, sizes = np.unique(group[tested], return_inverse=True, return_counts=True)
    means = exit_rule.group_means(*(torch.from_numpy(array) for array in (values[tested], number, sizes)))
    assert count.tolist() == np.bincount(group[tested], minlength=lanes).tolist()
    np.testing.assert_array_equal(mean[named], means.numpy())


class Shallower(Bounding, frozen=True):
    """Bounds that fall from token to token, so that a group's last rests while others are still tested."""

    def bound(self, entering: EntryView) -> IntArray:
        return np.maximum(MOST - entering.position % MOST, 1).astype(np.int32)


class Impatient(LatentDiff, frozen=True):
    """With a mask of its own."""

    def is_done(self, values: Tensor) -> Tensor:
        return values < 2 * self.threshold


class Bound(LatentDiff, frozen=True):
    """With a bound of its own, and LatentDiff's test."""

    def bound(self, entering: EntryView) -> IntArray:
        return np.full(len(entering.position), 2, np.int32)


class Halved:
    """A measure that is mixed in."""

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        values, previous = LatentDiff().measure(view)
        return values / 2, previous


class Mixed(Halved, LatentDiff, frozen=True):
    pass


class Doubting(EvenBudget, frozen=True):
    """A bounding policy that does not leave the test to its criterion."""

    def is_done(self, values: Tensor) -> Tensor:
        return torch.zeros_like(values, dtype=torch.bool)


@pytest.mark.parametrize(
    ("policy", "criterion"),
    [
        (Fixed(3), NOTHING),
        (EvenBudget(Fixed(3)), NOTHING),
        (LatentDiff(), LATENT_DIFF),
        (Cosine(), COSINE),
        (GateExit(), GATE),
        (EvenBudget(GateExit()), GATE),
        (KL(), BY_POLICY),
        (Bound(), LATENT_DIFF),
        (Shallower(Cosine()), COSINE),
        (Shallower(EvenBudget(LatentDiff())), LATENT_DIFF),
        (Impatient(), BY_POLICY),
        (Mixed(), BY_POLICY),
        (Shallower(Impatient()), BY_POLICY),
        (Doubting(LatentDiff()), BY_POLICY),
    ],
    ids=repr,
)
def test_a_test_of_its_own_is_not_native(policy: DepthPolicy, criterion: int) -> None:
    assert criterion_of(policy) == criterion


@settings(max_examples=25)
@given(st.data())
def test_native_ticks_exit_as_ticks_led_from_python(data: st.DataObject) -> None:
    """Bit by bit, whatever is due when: tokens, log-probabilities and depths."""

    talks = []
    for number in range(data.draw(st.integers(1, 3))):
        least = data.draw(st.integers(0, MOST - 1))
        criterion = data.draw(st.sampled_from([LatentDiff, Cosine, GateExit]))(
            data.draw(st.sampled_from([0.05, 0.3, 0.6, 0.9])),
            max_iterations=data.draw(st.integers(least + 1, MOST)),
            min_iterations=least,
            check_every=data.draw(st.integers(1, 3)),
            exit_received=data.draw(st.booleans()),
        )
        depth = data.draw(st.sampled_from([criterion, Shallower(criterion)]))
        prompt = tuple(data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=20)))
        talks.append(Talk((number,), depth, (Turn(prompt, 6),)))
    engine = conversations.settings(most_iterations=MOST)
    native = hold(MODEL, engine, talks)
    led = hold(MODEL, engine, [telling_all(talk, MODEL.specification.vocab_size) for talk in talks])
    assert native.essence() == led.essence()


def test_tokens_at_their_bounds_leave_their_groups_test_to_the_others() -> None:
    """The last of the group rests, and is not tested; the mean is that of the two that are, in the group's name."""
    lanes = Lanes(5)
    lanes.group[:] = [2, 2, 2, 3, 4]
    lanes.age[:] = 2
    lanes.tests[:] = True
    policy = LatentDiff(0.5)
    exits = ExitTests(lanes=5, width=1, vocab=3, device=torch.device("cpu"))
    assert exits.register(policy) == 0
    state = torch.tensor([[1.0], [1.0], [9.0], [1.0], [0.25]])
    exits.remember(exits.run(lanes, np.arange(5), state, lambda due, wanted: torch.empty(0, 3)))
    (tested,) = exits.run(lanes, np.array([0, 1, 3]), 2 * state, lambda due, wanted: torch.empty(0, 3)).tested
    assert tested.lane.tolist() == [2, 3]
    assert tested.value.tolist() == [0.5, 0.5]


def test_what_the_backend_fails_of_is_not_its_policys_failure() -> None:
    lanes = Lanes(2)
    lanes.group[:] = [0, 1]
    lanes.age[:] = 2
    lanes.tests[:] = True
    exits = ExitTests(lanes=2, width=1, vocab=3, device=torch.device("cpu"))
    exits.register(KL())

    def fail(due: object, wanted: object) -> Tensor:
        raise RuntimeError("no head")

    with pytest.raises(RuntimeError, match="no head"):
        exits.run(lanes, np.arange(2), torch.ones(2, 1), fail)

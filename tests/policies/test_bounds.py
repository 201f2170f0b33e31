"""Bounds on iterations: fixed, by role, by budget, by load."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import (
    KL,
    ArgmaxStability,
    Bounding,
    ByLoad,
    ByRole,
    DepthPolicy,
    EntryView,
    EvenBudget,
    Fixed,
    LatentDiff,
)

NO_LIMIT = 2**31 - 1


def entering(
    tokens_left: list[int] | None = None,
    iterations_left: list[int] | None = None,
    load: float = 0.0,
    mean_recurrence: int = 8,
) -> EntryView:
    tokens_left = [5] if tokens_left is None else tokens_left
    rows = len(tokens_left)
    return EntryView(
        position=np.arange(rows, dtype=np.int32),
        is_received=np.zeros(rows, np.bool_),
        tree_depth=np.zeros(rows, np.int32),
        tokens_left=np.array(tokens_left, np.int32),
        iterations_left=np.array([NO_LIMIT] * rows if iterations_left is None else iterations_left, np.int32),
        in_flight=round(load * 100),
        waiting=0,
        lanes=100,
        mean_recurrence=mean_recurrence,
    )


@pytest.mark.parametrize("policy", [Fixed(), LatentDiff(), EvenBudget(), ByLoad()], ids=repr)
def test_without_a_bound_of_its_own_a_policy_takes_the_models(policy: DepthPolicy) -> None:
    bound = policy.bound(entering([3, 3], mean_recurrence=11))
    assert bound.tolist() == [11, 11]
    assert bound.dtype == np.int32
    assert policy.deepest(11) == 11


@pytest.mark.parametrize(
    "policy", [Fixed(6), LatentDiff(max_iterations=6), EvenBudget(max_iterations=6), ByLoad(max_iterations=6)], ids=repr
)
def test_most_bounds(policy: DepthPolicy) -> None:
    assert policy.bound(entering([3, 3])).tolist() == [6, 6]
    assert policy.deepest(99) == 6


def test_role_decides_where_the_level_does_not() -> None:
    policy = ByRole(root=Fixed(1), parent=Fixed(2), child=LatentDiff(0.1), by_tree_depth=(Fixed(9), Fixed(8)))
    assert policy.for_thread("root", 0) == Fixed(9)
    assert policy.for_thread("child", 1) == Fixed(8)
    assert policy.for_thread("parent", 2) == Fixed(2)
    assert policy.for_thread("child", 2) == LatentDiff(0.1)
    assert policy.deepest(4) == 9
    assert ByRole(root=Fixed(2)).for_thread("child", 1) == Fixed()
    assert ByRole(root=Fixed(2), otherwise=Fixed(3)).for_thread("parent", 1) == Fixed(3)


def test_roles_nest_and_resolve_within_a_budget() -> None:
    inner = ByRole(by_tree_depth=(Fixed(5),), child=KL(0.2, max_iterations=7, min_iterations=2))
    assert ByRole(otherwise=inner).for_thread("root", 0) == Fixed(5)
    budget = EvenBudget(inner)
    assert budget.for_thread("root", 0) == EvenBudget(Fixed(5))
    assert budget.for_thread("child", 3) == EvenBudget(KL(0.2, max_iterations=7, min_iterations=2))
    assert EvenBudget(Fixed(5)).for_thread("root", 0) == EvenBudget(Fixed(5))


def test_a_policy_by_role_gives_no_bound_itself() -> None:
    with pytest.raises(TypeError, match="for_thread"):
        ByRole().bound(entering())


def test_a_bounding_policy_exits_as_its_criterion() -> None:
    criterion = ArgmaxStability(3, min_iterations=2, check_every=4, max_iterations=20, exit_received=False)
    for policy in (EvenBudget(criterion), ByLoad(criterion), ByLoad(EvenBudget(criterion))):
        assert (policy.reads, policy.min_iterations, policy.check_every, policy.exit_received) == (
            "logits",
            2,
            4,
            False,
        )
        assert (policy.threshold, policy.max_iterations, policy.previous_width(3, 5)) == (3, 20, 2)
    assert EvenBudget(LatentDiff()).reads == "latent"
    assert Bounding().reads == "nothing"
    assert EvenBudget(LatentDiff(), max_iterations=9) == EvenBudget(LatentDiff(max_iterations=9))


@given(tokens=st.integers(-2, 2000), iterations=st.integers(-5, NO_LIMIT), most=st.integers(1, 64))
def test_an_even_share_is_at_least_one_and_at_most_the_criterions(tokens: int, iterations: int, most: int) -> None:
    (bound,) = EvenBudget(Fixed(most)).bound(entering([tokens], [iterations])).tolist()
    assert 1 <= bound <= most
    if 0 < tokens <= iterations:
        assert bound == most or bound * tokens <= iterations < (bound + 1) * tokens


@given(
    data=st.data(),
    received=st.integers(1, 40),
    sampled=st.integers(0, 20),
    extra=st.integers(0, 400),
    most=st.integers(1, 16),
)
def test_a_budget_of_one_iteration_a_token_or_more_lasts(
    data: st.DataObject, received: int, sampled: int, extra: int, most: int
) -> None:
    """Chunks of a prompt and sampled tokens, each of any depth within its bound, never overspend."""
    policy = EvenBudget(Fixed(most))
    tokens, iterations = received + sampled, received + sampled + extra
    while tokens:
        chunk = data.draw(st.integers(1, tokens - sampled)) if tokens > sampled else 1
        bounds = policy.bound(entering([tokens] * chunk, [iterations] * chunk))
        depth = data.draw(st.integers(1, int(bounds[0])))
        assert len(set(bounds.tolist())) == 1
        iterations -= depth * chunk
        tokens -= chunk
        assert iterations >= tokens


@given(
    loads=st.tuples(st.floats(0, 10), st.floats(0, 10)).map(sorted),
    most=st.integers(1, 64),
    least=st.integers(1, 64),
)
def test_load_only_lowers_a_bound(loads: list[float], most: int, least: int) -> None:
    policy = ByLoad(Fixed(most), calm=1.0, busy=4.0, least=least)
    low, high = (int(policy.bound(entering(load=load))[0]) for load in loads)
    assert most >= low >= high >= min(least, most)
    assert policy.bound(entering(load=1.0)).tolist() == [most]
    assert policy.bound(entering(load=4.0)).tolist() == [min(least, most)]


def test_load_lowers_a_bound_linearly_and_counts_waiting_threads() -> None:
    policy = ByLoad(Fixed(9), calm=1.0, busy=3.0, least=1)
    assert [int(policy.bound(entering(load=load))[0]) for load in (0.5, 1.5, 2.0, 2.5, 9.0)] == [9, 7, 5, 3, 1]
    waiting = entering(load=1.0)._replace(waiting=100)
    assert policy.bound(waiting).tolist() == [5]


def test_a_budget_and_the_load_bound_together() -> None:
    policy = ByLoad(EvenBudget(LatentDiff(max_iterations=16)), calm=0.0, busy=1.0)
    assert policy.bound(entering([10, 10], [80, 400], load=0.0)).tolist() == [8, 16]
    assert policy.bound(entering([10, 10], [80, 400], load=1.0)).tolist() == [1, 1]

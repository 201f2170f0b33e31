"""Children as far as deadlines allow, by what ticks were measured to take."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import BySlack, EngineLoad, SpawnDecision, SpawnRequest, TickCosts, TreeLoad, TreeView

COSTS = TickCosts(0.001, 0.0005)


def tree(number: int, **changes: Any) -> TreeLoad:
    plain: dict[str, Any] = {"seconds": 0.0, "deadline": None, "generated": 0, "speaking": 1}
    return TreeLoad(tree=number, **plain | changes)


def load(*trees: TreeLoad, **changes: Any) -> EngineLoad:
    plain: dict[str, Any] = {"costs": COSTS, "lanes": None, "iterations": 2.0, "tokens_per_tree": 100.0}
    return EngineLoad(trees=trees, **plain | changes)


def decided(policy: BySlack, now: EngineLoad | None, asking: int = 0) -> SpawnDecision:
    view = TreeView(threads=1, running=1, tokens=10, iterations=40, waiting=0, load=now)
    return policy.decide(SpawnRequest((asking, 3), (5, 6), 0, 0, math.nan), view)


def test_a_child_runs_where_all_end_in_time_with_it() -> None:
    """Two trees of one thread each: a token takes 2 (1 + 0.5 n) ms, and 100 are to be said: 0.4 s, and with a child
    0.5 s for the other."""
    two = load(tree(0), tree(1))
    assert decided(BySlack(0.6), two).run
    refused = decided(BySlack(0.5), two)
    assert (refused.run, refused.reason) == (False, "tree 1 would end in 0.5 s and has 0.45 s")
    assert decided(BySlack(0.51, margin=0.0), two).run
    assert decided(BySlack(0.5, margin=0.0), load(tree(0))).run


def test_a_tree_that_is_late_anyway_stops_nobody_and_gets_no_children() -> None:
    late = tree(1, deadline=0.1)
    refused = decided(BySlack(10.0), load(tree(0), late), asking=1)
    assert (refused.run, refused.reason) == (False, "its tree would end in 0.25 s and has 0.09 s")
    assert decided(BySlack(10.0), load(late), asking=1).run
    assert decided(BySlack(10.0), load(tree(0), late)).run
    assert not decided(BySlack(10.0), load(tree(0), late, tree(2, deadline=0.65))).run


def test_deadlines_of_limits_come_first_and_time_passes() -> None:
    policy = BySlack(0.5, margin=0.0)
    assert not decided(policy, load(tree(0), tree(1, deadline=0.45))).run
    # What is left to say shrinks with what was said, and with the time that passed.
    assert decided(policy, load(tree(0), tree(1, deadline=0.45, generated=60))).run
    assert decided(policy, load(tree(0), tree(1, deadline=0.45, generated=100, seconds=0.44))).run


def test_the_tree_that_asks_gains_by_its_child() -> None:
    """Its own 100 tokens are said by two threads: 50 tokens of 4 ms each."""
    assert decided(BySlack(0.35, margin=0.0), load(tree(0))).run
    parallel = load(tree(0, speaking=9))
    assert decided(BySlack(0.35, margin=0.0), parallel).run


def test_threads_beyond_the_lanes_take_turns() -> None:
    few = load(tree(0), tree(1), lanes=2)
    assert few.seconds_per_token(2) == pytest.approx(0.004)
    assert few.seconds_per_token(4) == pytest.approx(0.008)
    assert load(costs=None).seconds_per_token(4) is None


@pytest.mark.parametrize("now", [None, load(tree(0), tree(1), costs=None)])
def test_without_measurements_every_child_runs(now: EngineLoad | None) -> None:
    assert decided(BySlack(0.001), now).run


def test_until_a_tree_has_ended_the_policy_says_how_long_they_are() -> None:
    now = load(tree(0), tree(1), tokens_per_tree=None)
    assert decided(BySlack(0.6, tokens=100), now).run
    assert not decided(BySlack(0.6, tokens=130), now).run


@given(
    deadlines=st.lists(st.floats(0.01, 5), min_size=1, max_size=5),
    speaking=st.integers(1, 20),
    tokens=st.floats(1, 500),
)
def test_time_enough_allows_everything_and_none_nothing(deadlines: list[float], speaking: int, tokens: float) -> None:
    def trees(factor: float) -> EngineLoad:
        own = (tree(i, deadline=each * factor, speaking=speaking) for i, each in enumerate(deadlines))
        return load(*own, tokens_per_tree=tokens)

    runs = [decided(BySlack(1.0), trees(factor)).run for factor in (1e-6, 0.1, 1.0, 10.0, 1e5)]
    # With all the time there is nobody is late, and with none everybody is.
    assert runs[-1]
    assert runs[0] == (len(deadlines) == 1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"deadline": 0.0}, "deadline is 0.0"),
        ({"deadline": math.inf}, "deadline is inf"),
        ({"deadline": math.nan}, "deadline is nan"),
        ({"deadline": 1.0, "margin": 1.0}, "margin is 1.0"),
        ({"deadline": 1.0, "tokens": 0}, "tokens is 0"),
    ],
)
def test_bounds_are_bounds(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"BySlack: {named}"):
        BySlack(**fields)

"""Pass@n, cons@n and Pareto curves of the Countdown report, and what it says of its aims."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.countdown.report.cells import Record
from benchmarks.countdown.report.curves import (
    Spent,
    accuracy_at,
    best_within,
    consensus_at,
    largest_gap,
    largest_saving,
    pareto,
    pass_at,
)
from benchmarks.countdown.report.document import Aim
from tests.countdown.invented import record

samples = st.lists(
    st.sampled_from([record(), record(False, "b"), record(False, "c"), record(False, None)]), min_size=1, max_size=6
)


@settings(max_examples=50)
@given(samples)
def test_pass_is_the_share_of_choices_with_a_right_sample(drawn: list[Record]) -> None:
    for n in range(1, len(drawn) + 1):
        chosen = list(itertools.combinations(drawn, n))
        expected = sum(any(sample.is_right for sample in choice) for choice in chosen) / len(chosen)
        assert pass_at(drawn, n) == pytest.approx(expected)
        assert consensus_at(drawn, n) <= pass_at(drawn, n) + 1e-12
    assert consensus_at(drawn, 1) == pytest.approx(pass_at(drawn, 1))


def test_the_most_frequent_answer_wins_right_or_not() -> None:
    right, wrong, other, silent = record(), record(False, "b"), record(False, "c"), record(False, None)
    assert consensus_at([right, wrong, wrong], 3) == 0.0
    assert consensus_at([right, right, wrong], 3) == 1.0
    assert consensus_at([right, silent, silent], 3) == 1.0  # no answer is no vote
    assert consensus_at([silent], 1) == 0.0
    assert consensus_at([right, wrong], 2) == 0.5  # by lot
    assert consensus_at([right, wrong, other], 3) == pytest.approx(1 / 3)
    assert consensus_at([right, right, wrong, wrong], 3) == 0.5
    for function in (pass_at, consensus_at):
        with pytest.raises(ValueError, match="from 1 to 2"):
            function([right, wrong], 3)


spents = st.lists(st.builds(Spent, st.integers(1, 9).map(float), st.integers(0, 9).map(lambda n: n / 10)), max_size=8)


@settings(max_examples=50)
@given(spents)
def test_the_pareto_curve_holds_what_nothing_beats(points: list[Spent]) -> None:
    front = pareto(points)
    for point in points:
        is_beaten = any(
            other.cost <= point.cost and other.accuracy >= point.accuracy and other[:2] != point[:2] for other in points
        )
        assert (point[:2] in [other[:2] for other in front]) == (not is_beaten)
    for budget in (0.5, 3.0, 9.0):
        best = best_within(points, budget)
        assert (best is None) == all(point.cost > budget for point in points)
        if best is not None:
            assert best.accuracy == max(point.accuracy for point in points if point.cost <= budget)
            mixed = accuracy_at(points, budget)
            assert mixed is not None
            assert best.accuracy <= mixed <= max(point.accuracy for point in points)


def test_gaps_are_taken_at_equal_cost() -> None:
    theirs = [Spent(10, 0.2), Spent(20, 0.4), Spent(15, 0.1)]
    assert accuracy_at(theirs, 9) is None
    assert accuracy_at(theirs, 15) == pytest.approx(0.3)
    assert accuracy_at(theirs, 99) == pytest.approx(0.4)
    ours = [Spent(5, 0.9, "too cheap"), Spent(15, 0.5, "fair"), Spent(50, 0.95, "dear")]
    gap = largest_gap(ours, theirs, most=20)
    assert gap is not None
    assert gap.ours.name == "fair"
    assert (gap.gain, gap.theirs) == pytest.approx((0.2, 0.3))
    unbounded = largest_gap(ours, theirs)
    assert unbounded is not None
    assert unbounded.ours.name == "dear"
    assert largest_gap(ours[:1], theirs) is None


def test_savings_are_taken_at_no_less_accuracy() -> None:
    theirs = [Spent(100, 0.5), Spent(200, 0.8)]
    ours = [Spent(90, 0.5), Spent(120, 0.8), Spent(10, 0.4)]
    saving = largest_saving(ours, theirs)
    assert saving is not None
    assert saving[0] == pytest.approx(0.4)
    assert saving[1:] == (ours[1], theirs[1])
    assert largest_saving(ours, [Spent(100, 0.9)]) is None


def test_aims_say_whether_they_are_met() -> None:
    assert Aim(aim="a", measured=3.0, bound=2.0).is_met
    assert not Aim(aim="a", measured=3.0, bound=2.0, is_lower_better=True).is_met
    assert Aim(aim="a", measured=None, bound=2.0).is_met is None

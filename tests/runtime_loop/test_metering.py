"""Meters: what several threads may say together, and how far each may go on without asking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.link.commands import Foresight, Signal
from runtime.link.metering import LIMIT_REACHED, Meter, MeteredWatcher


class Plain:
    """Says that it stops at token 7, and foresees it if `foresight` does."""

    def feed(self, token: int) -> tuple[Signal, ...]:
        return (Signal("end", stops=True),) if token == 7 else ()


class Foreseeing(Plain):
    def __init__(self, foresight: Foresight | None) -> None:
        self.foresight = foresight

    def foresee(self) -> Foresight | None:
        return self.foresight


def test_what_is_left_bounds_how_far_a_thread_goes_on() -> None:
    meter = Meter(5)
    watcher = MeteredWatcher(None, [meter])
    for left in (5, 4, 3, 2):
        assert watcher.foresee() == Foresight(frozenset(), left - 1)
        assert watcher.feed(1) == ()
    assert watcher.foresee() == Foresight(frozenset(), 0)
    assert watcher.feed(1) == (LIMIT_REACHED,)
    assert watcher.exhausted
    assert watcher.foresee() == Foresight(frozenset(), 0)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 4)), min_size=1, max_size=3))
def test_threads_that_go_on_together_as_foreseen_do_not_overshoot(limits: list[tuple[int, int]]) -> None:
    """Each feeds what it may, and the token at which it is asked again."""
    meters = [Meter(most) for most, _ in limits]
    watchers = [
        MeteredWatcher(None, meters[: number + 1]) for number, (_, users) in enumerate(limits) for _ in range(users)
    ]
    going = [foresight.quiet + 1 for watcher in watchers if (foresight := watcher.foresee())]
    assert len(going) == len(watchers)
    for watcher, count in zip(watchers, going, strict=True):
        stops = [watcher.feed(1) for _ in range(count)]
        assert not any(stops[:-1])
    for meter in meters:
        users = sum(meter in watcher_meters for watcher_meters in _meters_of(meters, limits))
        assert meter.fed <= max(meter.most, users)


def _meters_of(meters: list[Meter], limits: list[tuple[int, int]]) -> list[list[Meter]]:
    return [meters[: number + 1] for number, (_, users) in enumerate(limits) for _ in range(users)]


@pytest.mark.parametrize("inner", [Plain(), Foreseeing(None)])
def test_who_knows_nothing_of_the_tokens_to_come_is_asked_at_each(inner: Plain) -> None:
    assert MeteredWatcher(inner, [Meter(100)]).foresee() is None


def test_the_nearer_of_what_both_foresee_counts() -> None:
    tokens = frozenset({7})
    assert MeteredWatcher(Foreseeing(Foresight(tokens, 3)), [Meter(100)]).foresee() == Foresight(tokens, 3)
    assert MeteredWatcher(Foreseeing(Foresight(tokens, 30)), [Meter(9)]).foresee() == Foresight(tokens, 8)
    assert MeteredWatcher(Foreseeing(Foresight(tokens, 30)), [Meter(9), Meter(4)]).foresee() == Foresight(tokens, 3)


def test_a_stop_of_the_thread_itself_is_no_limit() -> None:
    watcher = MeteredWatcher(Plain(), [Meter(1)])
    assert [signal.kind for signal in watcher.feed(7)] == ["end"]
    assert not watcher.exhausted

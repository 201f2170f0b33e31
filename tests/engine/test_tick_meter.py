"""What ticks cost, by what they took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.device.tick_meter import TickMeter


@given(
    tick=st.floats(0, 0.01),
    lane=st.floats(1e-6, 0.01),
    calls=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 64)), min_size=20, max_size=60),
)
def test_a_line_is_found(tick: float, lane: float, calls: list[tuple[int, int]]) -> None:
    meter = TickMeter()
    for ticks, lanes in [*calls, (3, 1), (2, 64)]:
        meter.add(ticks, ticks * lanes, ticks * (tick + lane * lanes))
    costs = meter.costs
    assert costs is not None
    for lanes in (1, 30, 64):
        assert costs.seconds(lanes) == pytest.approx(tick + lane * lanes, rel=1e-3)


def test_nothing_is_said_too_early_and_nothing_of_empty_calls() -> None:
    meter = TickMeter()
    meter.add(1, 0, 5.0)
    for _ in range(15):
        meter.add(1, 4, 0.1)
    assert meter.costs is None
    meter.add(1, 4, 0.1)
    assert meter.costs is not None
    assert meter.costs.tick_seconds == 0.0
    assert meter.costs.lane_seconds == pytest.approx(0.025)


def test_lines_neither_fall_nor_begin_below_nothing() -> None:
    falling, steep = TickMeter(), TickMeter()
    for lanes in range(1, 33):
        falling.add(1, lanes, 0.1 - lanes * 0.001)
        steep.add(1, lanes, lanes * lanes * 0.001)
    assert falling.costs is not None
    assert falling.costs.lane_seconds == 0.0
    assert falling.costs.tick_seconds == pytest.approx(0.0838, abs=1e-3)
    assert steep.costs is not None
    assert steep.costs.tick_seconds == 0.0
    assert steep.costs.lane_seconds > 0


def test_what_ticks_took_long_ago_is_forgotten() -> None:
    meter = TickMeter()
    for seconds in (1.0, 0.01):
        for lanes in range(2000):
            meter.add(1, 1 + lanes % 8, seconds)
    assert meter.costs is not None
    assert meter.costs.seconds(4) == pytest.approx(0.01, rel=0.01)

"""Where lanes that go on by themselves end: bounds of tokens and iterations, stops, signals, meters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Fixed
from runtime.errors import ProtocolError
from runtime.link.commands import Emitted, Failed, Finished, Foresight, Report, Signal, Signalled, ThreadPath
from runtime.link.metering import LIMIT_REACHED, Meter, MeteredWatcher
from runtime.model.transformer import Transformer
from tests.engine.lanes import CONTEXT, MOST, Bench, ByPosition, Spotter, both, core_settings
from tests.engine.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(7)


@pytest.mark.parametrize("page_size", [3, 16, 64])
@pytest.mark.parametrize("tokens", [3, 17, 60])
def test_token_bounds_are_exact(model: Transformer, page_size: int, tokens: int) -> None:
    found, expected = both(model, lambda bench: bench.generate((0,), tokens), page_size=page_size)
    assert found == expected
    assert len(found.tokens) == found.work.generated == tokens
    assert found.reason == "length"


def test_the_context_ends_where_it_ends(model: Transformer) -> None:
    found, expected = both(model, lambda bench: bench.generate((0,), 1000))
    assert found == expected
    assert (len(found.tokens), found.reason) == (CONTEXT - 3, "context")


@pytest.mark.parametrize("most", [6, 7, 8, 39, 40, 41])
def test_iteration_bounds_are_exact(model: Transformer, most: int) -> None:
    found, expected = both(model, lambda bench: bench.generate((0,), 1000, max_iterations=max(most, 20)))
    assert found == expected
    assert found.reason == "iterations"
    assert found.work.iterations <= max(most, 20)


def test_stop_tokens_stop_and_are_kept(model: Transformer) -> None:
    said, _ = both(model, lambda bench: bench.generate((0,), 60))
    last = next(token for token in reversed(said.tokens) if said.tokens.index(token) > 5)
    at = said.tokens.index(last)
    # Ids that no token has are not in the way.
    stops = frozenset({last, -1, 40, 10**6})
    found, expected = both(model, lambda bench: bench.generate((0,), 60, stop_tokens=stops))
    assert found == expected
    assert (found.tokens, found.reason) == (said.tokens[: at + 1], "stop")


def test_more_sets_of_stop_tokens_than_are_known_at_a_time(model: Transformer) -> None:
    """Also where one of a tick takes the place of another's."""
    ends = []
    for stepwise in (False, True):
        bench = Bench.over(model, core_settings(max_in_flight=128), stepwise=stepwise)
        for number in range(90):
            bench.open((number,), Fixed(1 + number % 3), (number % 40, 7 * number % 40, 3))
            stops = frozenset({number % 40, (3 * number + 1 + number // 40) % 40})
            bench.generate((number,), 40, stop_tokens=stops)
        ends.append(bench.finished())
        assert (bench.longest > 1) != stepwise
    assert ends[0] == ends[1]
    assert {report.reason for report in ends[0].values()} == {"stop", "length"}


# ---- watchers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spawn", "stop"])
def test_signals_that_were_not_announced_end_the_thread_with_a_clear_error(model: Transformer, kind: Any) -> None:
    class Surprising:
        def __init__(self) -> None:
            self.fed = 0

        def foresee(self) -> Foresight:
            return Foresight(frozenset(), 100)

        def feed(self, token: int) -> tuple[Signal, ...]:
            self.fed += 1
            return (Signal(kind, (token,), stops=kind == "stop"),) if self.fed == 5 else ()

    bench = Bench.over(model, core_settings(page_size=64))
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.open((1,), Fixed(2), (4, 5, 6))
    bench.generate((0,), 40, watcher=Surprising())
    bench.generate((1,), 40)
    reports = bench.run()
    (failed,) = [report for report in reports if isinstance(report, Failed)]
    (finished,) = [report for report in reports if isinstance(report, Finished)]
    assert failed.thread == (0,)
    assert isinstance(failed.error, ProtocolError)
    assert f"signals {kind!r}, which foresee() did not announce" in str(failed.error)
    assert "Surprising" in str(failed.error)
    assert (finished.thread, len(finished.tokens)) == ((1,), 40)
    load = bench.core.statistics()
    for name in ("generated", "computed", "iterations"):
        assert getattr(load, name) == getattr(failed.work, name) + getattr(finished.work, name)


def test_a_watcher_that_raises_in_a_run_ends_its_thread(model: Transformer) -> None:
    class Raising:
        def foresee(self) -> Foresight:
            return Foresight(frozenset(), 100)

        def feed(self, token: int) -> tuple[Signal, ...]:
            raise ArithmeticError("cannot read")

    bench = Bench.over(model, core_settings())
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.generate((0,), 40, watcher=Raising())
    (failed,) = bench.run()
    assert isinstance(failed, Failed)
    assert "cannot read" in str(failed.error)
    assert not bench.core.has_work


def test_watchers_that_do_not_foresee_see_every_token_at_once(model: Transformer) -> None:
    bench = Bench.over(model, core_settings())
    bench.open((0,), Fixed(2), (1, 2, 3))
    spotter = Spotter(frozenset(), 1000)
    bench.generate((0,), 30, watcher=spotter)
    while bench.core.has_work:
        before = len(spotter.fed)
        bench.step()
        assert len(spotter.fed) <= before + 1
    assert len(spotter.fed) == 30
    assert bench.longest == 1


def test_policies_that_bound_every_token_are_asked_for_every_token(model: Transformer) -> None:
    bench = Bench.over(model, core_settings())
    bench.open((0,), ByPosition(), (1, 2, 3))
    bench.generate((0,), 30)
    depths = bench.finished()[0,].depths
    assert bench.longest == 1
    assert depths[1:] == tuple(1 + position % MOST for position in range(3, 32))


@pytest.mark.parametrize("told", [False, True])
def test_streams_get_their_tokens_while_their_lane_goes_on(model: Transformer, told: bool) -> None:
    """In order, each once, also those that the lane has and the scheduler has not."""
    bench = Bench.over(model, core_settings(), most_ticks=3)
    bench.open((0,), Fixed(1), (1, 2, 3))
    bench.generate((0,), 20, stream=True)
    reports: list[Report] = []
    while bench.core.has_work:
        bench.core.step()
        if told:
            bench.core.scheduler.tell_streams()
        reports += bench.core.journal.take_reports()
    (finished,) = [report for report in reports if isinstance(report, Finished)]
    pieces = [report.tokens for report in reports if isinstance(report, Emitted)]
    assert tuple(token for piece in pieces for token in piece) == finished.tokens
    assert len(finished.tokens) == 20
    assert max(map(len, pieces)) == (3 if told else 18)


def test_streams_under_a_limit_get_their_tokens_one_by_one(model: Transformer) -> None:
    """None of which is cut off afterwards."""
    bench = Bench.over(model, core_settings())
    bench.open((0,), Fixed(1), (1, 2, 3))
    bench.generate((0,), 20, stream=True, watcher=MeteredWatcher(None, [Meter(15)]))
    reports = bench.run()
    assert [len(report.tokens) for report in reports if isinstance(report, Emitted)] == [1] * 15


# ---- meters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 30, 59, 60, 61])
def test_a_meter_of_one_thread_is_exact(model: Transformer, most: int) -> None:
    bench = Bench.over(model, core_settings())
    meter = Meter(most)
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.generate((0,), 60, watcher=MeteredWatcher(None, [meter]))
    finished = bench.finished()[0,]
    assert (len(finished.tokens), finished.work.generated, meter.fed) == (min(most, 60),) * 3
    assert finished.reason == ("stop" if most <= 60 else "length")
    assert (bench.longest > 1) == (most > 2)


@settings(max_examples=40)
@given(
    st.integers(1, 150),
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(1, MOST), st.integers(1, 55), st.integers(0, 12)), min_size=1, max_size=6),
    st.sampled_from([1, 7, 64]),
)
def test_meters_that_threads_share_hold(
    model: Transformer, most: int, less: int, threads: list[tuple[int, int, int]], most_ticks: int
) -> None:
    """Threads of other depths and lengths join in while others are in the middle of their runs."""
    bench = Bench.over(model, core_settings(), most_ticks=most_ticks)
    shared, of_some = Meter(most), Meter(less)
    watchers: dict[ThreadPath, MeteredWatcher] = {}
    reports: list[Report] = []
    for number, (depth, tokens, wait) in enumerate(threads):
        for _ in range(wait):
            reports += bench.step()
        meters = [of_some, shared] if number % 2 else [shared]
        watchers[number,] = MeteredWatcher(None, meters)
        bench.open((number,), Fixed(depth), (number, 2, 3))
        bench.generate((number,), tokens, watcher=watchers[number,])
    reports += bench.run()
    finished = {report.thread: report for report in reports if isinstance(report, Finished)}
    assert len(finished) == len(threads), reports
    emitted = {path[0]: len(report.tokens) for path, report in finished.items()}
    assert shared.fed == sum(emitted.values())
    assert of_some.fed == sum(emitted[number] for number in range(1, len(threads), 2))
    for meter, users in ((shared, len(threads)), (of_some, len(threads) // 2)):
        assert meter.fed <= meter.most + max(0, users - 1)
    for path, report in finished.items():
        wanted = threads[path[0]][1]
        assert len(report.logprobs) == len(report.depths) == len(report.tokens)
        assert report.work.generated >= len(report.tokens)
        if watchers[path].exhausted:
            assert shared.fed >= most or (path[0] % 2 and of_some.fed >= less)
            assert report.reason == "stop"
        else:
            assert (len(report.tokens), report.reason) == (wanted, "length")
    limits = [report for report in reports if isinstance(report, Signalled)]
    assert {report.thread for report in limits} == {path for path in watchers if watchers[path].exhausted}
    assert all(report.signal == LIMIT_REACHED for report in limits)
    load = bench.core.statistics()
    for name in ("generated", "computed", "iterations"):
        assert getattr(load, name) == sum(getattr(report.work, name) for report in finished.values()), name


# ---- interrupts and pages -------------------------------------------------------------------------------------------

"""Verify replays on a device: equal where it does the same, and the first difference where it does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from runtime.errors import EngineFailed, TraceError
from runtime.link import events as ev
from runtime.link.commands import Deliver, DeviceFailed, OpenThread, ThreadPath
from tests.traces.strategies import operations
from tests.traces.toy_device import DEPTH, ToyCore, ToyDevice, header, run_program, through_builtins
from traces import Trace, thread_tree, totals_of, walk_threads
from traces.verification import Verification, verify


def fails(path: tuple[int, ...], position: int) -> bool:
    return (sum(path) * 7 + position) % 17 == 16


def recorded(drawn: list[tuple[int, int]], core: ToyCore | None = None) -> Trace:
    core = core or ToyCore(fails=fails)
    run_program(core, drawn)
    return Trace(header=header(), events=through_builtins(core.events), lost=None)


def sampled(trace: Trace) -> list[ev.Sampled]:
    return [event for event in trace.events if isinstance(event, ev.Sampled)]


@given(operations)
@settings(max_examples=60)
def test_the_same_device_does_the_same(drawn: list[tuple[int, int]]) -> None:
    trace = recorded(drawn)
    result = verify(trace, ToyDevice(ToyCore()))
    assert result == Verification(
        threads=totals_of(trace.events).threads,
        calls=sum(bool(call.samples) for record in walk_threads(thread_tree(trace.events)) for call in record.calls),
        tokens=len(sampled(trace)),
        divergence=None,
        not_executed=sum(
            not call.samples for record in walk_threads(thread_tree(trace.events)) for call in record.calls
        ),
    )
    assert result.equal == (result.calls > 0)


@given(operations)
@settings(max_examples=20)
def test_a_cut_off_trace_verifies_as_far_as_it_goes(drawn: list[tuple[int, int]]) -> None:
    whole = recorded(drawn)
    for end in (len(whole.events) // 3, len(whole.events) - 2):
        trace = Trace(header=header(), events=whole.events[:end], lost="truncated")
        result = verify(trace, ToyDevice(ToyCore()))
        assert result.equal == (result.calls > 0)
        assert result.tokens == len(sampled(trace))


def another_token_at(thread: ThreadPath, at: int) -> ToyCore:
    return ToyCore(change=lambda path, position: (int((path, position) == (thread, at)), 0))


@given(operations)
@settings(max_examples=40)
def test_the_first_other_token_is_found(drawn: list[tuple[int, int]]) -> None:
    trace = recorded(drawn)
    for sample in sampled(trace)[:: max(1, len(sampled(trace)) // 3)]:
        place = (sample.thread, sample.position)
        # Another token changes what comes after it; a place may be sampled again after a cut.
        first = next(other for other in sampled(trace) if (other.thread, other.position) == place)
        divergence = verify(trace, ToyDevice(another_token_at(*place))).divergence
        assert divergence is not None
        assert (divergence.thread, divergence.position) == place
        assert (divergence.kind, divergence.expected) == ("token", first.token)
        assert divergence.found == (first.token + 1) % 97
        assert divergence.margin == pytest.approx(0.5)
        assert f"token {first.token} was recorded; now it is {divergence.found}" in divergence.detail


@given(operations)
@settings(max_examples=20)
def test_the_first_other_depth_is_found(drawn: list[tuple[int, int]]) -> None:
    trace = recorded([(0, 0), (2, 1), (3, 35), (7, 0), *drawn])
    sample = sampled(trace)[len(sampled(trace)) // 2]
    place = (sample.thread, sample.position)
    first = next(other for other in sampled(trace) if (other.thread, other.position) == place)
    core = ToyCore(change=lambda path, position: (0, 2 * ((path, position) == place)))
    divergence = verify(trace, ToyDevice(core)).divergence
    assert divergence is not None
    assert (divergence.thread, divergence.position, divergence.kind) == (*place, "depth")
    assert (divergence.expected, divergence.found) == (first.depth, first.depth + 2)


PROGRAM = [(0, 0), (2, 1), (3, 38), (7, 0), (0, 0), (2, 3), (3, 5)]


def test_a_device_that_fails_or_gives_less() -> None:
    trace = recorded(PROGRAM, ToyCore())
    sample = sampled(trace)[1]
    place = (sample.thread, sample.position)
    divergence = verify(trace, ToyDevice(ToyCore(fails=lambda path, position: (path, position) == place))).divergence
    assert divergence is not None
    assert (divergence.thread, divergence.kind) == (sample.thread, "error")
    assert "toy failure" in divergence.detail
    divergence = verify(trace, ToyDevice(ToyCore(context_size=sample.position))).divergence
    assert divergence is not None
    assert (divergence.thread, divergence.position, divergence.kind) == (*place, "length")
    assert (divergence.expected, divergence.found) == (sample.token, None)


class DyingDevice(ToyDevice):
    def start(self, deliver: Deliver) -> None:
        super().start(deliver)
        deliver([DeviceFailed(MemoryError("gone"))])


def test_a_device_that_dies() -> None:
    with pytest.raises(EngineFailed, match="gone") as raised:
        verify(recorded(PROGRAM), DyingDevice(ToyCore()))
    assert isinstance(raised.value.__cause__, MemoryError)


def test_a_policy_that_is_not_known() -> None:
    core = ToyCore()
    core.handle(OpenThread(thread=(0,), seed=0, depth=DEPTH))
    (event,) = through_builtins(core.events)
    assert isinstance(event, ev.ThreadOpened)
    event.depth["type"] = "Levitating"
    with pytest.raises(TraceError, match="'Levitating' is no known DepthPolicy"):
        verify(Trace(header=header(), events=[event], lost=None), ToyDevice(ToyCore()))


def test_a_thread_without_its_beginning() -> None:
    received = ev.Received(time=0.0, thread=(0,), position=0, tokens=(1,))
    with pytest.raises(TraceError, match=r"Thread 0 cannot be executed again: .* before its beginning"):
        verify(Trace(header=header(), events=[received]), ToyDevice(ToyCore()))


def test_a_sampling_that_is_not_known() -> None:
    events = recorded(PROGRAM, ToyCore()).events
    started = next(event for event in events if isinstance(event, ev.GenerateStarted))
    started.sampling["temperature"] = "warm"
    with pytest.raises(TraceError, match="The trace's sampling cannot be used"):
        verify(Trace(header=header(), events=events), ToyDevice(ToyCore()))

"""Trees of threads, totals, and what differs between two traces."""

from __future__ import annotations

import pytest
from hypothesis import given

from runtime.errors import TraceError
from runtime.link import events as ev
from runtime.link.commands import Finished
from tests.traces.strategies import operations
from tests.traces.toy_device import ToyCore, run_program
from traces import imbalances, thread_tree, totals_of, walk_threads
from traces.comparison import diff


def fails(path: tuple[int, ...], position: int) -> bool:
    return (sum(path) * 7 + position) % 17 == 16


@given(operations)
def test_records_hold_what_devices_reported(drawn: list[tuple[int, int]]) -> None:
    core = ToyCore(fails=fails)
    log = run_program(core, drawn)
    records = {record.path: record for record in walk_threads(thread_tree(core.events))}
    opened = {event.thread for event in core.events if isinstance(event, ev.ThreadOpened)}
    assert set(records) == opened
    assert list(records) == sorted(records)
    for path, record in records.items():
        assert [child.path for child in record.children] == [other for other in sorted(opened) if other[:-1] == path]
        finished = [entry for entry in log if isinstance(entry, Finished) and entry.thread == path]
        calls = [call for call in record.calls if call.error is None]
        for call, report in zip(calls, finished, strict=True):
            assert (call.tokens, call.depths, call.reason) == (report.tokens, report.depths, report.reason)
            assert call.work == report.work
        failed = [call for call in record.calls if call.error is not None]
        assert len(failed) == (record.outcome == "failed")
        if path in core.threads and record.segments:
            assert record.segments[0].position + record.received >= 0


@given(operations)
def test_toy_traces_are_balanced_and_what_is_missing_shows(drawn: list[tuple[int, int]]) -> None:
    core = ToyCore(fails=fails)
    log = run_program(core, drawn)
    assert imbalances(core.events) == []
    usage = totals_of(core.events)
    finished = [entry for entry in log if isinstance(entry, Finished)]
    assert usage.generated >= sum(report.work.generated for report in finished)
    assert usage.threads == len({record.path for record in walk_threads(thread_tree(core.events))})
    for kind in (ev.Sampled, ev.Computed, ev.TickDone):
        first = next((event for event in core.events if isinstance(event, kind)), None)
        if first is not None and (not isinstance(first, ev.TickDone) or first.in_flight):
            assert imbalances([event for event in core.events if event is not first]) != []


@given(operations)
def test_every_prefix_has_a_tree(drawn: list[tuple[int, int]]) -> None:
    core = ToyCore()
    run_program(core, drawn)
    for end in range(0, len(core.events), 7):
        events = core.events[:end]
        sampled = sum(record.generated for record in walk_threads(thread_tree(events)))
        assert sampled == totals_of(events).generated
        if events and isinstance(events[-1], ev.TickDone):
            assert imbalances(events) == []


def test_events_of_the_tree_find_their_thread() -> None:
    events: list[ev.AnyEvent] = [
        ev.RunStarted(time=0.0, thread=(3,), prompt="22 26 -> 4"),
        ev.Spawned(time=0.1, thread=(3,), child=None, by_model=True, fork=False, tokens=(5,), reason="no budget"),
        ev.Spawned(time=0.2, thread=(3,), child=(3, 0), by_model=True, fork=False, tokens=(5,), reason=""),
        ev.ThreadEnded(time=0.3, thread=(3, 1, 0), outcome="cancelled", message=(), text="", error="too slow"),
        ev.ThreadOpened(time=0.4, thread=(3,), inherits=None, seed=1, depth=None),
        ev.Joined(time=0.9, thread=(3,), children=((3, 0),), delivered=((3, 0),), cancelled=()),
        ev.ThreadFailed(time=1.0, thread=(3,), error="PolicyError: no"),
    ]
    (root,) = thread_tree(events)
    assert [record.path for record in walk_threads([root])] == [(3,), (3, 0), (3, 1, 0)]
    assert (root.prompt, root.outcome, root.error) == ("22 26 -> 4", "failed", "PolicyError: no")
    assert [spawn.child for spawn in root.spawns] == [None, (3, 0)]
    assert [(wait.started, wait.ended) for wait in root.waits] == [(0.4, 0.9)]
    never_opened, unknown = root.children
    assert (never_opened.first, never_opened.outcome) == (None, None)
    assert (unknown.outcome, unknown.error) == ("cancelled", "too slow")


def test_deep_trees_do_not_recurse() -> None:
    paths = [(0,) * length for length in range(1, 3000)]
    (root,) = thread_tree(ev.ThreadClosed(time=0.0, thread=path) for path in reversed(paths))
    assert [record.path for record in walk_threads([root])] == paths


def test_threads_above_that_are_not_recorded_are_left_out() -> None:
    """A path of n numbers has n threads above it, whose paths alone would take n * n / 2 numbers."""
    deep = (1,) * 20_000
    events = [ev.ThreadClosed(time=0.0, thread=path) for path in (deep, deep[:-2], (1, 0), (2, 7))]
    records = thread_tree(events)
    assert [record.path for record in walk_threads(records)] == [(1, 0), deep[:-2], deep, (2, 7)]
    assert [record.path for record in records] == [(1, 0), deep[:-2], (2, 7)]


def test_events_that_do_not_fit_together() -> None:
    opened = ev.ThreadOpened(time=0.0, thread=(0,), inherits=None, seed=0, depth=None)
    with pytest.raises(TraceError, match="Event 1: thread 0 is opened a second time"):
        thread_tree([opened, opened])
    sampled = ev.Sampled(time=0.0, tick=0, thread=(0, 1), position=0, token=1, depth=1, logprob=0.0)
    with pytest.raises(TraceError, match=r"Event 1: thread 0\.1 samples outside of a generate"):
        thread_tree([opened, sampled])
    started = ev.GenerateStarted(time=0.0, thread=(0,), position=1, max_tokens=1, sampling=None, depth=None)
    for event, what in (
        (started, "begins a generate"),
        (ev.Received(time=0.0, thread=(0,), position=1, tokens=(1,)), "receives tokens"),
        (ev.ThreadClosed(time=0.0, thread=(0,)), "is closed"),
    ):
        with pytest.raises(TraceError, match=f"Event 2: thread 0 {what} within a generate"):
            thread_tree([opened, started, event])


@given(operations)
def test_a_trace_does_not_differ_from_itself(drawn: list[tuple[int, int]]) -> None:
    core = ToyCore()
    run_program(core, drawn)
    assert diff(core.trace(), core.trace()) == []


@given(operations)
def test_a_difference_is_where_it_began(drawn: list[tuple[int, int]]) -> None:
    program = drawn[:3] + [(kind, number) for kind, number in drawn[3:] if kind in (0, 2, 7)]
    core = ToyCore()
    run_program(core, program)
    first = next(event for event in core.events if isinstance(event, ev.Sampled))
    place = (first.thread, first.position)
    other = ToyCore(change=lambda path, position: (int((path, position) == place), 0))
    run_program(other, program)
    differences = {difference.path: difference for difference in diff(core.trace(), other.trace())}
    assert differences[first.thread].position == first.position
    assert differences[first.thread].only_in is None


def test_threads_in_one_trace_only() -> None:
    small, large = ToyCore(), ToyCore()
    run_program(small, [(0, 0), (2, 1), (3, 32)])
    run_program(large, [(0, 0), (2, 1), (3, 32), (0, 1)])
    (only,) = diff(small.trace(), large.trace())
    assert (only.path, only.only_in, only.generated) == ((0, 0), "second", (0, 0))
    (only,) = diff(large.trace(), small.trace())
    assert only.only_in == "first"

"""Damaged traces are read, shown, exported and counted, or refused; `tests.traces.damage` does more of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import msgspec

from policies import Limits
from runtime.link.events import AnyEvent, Spawned, ThreadClosed, ThreadOpened
from tests.traces.damage import damage, framed, recorded, recorded_blocks, use
from traces import read, thread_tree, totals_of, walk_threads


def test_a_trace_that_is_framed_again_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    path.write_bytes(framed(recorded()))
    trace = read(path)
    assert trace.lost is None
    assert len(trace.events) == len(recorded()) - 1 > 20
    path.write_bytes(framed(recorded_blocks()))
    columns = read(path)
    assert columns.lost is None
    assert [type(event) for event in columns.events] == [type(event) for event in trace.events]
    assert totals_of(columns.events).generated == totals_of(trace.events).generated > 20


def test_damaged_traces_are_refused_or_used_within_bounds(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        damage(40, 1, tmp_path)
    finally:
        tracemalloc.stop()


def test_a_path_of_many_numbers_takes_memory_in_proportion(tmp_path: Path) -> None:
    path = tmp_path / "deep.trace"
    closed = ThreadClosed(time=0.0, thread=(1000,) * 20_000)
    path.write_bytes(framed([recorded()[0], msgspec.msgpack.encode(closed)]))
    tracemalloc.start()
    try:
        use(path)
    finally:
        tracemalloc.stop()


def test_a_chain_as_deep_as_trees_may_be_is_read_shown_and_exported(tmp_path: Path) -> None:
    most = Limits().tree_depth
    assert most is not None
    events: list[AnyEvent] = []
    for depth in range(most + 1):
        path = (0,) * (depth + 1)
        events.append(ThreadOpened(time=0.0, thread=path, inherits=None, seed=0, depth=None))
        if depth:
            events.append(
                Spawned(time=0.0, thread=path[:-1], child=path, by_model=True, fork=False, tokens=(1,), reason="")
            )
    events += [
        ThreadClosed(time=0.0, thread=event.thread) for event in reversed(events) if isinstance(event, ThreadOpened)
    ]
    file = tmp_path / "chain.trace"
    file.write_bytes(framed([recorded()[0], *map(msgspec.msgpack.encode, events)]))
    trace = read(file)
    assert trace.lost is None
    assert max(len(record.path) for record in walk_threads(thread_tree(trace.events))) == most + 1 == 1001
    use(file)

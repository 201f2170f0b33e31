"""Damaged traces are read, shown, exported and counted, or refused; `tests.traces.damage` does more of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import msgspec

from runtime.link.events import ThreadClosed
from tests.traces.damage import damage, framed, recorded, use
from traces import read


def test_a_trace_that_is_framed_again_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    path.write_bytes(framed(recorded()))
    trace = read(path)
    assert trace.lost is None
    assert len(trace.events) == len(recorded()) - 1 > 20


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

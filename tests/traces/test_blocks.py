"""What is noted token by token and tick by tick comes out of columns as it went in, in any pieces."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from runtime import TraceError
from runtime.link import AnyEvent, Block, Computed, Notes, Sampled, ThreadClosed, TickClock, TickDone, events_of
from runtime.link.columns import from_planes, from_steps, packed, planes, steps, unpacked
from runtime.link.notes import TickNotes
from tests.traces.toy_device import header
from traces import TraceReader, TraceRecorder, TraceWriter, read
from traces.writer import FRAME, MOST_EXPANSION, dictionary_of

PATHS = [(0,), (0, 0), (0, 1), (7, 300, 2)]
FIRST = 1000
"""Number of the first tick."""


class Noted:
    """Notes, and the events that they stand for."""

    def __init__(self) -> None:
        self.parts = [Notes()]
        self.expected: list[AnyEvent] = []
        self._end = 500

    def call(self, ticks: int, runs: list[tuple[int, int, int]], others: int) -> None:
        """A call of so many ticks in which threads (by index) sampled tokens at positions (thread, position, count)."""
        number = FIRST + sum(isinstance(event, TickDone) for event in self.expected)
        ends = [self._end + 7 * (tick + 1) ** 2 for tick in range(ticks)]
        notes = self.parts[-1]
        for index, position, count in runs:
            path, at = PATHS[index], [number + min(offset, ticks - 1) for offset in range(count)]
            tokens, depths = [3 * position + offset for offset in range(count)], [1 + index] * count
            logprobs = [float(np.float32(-0.1 * offset)) for offset in range(count)]
            times = [ends[tick - number] / 1e6 for tick in at]
            for offset in range(count):
                computed = Computed(
                    time=times[offset],
                    tick=at[offset],
                    thread=path,
                    position=position + offset - 1,
                    count=1,
                    depth=depths[offset],
                    recomputed=False,
                )
                if offset == 0 and position % 2 and position:
                    notes.add_computed(computed)
                if offset or (position % 2 and position):
                    self.expected.append(computed)
                self.expected.append(
                    Sampled(
                        time=times[offset],
                        tick=at[offset],
                        thread=path,
                        position=position + offset,
                        token=tokens[offset],
                        depth=depths[offset],
                        logprob=logprobs[offset],
                    )
                )
            notes.add_tokens(path, position, tokens, depths, logprobs, at)
        for other in range(others):
            event = ThreadClosed(time=0.25 * other, thread=(0, other))
            notes.add(event)
            self.expected.append(event)
        took = np.diff(ends, prepend=self._end - 3).tolist()
        columns = [[number + tick for tick in range(ticks)], [2] * ticks, [tick % 3 for tick in range(ticks)]]
        notes.add_ticks(number, TickNotes(*map(np.array, (ends, took, *columns, [5] * ticks, [9] * ticks))))
        for tick in range(ticks):
            entered, in_flight, left = (column[tick] for column in columns)
            self.expected.append(
                TickDone(
                    time=ends[tick] / 1e6,
                    tick=number + tick,
                    seconds=took[tick] / 1e6,
                    entered=entered,
                    in_flight=in_flight,
                    left=left,
                    waiting=5,
                    pages_used=9,
                )
            )
        self._end = ends[-1] + 11


calls = st.lists(
    st.tuples(
        st.integers(1, 5),
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 900), st.integers(1, 40)), max_size=4),
        st.integers(0, 2),
        st.sampled_from(["on", "part", "record"]),
    ),
    max_size=12,
)


@given(calls)
def test_columns_give_what_was_noted(drawn: list[tuple[int, list[tuple[int, int, int]], int, str]]) -> None:
    noted, records = Noted(), list[Notes]()
    for ticks, runs, others, then in drawn:
        noted.call(ticks, runs, others)
        if then == "part":
            noted.parts.append(Notes())
        elif then == "record":
            records.append(noted.parts[0])
            for part in noted.parts[1:]:
                records[-1].extend(part)
            noted.parts = [Notes()]
    records += noted.parts
    clock, found = TickClock(), list[AnyEvent]()
    for notes in records:
        data = msgspec.msgpack.encode(notes.block())
        found += events_of(msgspec.msgpack.decode(data, type=Block), clock)
    assert found == noted.expected


@given(st.lists(st.integers(-(2**61), 2**61) | st.integers(-300, 300)), st.integers(-5, 5))
def test_columns_hold_any_numbers(numbers: list[int], expected: int) -> None:
    column, other = packed(np.array(numbers, np.int64), np.zeros(len(numbers), np.int64))
    assert unpacked(other, len(numbers)).tolist() == [0] * len(numbers)
    assert unpacked(column, len(numbers)).tolist() == numbers
    assert from_steps(steps(np.array(numbers, np.int64), expected), expected).tolist() == numbers
    for wrong in (column[:-1], column + b"\0", b"\3" + column[1:], b""):
        with pytest.raises(ValueError, match="a column of"):
            unpacked(wrong, len(numbers))


@given(st.lists(st.floats(width=32)))
def test_planes_hold_any_floats(values: list[float]) -> None:
    array = np.array(values, "<f4")
    assert from_planes(planes(array), "<f4").tobytes() == array.tobytes()


def some_block() -> Block:
    noted = Noted()
    noted.call(3, [(0, 5, 4), (3, 1, 2)], 1)
    return noted.parts[0].block()


@pytest.mark.parametrize("field", [field for field in Block.__struct_fields__ if field not in ("started", "number")])
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, field: str) -> None:
    """By one that is a step or a byte off; nothing that no engine writes comes out."""
    block = some_block()
    value = getattr(block, field)
    wrong: object
    if field == "logprob":
        wrong = value[:-1]
    elif isinstance(value, bytes):
        (wrong,) = packed(np.full(len(value[1:]) // value[0], -(2**60)))
    else:
        wrong = value[:-1] if isinstance(value, list) else value + 1
    with pytest.raises(ValueError, match=r"column|range|out of order|not recorded|log-prob|beginning|cannot reshape"):
        events_of(msgspec.structs.replace(block, **{field: wrong}), TickClock())


def test_ticks_follow_one_another() -> None:
    clock = TickClock()
    list(events_of(some_block(), clock))
    with pytest.raises(ValueError, match="tick 1000 follows tick 1002"):
        events_of(some_block(), clock)


def test_a_recorder_writes_what_it_takes_and_then_does_what_follows(tmp_path: Path) -> None:
    path, noted, done = tmp_path / "run.trace", Noted(), list[int]()
    recorder = TraceRecorder(path, header(compression="zstd"))
    for number in range(20):
        noted.call(2, [(0, 3 * number + 1, 3)], 1)
        recorder.take(noted.parts[-1])
        noted.parts.append(Notes())
        recorder.afterwards(lambda: done.append(len(read(path).events)), is_urgent=number % 2 == 0)
    recorder.close()
    trace = read(path)
    assert trace.lost is None
    assert trace.events == noted.expected
    assert done == sorted(done)
    each = len(noted.expected) // 20
    assert all(seen >= each * (number + 1) for number, seen in enumerate(done))


def test_what_precedes_an_event_that_cannot_be_encoded_is_written(tmp_path: Path) -> None:
    class Unwritable(ThreadClosed, frozen=True, kw_only=True):
        secret: object

    path, noted = tmp_path / "run.trace", Noted()
    noted.call(2, [(0, 1, 3)], 1)
    noted.parts[0].add(Unwritable(time=0.0, thread=(0,), secret=object()))
    before = len(noted.expected)
    noted.call(2, [(0, 4, 3)], 1)
    recorder = TraceRecorder(path, header(compression="zstd"))
    recorder.take(noted.parts[0])
    with pytest.raises(TraceError, match="Unwritable cannot be encoded"):
        recorder.close()
    trace = read(path)
    assert trace.lost is not None
    assert trace.events == noted.expected[:before]


def test_a_frame_says_no_more_than_its_bytes_may_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    same = [ThreadClosed(time=0.0, thread=(0,))] * 20_000
    with TraceWriter(path, header(compression="zstd")) as writer:
        writer.write_many(same)
    with TraceReader(path) as reader:
        assert list(reader) == same
    whole = path.read_bytes()
    payload = msgspec.msgpack.encode(header(compression="zstd"))
    frame = zstandard.ZstdCompressor(dict_data=dictionary_of(payload)).compress(bytes(10_000_000))
    assert len(frame) * MOST_EXPANSION < 10_000_000
    checksum = FRAME.unpack(whole[16:24])
    start = 16 + 8 + checksum[0]

    length = len(frame).to_bytes(4, "little")
    path.write_bytes(whole[:start] + FRAME.pack(len(frame), zlib.crc32(frame, zlib.crc32(length))) + frame)
    with pytest.raises(TraceError, match="compressed bytes say that they are"):
        read(path)

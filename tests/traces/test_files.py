"""Writing and reading: every way in which a file can end or be damaged."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given

from runtime.errors import TraceError
from runtime.link import events as ev
from tests.traces.strategies import operations
from tests.traces.toy_device import ToyCore, header, run_program, through_builtins
from traces import Trace, TraceReader, TraceWriter, read
from traces.writer import FRAME, MAGIC

CLOSED: list[ev.AnyEvent] = [ev.ThreadClosed(time=number / 10, thread=(0, number)) for number in range(6)]


def write(path: Path, events: Sequence[ev.Event]) -> bytes:
    with TraceWriter(path, header()) as writer:
        writer.write_many(events[:2])
        for event in events[2:]:
            writer.write(event)
    return path.read_bytes()


@given(operations)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int]]) -> None:
    core = ToyCore()
    run_program(core, drawn)
    path = tmp_path_factory.mktemp("trace") / "run.trace"
    write(path, core.events)
    assert read(path) == Trace(header=header(), events=through_builtins(core.events), lost=None)


def test_truncation_at_every_byte_gives_a_prefix_and_says_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    data = write(path, CLOSED)
    first_event = len(MAGIC) + FRAME.size + FRAME.unpack_from(data, len(MAGIC))[0]
    seen = set()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if length < first_event:
            with pytest.raises(TraceError, match=r"header cannot be read|not even the first"):
                read(path)
            continue
        trace = read(path)
        assert trace.events == CLOSED[: len(trace.events)]
        assert trace.lost is not None
        assert f"byte {length}" in trace.lost
        assert ("truncated" in trace.lost) != ("without its end mark" in trace.lost)
        seen.add(len(trace.events))
    assert seen == set(range(len(CLOSED) + 1))


def test_any_flipped_bit_is_found_and_everything_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    data = write(path, CLOSED)
    ends = record_ends(data)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        if at < ends[0]:
            with pytest.raises(TraceError):
                read(path)
            continue
        trace = read(path)
        assert trace.lost is not None
        assert trace.events == CLOSED[: sum(end <= at for end in ends) - 1]


def record_ends(data: bytes) -> list[int]:
    ends, at = [], len(MAGIC)
    while at < len(data):
        at += FRAME.size + FRAME.unpack_from(data, at)[0]
        ends.append(at)
    return ends


def test_a_tail_of_zeros_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    data = write(path, CLOSED)
    path.write_bytes(data[: record_ends(data)[3]] + bytes(100))
    trace = read(path)
    assert trace.events == CLOSED[:3]
    assert trace.lost is not None
    assert "checksum wrong at record 4" in trace.lost


def test_bytes_after_the_end_mark_are_told(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    path.write_bytes(write(path, CLOSED) + b"more")
    trace = read(path)
    assert trace.events == CLOSED
    assert trace.lost is not None
    assert "4 bytes follow the end mark" in trace.lost


def test_a_killed_writer_loses_nothing_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    program = (
        "import os, signal, sys\n"
        "from tests.traces.test_files import CLOSED\n"
        "from tests.traces.toy_device import header\n"
        "from traces import TraceWriter\n"
        "writer = TraceWriter(sys.argv[1], header())\n"
        "writer.write(CLOSED[0])\n"
        "writer.write_many(CLOSED[1:4])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, check=False)
    assert ended.returncode == -signal.SIGKILL
    trace = read(path)
    assert trace.events == CLOSED[:4]
    assert trace.lost is not None
    assert "its writer was killed or is still writing" in trace.lost


def test_reading_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    writer = TraceWriter(path, header())
    writer.write(CLOSED[0])
    with TraceReader(path) as reader:
        assert next(events := iter(reader)) == CLOSED[0]
        writer.write(CLOSED[1])
        writer.flush()
        assert list(events) == CLOSED[1:2]
        assert reader.lost is not None
    writer.close()
    assert read(path).lost is None


def test_an_event_of_a_newer_version_is_an_error(tmp_path: Path) -> None:
    class Levitated(ev.Event, frozen=True, kw_only=True):
        height: float

    path = tmp_path / "run.trace"
    write(path, [CLOSED[0], Levitated(time=0.0, height=1.0)])
    with pytest.raises(TraceError, match="record 2 is intact but holds no events that this version knows"):
        read(path)


def test_newer_fields_are_skipped(tmp_path: Path) -> None:
    class Newer(ev.Event, frozen=True, kw_only=True, tag="ThreadClosed"):
        thread: tuple[int, ...]
        mood: str = "calm"

    path = tmp_path / "run.trace"
    write(path, [Newer(time=0.0, thread=(0, 0))])
    assert read(path).events == [CLOSED[0]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes"),
        (b"braid-tr", "has 8 bytes"),
        (b"PK\x03\x04 and so on and so on", "not a Braid trace"),
        (b"braid-trace 0002 and so on", "has trace format 2; this version reads format 3"),
    ],
)
def test_not_a_trace(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=message):
        read(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="Cannot read the trace"):
        read(tmp_path / "none")
    with pytest.raises(TraceError, match="Cannot read the trace"):
        read(tmp_path)
    with pytest.raises(TraceError, match="Cannot write a trace"):
        TraceWriter(tmp_path, header())
    with pytest.raises(TraceError, match="Cannot write a trace"):
        TraceWriter(tmp_path / "none" / "run.trace", header())


def test_a_trace_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    data = write(path, CLOSED)
    with pytest.raises(TraceError, match="overwrite=True"):
        TraceWriter(path, header())
    assert path.read_bytes() == data
    TraceWriter(path, header(), overwrite=True).close()
    assert read(path).events == []
    (tmp_path / "empty").touch()
    TraceWriter(tmp_path / "empty", header()).close()


def test_a_closed_writer(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run.trace", header())
    before = writer.now()
    assert 0 <= before <= writer.now()
    writer.write_many([])
    writer.close()
    writer.close()
    with pytest.raises(TraceError, match="is closed"):
        writer.write(CLOSED[0])


def test_a_header_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="writes trace format 3; the header says 2"):
        TraceWriter(tmp_path / "run.trace", header(format=2))


def test_a_full_disk_ends_the_trace_after_what_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.trace"
    writer = TraceWriter(path, header())
    writer.write(CLOSED[0])
    real_write = os.write
    room = [50]

    def write_some(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = real_write(file, bytes(data)[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write_some)
        with pytest.raises(TraceError, match="No space left on device"):
            writer.write_many(CLOSED[1:])
    with pytest.raises(TraceError, match=r"Cannot write on .* what comes after is lost"):
        writer.write(CLOSED[2])
    writer.close()
    trace = read(path)
    assert trace.events == CLOSED[: 1 + 50 // (FRAME.size + len(msgspec.msgpack.encode(CLOSED[1])))]
    assert trace.lost is not None


def test_what_cannot_be_encoded_ends_the_trace_after_what_could(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    writer = TraceWriter(path, header())
    opened = ev.ThreadOpened(time=0.0, thread=(0,), inherits=None, seed=0, depth=object())
    with pytest.raises(TraceError, match=r"ThreadOpened cannot be encoded: .*unsupported"):
        writer.write_many([CLOSED[0], opened, CLOSED[1]])
    writer.close()
    assert read(path).events == CLOSED[:1]
    assert read(path).lost is not None
    large = ev.RunStarted(time=0.0, thread=(0,), prompt="x" * ev.LARGEST_RECORD)
    with TraceWriter(tmp_path / "large.trace", header()) as writer, pytest.raises(TraceError, match="holds at most"):
        writer.write(large)


def test_texts_from_outside_are_made_encodable(tmp_path: Path) -> None:
    path, text = tmp_path / "run.trace", "caf\udce9 \ud83d \u00e9"
    failed = ev.ThreadFailed(time=0.0, thread=(0,), error=text)
    events = [
        failed,
        ev.RunStarted(time=0.0, thread=(0,), prompt=text),
        ev.Spawned(time=0.0, thread=(0,), child=None, by_model=True, fork=False, tokens=(), reason=text),
        ev.ThreadEnded(time=0.0, thread=(0,), outcome="failed", message=(), text=text, error=text),
    ]
    with TraceWriter(path, header()) as writer:
        writer.write_many(events)
    assert read(path).events == events
    assert failed.error == r"caf\udce9 \ud83d " + "\u00e9"


def test_a_body_that_raises_leaves_no_end_mark(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"

    def fail() -> None:
        with TraceWriter(path, header()) as writer:
            writer.write(CLOSED[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (read(path).events, read(path).lost is None) == (CLOSED[:1], False)


def test_one_writer_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    writer = TraceWriter(path, header())
    for overwrite in (False, True):
        with pytest.raises(TraceError, match="Another writer is recording to"):
            TraceWriter(path, header(), overwrite=overwrite)
    writer.write(CLOSED[0])
    writer.close()
    assert read(path) == Trace(header=header(), events=CLOSED[:1])
    TraceWriter(path, header(), overwrite=True).abandon()
    TraceWriter(path, header(), overwrite=True).close()


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null"), tmp_path):
        with pytest.raises(TraceError, match="not a regular file"):
            TraceWriter(path, header(), overwrite=True)
        with pytest.raises(TraceError, match="not a regular file"):
            read(path)


class FailsAt(io.FileIO):
    """Its reads fail from the n-th on."""

    left = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 1:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    path = tmp_path / "run.trace"
    write(path, CLOSED)

    def failing(*arguments: object, **options: object) -> FailsAt:
        file = FailsAt(path)
        file.left = nth
        return file

    monkeypatch.setattr("traces.reader.open", failing, raising=False)
    with pytest.raises(TraceError, match=r"run\.trace: Input/output error\."):
        read(path)


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.trace"
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real_write(file, bytes(data)[:3]))
    write(path, CLOSED)
    assert read(path).events == CLOSED

"""Damaging traces at random, and doing with them all that is done with a trace, within a bound of memory.

python -m tests.traces.damage --times 8000
"""

from __future__ import annotations

import argparse
import io
import sys
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import zstandard
from opentelemetry.sdk.trace import TracerProvider
from rich.console import Console

from runtime.errors import BraidError
from runtime.link import (
    AnyEvent,
    Block,
    Computed,
    Event,
    Header,
    Notes,
    Sampled,
    Spawned,
    ThreadEnded,
    TickDone,
    ToolCalled,
)
from runtime.link.blocks import MICROSECONDS
from runtime.link.notes import TickNotes
from tests.damage import damaged_bytes
from tests.traces.toy_device import ToyCore, ToyDevice, header, run_program
from traces import Playback, Trace, frame, imbalances, read, thread_lines, totals_of
from traces.comparison import diff
from traces.otel import record_spans
from traces.printing import show
from traces.verification import verify
from traces.viewer_format import exported
from traces.writer import END_MARK, FRAME, MAGIC, MOST_EXPANSION, dictionary_of

BYTES_FOR_A_BYTE = 1000
"""Of memory, for one of the file: the smallest events become a thread of the tree, and lines of an exported one."""

LEAST_BYTES = 30_000_000
"""What may be taken whatever the file."""

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**53, 2**63, -(2**63), 1e308, float("nan"), float("inf"), "", "\x1b[2J", "x" * 5000,
    b"x", [], {}, {"type": "Fixed"}, [0] * 3000, list(range(500)), [[]] * 100, {"a": {"b": {}}}, {(1, 2): 3}, {1: 2},
    msgspec.msgpack.Ext(5, b"x"), "Sampled", "ThreadOpened",
)  # fmt: skip
"""Values that some field of some event does not expect."""


def recorded() -> list[bytes]:
    """The payloads of a trace of some threads, one of which calls a tool."""
    core = ToyCore()
    part = [(0, 1), (2, 1), (3, 38), (7, 0), (1, 0), (2, 3), (3, 5), (7, 0), (3, 17), (4, 2)]
    run_program(core, [(0, 0), (2, 1), (3, 38), *part * 4])
    middle = len(core.events) // 2
    events = [*core.events[:middle], *called_tool(core.events[middle].time), *core.events[middle:]]
    return [msgspec.msgpack.encode(each) for each in (header(), *events)]


def called_tool(time: float) -> list[Event]:
    """A call of a tool."""
    path = (0, 90)
    return [
        Spawned(time=time, thread=(0,), child=path, by_model=True, fork=False, tokens=(), reason=""),
        ToolCalled(time=time, thread=path, name="add", arguments='{"one": 1}'),
        ThreadEnded(time=time, thread=path, outcome="returned", message=(), text="2", error=""),
    ]


def recorded_blocks() -> list[bytes]:
    """The same in columns, some events a record, to be compressed."""
    head, *rest = recorded()
    events = [msgspec.msgpack.decode(payload, type=AnyEvent) for payload in rest]
    blocks, notes = list[Block](), Notes()
    for event in events:
        match event:
            case Sampled(entropy=None, top_logprobs=None):
                row = (event.token,), (event.depth,), (event.logprob,), (event.tick,)
                notes.add_tokens(event.thread, event.position, *row)
            case Computed():
                notes.add_computed(event)
            case TickDone():
                end, took = int(event.time * MICROSECONDS), int(event.seconds * MICROSECONDS)
                others = event.entered, event.in_flight, event.left, event.waiting, event.pages_used
                notes.add_ticks(event.tick, TickNotes(*(np.array([each]) for each in (end, took, *others))))
                if notes.size > 15:
                    blocks.append(notes.block())
                    notes = Notes()
            case _:
                notes.add(event)
    # The toy ends with a tick, and tells tokens by those.
    assert not notes.size or notes.events
    blocks.append(notes.block())
    compressed = msgspec.structs.replace(msgspec.msgpack.decode(head, type=Header), compression="zstd")
    return [msgspec.msgpack.encode(compressed), *map(msgspec.msgpack.encode, blocks)]


def framed(payloads: list[bytes]) -> bytes:
    """The file of these payloads, compressed as writers do where the first, the header, says so; checksums right."""
    data = bytearray(MAGIC)
    compressor = zstandard.ZstdCompressor(dict_data=dictionary_of(payloads[0])) if b"zstd" in payloads[0] else None
    for number, payload in enumerate(payloads):
        if number and compressor is not None:
            payload = compressor.compress(payload).ljust(-(-len(payload) // MOST_EXPANSION), b"\0")
        length = len(payload).to_bytes(4, "little")
        data += FRAME.pack(len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload
    return bytes(data + END_MARK)


def damaged_trace(payloads: list[bytes], random: Random) -> bytes:
    """A file in which bytes, records, values, their nesting or the order of records are damaged."""
    kind = random.randrange(5)
    if kind == 0:
        return damaged_bytes(framed(payloads), random)
    payloads = list(payloads)
    for _ in range(random.choice((1, 1, 3, 20))):
        at, other = random.randrange(len(payloads)), random.randrange(len(payloads))
        if kind == 1:
            payloads[at] = damaged_bytes(payloads[at], random)
        elif kind == 2:
            with suppress(TypeError, OverflowError, msgspec.DecodeError):  # what was made of it before
                payloads[at] = msgspec.msgpack.encode(_damaged_value(msgspec.msgpack.decode(payloads[at]), random))
        elif kind == 3:
            payloads[at], payloads[other] = payloads[other], payloads[at]
        else:
            payloads[at] = payloads[at].replace(b"\xc0", b"\x91" * random.choice((10, 300, 5000)) + b"\xc0", 1)
    return framed(payloads)


def _damaged_value(value: Any, random: Random) -> Any:
    """The value with one inside it replaced, taken out or doubled."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(HOSTILE)
    if isinstance(value, dict):
        key = random.choice(list(value))
        return {**value, key: _damaged_value(value[key], random)}
    at = random.randrange(len(value))
    kept = random.choice(([], [value[at]] * 2, *[[_damaged_value(value[at], random)]] * 6))
    return [*value[:at], *kept, *value[at + 1 :]]


def use(path: Path) -> None:
    """Raises what is a fault: any error but a `BraidError`; `MemoryError` where it took more than its size allows."""
    most = LEAST_BYTES + BYTES_FOR_A_BYTE * path.stat().st_size
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with suppress(BraidError):
        trace = read(path)
        for function in (_show, _export, _account, Playback, _verify, _lines, _tables, _spans):
            with suppress(BraidError):
                function(trace)
    if tracemalloc.is_tracing() and tracemalloc.get_traced_memory()[1] - before > most:
        raise MemoryError(f"{path} has {path.stat().st_size} bytes, and more than {most} were taken for it.")


def _show(trace: Trace) -> None:
    show(trace, Console(file=io.StringIO(), width=100))


def _export(trace: Trace) -> None:
    msgspec.json.decode(b"".join(exported(trace)))


def _account(trace: Trace) -> None:
    totals_of(trace.events)
    imbalances(trace.events)
    diff(trace, trace)


def _lines(trace: Trace) -> None:
    for line in thread_lines(trace.events):
        msgspec.json.decode(line)


def _tables(trace: Trace) -> None:
    for by in ("thread", "token", "tick"):
        frame(trace, by=by)


def _spans(trace: Trace) -> None:
    record_spans(trace, TracerProvider().get_tracer("damage"))


def _verify(trace: Trace) -> None:
    verify(trace, ToyDevice(ToyCore()))


def damage(times: int, seed: int, directory: Path) -> None:
    """Damages a trace so many times and uses each; raises the first fault, with the number of the damage."""
    kinds = recorded(), recorded_blocks()
    for number in range(times):
        path = directory / "damaged.trace"
        path.write_bytes(damaged_trace(kinds[number % 2], Random(f"{seed} {number}")))
        try:
            use(path)
        except BaseException as error:
            error.add_note(f"Damage {number} of seed {seed}.")
            raise


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.traces.damage", description=__doc__)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tracemalloc.start()
    with TemporaryDirectory() as directory:
        damage(options.times, options.seed, Path(directory))
    print(f"{options.times} damaged traces: each was read, or refused as what it is")
    return 0


if __name__ == "__main__":
    sys.exit(main())

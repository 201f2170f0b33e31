"""A trace in the Trace Event Format, which Perfetto and chrome://tracing open: a track for each reasoning thread.

    process "engine"    counter tracks: tokens in flight, threads waiting, pages used
    process "tree N"    one track a reasoning thread, named by its path: its life, and within it its generates (prefill,
                        then decode) and its waits at joins, or a call of a tool; arrows from spawn to child and from
                        child to join

Times in that format are microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec

from runtime.console import escaped_json
from runtime.link import MessageSent, MessagesReceived, Posted, ThreadPath, TickDone, Trace
from traces.generate_record import GenerateRecord
from traces.mail import Delivery, deliveries
from traces.tree import ThreadRecord, path_name, thread_tree, walk_threads

ENGINE = 1
"""Process number of the counters; trees follow. Viewers take 0 for the system's idle process."""

EVENTS_AT_ONCE = 1000

TraceEvent = dict[str, Any]


def export(trace: Trace) -> bytes:
    """The trace as a JSON object with `traceEvents`, to be written to a file that a viewer opens.

    ASCII control characters are escaped as JSON has it, and so are all others that a terminal would act on.
    """
    return b"".join(exported(trace))


def exported(trace: Trace) -> Iterator[bytes]:
    """`export`, part by part."""
    about = {
        "displayTimeUnit": "ms",
        "otherData": {
            "checkpoint": trace.header.checkpoint,
            "fingerprint": trace.header.fingerprint,
            "seed": trace.header.seed,
            "policy": trace.header.policy,
            "engine": trace.header.engine,
            "versions": trace.header.versions,
            "lost": trace.lost,
        },
    }
    yield escaped_json(msgspec.json.encode(about)[:-1] + b',"traceEvents":[')
    events = trace_events(trace)
    separator = b""
    while some := list(islice(events, EVENTS_AT_ONCE)):
        yield separator + escaped_json(msgspec.json.encode(some)[1:-1])
        separator = b","
    yield b"]}"


def trace_events(trace: Trace) -> Iterator[TraceEvent]:
    """The single events, in no particular order of time."""
    yield from _counters(trace)
    tracks: dict[ThreadPath, _Track] = {}
    for tree, root in enumerate(thread_tree(trace.events)):
        process = ENGINE + 1 + tree
        yield _metadata("process_name", process, 0, {"name": f"tree {path_name(root.path)}"})
        yield _metadata("process_sort_index", process, 0, {"sort_index": process})
        for order, record in enumerate(walk_threads([root])):
            tracks[record.path] = _Track(process, len(tracks) + 1, order, record)
    for track in tracks.values():
        yield from track.events()
    yield from _arrows(tracks, deliveries(trace.events))


class _Track:
    """One thread's track."""

    def __init__(self, process: int, number: int, order: int, record: ThreadRecord) -> None:
        self.process = process
        self.number = number
        self.order = order
        self.record = record
        self.start = _microseconds(record.first or 0.0)
        self.end = _microseconds(record.last or 0.0)

    def events(self) -> Iterator[TraceEvent]:
        record = self.record
        yield _metadata("thread_name", self.process, self.number, {"name": path_name(record.path)})
        yield _metadata("thread_sort_index", self.process, self.number, {"sort_index": self.order})
        if record.first is None:
            return
        if record.tool is not None:
            about = {"arguments": record.tool.arguments, "result": record.text}
            about |= {"outcome": record.outcome or "", "error": record.error}
            yield self.slice(f"tool {record.tool.name}", "tool", self.start, self.end, about)
            return
        yield self.slice(
            f"thread {path_name(record.path)}",
            "thread",
            self.start,
            self.end,
            {
                "outcome": record.outcome,
                "error": record.error,
                "received": record.received,
                "generated": record.generated,
                "iterations": record.iterations,
                "prompt": record.prompt,
                "text": record.text,
            },
        )
        for call in record.calls:
            yield from self._call(call)
        for wait in record.waits:
            yield self.slice(
                "waiting at join",
                "join",
                _microseconds(wait.started),
                _microseconds(wait.ended),
                {
                    "delivered": [path_name(path) for path in wait.joined.delivered],
                    "cancelled": [path_name(path) for path in wait.joined.cancelled],
                },
            )
        for spawn in record.spawns:
            if spawn.child is None:
                yield self.instant("spawn refused", spawn.time, {"reason": spawn.reason})
        for event in record.mail:
            yield self._mail(event)
        for eviction in record.evictions:
            yield self.instant("evicted", eviction.time, {"pages": eviction.pages})

    def _mail(self, event: MessageSent | Posted | MessagesReceived) -> TraceEvent:
        match event:
            case MessageSent():
                args = {"to": path_name(event.to), "text": event.text, "error": event.error or None}
                return self.instant("message sent", event.time, args)
            case Posted():
                return self.instant("posted", event.time, {"text": event.text})
            case MessagesReceived():
                senders = [path_name(sender) for sender in event.senders]
                return self.instant("messages received", event.time, {"senders": senders, "posts": event.posts})

    def _call(self, call: GenerateRecord) -> Iterator[TraceEvent]:
        start = _microseconds(call.started)
        end = self.end if call.ended is None else _microseconds(call.ended)
        first = _microseconds(call.samples[0].time) if call.samples else end
        depths = [sample.depth for sample in call.samples]
        kind = "score" if call.scores else "generate"
        yield self.slice(
            kind,
            kind,
            start,
            end,
            {
                "position": call.position,
                "reason": call.reason,
                "error": call.error,
                "mean depth": sum(depths) / len(depths) if depths else None,
                **({"generated": len(call.samples)} if call.work is None else msgspec.structs.asdict(call.work)),
            },
        )
        yield self.slice("prefill", "prefill", start, first, {})
        if call.samples:
            yield self.slice("decode", "decode", first, end, {"tokens": [sample.token for sample in call.samples]})

    def slice(self, name: str, category: str, start: float, end: float, args: dict[str, Any]) -> TraceEvent:
        """A complete event. Those of one track nest, since each lies within the thread's life."""
        return {
            "ph": "X",
            "name": name,
            "cat": category,
            "pid": self.process,
            "tid": self.number,
            "ts": start,
            "dur": round(end - start, 3),
            "args": args,
        }

    def instant(self, name: str, time: float, args: dict[str, Any]) -> TraceEvent:
        return {
            "ph": "i",
            "s": "t",
            "name": name,
            "cat": "thread",
            "pid": self.process,
            "tid": self.number,
            "ts": _microseconds(time),
            "args": args,
        }

    def arrow_end(self, phase: str, name: str, number: int, time: float) -> TraceEvent:
        """One end of an arrow ("s" starts it, "f" ends it), bound to the slice around it."""
        event = {
            "ph": phase,
            "name": name,
            "cat": name,
            "id": number,
            "pid": self.process,
            "tid": self.number,
            "ts": min(max(_microseconds(time), self.start), self.end),
        }
        return event | {"bp": "e"} if phase == "f" else event


def _arrows(tracks: dict[ThreadPath, _Track], delivered: Iterable[Delivery]) -> Iterator[TraceEvent]:
    number = 0
    for track in tracks.values():
        for spawn in track.record.spawns:
            child = tracks.get(spawn.child) if spawn.child is not None else None
            if child is not None and child.record.first is not None:
                number += 1
                yield track.arrow_end("s", "spawn", number, spawn.time)
                yield child.arrow_end("f", "spawn", number, max(spawn.time, child.record.first))
        for wait in track.record.waits:
            for path in wait.joined.delivered:
                child = tracks.get(path)
                if child is not None and child.record.last is not None:
                    number += 1
                    yield child.arrow_end("s", "join", number, min(child.record.last, wait.ended))
                    yield track.arrow_end("f", "join", number, wait.ended)
    for delivery in delivered:
        number += 1
        name = "post" if delivery.is_posted else "message"
        yield tracks[delivery.sender].arrow_end("s", name, number, delivery.sent)
        yield tracks[delivery.to].arrow_end("f", name, number, delivery.received)


def _counters(trace: Trace) -> Iterator[TraceEvent]:
    yield _metadata("process_name", ENGINE, 0, {"name": "engine"})
    yield _metadata("process_sort_index", ENGINE, 0, {"sort_index": ENGINE})
    known: dict[str, int] = {}
    for event in trace.events:
        if isinstance(event, TickDone):
            time = _microseconds(event.time)
            for name, value in (
                ("tokens in flight", event.in_flight),
                ("threads waiting", event.waiting),
                ("pages used", event.pages_used),
            ):
                # Viewers draw a counter as it was until it is said to be another.
                if known.get(name) != value:
                    known[name] = value
                    yield {"ph": "C", "name": name, "pid": ENGINE, "tid": 0, "ts": time, "args": {"value": value}}


def _metadata(name: str, process: int, thread: int, args: dict[str, Any]) -> TraceEvent:
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "ts": 0, "args": args}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)

"""A trace as lines of JSON, a thread each, in the order in which they were over; see `docs/traces.md` for the fields.

Events are read one after the other, and a thread is forgotten once its line is given: memory is that of the threads
that are open at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from runtime.console import escaped_json
from runtime.link import (
    AnyEvent,
    MessageSent,
    MessagesReceived,
    Posted,
    Spawned,
    ThreadClosed,
    ThreadEnded,
    ThreadPath,
    TickDone,
    ToolCalled,
)
from traces.generate_record import GenerateRecord
from traces.tree import ThreadRecord, path_name, thread_tree


def thread_lines(events: Iterable[AnyEvent]) -> Iterator[bytes]:
    """A line for each thread, newline included.

    Raises `TraceError` for events that do not fit together. Time is linear in what the events hold.
    """
    encoder = msgspec.json.Encoder()
    for record in ended_threads(events):
        yield escaped_json(encoder.encode(thread_fields(record))) + b"\n"


def ended_threads(events: Iterable[AnyEvent]) -> Iterator[ThreadRecord]:
    """Each thread when it is closed, or a tool's call when it is over, and at the end those that were not, by path;
    none has its children in it."""
    own: dict[ThreadPath, list[AnyEvent]] = {}
    for event in events:
        if isinstance(event, TickDone):
            continue
        own.setdefault(event.thread, []).append(event)
        if isinstance(event, Spawned) and event.child is not None:
            own.setdefault(event.child, [])
        is_over = isinstance(event, ThreadClosed) or (
            # A call of a tool is never opened.
            isinstance(event, ThreadEnded) and isinstance(own[event.thread][0], ToolCalled)
        )
        if is_over:
            yield _record_of(event.thread, own.pop(event.thread))
    for path in sorted(own):
        yield _record_of(path, own[path])


def _record_of(path: ThreadPath, events: list[AnyEvent]) -> ThreadRecord:
    """Of one thread; one that has no event was asked for, and the trace ends before it was opened."""
    if events:
        return msgspec.structs.replace(thread_tree(events)[0], children=())
    return msgspec.structs.replace(thread_tree([_nothing(path)])[0], spawns=(), first=None, last=None)


def _nothing(path: ThreadPath) -> AnyEvent:
    return Spawned(time=0.0, thread=path, child=None, by_model=False, fork=False, tokens=(), reason="")


def thread_fields(record: ThreadRecord) -> dict[str, Any]:
    """What a line says of a thread; times are seconds since the trace's beginning."""
    return {
        "thread": path_name(record.path),
        "parent": path_name(record.path[:-1]) or None,
        "inherits": None if record.inherits is None else path_name(record.inherits),
        "seed": record.seed,
        "depth_policy": record.depth,
        "prompt": record.prompt,
        "tool": None if record.tool is None else record.tool.name,
        "arguments": None if record.tool is None else record.tool.arguments,
        "opened": record.opened,
        "closed": record.closed,
        "outcome": record.outcome,
        "error": record.error or None,
        "text": record.text,
        "message": record.message,
        "received_tokens": record.received,
        "generated_tokens": record.generated,
        "iterations": record.iterations,
        "mean_depth": record.mean_depth if record.generated else None,
        "evictions": len(record.evictions),
        "received": [
            {"time": receipt.time, "position": receipt.position, "tokens": receipt.tokens}
            for receipt in record.receipts
        ],
        "generates": [_generate_fields(call) for call in record.calls],
        "spawns": [
            {
                "time": spawn.time,
                "child": None if spawn.child is None else path_name(spawn.child),
                "by_model": spawn.by_model,
                "fork": spawn.fork,
                "tokens": spawn.tokens,
                "reason": spawn.reason or None,
            }
            for spawn in record.spawns
        ],
        "joins": [
            {
                "started": wait.started,
                "ended": wait.ended,
                "children": [path_name(child) for child in wait.joined.children],
                "delivered": [path_name(child) for child in wait.joined.delivered],
                "cancelled": [path_name(child) for child in wait.joined.cancelled],
            }
            for wait in record.waits
        ],
        "mail": [_mail_fields(event) for event in record.mail],
    }


def _mail_fields(event: MessageSent | Posted | MessagesReceived) -> dict[str, Any]:
    match event:
        case MessageSent():
            return {
                "time": event.time,
                "kind": "sent",
                "to": path_name(event.to),
                "text": event.text,
                "error": event.error or None,
            }
        case Posted():
            return {"time": event.time, "kind": "posted", "text": event.text}
        case MessagesReceived():
            senders = [path_name(sender) for sender in event.senders]
            return {"time": event.time, "kind": "received", "senders": senders, "posts": event.posts}


def _generate_fields(call: GenerateRecord) -> dict[str, Any]:
    """Of what was sampled, all that stayed in the context; NaN is null."""
    kept = call.kept
    return {
        "started": call.started,
        "ended": call.ended,
        "position": call.position,
        "max_tokens": call.max_tokens,
        "sampling": call.sampling,
        "constraint": None if call.constraint is None else msgspec.to_builtins(call.constraint),
        "reason": call.reason,
        "error": call.error,
        "tokens": [sample.token for sample in kept],
        "depths": [sample.depth for sample in kept],
        "logprobs": [sample.logprob for sample in kept],
        "scored_tokens": [sample.token for sample in call.scored],
        "scored_logprobs": [sample.logprob for sample in call.scored],
        "work": None if call.work is None else {name: getattr(call.work, name) for name in call.work.__struct_fields__},
    }

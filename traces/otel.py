"""Reasoning threads as spans of OpenTelemetry, by its conventions for generative AI; from an engine or from a trace.

    RunStarted, Spawned --> a span begins, under its parent's; in the parent's, an event "braid.spawn"
    ToolCalled          --> its span is a tool's
    Joined              --> links from the parent's span to those of the children
    ThreadEnded         --> the span ends, with tokens, finish reasons and outcome

Times are the trace's, from its `started`, or the clock's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

try:
    from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, Tracer, set_span_in_context
    from opentelemetry.util.types import AttributeValue
except ImportError as error:
    raise ImportError("Spans need OpenTelemetry: pip install 'braid-runtime[otel]'.") from error

from runtime import TraceError
from runtime.link import (
    Event,
    Joined,
    RunStarted,
    Spawned,
    ThreadEnded,
    ThreadPath,
    ToolCalled,
    Trace,
    Work,
)
from traces.tree import ThreadRecord, path_name, thread_tree, walk_threads

OPERATION = "text_completion"
TOOL = "execute_tool"
PROVIDER = "braid"

NANOSECONDS = 10**9
LATEST = 10**10
"""Unix time that 64 bits of nanoseconds hold, with what a trace adds to it."""


class SpanObserver:
    """An engine's `observer` that makes a span of each thread: `Engine.open("countdown", observer=SpanObserver(...))`.

    A root's span is under the one that is current where its thread is opened, if any. Used on the event loop only.
    """

    def __init__(self, tracer: Tracer, model: str) -> None:
        """`model` is what spans say was asked for, such as the checkpoint's name."""
        self._spans = _ThreadSpans(tracer, model)

    def __call__(self, event: Event) -> None:
        self._spans.take(event, time.time_ns())


def record_spans(trace: Trace, tracer: Tracer) -> int:
    """Makes a span of each thread of a trace, and returns how many.

    Spans of threads whose end the trace does not have end with it, without an outcome. Time and memory are linear in
    what the trace holds. Raises `TraceError` for events that do not fit together.
    """
    spans = _ThreadSpans(tracer, trace.header.checkpoint)
    if not 0 <= trace.header.started <= LATEST:
        raise TraceError(f"The trace says it was started at {trace.header.started}, which is no time.")
    started = round(trace.header.started * NANOSECONDS)
    last = 0.0
    records: dict[ThreadPath, ThreadRecord] = {}
    for event in trace.events:
        last = event.time
        if isinstance(event, ThreadEnded) and event.work is None and not records and not spans.is_tool(event.thread):
            # Written before events said it.
            records = _by_path(trace)
        spans.take(event, started + round(event.time * NANOSECONDS), records)
    if spans.are_open:
        spans.cut_off(started + round(last * NANOSECONDS), records or _by_path(trace))
    return spans.count


def _by_path(trace: Trace) -> dict[ThreadPath, ThreadRecord]:
    return {record.path: record for record in walk_threads(thread_tree(trace.events))}


class _ThreadSpans:
    """Spans of the threads that have begun; those of a tree are known until its root ends, for links to them."""

    def __init__(self, tracer: Tracer, model: str) -> None:
        self._tracer = tracer
        self._model = model
        self._open: dict[ThreadPath, Span] = {}
        self._tools: set[ThreadPath] = set()
        """Those of them that are calls of tools."""
        self._known: dict[int, dict[ThreadPath, SpanContext]] = {}
        """By tree."""
        self.count = 0

    @property
    def are_open(self) -> bool:
        return bool(self._open)

    def is_tool(self, path: ThreadPath) -> bool:
        """Whether an open span is of a tool's call."""
        return path in self._tools

    def take(self, event: Event, at: int, records: dict[ThreadPath, ThreadRecord] | None = None) -> None:
        """Takes in what happened `at` so many nanoseconds of Unix time; all but events of trees is passed over."""
        match event:
            case RunStarted():
                self._begin(event.thread, at)
            case Spawned():
                self._spawn(event, at)
            case ToolCalled():
                self._call_tool(event)
            case Joined():
                self._join(event)
            case ThreadEnded():
                work, reasons = event.work, event.reasons
                if work is None and records and (record := records.get(event.thread)) is not None:
                    work, reasons = _spent(record)
                self._end(event.thread, at, work, reasons, event)
            case _:
                pass

    def cut_off(self, at: int, records: dict[ThreadPath, ThreadRecord]) -> None:
        """Ends the spans whose threads' ends are not known, children first."""
        for path in sorted(self._open, key=len, reverse=True):
            record = records.get(path)
            work, reasons = (None, ()) if record is None else _spent(record)
            self._end(path, at, work, reasons, None)

    def _begin(self, path: ThreadPath, at: int) -> None:
        parent = self._open.get(path[:-1])
        span = self._tracer.start_span(
            f"{OPERATION} {self._model}",
            None if parent is None else set_span_in_context(parent),
            kind=SpanKind.INTERNAL,
            attributes={
                "gen_ai.operation.name": OPERATION,
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": self._model,
                "braid.thread.path": path_name(path),
            },
            start_time=at,
        )
        self._open[path] = span
        self._known.setdefault(path[0], {})[path] = span.get_span_context()
        self.count += 1

    def _spawn(self, event: Spawned, at: int) -> None:
        span = self._open.get(event.thread)
        if span is not None:
            about: dict[str, AttributeValue] = {
                "braid.spawn.granted": event.child is not None,
                "braid.spawn.by_model": event.by_model,
                "braid.spawn.fork": event.fork,
                "braid.spawn.tokens": len(event.tokens),
            }
            if event.child is not None:
                about["braid.thread.path"] = path_name(event.child)
            if event.reason:
                about["braid.spawn.reason"] = event.reason
            span.add_event("braid.spawn", about, at)
        if event.child is not None:
            self._begin(event.child, at)

    def _call_tool(self, event: ToolCalled) -> None:
        span = self._open.get(event.thread)
        if span is None:
            return
        self._tools.add(event.thread)
        span.update_name(f"{TOOL} {event.name}")
        span.set_attribute("gen_ai.operation.name", TOOL)
        span.set_attribute("gen_ai.tool.name", event.name)
        span.set_attribute("gen_ai.tool.type", "function")

    def _join(self, event: Joined) -> None:
        span = self._open.get(event.thread)
        if span is None:
            return
        known = self._known.get(event.thread[0], {})
        delivered, cancelled = set(event.delivered), set(event.cancelled)
        for child in event.children:
            if child in known:
                how = "delivered" if child in delivered else "cancelled" if child in cancelled else "nothing"
                span.add_link(known[child], {"braid.thread.path": path_name(child), "braid.join": how})

    def _end(
        self, path: ThreadPath, at: int, work: Work | None, reasons: Iterable[str], ended: ThreadEnded | None
    ) -> None:
        span = self._open.pop(path, None)
        if len(path) == 1:
            self._known.pop(path[0], None)
        if span is None:
            return
        is_tool = path in self._tools
        self._tools.discard(path)
        if not is_tool:
            span.set_attribute("gen_ai.response.finish_reasons", tuple(reasons))
        if work is not None and not is_tool:
            span.set_attribute("gen_ai.usage.input_tokens", work.prompt_tokens)
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", work.cached_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", work.generated)
            span.set_attribute("braid.usage.iterations", work.iterations)
        if ended is not None:
            span.set_attribute("braid.thread.outcome", ended.outcome)
            if ended.outcome == "failed":
                span.set_attribute("error.type", ended.error.partition(":")[0] or "_OTHER")
                span.set_status(Status(StatusCode.ERROR, ended.error))
        span.end(at)


def _spent(record: ThreadRecord) -> tuple[Work, tuple[str, ...]]:
    """What a thread's generates cost and why they ended, as far as the trace has their ends."""
    work = Work()
    for call in record.calls:
        if call.work is not None:
            work.add(call.work)
    return work, tuple(call.reason for call in record.calls if call.reason is not None)

"""Spans of threads: from an engine while it runs, and from its trace, the same."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as conventions
from opentelemetry.trace import StatusCode

from policies import LatentDiff, MaxChildren, Policy
from runtime import Engine
from traces import ThreadEnded, Trace, path_name, read, thread_tree, walk_threads
from traces.otel import NANOSECONDS, SpanObserver, record_spans


class Exported:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("tests")

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """By thread."""
        return {
            str(dict(span.attributes or {})["braid.thread.path"]): span for span in self._exporter.get_finished_spans()
        }

    def described(self) -> dict[str, Any]:
        """All but times and random numbers."""
        spans = self.spans
        name_of = {span.context.span_id: name for name, span in spans.items() if span.context is not None}
        return {
            name: (
                span.name,
                span.kind,
                None if span.parent is None else name_of.get(span.parent.span_id, "outside"),
                dict(span.attributes or {}),
                [(event.name, dict(event.attributes or {})) for event in span.events],
                [(name_of[link.context.span_id], dict(link.attributes or {})) for link in span.links],
                span.status.status_code,
                span.status.description,
            )
            for name, span in spans.items()
        }


async def run(path: Path, observer: SpanObserver) -> None:
    """A tree that its model drives, and one of a program, with a fork, a cancelled child and one that fails."""
    policy = Policy(depth=LatentDiff(0.1), spawn=MaxChildren(3))
    async with Engine.open("countdown", policy=policy, trace=path, observer=observer) as engine:
        await engine.run("22 26 31 53 -> 27")
        with pytest.raises(ValueError, match="of its own"):  # noqa: PT012
            async with engine.thread("22 26 31 53 -> 27") as root:
                await root.generate(4)
                await root.join([root.spawn("53 - 31 22 Q 27 26 22 22"), root.spawn("26 - 22 4 Q 27 53 31 4")])
                root.fork()
                await root.generate(4)
                raise ValueError("of its own")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Trace]:
    live, path = Exported(), tmp_path_factory.mktemp("spans") / "run.trace"
    with live.tracer.start_as_current_span("outer", attributes={"braid.thread.path": "outer"}):
        anyio.run(run, path, SpanObserver(live.tracer, "countdown"))
    return live, read(path)


def test_an_engine_and_its_trace_give_the_same_spans(both: tuple[Exported, Trace]) -> None:
    live, trace = both
    late = Exported()
    with late.tracer.start_as_current_span("outer", attributes={"braid.thread.path": "outer"}):
        assert record_spans(trace, late.tracer) == len(late.spans) == len(live.spans) - 1
    assert late.described() == live.described()


def test_spans_are_a_tree_with_what_the_trace_says(both: tuple[Exported, Trace]) -> None:
    _, trace = both
    exported = Exported()
    record_spans(trace, exported.tracer)
    spans, described = exported.spans, exported.described()
    ended = {event.thread: event for event in trace.events if isinstance(event, ThreadEnded)}
    threads = list(walk_threads(thread_tree(trace.events)))
    assert {path_name(thread.path) for thread in threads} == spans.keys()
    started = round(trace.header.started * NANOSECONDS)
    for thread in threads:
        name = path_name(thread.path)
        span = spans[name]
        about = dict(span.attributes or {})
        assert about[conventions.GEN_AI_OPERATION_NAME] == conventions.GenAiOperationNameValues.TEXT_COMPLETION.value
        assert about[conventions.GEN_AI_REQUEST_MODEL] == "countdown"
        assert span.name == "text_completion countdown"
        outcome = ended[thread.path].outcome
        if outcome != "cancelled":
            assert about[conventions.GEN_AI_USAGE_OUTPUT_TOKENS] == thread.generated
            assert about[conventions.GEN_AI_USAGE_INPUT_TOKENS] >= thread.received  # type: ignore[operator]
            assert about[conventions.GEN_AI_RESPONSE_FINISH_REASONS] == tuple(call.reason for call in thread.calls)
        assert about["braid.thread.outcome"] == outcome
        assert described[name][2] == (path_name(thread.path[:-1]) if len(thread.path) > 1 else None)
        assert len(span.events) == len(thread.spawns)
        joined = [path_name(child) for wait in thread.waits for child in wait.joined.children]
        assert [link[0] for link in described[name][5]] == joined
        assert span.start_time is not None
        assert span.end_time == started + round(ended[thread.path].time * NANOSECONDS)
        assert started <= span.start_time <= span.end_time
    assert sum(len(span.links) for span in spans.values()) >= 5
    failed = spans["1"]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "ValueError: of its own"
    assert dict(failed.attributes or {})["error.type"] == "ValueError"


def test_a_trace_that_breaks_off_has_its_spans(both: tuple[Exported, Trace]) -> None:
    _, trace = both
    whole = Exported()
    record_spans(trace, whole.tracer)
    for count in range(0, len(trace.events), 61):
        part = Exported()
        record_spans(Trace(trace.header, trace.events[:count], "broken off"), part.tracer)
        assert part.spans.keys() <= whole.spans.keys()
        assert all(span.end_time is not None for span in part.spans.values())


def test_traces_whose_ends_do_not_say_what_was_spent(both: tuple[Exported, Trace]) -> None:
    _, trace = both
    older = [
        msgspec.structs.replace(event, work=None, reasons=()) if isinstance(event, ThreadEnded) else event
        for event in trace.events
    ]
    whole, old = Exported(), Exported()
    record_spans(trace, whole.tracer)
    record_spans(Trace(trace.header, older, None), old.tracer)
    finished = [
        name for name, span in whole.spans.items() if dict(span.attributes or {})["braid.thread.outcome"] != "cancelled"
    ]
    assert finished
    assert {name: whole.described()[name] for name in finished} == {name: old.described()[name] for name in finished}


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    monkeypatch.delitem(sys.modules, "traces.otel")
    with pytest.raises(ImportError, match=r"pip install 'braid-runtime\[otel\]'"):
        importlib.import_module("traces.otel")

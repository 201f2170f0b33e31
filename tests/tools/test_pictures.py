"""Calls of tools where people look at traces: printed, on the page, in viewers, as lines, tables and spans."""

from __future__ import annotations

import io
import json
from typing import Any

import anyio
import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from rich.console import Console

from runtime import Engine
from runtime.link import Event, RunStarted
from traces import LiveTree, Trace, critical_path, frame, read, show, thread_lines, thread_tree, totals_of
from traces.otel import SpanObserver, record_spans
from traces.viewer_format import trace_events
from traces.web_page.content import content_of

from .conftest import add, never
from .scripted_models import save_model
from .test_recorded_models import CALL, TAGS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, list[Event]]:
    """A model that calls a tool, and a program with a call that fails and one that is cancelled."""
    directory, events = tmp_path_factory.mktemp("pictures"), list[Event]()
    protocol = {"tools": msgspec.to_builtins(TAGS), "prompt": "{prompt} Q"}
    save_model(directory / "model", {" Q": f" Let me see. {CALL}", "=>": " so it is."}, protocol=protocol)

    async def broken() -> str:
        raise RuntimeError("no luck")

    async def record() -> None:
        path = directory / "run.trace"
        async with Engine.open(directory / "model", trace=path, observer=events.append) as engine:
            engine.tools.add(add)
            engine.tools.add(never)
            engine.tools.add(broken, errors="raise")
            await engine.run("what")
            async with engine.thread("a") as root:
                failed = root.call("broken")
                with pytest.raises(Exception, match="no luck"):
                    await failed
                root.call("never")

    anyio.run(record)
    return read(directory / "run.trace"), events


def printed(what: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_trees_have_calls(run: tuple[Trace, list[Event]]) -> None:
    trace, events = run
    console = Console(file=io.StringIO(), width=160)
    show(trace, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "2 threads, 3 tool calls, " in shown
    assert '└── 0.0  add({"one":40,"other":2}), ' in shown
    assert "    > 42\n" in shown
    assert "1.0  broken({})" in shown
    assert "failed: ToolError: broken: RuntimeError: no luck" in shown
    assert totals_of(trace.events).tool_calls == 3
    tree = LiveTree(lambda event: event.prompt if isinstance(event, RunStarted) else "")
    for event in events:
        tree.observe(event)
    assert '0.0  add({"one":40,"other":2})  42' in printed(tree)
    root = thread_tree(trace.events)[0]
    assert critical_path(root) == root.generated, "a tool samples nothing"


def test_pages_have_calls(run: tuple[Trace, list[Event]]) -> None:
    content = content_of(run[0], None)
    threads = {thread.path: thread for thread in content.threads}
    assert (threads["0.0"].tool, threads["0.0"].text) == ('add({"one":40,"other":2})', "42")
    assert threads["0"].tool == ""
    assert ("tool calls", "3") in content.figures


def test_viewers_have_spans_and_arrows(run: tuple[Trace, list[Event]]) -> None:
    events = list(trace_events(run[0]))
    (tool,) = (event for event in events if event["name"] == "tool add")
    assert tool["args"] == {"arguments": '{"one":40,"other":2}', "result": "42", "outcome": "returned", "error": ""}
    arrows = [event for event in events if event["ph"] in "sf" and event["pid"] == tool["pid"]]
    assert [(event["ph"], event["name"], event["tid"] == tool["tid"]) for event in arrows] == [
        ("s", "spawn", False),
        ("f", "spawn", True),
        ("s", "join", True),
        ("f", "join", False),
    ]


def test_lines_and_tables_have_calls(run: tuple[Trace, list[Event]]) -> None:
    lines = [json.loads(line) for line in thread_lines(run[0].events)]
    assert [line["thread"] for line in lines] == ["0.0", "0", "1.0", "1.1", "1"], "as they end"
    assert (lines[0]["tool"], lines[0]["arguments"], lines[0]["text"]) == ("add", '{"one":40,"other":2}', "42")
    assert lines[1]["tool"] is None
    rows = {row["thread"]: row for row in frame(run[0]).to_pylist()}
    assert (rows["0.0"]["tool"], rows["0.0"]["text"], rows["0"]["tool"]) == ("add", "42", None)
    assert rows["1.0"]["error"] == "ToolError: broken: RuntimeError: no luck"


def test_spans_are_of_tools(run: tuple[Trace, list[Event]]) -> None:
    found = []
    for observed in (False, True):
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("tests")
        if observed:
            observer = SpanObserver(tracer, run[0].header.checkpoint)
            for event in run[1]:
                observer(event)
        else:
            record_spans(run[0], tracer)
        spans = {str((span.attributes or {})["braid.thread.path"]): span for span in exporter.get_finished_spans()}
        span = spans["0.0"]
        attributes = dict(span.attributes or {})
        assert (span.name, attributes["gen_ai.operation.name"]) == ("execute_tool add", "execute_tool")
        assert attributes["gen_ai.tool.name"] == "add"
        assert not any(name.startswith("gen_ai.usage") for name in attributes)
        assert "42" not in attributes.values()
        assert span.parent is not None
        assert spans["0"].context is not None
        assert span.parent.span_id == spans["0"].context.span_id
        assert spans["1.0"].status.status_code is StatusCode.ERROR
        found.append({path: dict(each.attributes or {}) for path, each in spans.items()})
    assert found[0] == found[1]

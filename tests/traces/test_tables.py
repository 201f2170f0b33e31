"""What other programs read: lines of JSON and tables, with all that the trace has."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given

from policies import LatentDiff, MaxChildren, Policy
from runtime import Engine
from tests.traces.strategies import operations
from tests.traces.test_pictures import recorded_events
from tests.traces.toy_device import ToyCore, header, run_program
from traces import (
    Received,
    Sampled,
    ThreadClosed,
    TickDone,
    Trace,
    context_of,
    frame,
    path_name,
    read,
    thread_lines,
    thread_tree,
    totals_of,
    walk_threads,
)
from traces.__main__ import main
from traces.json_lines import ended_threads


async def record(path: Path) -> None:
    policy = Policy(depth=LatentDiff(0.1), spawn=MaxChildren(3))
    async with Engine.open("countdown", policy=policy, trace=path) as engine:
        await engine.run("22 26 31 53 -> 27")
        async with engine.thread("22 26 31 53 -> 27") as root, root.stream(140) as stream:
            async for chunk in stream:
                if len(chunk.tokens):
                    break


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "run.trace"
    anyio.run(record, path)
    return path


def lines_of(trace: Trace) -> dict[str, dict[str, Any]]:
    return {line["thread"]: line for line in map(json.loads, thread_lines(trace.events))}


def test_a_line_has_what_the_thread_has(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--jsonl", str(path)]) == 0
    written = path.with_name("run.trace.jsonl").read_bytes()
    assert "a line for each thread" in capsys.readouterr().err
    trace = read(path)
    assert written == b"".join(thread_lines(trace.events))
    lines = lines_of(trace)
    threads = list(walk_threads(thread_tree(trace.events)))
    assert lines.keys() == {path_name(thread.path) for thread in threads}
    for thread in threads:
        line, context = lines[path_name(thread.path)], context_of(thread)
        said = [token for generate in line["generates"] for token in generate["tokens"]]
        assert said == [token for token, own in zip(context.tokens, context.is_sampled, strict=True) if own]
        assert [token for each in line["received"] for token in each["tokens"]] == [
            token for receipt in thread.receipts for token in receipt.tokens
        ]
        assert (line["outcome"], line["text"], line["iterations"]) == (thread.outcome, thread.text, thread.iterations)
        assert [spawn["child"] for spawn in line["spawns"] if spawn["child"]] == [
            path_name(child.path) for child in thread.children
        ]
        assert line["parent"] == (path_name(thread.path[:-1]) or None)


@given(operations)
def test_every_thread_has_a_line_and_its_rows(drawn: list[tuple[int, int]]) -> None:
    core = ToyCore()
    run_program(core, drawn)
    for count in (len(core.events), len(core.events) // 2):
        trace = Trace(header(), core.events[:count], None)
        threads = {path_name(record.path): record for record in walk_threads(thread_tree(trace.events))}
        lines = lines_of(trace)
        assert lines.keys() == threads.keys()
        assert all(lines[name]["iterations"] == record.iterations for name, record in threads.items())
        assert frame(trace).num_rows == len(threads)
        totals = totals_of(trace.events)
        tokens = frame(trace, by="token")
        received = sum(len(event.tokens) for event in trace.events if isinstance(event, Received))
        assert tokens.num_rows == totals.generated + received
        assert sum(tokens["is_sampled"].to_pylist()) == totals.generated
        assert frame(trace, by="tick").num_rows == totals.ticks


def test_lines_are_given_as_threads_end() -> None:
    """So that memory is that of what is open."""
    closed: Counter[str] = Counter()

    def events() -> Any:
        for event in recorded_events():
            yield event
            if isinstance(event, ThreadClosed):
                closed[path_name(event.thread)] += 1

    given: list[str] = []
    for record in ended_threads(events()):
        given.append(path_name(record.path))
        assert set(closed) <= set(given)
    assert set(given) == {"0", "0.0"}


def test_tables_have_what_the_trace_has(path: Path) -> None:
    trace = read(path)
    threads = {path_name(record.path): record for record in walk_threads(thread_tree(trace.events))}
    table = frame(trace, by="token").to_pylist()
    samples = [event for event in trace.events if isinstance(event, Sampled)]
    said = {
        (row["thread"], row["position"], row["tick"]): (row["token"], row["depth"], row["time"])
        for row in table
        if row["is_sampled"]
    }
    assert said == {
        (path_name(event.thread), event.position, event.tick): (event.token, event.depth, event.time)
        for event in samples
    }
    for name, record in threads.items():
        context = context_of(record)
        kept = {row["position"]: row for row in table if row["thread"] == name and row["is_kept"]}
        assert [kept[at]["token"] for at in sorted(kept)] == list(context.tokens)
        for at, depth in enumerate(context.depths, context.start):
            if not kept[at]["is_sampled"]:
                assert (kept[at]["depth"] or 0) == depth
    dropped = sum(len(call.samples) - len(call.kept) for record in threads.values() for call in record.calls)
    assert sum(not row["is_kept"] for row in table) == dropped
    rows = {row["thread"]: row for row in frame(trace).to_pylist()}
    for name, record in threads.items():
        assert rows[name]["generated_tokens"] == record.generated
        assert rows[name]["children"] == len(record.children)
        assert rows[name]["level"] == len(record.path) - 1
    ticks = frame(trace, by="tick").to_pylist()
    assert [row["in_flight"] for row in ticks] == [
        event.in_flight for event in trace.events if isinstance(event, TickDone)
    ]


def test_what_no_table_can_be_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(header(), recorded_events(), None)
    with pytest.raises(ValueError, match="by is 'page'; rows are threads, tokens or ticks"):
        frame(trace, by="page")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'braid-runtime\[frame\]'"):
        frame(trace)

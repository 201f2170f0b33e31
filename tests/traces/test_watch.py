"""Following a run that is being recorded."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from runtime.link import events as ev
from tests.traces.test_pictures import HOSTILE, is_safe, recorded_events
from tests.traces.toy_device import header
from traces import LiveTree, TraceReader, TraceWriter
from traces.__main__ import main


def shown(tree: LiveTree) -> str:
    output = io.StringIO()
    Console(file=output, width=120).print(tree)
    return output.getvalue()


def test_a_reader_goes_on_with_what_has_been_written_since(tmp_path: Path) -> None:
    path, events = tmp_path / "run.trace", recorded_events()
    writer = TraceWriter(path, header(compression="zstd"))
    with TraceReader(path) as reader:
        found: list[ev.AnyEvent] = []
        for begin in range(0, len(events), 7):
            writer.write_many(events[begin : begin + 7])
            found += reader
            assert [(type(each), each.time) for each in found] == [
                (type(each), each.time) for each in events[: begin + 7]
            ]
            assert reader.lost is not None
            assert reader.may_grow
        writer.close()
        assert list(reader) == []
        assert reader.lost is None
        assert not reader.may_grow


def test_the_tree_says_what_threads_do(tmp_path: Path) -> None:
    tree = LiveTree(lambda event: event.prompt if isinstance(event, ev.RunStarted) else str(event.tokens))
    events = recorded_events()
    for event in events[:6]:
        tree.observe(event)
    text = shown(tree)
    assert "0  one two  thinking, 1 tokens" in text
    assert "0.0  (3,)  thinking" in text
    for event in events[6:]:
        tree.observe(event)
    text = shown(tree)
    assert "0  one two  out of tokens" in text
    assert "0.0  (3,)  five" in text


def test_many_trees_and_hostile_texts() -> None:
    tree = LiveTree(lambda event: HOSTILE)
    for number in range(30):
        tree.observe(ev.RunStarted(time=0.0, thread=(number,), prompt=""))
        tree.observe(ev.ThreadEnded(time=0.1, thread=(number,), outcome="failed", message=(), text="", error=HOSTILE))
    text = shown(tree)
    assert "30 trees, 30 of them ended" in text
    assert is_safe(text)
    assert text.count(r"\x1b]0;owned") == 16


def test_watching_ends_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events, looks = tmp_path / "run.trace", recorded_events(), threading.Semaphore(0)
    writer = TraceWriter(path, header())
    writer.write_many(events[:4])

    def rest(seconds: float) -> None:
        looks.release()
        writer.write_many(events[4:])
        writer.close()

    monkeypatch.setattr("traces.commands.watch.time.sleep", rest)
    assert main(["watch", str(path)]) == 0
    assert looks.acquire(blocking=False)
    assert not looks.acquire(blocking=False)
    printed = capsys.readouterr()
    assert "0  one two  out of tokens" in printed.out
    assert printed.err == ""


def test_a_run_that_was_killed_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.trace"
    writer = TraceWriter(path, header())
    writer.write_many(recorded_events()[:4])
    writer.abandon()
    assert main(["watch", str(path)]) == 0
    printed = capsys.readouterr()
    assert "0  one two  thinking" in printed.out
    assert "without its end mark" in printed.err

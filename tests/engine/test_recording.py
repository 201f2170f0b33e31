"""Traces of blocks of one engine's life: whole, by themselves, and of nothing else."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path

import pytest

import runtime.loading.tracing
from policies import Fixed
from runtime import (
    Answer,
    Engine,
    ThreadStateError,
    TraceError,
)
from runtime.backend.interface import Tick, TickResult
from runtime.device.build import build_loop
from runtime.device.settings import EngineSettings
from runtime.link.commands import Finished, StartRecording, StopRecording
from runtime.link.events import RunStarted, ThreadEnded, TickDone
from runtime.model.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from runtime.model.parameters import published_weights
from tests.engine.recorded_trees import FEW, SIZES, WARM, opened, prompt, verified, work
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model
from tests.traces.toy_device import header
from traces import TraceRecorder, imbalances, read, thread_tree, totals_of, walk_threads

COUNTED = ("generated", "computed", "iterations", "recomputed", "cached_tokens", "prompt_tokens")


def essence(answers: list[Answer | None]) -> list[tuple[object, ...] | None]:
    return [None if answer is None else (answer.path, answer.tokens, answer.text, answer.reason) for answer in answers]


@pytest.mark.anyio
async def test_a_library_that_is_not_installed_is_not_in_the_header(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(library: str) -> str:
        if library == "numba":
            raise PackageNotFoundError(library)
        return "1.0"

    monkeypatch.setattr(runtime.loading.tracing, "version", version)
    async with Engine.open(tiny_checkpoint, backend="torch", num_pages=16, trace=tmp_path / "run.trace"):
        pass
    versions = read(tmp_path / "run.trace").header.versions
    assert versions.keys() == {"python", "torch", "numpy", "tokenizers", "msgspec", "anyio"}


@pytest.mark.anyio
async def test_a_block_is_recorded_and_nothing_else(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "block.trace"
    async with opened(tiny_checkpoint) as engine:
        await work(engine, 0, 1)
        before, began = engine.usage, time.time()
        async with engine.recording(path):
            answers = await work(engine, 0, 1)
            async with engine.thread(prompt(2)) as root:
                child = root.spawn("w1 w2", max_tokens=5)
                await root.generate(max_tokens=3)
                await root.join([child])
        trace, ended = read(path), time.time()
        spent = engine.usage
        size = path.stat().st_size
        await work(engine, 3)
        assert path.stat().st_size == size
    assert trace.lost is None
    assert imbalances(trace.events) == []
    assert trace.header.fingerprint == fingerprint(load_checkpoint(tiny_checkpoint).model)
    assert (trace.header.seed, trace.header.checkpoint) == (7, str(tiny_checkpoint))
    # The clock of files and the one of events are not the same.
    assert began - 0.1 <= trace.header.started <= ended
    assert 0 <= trace.events[0].time <= trace.events[-1].time <= ended - began + 0.1
    roots = thread_tree(trace.events)
    assert [record.path for record in roots] == [(2,), (3,), (4,)]
    assert all(record.closed is not None for record in walk_threads(roots))
    assert [event.thread for event in trace.events if isinstance(event, RunStarted)] == [(2,), (3,), (4,)]
    texts = {event.thread: event.text for event in trace.events if isinstance(event, ThreadEnded)}
    assert [texts[answer.path] for answer in answers if answer] == [answer.text for answer in answers if answer]
    recorded = totals_of(trace.events)
    for name in COUNTED:
        assert getattr(recorded, name) == getattr(spent, name) - getattr(before, name), name
    assert recorded.threads >= 4


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("backend", ["torch", "native"])
async def test_two_recordings_of_two_models(
    tiny_checkpoint: Path, tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each verifies against its own weights and plays back, whatever the number of its first tree."""
    other = tmp_path / "other"
    loaded = load_checkpoint(tiny_checkpoint)
    save_checkpoint(other, tiny_model(11), tokenizer=loaded.tokenizer, braid=loaded.braid)
    paths = [tmp_path / "first.trace", tmp_path / "second.trace"]
    said = []
    async with opened(tiny_checkpoint, backend=backend, deterministic=True) as engine:
        async with engine.recording(paths[0]):
            said.append(await work(engine, 0, 1))
        await engine.load_weights(published_weights(tiny_model(11)))
        async with engine.recording(paths[1]):
            said.append(await work(engine, 0, 1))
    traces = [read(path) for path in paths]
    assert [trace.header.fingerprint for trace in traces] == [fingerprint(tiny_model(seed)) for seed in (3, 11)]
    assert [min(record.path for record in thread_tree(trace.events)) for trace in traces] == [(0,), (2,)]
    for trace, answers in zip(traces, said, strict=True):
        async with Engine.playback(trace, sampling=WARM, limits=FEW) as engine:
            assert essence(await work(engine, 0, 1)) == essence(answers)
    assert await verified(paths[0]) == 0
    assert capsys.readouterr().err == ""
    assert await verified(paths[1], "--checkpoint", other) == 0
    assert capsys.readouterr().err == ""
    assert await verified(paths[1]) == 1
    assert "has other weights than the trace was recorded with" in capsys.readouterr().err


@pytest.mark.anyio
async def test_a_recording_begins_without_stored_prompts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What a token cost is in the trace itself, so that it can be executed again."""

    async def reused(engine: Engine) -> int:
        async with engine.thread(prompt(3)) as thread:
            await thread.generate(max_tokens=2)
        return thread.usage.cached_tokens

    async with opened(tiny_checkpoint) as engine:
        assert [await reused(engine) for _ in range(2)] == [0, 8]
        async with engine.recording(tmp_path / "block.trace"):
            assert [await reused(engine) for _ in range(2)] == [0, 8]
        assert await reused(engine) == 8


def test_lanes_run_freely_while_a_trace_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do before and after; and the trace has every token and tick, in whatever call they were."""
    core = build_loop(
        tiny_model(3),
        EngineSettings(**SIZES, backend="native", cpu_threads=1),
        Fixed(3),
        open_trace=lambda path, overwrite: TraceRecorder(path, header(compression="zstd"), overwrite=overwrite),
    )
    solo, asked = Solo(core), list[tuple[bool, bool]]()
    tick = core.backend.tick

    def watched(wanted: Tick) -> TickResult:
        asked.append((wanted.most_ticks > 1, bool((wanted.entering.run > 0).any())))
        return tick(wanted)

    monkeypatch.setattr(core.backend, "tick", watched)

    def goes_on(path: tuple[int, ...]) -> tuple[bool, bool]:
        """Whether calls were to do several ticks, and whether lanes were to go on by themselves."""
        asked.clear()
        solo.generate([1, 2, 3], Fixed(3), 20, path=path)
        several, runs = zip(*asked, strict=True)
        return any(several), any(runs)

    assert goes_on((0,)) == (True, True)
    solo.send(StartRecording(1, tmp_path / "block.trace"))
    ticks = core.journal.ticks
    assert goes_on((1,)) == (True, True)
    ticked = core.journal.ticks - ticks
    (finished,) = [report for report in solo.reports if isinstance(report, Finished) and report.thread == (1,)]
    solo.send(StopRecording(2))
    assert goes_on((2,)) == (True, True)
    core.close()
    events = read(tmp_path / "block.trace").events
    (record,) = thread_tree(events)
    (call,) = record.calls
    assert (record.path, record.generated) == ((1,), 20)
    for column in ("token", "depth", "logprob"):
        assert tuple(getattr(sample, column) for sample in call.samples) == getattr(finished, column + "s")
    done = [event for event in events if isinstance(event, TickDone)]
    assert [event.tick for event in done] == list(range(ticks, ticks + ticked))
    assert sum(event.in_flight for event in done) == finished.work.iterations
    assert imbalances(events) == []
    times = {event.tick: event.time for event in done}
    assert sorted(times.values()) == list(times.values())
    assert [sample.time for sample in call.samples] == [times[sample.tick] for sample in call.samples]
    assert [after.tick - before.tick for before, after in pairwise(call.samples)] == [3] * 19


@pytest.mark.anyio
async def test_what_cannot_be_recorded_is_refused_at_entry(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "block.trace", tmp_path / "whole.trace"
    path.write_bytes(b"dear")
    async with opened(tiny_checkpoint) as engine:
        with pytest.raises(TraceError, match="exists and is not empty"):
            async with engine.recording(path):
                pytest.fail("the block is not entered")
        with pytest.raises(TraceError, match="Cannot write a trace"):
            async with engine.recording(tmp_path / "nowhere" / "block.trace"):
                pytest.fail("the block is not entered")
        async with engine.thread(prompt(1)):
            with pytest.raises(ThreadStateError, match=r"can only begin between trees: 1 open, \(0,\)"):
                async with engine.recording(tmp_path / "late.trace"):
                    pytest.fail("the block is not entered")
        assert path.read_bytes() == b"dear"
        assert not (tmp_path / "late.trace").exists()
        async with engine.recording(path, overwrite=True):
            with pytest.raises(TraceError, match="records already"):
                async with engine.recording(tmp_path / "second.trace"):
                    pytest.fail("the block is not entered")
            await work(engine, 0)
        assert [record.path for record in thread_tree(read(path).events)] == [(1,)]
    async with opened(tiny_checkpoint, trace=whole) as engine:
        with pytest.raises(TraceError, match="records already"):
            async with engine.recording(tmp_path / "second.trace"):
                pytest.fail("the block is not entered")
        await work(engine, 0)
    assert len(thread_tree(read(whole).events)) == 1
    async with Engine.playback(read(whole)) as engine:
        with pytest.raises(TraceError, match="nothing to record"):
            async with engine.recording(tmp_path / "second.trace"):
                pytest.fail("the block is not entered")
    assert not (tmp_path / "second.trace").exists()

"""Every write and close of a trace fails once: answers do not depend on it, and the file says what it lacks."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import traces.writer
from policies import Fixed, MaxChildren, Policy
from runtime import Engine, EngineFailed, TraceError
from runtime.backend.interface import Tick
from runtime.backend.torch.backend import TorchBackend
from runtime.threads.opened import Opened
from tests.engine.recorded_trees import prompt
from tests.runtime_loop.scripted import SteppedDevice
from tests.runtime_loop.scripted_core import counting
from traces import read, thread_tree
from traces.file import TraceFile

SIZES: dict[str, Any] = {
    "page_size": 4,
    "num_pages": 64,
    "max_in_flight": 16,
    "prefill_chunk": 16,
    "backend": "torch",
    "seed": 7,
}
POLICY = Policy(depth=Fixed(2), spawn=MaxChildren(2))


class Faulty:
    """Which call of a file fails, and what came of the others."""

    def __init__(self, fails_at: int) -> None:
        self.fails_at = fails_at
        self.failed: str | None = None
        """The call that has failed."""
        self.appended = 0
        """Bytes."""
        self._calls = 0

    def count(self, call: str) -> None:
        self._calls += 1
        if self._calls == self.fails_at:
            self.failed = call
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


Install = Callable[[int], Faulty]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs files whose n-th call, appending or closing, fails."""

    def install(fails_at: int) -> Faulty:
        fault = Faulty(fails_at)

        class FaultyFile(TraceFile):
            def append(self, data: bytes | bytearray) -> None:
                fault.count("append")
                super().append(data)
                fault.appended += len(data)

            def close(self) -> None:
                super().close()
                fault.count("close")

        monkeypatch.setattr(traces.writer, "TraceFile", FaultyFile)
        return fault

    return install


async def converse(engine: Engine) -> list[tuple[int, ...]]:
    """What a root and its two children say."""
    async with engine.thread(prompt(0)) as root:
        said = [(await root.generate(max_tokens=3, stop=[-1])).tokens]
        children = [root.spawn(prompt(number), max_tokens=2, program=_say) for number in (1, 2)]
        said += [answer.tokens for answer in await root.join(children)]
        said.append((await root.generate(max_tokens=2, stop=[-1])).tokens)
    return said


async def _say(thread: Any) -> Any:
    return (await thread.generate(max_tokens=2, stop=[-1])).tokens


@pytest.mark.anyio
@pytest.mark.parametrize(("recorded_by", "anyio_backend"), [("open", "asyncio"), ("recording", "trio")])
async def test_any_call_may_fail_and_only_the_recording_ends(
    tiny_checkpoint: Path, tmp_path: Path, faulty: Install, recorded_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(path: Path) -> list[tuple[int, ...]]:
        if recorded_by == "open":
            async with Engine.open(tiny_checkpoint, policy=POLICY, trace=path, **SIZES) as engine:
                return await converse(engine)
        async with Engine.open(tiny_checkpoint, policy=POLICY, **SIZES) as engine, engine.recording(path):
            return await converse(engine)

    said = await run(tmp_path / "whole.trace")
    # The first write is the header's: what cannot begin is refused.
    faulty(1)
    with pytest.raises(TraceError, match="Cannot write a trace"):
        await run(tmp_path / "none.trace")
    failed: list[str | None] = []
    while not failed or failed[-1] is not None:
        fault = faulty(len(failed) + 2)
        path = tmp_path / f"{fault.fails_at}.trace"
        caplog.clear()
        with anyio.fail_after(30):
            assert await run(path) == said
        failed.append(fault.failed)
        assert [record.levelname for record in caplog.records] == ["WARNING"] * (fault.failed is not None)
        assert path.stat().st_size == fault.appended
        assert (read(path).lost is None) == (fault.failed != "append")
    # How many events go into one call depends on how the threads take turns, and so does whether closing has failed.
    assert failed.count("append") > 4


@pytest.mark.anyio
async def test_an_engine_that_is_to_stop_finishes_what_runs(
    tiny_checkpoint: Path, tmp_path: Path, faulty: Install
) -> None:
    options: dict[str, Any] = {"policy": POLICY, "on_trace_error": "stop", **SIZES}
    async with Engine.open(tiny_checkpoint, policy=POLICY, **SIZES) as engine, engine.thread(prompt(0)) as root:
        expected = (await root.generate(max_tokens=20, stop=[-1])).tokens
    faulty(2)
    path = tmp_path / "run.trace"
    async with Engine.open(tiny_checkpoint, trace=path, **options) as engine:
        root = await engine.thread(prompt(0)).__aenter__()
        with anyio.fail_after(30):
            assert (await root.generate(max_tokens=20, stop=[-1])).tokens == expected
            for _ in range(2):
                with pytest.raises(EngineFailed, match="No space left") as raised:
                    await engine.run(prompt(1))
                assert isinstance(raised.value.__cause__, TraceError)
        await root.__aexit__(None, None, None)
    assert read(path).lost is not None


@pytest.mark.anyio
async def test_leaving_a_recording_that_stops_the_engine_raises(
    tiny_checkpoint: Path, tmp_path: Path, faulty: Install
) -> None:
    async def record() -> None:
        async with engine.recording(tmp_path / "run.trace", on_trace_error="stop"):
            pass

    async with Engine.open(tiny_checkpoint, policy=POLICY, **SIZES) as engine:
        faulty(2)
        with anyio.fail_after(30):
            with pytest.raises(TraceError, match="No space left"):
                await record()
            with pytest.raises(EngineFailed, match="No space left"):
                await engine.run(prompt(1))


@pytest.mark.anyio
async def test_another_recording_may_follow_one_that_had_to_end(
    tiny_checkpoint: Path, tmp_path: Path, faulty: Install
) -> None:
    fault = faulty(3)
    async with Engine.open(tiny_checkpoint, policy=POLICY, trace=tmp_path / "dropped.trace", **SIZES) as engine:
        said = await converse(engine)
        assert fault.failed == "append"
        async with engine.recording(tmp_path / "next.trace"):
            assert await converse(engine) == said
        async with engine.recording(tmp_path / "last.trace"):
            assert await converse(engine) == said
    assert read(tmp_path / "dropped.trace").lost is not None
    for number, name in enumerate(("next.trace", "last.trace"), 1):
        trace = read(tmp_path / name)
        assert trace.lost is None
        assert [record.path for record in thread_tree(trace.events)] == [(number,)]


def test_what_is_no_choice_is_refused(tiny_checkpoint: Path) -> None:
    panic: dict[str, Any] = {"on_trace_error": "panic"}
    with pytest.raises(ValueError, match="on_trace_error is 'panic'"):
        Engine.open(tiny_checkpoint, **panic)


@pytest.mark.anyio
@pytest.mark.parametrize("recorded_by", ["open", "recording"])
async def test_a_failed_tick_leaves_no_end_mark_and_all_that_was_noted(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded_by: str
) -> None:
    def die(self: TorchBackend, tick: Tick) -> None:
        raise RuntimeError("the device is on fire")

    path = tmp_path / "run.trace"

    async def run() -> None:
        if recorded_by == "open":
            async with Engine.open(tiny_checkpoint, policy=POLICY, trace=path, **SIZES) as engine:
                await use(engine)
        else:
            async with Engine.open(tiny_checkpoint, policy=POLICY, **SIZES) as engine, engine.recording(path):
                await use(engine)

    async def use(engine: Engine) -> None:
        async with engine.thread(prompt(0)) as thread:
            await thread.generate(max_tokens=3)
        monkeypatch.setattr(TorchBackend, "tick", die)
        async with engine.thread(prompt(1)) as thread:
            await thread.generate(max_tokens=3)

    with pytest.raises(EngineFailed, match="on fire"):
        await run()
    trace = read(path)
    assert trace.lost is not None
    assert "its engine failed" in trace.lost
    first, second = thread_tree(trace.events)
    assert (first.outcome, first.generated) == ("nothing", 3)
    (call,) = second.calls
    assert (second.prompt, second.received, call.ended) == (prompt(1), len(prompt(1).split()), None)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_engine_that_is_cancelled_while_it_opens_gives_its_trace_back() -> None:
    """asyncio's own cancellation does not wait for the thread that loads."""
    loads, may_load, closed = anyio.Event(), threading.Event(), anyio.Event()
    loop = asyncio.get_running_loop()

    def close() -> None:
        loop.call_soon_threadsafe(closed.set)

    def load() -> Opened:
        loop.call_soon_threadsafe(loads.set)
        may_load.wait()
        return Opened(device=SteppedDevice(counting), close=close)

    task = asyncio.create_task(Engine(load).__aenter__())
    await loads.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_load.set()
    with anyio.fail_after(30):
        await closed.wait()

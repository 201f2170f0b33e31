"""Where a recording ends: before its threads, by an exception, a cancellation, a device that fails, an engine left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskGroup, TaskStatus

from runtime import (
    Engine,
    EngineFailed,
    Opened,
    ReasoningThread,
    ThreadStateError,
)
from runtime.backend.interface import Tick
from runtime.backend.torch.backend import TorchBackend
from runtime.link.commands import StartRecording, StopRecording
from tests.engine.recorded_trees import opened, prompt, verified, work
from tests.runtime_loop.scripted import SteppedDevice
from tests.runtime_loop.scripted_core import counting
from tests.runtime_loop.turns import turn
from traces import read, thread_tree


@pytest.mark.anyio
async def test_threads_that_outlive_the_recording(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The trace has their beginning, and says no more; they go on as if nothing had been."""
    path = tmp_path / "block.trace"
    async with opened(tiny_checkpoint) as engine, engine.thread(prompt(0)) as thread:
        whole = await thread.generate(max_tokens=9, stop=[-1])
    said: tuple[int, ...] = ()

    async def begin(thread: ReasoningThread) -> None:
        nonlocal said
        async with engine.recording(path):
            await thread.__aenter__()
            said += (await thread.generate(max_tokens=4, stop=[-1])).tokens

    async with opened(tiny_checkpoint) as engine:
        thread = engine.thread(prompt(0))
        with pytest.raises(ThreadStateError, match=r"ends before these threads do.* 1 open, \(0,\)"):
            await begin(thread)
        said += (await thread.generate(max_tokens=5, stop=[-1])).tokens
        await thread.__aexit__(None, None, None)
        assert said == whole.tokens
        async with engine.recording(tmp_path / "next.trace"):
            await work(engine, 1)
    trace = read(path)
    assert trace.lost is None
    (record,) = thread_tree(trace.events)
    assert (record.generated, record.closed, record.outcome) == (4, None, None)
    assert await verified(path) == 0
    assert [record.path for record in thread_tree(read(tmp_path / "next.trace").events)] == [(1,)]


async def hold(engine: Engine, done: anyio.Event, *, task_status: TaskStatus[None]) -> None:
    """Keeps a thread open."""
    async with engine.thread(prompt(1)):
        task_status.started()
        await done.wait()


@pytest.mark.anyio
async def test_what_the_body_raises_goes_before_what_the_end_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, done = tmp_path / "block.trace", anyio.Event()

    async def fail(group: TaskGroup | None) -> None:
        async with engine.recording(path, overwrite=True):
            await work(engine, 0)
            if group is not None:
                await group.start(hold, engine, done)
            raise ZeroDivisionError("no more")

    async with opened(tiny_checkpoint) as engine, anyio.create_task_group() as group:
        for holding in (None, group):
            with pytest.raises(ZeroDivisionError, match="no more") as raised:
                await fail(holding)
            notes = "".join(getattr(raised.value, "__notes__", []))
            assert ("1 open" in notes) == (holding is not None)
            trace = read(path)
            assert trace.lost is None
            assert thread_tree(trace.events)[0].outcome is not None
        done.set()


@pytest.mark.anyio
async def test_a_cancelled_recording_is_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "block.trace"
    async with opened(tiny_checkpoint) as engine:
        with anyio.CancelScope() as scope:
            async with engine.recording(path), engine.thread(prompt(0)) as thread:
                await thread.generate(max_tokens=3)
                scope.cancel()
                await thread.generate(max_tokens=3)
        assert scope.cancelled_caught
        trace = read(path)
        async with engine.recording(path, overwrite=True):
            await work(engine, 1)
    assert trace.lost is None
    (record,) = thread_tree(trace.events)
    assert record.outcome == "cancelled"
    assert record.closed is not None


@pytest.mark.anyio
async def test_a_device_that_fails_within(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: TorchBackend, tick: Tick) -> None:
        raise RuntimeError("the device is on fire")

    async def fail() -> None:
        async with engine.recording(path):
            async with engine.thread(prompt(0)) as thread:
                await thread.generate(max_tokens=3)
            monkeypatch.setattr(TorchBackend, "tick", die)
            async with engine.thread(prompt(1)) as thread:
                await thread.generate(max_tokens=3)

    path = tmp_path / "block.trace"
    async with opened(tiny_checkpoint, backend="torch") as engine:
        with pytest.raises(EngineFailed, match="on fire"):
            await fail()
    assert [record.generated for record in thread_tree(read(path).events)] == [3, 0]


@pytest.mark.anyio
async def test_an_engine_that_is_left_within(tiny_checkpoint: Path, tmp_path: Path) -> None:
    async with opened(tiny_checkpoint) as engine:
        recording = engine.recording(tmp_path / "block.trace")
        await recording.__aenter__()
        await work(engine, 0)
    trace = read(tmp_path / "block.trace")
    assert trace.lost is None
    assert [record.path for record in thread_tree(trace.events)] == [(0,)]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_cancels_while_the_device_begins() -> None:
    """Its own cancellation goes through shields: the recording that nobody waits for is ended again."""
    device = SteppedDevice(counting)
    async with Engine.from_device(Opened(device=device)) as engine:

        async def enter() -> None:
            async with engine.recording("block.trace"):
                pytest.fail("the block is not entered")

        task = asyncio.create_task(enter())
        await turn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [type(command) for command in device.sent] == [StartRecording, StopRecording]
        device.step()
        await turn()
        async with engine.thread([1]):
            device.step()
    assert device.core.events == [], "no event of a tree was sent"

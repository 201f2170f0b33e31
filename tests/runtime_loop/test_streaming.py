"""Streams: chunks as they come, and leaving early."""

from __future__ import annotations

import threading

import anyio
import pytest

from runtime import LimitExceeded, Limits, ThreadStateError
from runtime.link.commands import Interrupt
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import assert_all_closed, counting, scripts
from tests.runtime_loop.words import ids

from .engines import engine_on
from .turns import turn

pytestmark = pytest.mark.anyio


async def test_chunks_join_up_to_the_generation() -> None:
    device = ScriptedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        stream = root.stream(12, stop=["10"])
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.text for chunk in chunks) == " 0 1 2 3 4 5 6 7 8 9 "
        assert [token for chunk in chunks for token in chunk.tokens] == list(range(11))
        assert stream.generation is not None
        assert stream.generation.reason == "stop"
        assert stream.generation.text == " 0 1 2 3 4 5 6 7 8 9 "
        assert root.tokens == (*ids("a"), *range(11))
        assert (await root.generate(1)).tokens == (11,)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert_all_closed(device.core)


async def test_a_chunk_comes_with_every_tick() -> None:
    device = SteppedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        got = []

        async def read() -> None:
            async for chunk in root.stream(4):
                got.append(chunk.tokens)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            for done in range(4):
                await turn()
                assert got == [(k,) for k in range(done)]
                device.step()
        assert got == [(0,), (1,), (2,), (3,)]


async def test_leaving_keeps_what_was_delivered() -> None:
    device = ScriptedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        async for chunk in root.stream(10**9):
            if chunk.tokens[-1] >= 4:
                break
        assert root.tokens == (*ids("a"), 0, 1, 2, 3, 4)
        assert (await root.generate(2)).tokens == (5, 6)
        with pytest.raises(KeyError):  # noqa: PT012
            async for _ in root.stream(10**9):
                raise KeyError
        assert root.tokens[-1] == 7
        stream = root.stream()
        await anext(stream)
        await stream.aclose()
        await stream.aclose()
        root.append("b")
        assert (await root.generate(1)).tokens == (9,)
        assert engine._session is not None
        await engine._session.account.settled()
        assert engine.usage.generated == device.statistics.generated
    assert_all_closed(device.core)


async def test_what_arrived_and_was_not_taken_is_cut() -> None:
    device = SteppedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        stream = root.stream(3)
        async with anyio.create_task_group() as group:
            group.start_soon(anext, stream)
            await turn()
            device.step(3)
        assert root.tokens == (*ids("a"), 0)
        await stream.aclose()
        assert device.sent[-1] == Interrupt((0,), keep=1)
        device.take_commands()
        assert device.core.threads[0,].tokens == [*ids("a"), 0]
        await turn()
        assert root.usage.generated == 3


async def test_a_cancelled_stream_keeps_what_was_delivered() -> None:
    device = SteppedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        got = []

        async def read() -> None:
            async for chunk in root.stream():
                got.append(chunk.tokens)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await turn()
            device.step(2)
            await turn()
            group.cancel_scope.cancel()
        assert root.tokens == (*ids("a"), 0, 1)
        device.step()
        assert device.core.threads[0,].tokens == [*ids("a"), 0, 1]
        await turn()


async def test_a_stream_dropped_on_another_thread_is_left_on_the_loop() -> None:
    device = ScriptedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        held = [root.stream()]
        await anext(held[0])
        dropper = threading.Thread(target=held.clear)
        dropper.start()
        dropper.join()
        await turn()
        assert (await root.generate(1)).tokens == (1,)


async def test_limits_bound_a_stream() -> None:
    device = ScriptedDevice(scripts({}))
    async with (
        engine_on(device) as engine,
        engine.thread("a", limits=Limits(tokens=3)) as root,
    ):
        stream = root.stream()
        assert len([chunk async for chunk in stream]) == 3
        assert stream.generation is not None
        assert stream.generation.limit == "tokens"
        with pytest.raises(LimitExceeded, match="no tokens left"):
            await anext(root.stream())
        assert len(root.tokens) == 4
    assert_all_closed(device.core)


async def test_a_stream_with_a_name_gives_way() -> None:
    """Left by `break`, it ends when its thread is asked for something else, or with its thread."""
    device = ScriptedDevice(counting)
    async with engine_on(device, queue_size=1) as engine:
        async with engine.thread("a") as root:
            stream = root.stream()
            await anext(stream)
            with pytest.warns(ResourceWarning, match=r"stream of thread \(0,\) was still open .* to generate"):
                assert (await root.generate(1)).tokens == (1,)
            with pytest.raises(ThreadStateError, match="was left when the thread was to generate"):
                await anext(stream)
            await stream.aclose()
            for wish, act in (("append", root.append), ("fork", root.fork)):
                stream = root.stream()
                await anext(stream)
                with pytest.warns(ResourceWarning, match=f"to {wish}"):
                    act("b")
            last = root.stream()
            await anext(last)
            with pytest.warns(ResourceWarning, match="to stream"):
                root.stream()
        async with engine.thread("a") as other:
            assert (await other.generate(1)).tokens == (0,)
    assert_all_closed(device.core)


async def test_a_stream_ends_with_its_thread_and_gives_its_place_back() -> None:
    device = ScriptedDevice(counting)
    async with engine_on(device, queue_size=1) as engine:
        with pytest.warns(ResourceWarning, match="to end"):  # noqa: PT031
            async with engine.thread("a") as root:
                stream = root.stream()
                await anext(stream)
        assert (await engine.run("b", max_tokens=1)).reason == "length"
        with pytest.raises(ThreadStateError, match="was to end"):
            await anext(stream)
    assert_all_closed(device.core)


async def test_a_stream_is_left_at_the_end_of_its_block() -> None:
    device = ScriptedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        async with root.stream() as stream:
            async for chunk in stream:
                if chunk.tokens == (2,):
                    break
        assert root.tokens == (*ids("a"), 0, 1, 2)
        assert (await root.generate(1)).tokens == (3,)
        async with root.stream(2) as stream:
            assert [chunk.tokens async for chunk in stream] == [(4,), (5,)]
        assert stream.generation is not None
    assert_all_closed(device.core)


async def test_a_stream_that_is_awaited_keeps_its_thread() -> None:
    device = SteppedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        stream = root.stream(1)
        async with anyio.create_task_group() as group:
            group.start_soon(anext, stream)
            await turn()
            with pytest.raises(ThreadStateError, match="aclose"):
                root.append("b")
            device.step()


async def test_one_task_takes_the_chunks_of_a_stream() -> None:
    device = SteppedDevice(counting)
    async with engine_on(device) as engine, engine.thread("a") as root:
        stream = root.stream(1)
        async with anyio.create_task_group() as group:
            group.start_soon(anext, stream)
            await turn()
            with pytest.raises(ThreadStateError, match="waited for already"):
                await anext(stream)
            device.step()
        assert root.tokens == (*ids("a"), 0)

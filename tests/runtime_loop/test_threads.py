"""Threads that a program orchestrates: generating, appending, the queue, the engine's end."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import anyio
import pytest

from policies import ByRole, Fixed, Policy
from runtime import (
    CapacityError,
    Engine,
    EngineClosed,
    EngineFailed,
    Opened,
    PromptError,
    QueueFull,
    ReasoningThread,
    Sampling,
    ThreadStateError,
)
from runtime.link.commands import Generate, OpenThread
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import DEPTH, Speaker, assert_all_closed, counting
from tests.runtime_loop.words import ids

from .engines import engine_on
from .turns import turn

pytestmark = pytest.mark.anyio

WRONG_NAME: Any = {"lames": 3}
WRONG_VALUE: Any = {"dtype": "float16"}


def engine_over(device: ScriptedDevice | SteppedDevice, **options: Any) -> Engine:
    return engine_on(device, vocab_size=200, **options)


async def test_generate_appends_what_was_sampled() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device) as engine, engine.thread("a b") as root:
        first = await root.generate(3)
        assert first.tokens == (0, 1, 2)
        assert first.text == " 0 1 2"
        assert first.reason == "length"
        assert first.limit is None
        assert first.depths == (DEPTH,) * 3
        root.append("c")
        root.append([7])
        second = await root.generate(1)
        assert second.tokens == (3,)
        assert root.tokens == (*ids("a b"), 0, 1, 2, *ids("c"), 7, 3)
        assert root.text == "a b 0 1 2 c 7 3"
        assert root.path == (0,)
        assert root.usage.generated == 4
        assert root.usage.max_context == 8
        # The first token of each call needs the tokens before it; the last sampled one is not computed.
        assert root.usage.computed == 7
        assert root.usage.iterations == 7 * DEPTH
    assert_all_closed(device.core)


async def test_stops_are_kept_in_tokens_and_left_out_of_text() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device, stop_tokens=[9]) as engine, engine.thread("a") as root:
        by_token = await root.generate(stop=[2])
        assert (by_token.tokens, by_token.text, by_token.reason) == ((0, 1, 2), " 0 1", "stop")
        by_string = await root.generate(stop=["4 5"])
        assert (by_string.tokens, by_string.text, by_string.reason) == ((3, 4, 5), " 3 ", "stop")
        by_default = await root.generate()
        assert by_default.tokens == (6, 7, 8, 9)
        with pytest.raises(ValueError, match="list of strings"):
            await root.generate(stop="5")
        with pytest.raises(ValueError, match="at least 1"):
            await root.generate(0)


async def test_misuse_is_told() -> None:
    device = SteppedDevice(counting)
    async with engine_over(device) as engine:
        root = engine.thread()
        with pytest.raises(ThreadStateError, match="not open yet"):
            root.append("a")
        async with root:
            with pytest.raises(ThreadStateError, match="empty context"):
                await root.generate(1)
            with pytest.raises(PromptError, match="not a token id"):
                root.append([200])
            with pytest.raises(PromptError, match="empty"):
                root.spawn("")
            root.append("a")
            async with anyio.create_task_group() as group:
                group.start_soon(root.generate, 2)
                await turn()
                for misuse in (lambda: root.append("b"), lambda: root.fork(), lambda: root.stream()):
                    with pytest.raises(ThreadStateError, match="while it is generating"):
                        misuse()
                with pytest.raises(ThreadStateError, match="while it is generating"):
                    await root.generate(1)
                device.step(2)
            assert root.tokens == (*ids("a"), 0, 1)
        for misuse in (lambda: root.append("b"), lambda: root.spawn("b")):
            with pytest.raises(ThreadStateError, match="has ended"):
                misuse()
        with pytest.raises(ThreadStateError, match="entered before"):
            async with root:
                pass


async def test_context_has_an_end() -> None:
    device = ScriptedDevice(counting, context=4)
    async with engine_over(device, max_context=4) as engine:
        async with engine.thread("a b") as root:
            assert (await root.generate()).reason == "context"
            assert len(root.tokens) == 4
            with pytest.raises(PromptError, match="the model's context holds 4"):
                root.append("c")
            assert (await root.generate()).tokens == ()
        with pytest.raises(PromptError, match="the model's context holds 4"):
            async with engine.thread("a b c d e"):
                pass
    assert_all_closed(device.core)


async def test_an_error_of_the_body_is_raised_as_it_is() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device) as engine:
        with pytest.raises(KeyError, match="mine"):  # noqa: PT012
            async with engine.thread("a") as root:
                root.spawn("b", max_tokens=5)
                raise KeyError("mine")
    assert_all_closed(device.core)


async def test_a_thread_may_fail_alone() -> None:
    def say(speaker: Speaker) -> int:
        if speaker.tokens[0] == ids("b")[0]:
            raise CapacityError("too large")
        return counting(speaker)

    device = ScriptedDevice(say)
    async with engine_over(device) as engine, engine.thread("a") as root:
        with pytest.raises(CapacityError, match="too large"):
            async with engine.thread("b") as other:
                await other.generate(3)
        assert (await root.generate(2)).tokens == (0, 1)


async def test_depth_policies_follow_the_role() -> None:
    policy = Policy(
        depth=ByRole(root=Fixed(max_iterations=1), parent=Fixed(max_iterations=2), child=Fixed(max_iterations=3))
    )
    device = ScriptedDevice(counting)
    async with engine_over(device, policy=policy) as engine, engine.thread("a") as root:

        async def run(thread: ReasoningThread) -> None:
            await thread.generate(1)
            await thread.join([thread.spawn("c", max_tokens=1)])
            await thread.generate(1, depth=Fixed(max_iterations=9))
            await thread.generate(1)

        await root.generate(1)
        await root.join([root.spawn("b", program=run)])
    opened = {c.thread: c.depth.max_iterations for c in device.core.commands if isinstance(c, OpenThread)}
    assert opened == {(0,): 1, (0, 0): 3, (0, 0, 0): 3}
    replaced = [
        c.depth and c.depth.max_iterations
        for c in device.core.commands
        if isinstance(c, Generate) and c.thread == (0, 0)
    ]
    assert replaced == [None, 9, 2]


async def test_sampling_and_priority_are_inherited() -> None:
    device = ScriptedDevice(counting)
    warm, hot = Sampling(temperature=1.0), Sampling(temperature=2.0)
    async with (
        engine_over(device, sampling=warm, seed=5) as engine,
        engine.thread("a", priority=3, max_tokens=2) as root,
    ):
        await root.join([root.spawn("b"), root.spawn("c", sampling=hot, priority=1, max_tokens=1)])
        await root.generate(sampling=hot)
    opened = {c.thread: (c.priority, c.seed) for c in device.core.commands if isinstance(c, OpenThread)}
    assert opened == {(0,): (3, 5), (0, 0): (3, 5), (0, 1): (1, 5)}
    asked = {c.thread: (c.sampling, c.max_tokens) for c in device.core.commands if isinstance(c, Generate)}
    assert asked == {(0,): (hot, 2), (0, 0): (warm, 2), (0, 1): (hot, 1)}


async def test_the_queue_is_bounded_and_first_come_first_served() -> None:
    device = SteppedDevice(counting)
    done = []
    async with engine_over(device, queue_size=2) as engine, anyio.create_task_group() as group:

        async def one(index: int) -> None:
            async with engine.thread([index]) as root:
                await root.generate(1)
                done.append(index)

        for index in range(5):
            group.start_soon(one, index)
            await turn()
        generating = [c.thread for c in device.sent if isinstance(c, Generate)]
        assert generating == [(0,), (1,)]
        async with engine.thread("a") as root:
            with pytest.raises(QueueFull, match="2 generates"):
                await root.generate(1, nowait=True)
            assert root.tokens == ids("a")
            for _ in range(3):
                device.step()
                await turn()
            # Trio wakes tasks of one moment in random order.
            assert [set(done[:2]), set(done[2:4]), set(done[4:])] == [{0, 1}, {2, 3}, {4}]
            group.start_soon(root.generate, 1)
            await turn()
            device.step()
            await turn()
    assert_all_closed(device.core)


async def test_a_dead_device_wakes_everyone() -> None:
    device = SteppedDevice(counting)
    cause = OSError("gone")
    failed = []
    async with engine_over(device, queue_size=3) as engine:

        async def one(index: int) -> None:
            with pytest.raises(EngineFailed, match="gone") as caught:  # noqa: PT012
                async with engine.thread([index]) as root:
                    children = [root.spawn([50]), root.spawn([51])] if index == 0 else []
                    await (root.join(children) if children else root.generate(2))
            assert caught.value.__cause__ is cause
            failed.append(index)

        async with anyio.create_task_group() as group:
            for index in range(5):
                group.start_soon(one, index)
            await turn()
            device.fail(cause)
            await turn()
        assert sorted(failed) == [0, 1, 2, 3, 4]
        with pytest.raises(EngineFailed):
            engine.thread("a")
        with pytest.raises(EngineFailed):
            await engine.run("a")


async def test_closing_the_engine_ends_what_runs() -> None:
    device = SteppedDevice(counting)
    engine = engine_over(device)
    ended = []

    async def one() -> None:
        with pytest.raises(EngineClosed, match="while this thread was generating"):
            async with engine.thread("a") as root:
                await root.generate(5)
        ended.append(True)

    async def tick() -> None:
        while not device.is_stopped:
            device.step()
            await turn(1)

    async with anyio.create_task_group() as group:
        async with engine:
            group.start_soon(one)
            await turn()
            device.take_commands()
            device.core.tick()
            group.start_soon(tick)
        assert engine.usage.generated >= 1
    assert ended == [True]
    assert_all_closed(device.core)
    assert engine.usage.generated == device.statistics.generated
    with pytest.raises(EngineClosed):
        await engine.run("a")
    with pytest.raises(EngineClosed, match="entered once"):
        async with engine:
            pass


async def test_two_tasks_cannot_enter_an_engine() -> None:
    engine = engine_on(ScriptedDevice(counting))
    outcomes: list[str] = []

    async def enter() -> None:
        try:
            await engine.__aenter__()
        except EngineClosed as error:
            outcomes.append(str(error))
        else:
            outcomes.append("entered")

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
        group.start_soon(enter)
    await engine.__aexit__(None, None, None)
    assert sorted(outcomes) == ["An engine is entered once. Open another one.", "entered"]


async def test_an_engine_that_is_not_open_says_so() -> None:
    engine = engine_over(ScriptedDevice(counting))
    with pytest.raises(EngineClosed, match="not open yet"):
        await engine.run("a")
    with pytest.raises(ValueError, match="queue_size"):
        engine_over(ScriptedDevice(counting), queue_size=0)
    with pytest.raises(ValueError, match="no setting lames"):
        Engine.open("countdown", **WRONG_NAME)
    with pytest.raises(ValueError, match="float16"):
        Engine.open("countdown", **WRONG_VALUE)


async def test_without_a_tokenizer_there_are_only_ids() -> None:
    async with Engine.from_device(Opened(device=ScriptedDevice(counting))) as engine, engine.thread([5]) as root:
        generation = await root.generate(2)
        assert (generation.tokens, generation.text, root.text) == ((0, 1), "", "")
        with pytest.raises(PromptError, match=r"no tokenizer\.json"):
            root.append("a")
        with pytest.raises(PromptError, match="need a tokenizer"):
            await root.generate(stop=["a"])
        assert (await root.generate(1)).tokens == (2,)


async def test_usage_adds_up_to_what_the_device_counted() -> None:
    device = ScriptedDevice(counting)
    async with engine_over(device) as engine:

        async def one(index: int) -> None:
            async with engine.thread([index]) as root:
                await root.generate(1 + index % 3)
                children = [root.spawn([50 + k], max_tokens=2 + k) for k in range(3)]
                children += [root.fork(max_tokens=4)]
                with anyio.move_on_after(0.002 * (index % 4)):
                    await root.join(children[: index % 5])

        async with anyio.create_task_group() as group:
            for index in range(20):
                group.start_soon(one, index)
        usage, load = engine.usage, engine.statistics
        for name in ("generated", "computed", "iterations", "recomputed", "cached_tokens"):
            assert getattr(usage, name) == getattr(load, name)
        assert usage.threads == 20 * 5
    assert_all_closed(device.core)


def test_import_is_light() -> None:
    code = "import runtime, sys; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_loaded() -> None:
    import runtime

    for name in dir(runtime):
        assert getattr(runtime, name) is not None
    with pytest.raises(AttributeError):
        _ = runtime.nothing

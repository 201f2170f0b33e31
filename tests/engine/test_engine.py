"""The whole engine, from coroutine to tensor, on a tiny model whose random tokens spawn and join by accident."""

from __future__ import annotations

import random
import threading
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import torch

from policies import DepthPolicy, DepthView, Fixed, Limits, MaxChildren, Policy
from runtime import Engine, EngineFailed, LimitExceeded, PolicyError, Sampling
from runtime.backend.torch.backend import TorchBackend
from runtime.link.events import ThreadEnded
from traces import read, totals_of
from traces.__main__ import main as traces_command

pytestmark = pytest.mark.anyio
SIZES: dict[str, Any] = {
    "page_size": 4,
    "num_pages": 128,
    "max_in_flight": 64,
    "prefill_chunk": 16,
    "deterministic": True,
}
WARM = Sampling(temperature=4.0)
FEW = Limits(tokens=400, threads=25, tree_depth=3)


def prompt(number: int) -> str:
    return " ".join(f"w{(number * 7 + step * 3) % 32}" for step in range(5 + number % 4))


async def test_any_tokens_a_model_emits_are_survived(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Random spawns, joins and ends: everything terminates, is counted once, and is freed."""
    trace = tmp_path / "run.trace"
    outcomes: list[str] = []
    async with Engine.open(tiny_checkpoint, sampling=WARM, limits=FEW, trace=trace, **SIZES) as engine:

        async def run(number: int) -> None:
            try:
                outcomes.append((await engine.run(prompt(number), max_tokens=60)).reason)
            except LimitExceeded:
                outcomes.append("limit")

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(run, number)
                # One after the other, so that every prompt gets the same path, and with it the same randomness.
                await anyio.lowlevel.checkpoint()
        usage = engine.usage
    assert len(outcomes) == 20
    load = engine.statistics
    assert (load.pages_used, load.open_threads) == (0, 0)
    recorded = totals_of(read(trace).events)
    for name in ("generated", "computed", "iterations", "recomputed", "cached_tokens", "prompt_tokens"):
        assert getattr(usage, name) == getattr(load, name) == getattr(recorded, name), name
    assert usage.spawns_granted > 0, "the tokens of this model are to spawn sometimes"
    assert usage.threads == recorded.threads == 20 + usage.spawns_granted


async def test_a_tree_says_the_same_in_company(tiny_checkpoint: Path) -> None:
    async def answers(pages: int, together: bool) -> dict[int, tuple[int, ...]]:
        found: dict[int, tuple[int, ...]] = {}
        sizes = {**SIZES, "num_pages": pages}
        async with Engine.open(tiny_checkpoint, sampling=WARM, **sizes) as engine:
            roots = [engine.thread(prompt(number)) for number in range(6)]

            async def work(number: int) -> None:
                async with roots[number] as root:
                    generation = await root.generate(max_tokens=20)
                    child = root.fork("w1 w2", program=say_ten)
                    (answer,) = await root.join([child])
                    last = await root.generate(max_tokens=10)
                    found[number] = (*generation.tokens, *answer.tokens, *last.tokens)

            async with anyio.create_task_group() as group:
                for number in range(6):
                    if together:
                        group.start_soon(work, number)
                    else:
                        await work(number)
        assert engine.statistics.pages_used == 0
        return found

    async def say_ten(thread: Any) -> tuple[int, ...]:
        return (await thread.generate(max_tokens=10)).tokens

    alone = await answers(pages=128, together=False)
    assert await answers(pages=128, together=True) == alone
    assert await answers(pages=20, together=True) == alone


async def cancelled_run(engine: Engine, number: int, ticks: int) -> None:
    """Runs a prompt and cancels it when the device has done so many ticks."""
    done = anyio.Event()

    async def cancel(scope: anyio.CancelScope) -> None:
        while engine.statistics.ticks < ticks and not done.is_set():
            await anyio.sleep(0)
        scope.cancel()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(cancel, scope)
            try:
                await engine.run(prompt(number), max_tokens=60)
            except LimitExceeded:
                pass
            finally:
                done.set()


async def test_cancelled_at_any_moment_nothing_is_left(tiny_checkpoint: Path) -> None:
    chance = random.Random(4)
    async with Engine.open(tiny_checkpoint, sampling=WARM, limits=FEW, **SIZES) as engine:
        for number in range(15):
            await cancelled_run(engine, number, engine.statistics.ticks + chance.randrange(1, 60))
    assert (engine.statistics.pages_used, engine.statistics.open_threads) == (0, 0)
    assert engine.usage.iterations == engine.statistics.iterations


async def test_a_deadline_ends_what_it_is_around(tiny_checkpoint: Path) -> None:
    async with Engine.open(tiny_checkpoint, **SIZES) as engine, engine.thread(prompt(1)) as thread:
        before = thread.tokens
        with anyio.move_on_after(0) as scope:
            await thread.generate(max_tokens=50)
        assert scope.cancelled_caught
        assert thread.tokens == before
        assert len((await thread.generate(max_tokens=3)).tokens) == 3


class Failing(DepthPolicy, frozen=True):
    """Raises whenever it is asked."""

    reads = "latent"

    def measure(self, view: DepthView) -> Any:
        raise ZeroDivisionError("no depth for you")


async def test_a_failing_policy_ends_its_thread_alone(tiny_checkpoint: Path) -> None:
    failing = Policy(depth=Failing())
    async with (
        Engine.open(tiny_checkpoint, **SIZES) as engine,
        engine.thread(prompt(1), policy=failing) as bad,
        engine.thread(prompt(2)) as good,
    ):
        with pytest.raises(PolicyError, match="no depth for you"):
            await bad.generate(max_tokens=3)
        assert len((await good.generate(max_tokens=3, stop=[38])).tokens) == 3
    assert engine.statistics.pages_used == 0


async def test_a_dead_device_wakes_every_waiter(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: TorchBackend, tick: Any) -> None:
        raise RuntimeError("the device is on fire")

    errors: list[BaseException] = []
    async with Engine.open(tiny_checkpoint, backend="torch", **SIZES) as engine:
        monkeypatch.setattr(TorchBackend, "tick", die)

        async def work(number: int) -> None:
            try:
                await engine.run(prompt(number))
            except EngineFailed as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(work, number)
    assert len(errors) == 5
    assert all("on fire" in str(error.__cause__) for error in errors)


async def test_recorded_runs_play_back_and_verify(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    policy = Policy(depth=Fixed(3), spawn=MaxChildren(2))
    async with Engine.open(
        tiny_checkpoint, policy=policy, sampling=WARM, limits=FEW, trace=path, seed=7, **SIZES
    ) as engine:
        first = [await engine.run(prompt(number), max_tokens=40) for number in range(4)]
    trace = read(path)
    assert trace.lost is None
    ends = [event.text for event in trace.events if isinstance(event, ThreadEnded) and len(event.thread) == 1]
    assert ends == [answer.text for answer in first]
    async with Engine.playback(trace, sampling=WARM, limits=FEW) as engine:
        again = [await engine.run(prompt(number), max_tokens=40) for number in range(4)]
    assert [(answer.tokens, answer.reason) for answer in again] == [(a.tokens, a.reason) for a in first]
    assert await anyio.to_thread.run_sync(traces_command, ["replay", str(path), "--verify"]) == 0


async def test_the_loop_goes_on_while_the_device_computes(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tick waits for the event loop, which would wait for ever if it waited for ticks."""
    tick_of, computing, looked = TorchBackend.tick, threading.Event(), threading.Event()

    def tick(backend: TorchBackend, arguments: Any) -> Any:
        looked.clear()
        computing.set()
        assert looked.wait(60), "the event loop stands still during a tick"
        computing.clear()
        return tick_of(backend, arguments)

    async def look() -> None:
        while True:
            if computing.is_set():
                looked.set()
            await anyio.sleep(0)

    monkeypatch.setattr(TorchBackend, "tick", tick)
    async with anyio.create_task_group() as looking:
        looking.start_soon(look)
        async with Engine.open(tiny_checkpoint, backend="torch", **SIZES) as engine, anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(partial(engine.run, prompt(number), max_tokens=5))
        looking.cancel_scope.cancel()
    assert engine.statistics.generated > 20


@pytest.mark.parametrize("backend", ["torch", "native"])
async def test_the_callers_torch_threads_are_left_as_they_were(tiny_checkpoint: Path, backend: Any) -> None:
    def by_new_thread() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        async with Engine.open(tiny_checkpoint, backend=backend, cpu_threads=before + 3, **SIZES) as engine:
            await engine.run(prompt(1))
            assert torch.get_num_threads() == before + 1
        assert torch.get_num_threads() == before + 1
        assert by_new_thread() == before + 1
    finally:
        torch.set_num_threads(before)

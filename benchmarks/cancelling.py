"""How long a tree takes to fall: threads that wait, side by side or one below the other, cancelled from the top."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import anyio
import msgspec

from benchmarks import models
from benchmarks.result import Cell, Result, Spread
from benchmarks.timing import in_turn
from policies import Fixed, Policy
from runtime import Engine, EngineSettings, Opened, ReasoningThread
from runtime.device.build import build_loop
from runtime.device.loop import ModelDevice

Shape = Callable[[ReasoningThread, int], None]
"""Starts so many threads below one, which all wait."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    wide: tuple[int, ...] = (1_000, 10_000)
    deep: tuple[int, ...] = (100, 1_000)


def measure(size: Size, rounds: int) -> Result:
    cases: dict[tuple[str, int], Shape] = {("wide", count): _side_by_side for count in size.wide}
    cases |= {("deep", count): _one_below_the_other for count in size.deep}
    rows: list[tuple[Cell, ...]] = []
    for (name, count), shape in cases.items():
        fall = partial(anyio.run, _fall, shape, count)
        seconds = in_turn({name: fall}, rounds)[name]
        rows.append(
            (
                f"{name}, {count:,} threads",
                Spread.of(taken * 1e3 for taken in seconds),
                Spread.of(taken / count * 1e6 for taken in seconds),
            )
        )
    return Result(
        name="cancelling",
        title="trees that are cancelled from the top, on asyncio",
        columns=("tree", "milliseconds", "microseconds a thread"),
        rows=tuple(rows),
    )


async def _fall(shape: Shape, count: int) -> float:
    """Seconds from cancelling a tree until it is gone and its work is counted."""
    settings = EngineSettings(num_pages=8, device="cpu")
    device = ModelDevice(lambda: build_loop(models.smallest(), settings, Fixed(1)))
    async with Engine.from_device(Opened(device=device), policy=Policy(depth=Fixed(1))) as engine:
        with anyio.CancelScope() as scope:
            async with engine.thread([1]) as root:
                shape(root, count)
                while engine.statistics.open_threads <= count:
                    await anyio.sleep(0.001)
                started = time.perf_counter()
                scope.cancel()
                await anyio.sleep_forever()
        return time.perf_counter() - started


def _side_by_side(root: ReasoningThread, count: int) -> None:
    for _ in range(count):
        root.spawn([1], program=_wait)


def _one_below_the_other(root: ReasoningThread, count: int) -> None:
    async def descend(thread: ReasoningThread) -> None:
        if len(thread.path) <= count:
            await thread.join([thread.spawn([1], program=descend)])
        await _wait(thread)

    root.spawn([1], program=descend)


async def _wait(thread: ReasoningThread) -> None:
    await anyio.sleep_forever()

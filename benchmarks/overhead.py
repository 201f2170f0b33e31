"""The engine against a bare loop over the same calls of the backend.

Four sides do the same work: the bare loop calls the backend with ticks prepared in advance; the core adds scheduling
(`DeviceLoop.step`, on the same thread); the engine adds the device thread, the event loop and a coroutine a thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import anyio
import anyio.from_thread
import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import driving, models
from benchmarks.result import Aim, Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from policies import DepthPolicy, Fixed, Policy
from runtime import Engine, EngineSettings, Opened, Sampling
from runtime.backend.interface import Backend, CacheShape, Int32, RowHoles, Run, Tick, TickResult
from runtime.device.build import build_loop
from runtime.device.loop import ModelDevice
from runtime.model import Transformer


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 8, 32, 128)
    prompt: int = 32
    tokens: int = 96
    """Sampled by each thread."""
    depth: int = 4


class TickRecorder:
    """A backend that keeps the ticks it is given, and what they gave."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.ticks: list[Tick] = []
        self.tokens: list[Int32] = []

    @property
    def cache(self) -> CacheShape:
        return self._backend.cache

    @property
    def page_table(self) -> Int32:
        return self._backend.page_table

    @property
    def row_holes(self) -> RowHoles:
        return self._backend.row_holes

    def register(self, policy: DepthPolicy) -> int:
        return self._backend.register(policy)

    def release(self, index: int) -> None:
        self._backend.release(index)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self._backend.load_weights(weights)

    def close(self) -> None:
        self._backend.close()

    def run_of(self, lane: int) -> Run | None:
        return self._backend.run_of(lane)

    def latents(self, lanes: list[int]) -> Tensor:
        return self._backend.latents(lanes)

    def tick(self, tick: Tick) -> TickResult:
        result = self._backend.tick(tick)
        self.ticks.append(tick)
        self.tokens.append(result.token)
        return result


class Prepared(msgspec.Struct, frozen=True):
    """The ticks of some work, for a backend whose page table is already as it is in the end."""

    backend: Backend
    ticks: list[Tick]
    tokens: list[NDArray[np.int32]]
    """What each tick sampled."""


def measure(size: Size, rounds: int) -> Result:
    model = models.embedded_shape()
    compared = [_compare(model, size, threads, rounds) for threads in size.threads]
    return Result(
        name="overhead",
        title="engine against a bare loop over the same calls of the backend",
        columns=(
            "threads",
            "engine / bare loop, tokens/s",
            "core / bare loop, tokens/s",
            "bare loop, tokens/s",
            "engine, tokens/s",
            "bare loop, us/tick",
            "core beyond bare loop, us/tick",
            "engine beyond bare loop, us/tick",
            "engine / bare loop, ticks",
        ),
        rows=tuple(row for row, _ in compared),
        aims=tuple(
            Aim(figure=f"engine / bare loop, tokens/s, {threads} threads", measured=reached.median, bound=0.9)
            for threads, (_, reached) in zip(size.threads, compared, strict=True)
            if threads == 32
        ),
    )


def _compare(model: Transformer, size: Size, threads: int, rounds: int) -> tuple[tuple[Cell, ...], Spread]:
    """The row of a number of threads, and the engine's share of the bare loop's tokens/s."""
    depth, given = Fixed(size.depth), driving.prompts(model.specification.vocab_size, threads, size.prompt)
    settings = EngineSettings(
        num_pages=threads * -(-(size.prompt + size.tokens) // 16), reuse_prefixes=False, device="cpu"
    )
    prepared = prepare(model, settings, depth, given, size.tokens)
    core = build_loop(model, settings, depth)
    device = ModelDevice(lambda: build_loop(model, settings, depth))
    engine = Engine.from_device(
        Opened(device=device, max_context=model.specification.max_context), policy=Policy(depth=depth)
    )
    engine_ticks = 0

    def with_engine() -> float:
        nonlocal engine_ticks
        before = device.statistics.ticks
        seconds = portal.call(_answer_all, engine, given, size.tokens)
        engine_ticks = device.statistics.ticks - before
        return seconds

    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(engine):
        seconds = in_turn(
            {
                "bare": partial(replay, prepared),
                "core": lambda: driving.answer_all(core, given, depth, size.tokens, Sampling())[0],
                "engine": with_engine,
            },
            rounds,
        )
    count, ticks = threads * size.tokens, len(prepared.ticks)
    reached = Spread.of(ratios(seconds["bare"], seconds["engine"]))
    row: tuple[Cell, ...] = (
        threads,
        reached,
        Spread.of(ratios(seconds["bare"], seconds["core"])),
        Spread.of(count / taken for taken in seconds["bare"]),
        Spread.of(count / taken for taken in seconds["engine"]),
        Spread.of(taken / ticks * 1e6 for taken in seconds["bare"]),
        Spread.of(beyond / ticks * 1e6 for beyond in _differences(seconds["core"], seconds["bare"])),
        Spread.of(beyond / ticks * 1e6 for beyond in _differences(seconds["engine"], seconds["bare"])),
        engine_ticks / ticks,
    )
    return row, reached


def prepare(
    model: Transformer, settings: EngineSettings, depth: DepthPolicy, given: list[tuple[int, ...]], tokens: int
) -> Prepared:
    """Runs the work once, all threads asked at the start and closed at the end, and keeps its ticks."""
    core = build_loop(model, settings, depth)
    backend = core.backend
    core.backend = recorder = TickRecorder(backend)
    driving.answer_all(core, given, depth, tokens, Sampling())
    # No page changes hands before the end, so that one page table serves all ticks.
    return Prepared(backend, recorder.ticks, recorder.tokens)


def replay(prepared: Prepared) -> float:
    """Seconds of a bare loop over prepared ticks. Raises `RuntimeError` if they do not sample what they did."""
    tick, found = prepared.backend.tick, []
    started = time.perf_counter()
    for one in prepared.ticks:
        found.append(tick(one).token)
    seconds = time.perf_counter() - started
    if not all(map(np.array_equal, found, prepared.tokens)):
        raise RuntimeError("The bare loop sampled other tokens than the core whose ticks it repeats.")
    return seconds


async def _answer_all(engine: Engine, given: list[tuple[int, ...]], tokens: int) -> float:
    """Seconds until the last of the threads has its answer; then they are closed."""
    last = 0.0

    async def answer(prompt: tuple[int, ...]) -> None:
        nonlocal last
        async with engine.thread(prompt) as thread:
            await thread.generate(tokens)
            last = time.perf_counter()

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for prompt in given:
            group.start_soon(answer, prompt)
    return last - started


def _differences(seconds: list[float], less: list[float]) -> list[float]:
    return [one - other for one, other in zip(seconds, less, strict=True)]

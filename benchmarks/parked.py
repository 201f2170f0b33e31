"""What a parked thread costs: memory beyond its pages, and time of the ticks of others.

A parked thread has generated and waits, its context and pages kept. On the device it is a sequence; through the
engine it is also a task with a thread's `async with` around it, here a child that its parent has yet to join.
"""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
import anyio.from_thread
import msgspec

from benchmarks import driving, models
from benchmarks.result import Aim, Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from policies import Fixed, Policy
from runtime import Engine, EngineSettings, Opened, ReasoningThread, Sampling
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop, ModelDevice

DEPTH = Fixed(1)
PAGE_SIZE = 16
RESIDENT = Path("/proc/self/statm")
"""Where Linux says how much memory this process holds."""

Meter = Literal["traced", "resident"]
"""What Python has allocated, or what the process holds of the machine's memory."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    parked: int = 10_000
    prompt: int = 32
    tokens: int = 4
    """Sampled before parking."""
    working: int = 32
    """Threads that work beside the parked ones."""
    working_tokens: int = 64


def measure(size: Size, rounds: int) -> Result:
    # In this order, because what a first measurement frees would hide what the process needs for the second.
    meters: tuple[Meter, ...] = ("resident", "traced") if RESIDENT.exists() else ("traced",)
    aims: list[Aim] = []
    rows: list[tuple[Cell, ...]] = []
    for name, hold, compare in (
        ("device alone", held_by_device, _slowed_device),
        ("through the engine", held_by_engine, _slowed_engine),
    ):
        with driving.fresh_process() as process:
            held = {meter: process.submit(hold, size, meter).result() for meter in meters}
        cells = [cell for meter in meters for cell in (held[meter] / size.parked, held[meter] / 1e6)]
        rows.append((name, *cells, compare(size, rounds)))
        for meter in meters:
            figure = f"{meter} MB for {size.parked:,} parked threads beyond their pages, {name}"
            aims.append(Aim(figure=figure, measured=held[meter] / 1e6, bound=100.0, is_lower_better=True))
    return Result(
        name="parked",
        title=f"{size.parked:,} parked threads",
        columns=(
            "where",
            *(column for meter in meters for column in (f"{meter}, bytes a thread", f"{meter}, MB in all")),
            "seconds of others' work, with / without them",
        ),
        rows=tuple(rows),
        aims=tuple(aims) if size.parked == 10_000 else (),
        notes=(
            "Traced: allocated by Python. Resident: growth of the process, whose pool of pages was written before.",
        ),
    )


# ---- memory, each in a process of its own ---------------------------------------------------------------------------


def held_by_device(size: Size, meter: Meter) -> float:
    """Bytes that parked threads hold of a device core beyond their pages, which are there from the start."""
    core = _core(size.parked, size)
    _work_on_core(core, size)  # libraries load and compile at first use
    held = _METERS[meter]()
    _park(core, size)
    return held()


def held_by_engine(size: Size, meter: Meter) -> float:
    """Bytes that parked children of one thread hold of an engine and its device beyond their pages."""

    async def run() -> float:
        found = 0.0
        async with _engine(_core(size.parked, size)) as engine, engine.thread([0]) as root:
            await _work(engine, size)
            held = _METERS[meter]()
            async with _parked_children(root, size):
                found = held()
        return found

    return anyio.run(run)


def _traced() -> Callable[[], float]:
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    def held() -> float:
        gc.collect()
        found = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        return found

    return held


def _resident() -> Callable[[], float]:
    def total() -> int:
        gc.collect()
        return int(RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = total()
    return lambda: total() - before


_METERS: dict[Meter, Callable[[], Callable[[], float]]] = {"traced": _traced, "resident": _resident}
"""Each begins to measure; the function it gives says how many bytes were added since."""


# ---- ticks of others ------------------------------------------------------------------------------------------------


def _slowed_device(size: Size, rounds: int) -> Spread:
    empty, crowded = _core(0, size), _core(size.parked, size)
    _park(crowded, size)
    sides = {"without": lambda: _work_on_core(empty, size), "with": lambda: _work_on_core(crowded, size)}
    seconds = in_turn(sides, rounds)
    return Spread.of(ratios(seconds["with"], seconds["without"]))


def _slowed_engine(size: Size, rounds: int) -> Spread:
    empty, crowded = _engine(_core(0, size)), _engine(_core(size.parked, size))

    @asynccontextmanager
    async def parked() -> AsyncIterator[None]:
        async with crowded.thread([0]) as root, _parked_children(root, size):
            yield

    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(empty),
        portal.wrap_async_context_manager(crowded),
        portal.wrap_async_context_manager(parked()),
    ):
        seconds = in_turn(
            {"without": lambda: portal.call(_work, empty, size), "with": lambda: portal.call(_work, crowded, size)},
            rounds,
        )
    return Spread.of(ratios(seconds["with"], seconds["without"]))


def _work_on_core(core: DeviceLoop, size: Size) -> float:
    given = _prompts(size.working, size)
    return driving.answer_all(core, given, DEPTH, size.working_tokens, Sampling())[0]


async def _work(engine: Engine, size: Size) -> float:
    async def answer(prompt: tuple[int, ...]) -> None:
        async with engine.thread(prompt) as thread:
            await thread.generate(size.working_tokens)

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for prompt in _prompts(size.working, size):
            group.start_soon(answer, prompt)
    return time.perf_counter() - started


# ---- parked threads -------------------------------------------------------------------------------------------------


def _park(core: DeviceLoop, size: Size) -> None:
    for number, prompt in enumerate(_prompts(size.parked, size)):
        path = (-1, number)
        driving.begin(core, path, prompt, DEPTH)
        driving.ask(core, path, size.tokens, Sampling())
    driving.step_to_end(core)


@asynccontextmanager
async def _parked_children(root: ReasoningThread, size: Size) -> AsyncIterator[None]:
    """Children that have generated and wait, as long as the context is open."""
    released, all_parked, parked = anyio.Event(), anyio.Event(), 0

    async def park(child: ReasoningThread) -> None:
        nonlocal parked
        await child.generate(size.tokens)
        parked += 1
        if parked == size.parked:
            all_parked.set()
        await released.wait()

    children = [root.spawn(prompt, program=park) for prompt in _prompts(size.parked, size)]
    await all_parked.wait()
    yield
    released.set()
    await root.join(children, append=False)


def _prompts(count: int, size: Size) -> list[tuple[int, ...]]:
    return driving.prompts(models.smallest().specification.vocab_size, count, size.prompt)


def _core(parked: int, size: Size) -> DeviceLoop:
    """A core with room for parked and for working threads, whose first tick writes all of its pool."""
    pages = parked * -(-(size.prompt + size.tokens) // PAGE_SIZE)
    pages += (size.working + 1) * -(-(size.prompt + size.working_tokens) // PAGE_SIZE)
    settings = EngineSettings(num_pages=pages, page_size=PAGE_SIZE, device="cpu")
    core = build_loop(models.smallest(), settings, DEPTH)
    driving.touch_pages(core, pages)
    return core


def _engine(core: DeviceLoop) -> Engine:
    return Engine.from_device(Opened(device=ModelDevice(lambda: core)), policy=Policy(depth=DEPTH))

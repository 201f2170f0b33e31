"""Goodput under deadlines: all children as asked, a fixed maximum, and as many as the slack of all trees allows.

Countdown problems come by chance (Poisson), at shares of what the engine answers when it is asked without a pause. A
tree is to have ended by some times what one takes alone.
"""

from __future__ import annotations

import random
import time
from functools import partial
from itertools import islice
from statistics import fmean

import anyio
import msgspec

from benchmarks.result import Cell, Result, Spread
from examples.countdown.problems import Problem, draw_problems
from examples.countdown.solve import solve
from policies import AllChildren, BySlack, Fixed, MaxChildren, Policy, SpawnPolicy
from runtime import Engine

DEPTH = Fixed(4)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    loads: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Arrivals, of the trees a second that are answered without a pause."""
    seconds: float = 6.0
    """How long trees come in each case."""
    lone: int = 12
    """Trees that are answered one by one, for how long one takes."""
    crowd: int = 64
    """Trees at a time, for how many are answered a second."""
    patience: float = 4.0
    """A tree's deadline, in times of what one takes alone."""
    children: int = 2
    """The fixed maximum."""


class _Served(msgspec.Struct, frozen=True):
    """One case: of the trees that came."""

    in_time: float
    """A second."""
    right_in_time: float
    """A second: in time, and with a right answer."""
    share: float
    """Of them, those in time."""
    threads: float
    """Of a tree."""


_COLUMNS = ("in time, a second", "right and in time, a second", "share in time", "threads a tree")


def measure(size: Size, rounds: int) -> Result:
    return anyio.run(partial(_measure, size, rounds))


async def _measure(size: Size, rounds: int) -> Result:
    problems = list(islice(draw_problems(random.Random(7)), 1_000))
    alone, rate = await _capacity(size, problems)
    deadline = size.patience * alone
    sides: dict[str, SpawnPolicy] = {
        "as asked": AllChildren(),
        f"at most {size.children}": MaxChildren(size.children),
        "by slack": BySlack(deadline),
    }
    rows: list[tuple[Cell, ...]] = []
    for load in size.loads:
        served: dict[str, list[_Served]] = {name: [] for name in sides}
        for number in range(rounds):
            for name, spawn in sides.items():
                served[name].append(await _serve(size, problems, spawn, load * rate, deadline, number))
        spreads = (
            Spread.of(getattr(each, field) for each in served[name])
            for field in _Served.__struct_fields__
            for name in sides
        )
        rows.append((load, *spreads))
    return Result(
        name="slack",
        title="Countdown trees under deadlines, by how many children run",
        columns=("load", *(f"{what}, {name}" for what in _COLUMNS for name in sides)),
        rows=tuple(rows),
        notes=(
            f"A tree takes {alone * 1e3:.0f} ms alone and has {deadline * 1e3:.0f} ms; {rate:.1f} trees a second are "
            f"answered without a pause, {size.crowd} at a time.",
        ),
    )


def _engine(spawn: SpawnPolicy) -> Engine:
    return Engine.open("countdown", policy=Policy(depth=DEPTH, spawn=spawn), device="cpu", reuse_prefixes=False)


async def _capacity(size: Size, problems: list[Problem]) -> tuple[float, float]:
    """Seconds of a tree alone, and trees a second of as many as there is room for."""
    async with _engine(AllChildren()) as engine:
        taken = []
        for problem in problems[: size.lone + 1]:
            began = time.perf_counter()
            await solve(engine, problem)
            taken.append(time.perf_counter() - began)
        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for problem in problems[: size.crowd]:
                group.start_soon(solve, engine, problem)
        # The first of those alone has found everything cold.
        return fmean(taken[1:]), size.crowd / (time.perf_counter() - began)


async def _serve(
    size: Size, problems: list[Problem], spawn: SpawnPolicy, rate: float, deadline: float, seed: int
) -> _Served:
    """Trees that come by chance, `rate` a second; those that have not ended in time go on all the same."""
    draw = random.Random(seed)
    results: list[tuple[float, bool, int]] = []
    async with _engine(spawn) as engine:
        for problem in problems[:2]:
            await solve(engine, problem)
        began = time.perf_counter()

        async def answer(problem: Problem, came: float) -> None:
            solution = await solve(engine, problem)
            results.append((time.perf_counter() - came, solution.is_right, solution.usage.threads))

        async with anyio.create_task_group() as group:
            came = began
            for problem in draw.sample(problems, len(problems)):
                came += draw.expovariate(rate)
                if came > began + size.seconds:
                    break
                await anyio.sleep(max(0.0, came - time.perf_counter()))
                group.start_soon(answer, problem, came)
    in_time = [(taken, is_right) for taken, is_right, _ in results if taken <= deadline]
    return _Served(
        len(in_time) / size.seconds,
        sum(is_right for _, is_right in in_time) / size.seconds,
        len(in_time) / max(1, len(results)),
        fmean(threads for *_, threads in results) if results else 0.0,
    )

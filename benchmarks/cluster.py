"""Replicas on Ray against one engine: independent threads on two of them, and what a remote child costs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from benchmarks import models
from benchmarks.result import Aim, Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from policies import Fixed, Policy
from runtime import Cluster, Engine, ReasoningThread
from runtime.model import save_checkpoint

ENGINE, ONE, TWO = "an engine", "a cluster of 1", "a cluster of 2"


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: int = 64
    """At a time, each a tree of its own."""
    prompt: int = 32
    tokens: int = 96
    """Sampled by each."""
    depth: int = 16
    message: int = 8
    """Tokens that a child is given."""
    children: int = 100
    """One after the other, for the time of one."""


def measure(size: Size, rounds: int) -> Result:
    with TemporaryDirectory() as directory, start_blocking_portal() as portal:
        checkpoint = Path(directory) / "wider"
        save_checkpoint(checkpoint, models.wider(size.prompt + size.tokens + 8))
        with _opened(portal, checkpoint, size) as engines:

            def sides(work: Callable[[Engine, Size], Awaitable[float]]) -> dict[str, Callable[[], float]]:
                return {name: partial(portal.call, work, engine, size) for name, engine in engines.items()}

            trees = in_turn(sides(_trees), rounds)
            children = in_turn(sides(_children), rounds)
    sampled = size.threads * size.tokens
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            Spread.of(sampled / taken for taken in trees[name]),
            Spread.of(ratios(trees[ENGINE], trees[name])),
            Spread.of(taken * 1e3 for taken in children[name]),
        )
        for name in (ENGINE, ONE, TWO)
    ]
    more = [after - before for after, before in zip(children[TWO], children[ENGINE], strict=True)]
    return Result(
        name="cluster",
        title=f"{size.threads} trees of one thread at a time, each {size.tokens} tokens at depth {size.depth}",
        columns=("on", "tokens/s", "speed / an engine's", "ms a child"),
        rows=tuple(rows),
        aims=(
            Aim(figure="two replicas' speed against one's", measured=_speedup(trees), bound=1.8),
            Aim(
                figure="ms that a remote child takes more",
                measured=Spread.of(more).median * 1e3,
                bound=5.0,
                is_lower_better=True,
            ),
        ),
        notes=(
            f"Width 256, a layer before and after a core of two. Prompts of {size.prompt} tokens. Every engine and "
            "replica has one thread; the event loop and Ray share the machine with them.",
            f"A child: spawned with {size.message} tokens, sampling one at depth 1, joined; {size.children} of them.",
        ),
    )


def _speedup(trees: dict[str, list[float]]) -> float:
    return Spread.of(ratios(trees[ONE], trees[TWO])).median


@contextmanager
def _opened(portal: BlockingPortal, checkpoint: Path, size: Size) -> Iterator[dict[str, Engine]]:
    """All three, side by side; those that have nothing to do wait."""
    policy = Policy(depth=Fixed(size.depth))
    engines: dict[str, Engine] = {
        ENGINE: Engine.open(checkpoint, policy=policy, cpu_threads=1),
        # The first of them starts a Ray, with room for both.
        TWO: Cluster.open(checkpoint, policy=policy, replicas=2, cpu_threads=1, ray_options={"num_cpus": 0.5}),
        ONE: Cluster.open(checkpoint, policy=policy, replicas=1, cpu_threads=1, ray_options={"num_cpus": 0.5}),
    }
    stack = AsyncExitStack()

    async def enter() -> None:
        for engine in engines.values():
            await stack.enter_async_context(engine)

    portal.call(enter)
    try:
        yield engines
    finally:
        portal.call(stack.aclose)


async def _trees(engine: Engine, size: Size) -> float:
    async def tree(number: int) -> None:
        async with engine.thread(_prompt(size, number)) as thread:
            await thread.generate(max_tokens=size.tokens, stop=[-1])

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(size.threads):
            group.start_soon(tree, number)
    return time.perf_counter() - began


async def _children(engine: Engine, size: Size) -> float:
    """Seconds of one."""

    async def child(thread: ReasoningThread) -> None:
        await thread.generate(max_tokens=1, depth=Fixed(1))

    async with engine.thread(_prompt(size, 0)) as root:
        began = time.perf_counter()
        for number in range(size.children):
            await root.join([root.spawn(_prompt(size, number)[: size.message], program=child)], append=False)
        seconds = (time.perf_counter() - began) / size.children
    return seconds


def _prompt(size: Size, number: int) -> list[int]:
    return [(number * 31 + step * 7) % models.VOCABULARY for step in range(size.prompt)]

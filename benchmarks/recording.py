"""What a trace and streams cost: the embedded model's tokens a second with either, over those without, and the size of
the trace. All on one engine, in turn."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import anyio
import msgspec
from anyio.from_thread import start_blocking_portal

from benchmarks.result import Aim, Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from examples.countdown.problems import draw_problems
from policies import LatentDiff, Policy
from runtime import Engine, ReasoningThread
from traces import read, totals_of

Ask = Callable[[ReasoningThread], Awaitable[None]]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 32, 128)
    """That answer at a time."""
    answers: int = 48
    """At least so many a round, and at least four for each thread."""
    max_tokens: int = 256


def measure(size: Size, rounds: int) -> Result:
    rows: list[tuple[Cell, ...]] = []
    aims: list[Aim] = []
    with TemporaryDirectory() as directory:
        path = Path(directory) / "run.trace"
        for threads in size.threads:
            seconds, trace_bytes = _compare(threads, size, rounds, path)
            traced, streamed = (Spread.of(ratios(seconds["plain"], seconds[side])) for side in ("traced", "streamed"))
            rows.append((threads, traced, streamed, trace_bytes))
            aims += [
                Aim(figure=f"{threads} threads, traced over plain", measured=traced.median, bound=0.95),
                Aim(figure=f"{threads} threads, streamed over plain", measured=streamed.median, bound=0.9),
                Aim(figure=f"{threads} threads, bytes a token", measured=trace_bytes, bound=12.0, is_lower_better=True),
            ]
    return Result(
        name="recording",
        title="tokens a second of the embedded model with a trace, and with every thread streaming, over those without",
        columns=("threads", "traced over plain", "streamed over plain", "bytes of trace a token"),
        rows=tuple(rows),
        aims=tuple(aims),
    )


def _compare(threads: int, size: Size, rounds: int, path: Path) -> tuple[dict[str, list[float]], float]:
    """Seconds of each side, and the bytes of a trace for each token sampled."""
    count = max(size.answers, 4 * threads)
    prompts = [problem.prompt for problem in islice(draw_problems(Random(0)), count)]
    with start_blocking_portal() as portal:
        engine = Engine.open("countdown", policy=Policy(depth=LatentDiff(0.1)))
        with portal.wrap_async_context_manager(engine):

            async def answer_all(ask: Ask, recorded: bool) -> float:
                async with AsyncExitStack() as stack:
                    if recorded:
                        await stack.enter_async_context(engine.recording(path, overwrite=True))
                    left = iter(prompts)
                    started = time.perf_counter()
                    async with anyio.create_task_group() as group:
                        for _ in range(threads):
                            group.start_soon(_answer, engine, left, ask)
                    seconds = time.perf_counter() - started
                return seconds

            sides = {
                "plain": (partial(_generate, size.max_tokens), False),
                "traced": (partial(_generate, size.max_tokens), True),
                "streamed": (partial(_stream, size.max_tokens), False),
            }
            seconds = in_turn({name: partial(portal.call, answer_all, *side) for name, side in sides.items()}, rounds)
    return seconds, path.stat().st_size / totals_of(read(path).events).generated


async def _answer(engine: Engine, prompts: Iterator[str], ask: Ask) -> None:
    """Answers one prompt after the other, as long as there are some."""
    for prompt in prompts:
        async with engine.thread(prompt) as thread:
            await ask(thread)


async def _generate(max_tokens: int, thread: ReasoningThread) -> None:
    await thread.generate(max_tokens=max_tokens)


async def _stream(max_tokens: int, thread: ReasoningThread) -> None:
    async with thread.stream(max_tokens=max_tokens) as chunks:
        async for _ in chunks:
            pass

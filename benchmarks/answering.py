"""The embedded model under loads that are recorded: problems answered by single threads, so many at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import anyio
import msgspec

from examples.countdown.problems import draw_problems
from policies import LatentDiff, Policy
from runtime import Engine

CHECKPOINT = "countdown"
THRESHOLD = 0.1
"""Of `LatentDiff`: depths differ, as they do where it is worth simulating."""


class Load(msgspec.Struct, frozen=True):
    """So many threads at a time, which say at most so many tokens each."""

    threads: int
    answers: int
    max_tokens: int = 256


class Measured(msgspec.Struct, frozen=True):
    """How a load was answered, as its program saw it."""

    tokens: int
    seconds: float
    latencies: tuple[float, ...]
    """Seconds of each answer, the opening and closing of its thread included."""


def open_engine() -> Engine:
    return Engine.open(CHECKPOINT, policy=Policy(depth=LatentDiff(THRESHOLD)))


async def record_loads(engine: Engine, loads: Sequence[Load], trace: Path, seed: int) -> list[Measured]:
    """Answers one load after the other, into a trace; problems are drawn with `seed`."""
    problems = draw_problems(Random(seed))
    measured = []
    async with engine.recording(trace, overwrite=True):
        for load in loads:
            prompts = [problem.prompt for problem in islice(problems, load.answers)]
            measured.append(await _answer_all(engine, load, iter(prompts)))
    return measured


async def _answer_all(engine: Engine, load: Load, prompts: Iterator[str]) -> Measured:
    latencies: list[float] = []
    tokens = 0

    async def answer() -> None:
        nonlocal tokens
        for prompt in prompts:
            began = time.perf_counter()
            async with engine.thread(prompt) as thread:
                said = await thread.generate(max_tokens=load.max_tokens)
            tokens += len(said.tokens)
            latencies.append(time.perf_counter() - began)

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(load.threads):
            group.start_soon(answer)
    return Measured(tokens, time.perf_counter() - started, tuple(latencies))

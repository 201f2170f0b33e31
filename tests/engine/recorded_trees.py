"""Engines to be recorded, trees that they run, and whether what was recorded verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from policies import Fixed, Limits, MaxChildren, Policy
from runtime import (
    Answer,
    Engine,
    LimitExceeded,
    Sampling,
)
from traces.__main__ import main as traces_command

SIZES: dict[str, Any] = {
    "page_size": 4,
    "num_pages": 128,
    "max_in_flight": 64,
    "prefill_chunk": 16,
    "most_iterations": 4,
}

WARM = Sampling(temperature=4.0)

FEW = Limits(tokens=150, threads=12, tree_depth=3)

POLICY = Policy(depth=Fixed(3), spawn=MaxChildren(2))


def opened(checkpoint: Path, **changes: Any) -> Engine:
    return Engine.open(checkpoint, policy=POLICY, sampling=WARM, limits=FEW, seed=7, **SIZES, **changes)


def prompt(number: int) -> str:
    return " ".join(f"w{(number * 7 + step * 3) % 32}" for step in range(9 + number % 4))


async def work(engine: Engine, *numbers: int) -> list[Answer | None]:
    """Trees that spawn by accident, at the same time; None for those that run into a limit."""
    found: dict[int, Answer | None] = {}

    async def run(number: int) -> None:
        try:
            found[number] = await engine.run(prompt(number), max_tokens=30)
        except LimitExceeded:
            found[number] = None

    async with anyio.create_task_group() as group:
        for number in numbers:
            group.start_soon(run, number)
    return [found[number] for number in numbers]


async def verified(*arguments: object) -> int:
    return await anyio.to_thread.run_sync(traces_command, ["replay", "--verify", *map(str, arguments)])

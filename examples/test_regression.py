"""A regression test made of a trace: recorded once with the model, played back without one ever after.

pytest examples/test_regression.py --record-traces  # at first, and whenever the program is meant to change
pytest examples/test_regression.py                  # without a model, in a moment
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from policies import LatentDiff, MaxChildren, Policy
from runtime import Engine

if TYPE_CHECKING:
    from traces import BraidTrace

TRACE = Path(__file__).with_name("countdown.trace")


async def first_solution(engine: Engine, problem: str, messages: list[str]) -> str:
    """The program under test: a child for each message; the first answer is taken, and the others are cancelled."""
    async with engine.thread(problem) as root:
        first = await root.first([root.spawn(message) for message in messages])
    return first.text.strip() if first else ""


@pytest.mark.anyio
async def test_first_solution(braid_trace: BraidTrace) -> None:
    policy = Policy(depth=LatentDiff(0.03), spawn=MaxChildren(10))
    async with braid_trace(TRACE, checkpoint="countdown", policy=policy) as engine:
        messages = ["53 - 31 22 Q 27 26 22 22", "26 - 22 4 Q 27 53 31 4"]
        solution = await first_solution(engine, "22 26 31 53 -> 27", messages)
    assert solution == "53 - 31 22 22 / 22 1 26 + 1 27"

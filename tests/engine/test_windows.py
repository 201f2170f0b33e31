"""A smaller context than the model's own: threads end at it, and nothing else changes."""

from __future__ import annotations

import anyio

from runtime import Engine


def test_a_window_ends_threads_that_reach_it() -> None:
    async def run(context: int | None) -> tuple[str, str, int]:
        async with Engine.open("countdown", max_context=context) as engine:
            answer = await engine.run("22 26 31 53 -> 27")
            return answer.reason, answer.text, answer.usage.max_context

    reason, text, longest = anyio.run(run, 64)
    assert (reason, text) == ("context", "")
    assert longest == 64
    whole = anyio.run(run, None)
    assert whole[0] == "returned"
    assert anyio.run(run, whole[2]) == whole

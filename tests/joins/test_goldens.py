"""Merged joins against the reference: tokens, positions and distributions, on both backends and on any pages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from runtime import Engine, Generation, ReasoningThread, Sampling

pytestmark = pytest.mark.anyio
HOME = Path(__file__).parent.parent / "golden" / "joins_a"
ARRAYS: dict[str, Tensor] = load_file(HOME / "golden.safetensors")
ABOUT: dict[str, Any] = json.loads((HOME / "golden.json").read_text())
VOCAB = 384
SETTINGS = [
    {"backend": backend, "page_size": page_size, "num_pages": pages}
    for backend in ("torch", "native")
    for page_size, pages in ((16, 64), (4, 200), (5, 24))
]


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[Engine]:
    async with Engine.open(HOME, sampling=Sampling(logprobs=VOCAB), **settings) as engine:
        yield engine


def check_tokens(generation: Generation, expected: Tensor) -> None:
    """The reference goes on behind stop tokens."""
    count = len(generation.tokens)
    assert list(generation.tokens) == expected[:count].tolist()
    assert count == len(expected) or generation.reason == "stop"


def check_logits(generation: Generation, logits: Tensor) -> None:
    expected = torch.log_softmax(logits, dim=-1)
    for row, top in enumerate(generation.top_logprobs):
        found = torch.full_like(expected[row], -torch.inf)
        found[list(top)] = torch.tensor(list(top.values()))
        torch.testing.assert_close(found, expected[row], atol=2e-4, rtol=0)


class Layout:
    """A reference layout, played by a program of forks and merged joins."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.segments = ABOUT["layouts"][name]["segments"]
        self.checked: set[str] = set()

    def ids(self, number: int) -> list[int]:
        return list(ARRAYS[f"merge.{self.name}.ids"][ARRAYS[f"merge.{self.name}.segment"] == number].tolist())

    def following(self, seen: set[int], after_join: bool) -> list[int]:
        return [
            each["segment"]
            for each in self.segments
            if set(each["sees"]) == seen and ("after join" in each["kind"]) == after_join
        ]

    async def play(self, thread: ReasoningThread, seen: set[int], number: int) -> set[int]:
        """Goes on from a segment as its thread; gives all that is in the context at the end."""
        while True:
            await self.probe(thread, f"segment{number}")
            numbers = self.following(seen, after_join=False)
            if not numbers:
                return seen
            ends: list[set[int]] = []

            def think(child: int, seen: set[int] = seen, ends: list[set[int]] = ends) -> Any:
                async def program(own: ReasoningThread) -> None:
                    ends.append(await self.play(own, seen | {child}, child))

                return program

            children = [thread.fork(self.ids(child), program=think(child)) for child in numbers]
            await thread.join(children, merge=True)
            seen = seen.union(*ends)
            (number,) = self.following(seen, after_join=True)
            thread.append(self.ids(number))
            seen = seen | {number}

    async def probe(self, thread: ReasoningThread, tag: str) -> None:
        """What a fork would say that goes on from here, if the reference knows."""
        expected = ARRAYS.get(f"merge.{self.name}.{tag}.new")
        if expected is None:
            return
        said: list[Generation] = []

        async def program(own: ReasoningThread) -> None:
            said.append(await own.generate(len(expected)))

        await thread.fork(program=program)
        check_tokens(said[0], expected)
        self.checked.add(tag)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["one", "two", "nested"])
async def test_a_layout_of_segments_gives_the_references_tokens(name: str, settings: dict[str, Any]) -> None:
    layout = Layout(name)
    async with opened(**settings) as engine, engine.thread(layout.ids(0)) as root:
        await layout.play(root, {0}, 0)
        assert sorted(root.tokens) == sorted(ARRAYS[f"merge.{name}.ids"].tolist())
        said = await root.generate(16)
        check_tokens(said, ARRAYS[f"merge.{name}.parent.new"])
        check_logits(said, ARRAYS[f"merge.{name}.parent.new_logits"])
    expected = {tag.split(".")[2] for tag in ARRAYS if tag.startswith(f"merge.{name}.segment") and ".new" in tag}
    assert layout.checked == expected
    assert engine.statistics.pages_used == 0

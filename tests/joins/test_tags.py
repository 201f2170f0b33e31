"""What the engines of published systems compute between their tags, by forks and joins of a program: Multiverse and NPR
merge keys and values, ThreadWeaver appends texts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from runtime import Engine, ReasoningThread
from tests.joins.test_goldens import ARRAYS, HOME, SETTINGS, check_logits, check_tokens, opened

pytestmark = pytest.mark.anyio
MERGED = ["multiverse.one", "multiverse.two", "multiverse.nested", "npr.one"]


class Spoken:
    """A text with the engine's positions and mask, cut into segments: rows in which each token sees what the one before
    it saw, and that one."""

    def __init__(self, tag: str) -> None:
        self.ids: list[int] = ARRAYS[f"tags.{tag}.ids"].tolist()
        position: list[int] = ARRAYS[f"tags.{tag}.engine.pos"].tolist()
        seen = [{column for column, is_seen in enumerate(row) if is_seen} for row in ARRAYS[f"tags.{tag}.engine.mask"]]
        starts = {
            at
            for at in range(1, len(self.ids))
            if seen[at] != seen[at - 1] | {at} or position[at] != position[at - 1] + 1
        }
        # The first child of a fork goes on like its parent, and is known by its siblings.
        starts |= {0, *(max(seen[at] - {at}) + 1 for at in starts)}
        ordered = sorted(starts)
        self.segments = [list(range(*borders)) for borders in pairwise([*ordered, len(self.ids)])]
        self.sees = [frozenset(seen[segment[0]] - {segment[0]}) for segment in self.segments]

    def following(self, context: frozenset[int]) -> list[list[int]]:
        return [segment for segment, sees in zip(self.segments, self.sees, strict=True) if sees == context]

    def told(self, segment: list[int]) -> list[int]:
        return [self.ids[at] for at in segment]

    async def play(self, thread: ReasoningThread, context: frozenset[int]) -> frozenset[int]:
        """What a thread has at its end, that goes on from a context."""
        while segments := self.following(context):
            ends: list[frozenset[int]] = []

            def thinks(segment: list[int], context: frozenset[int] = context, ends: Any = ends) -> Any:
                async def think(own: ReasoningThread) -> None:
                    ends.append(await self.play(own, context | set(segment)))

                return think

            children = [thread.fork(self.told(segment), program=thinks(segment)) for segment in segments]
            await thread.join(children, merge=True)
            context = context.union(*ends)
            for segment in self.following(context):
                thread.append(self.told(segment))
                context |= set(segment)
        return context


@pytest.mark.parametrize("settings", SETTINGS[::3], ids=str)
@pytest.mark.parametrize("tag", MERGED)
async def test_merged_joins_between_the_tags_of_published_systems(tag: str, settings: dict[str, Any]) -> None:
    spoken = Spoken(tag)
    first = spoken.segments[0]
    async with opened(**settings) as engine, engine.thread(spoken.told(first)) as root:
        context = await spoken.play(root, frozenset(first))
        assert len(context) == len(spoken.ids)
        said = await root.generate(16)
        check_tokens(said, ARRAYS[f"tags.{tag}.engine.new"])


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", ["one", "two"])
async def test_forks_whose_texts_are_appended(name: str, backend: Any) -> None:
    async with (
        Engine.open(HOME, backend=backend) as engine,
        engine.thread(ARRAYS[f"fork.{name}.prefix"].tolist()) as root,
    ):
        for block in range(1 + (name == "two")):
            tag = f"fork.{name}.block{block}"
            context: list[int] = ARRAYS[f"{tag}.context"].tolist()
            root.append(context[len(root.tokens) :])
            said: list[list[int]] = []
            number = 0
            while f"{tag}.child{number}.new" in ARRAYS:
                seed = ARRAYS[f"{tag}.child{number}.context"].tolist()[len(context) :]
                new = ARRAYS[f"{tag}.child{number}.new"].tolist()

                async def think(own: ReasoningThread, count: int = len(new), said: list[list[int]] = said) -> None:
                    said.append(list((await own.generate(count)).tokens))

                await root.join([root.fork(seed, program=think)])
                # The reference goes on behind stop tokens.
                assert said[-1] == new[: len(said[-1])]
                number += 1
            assert number > 1
            joined: list[int] = ARRAYS[f"{tag}.joined"].tolist()
            root.append(joined[len(context) :])
            answer = await root.generate(16)
            check_tokens(answer, ARRAYS[f"{tag}.parent.new"])
            if len(answer.tokens) < 16:
                break


async def test_distributions_after_a_merged_join_are_the_references() -> None:
    async with opened() as engine:
        for tag in MERGED:
            logits = ARRAYS.get(f"tags.{tag}.engine.logits")
            if logits is None:
                continue
            spoken = Spoken(tag)
            async with engine.thread(spoken.told(spoken.segments[0])) as root:
                await spoken.play(root, frozenset(spoken.segments[0]))
                check_logits(await root.generate(1), logits[len(spoken.ids) - 1 : len(spoken.ids)])

"""What a spawn policy sees of an engine's load, and that its decisions are played back as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import traces
from policies import EngineLoad, Limits, Policy, SpawnDecision, SpawnPolicy, SpawnRequest, TreeView
from runtime import Engine, PolicyError, ReasoningThread
from tests.runtime_loop.engines import TREE, engine_under
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import scripts

pytestmark = pytest.mark.anyio

SEEN: list[EngineLoad] = []
ANSWERS: list[Callable[[], SpawnDecision]] = []


class Loaded(SpawnPolicy, frozen=True):
    """Notes what it sees, and answers what it is told."""

    reads = "load"

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        assert tree.load is not None
        SEEN.append(tree.load)
        return ANSWERS.pop(0)() if ANSWERS else SpawnDecision(run=True)


@pytest.fixture(autouse=True)
def forgotten() -> None:
    SEEN.clear()
    ANSWERS.clear()


async def test_trees_are_seen_with_their_threads_and_deadlines() -> None:
    async with engine_under(ScriptedDevice(scripts(TREE)), policy=Policy(spawn=Loaded())) as engine:
        async with engine.thread("5"):
            await engine.run("1", limits=Limits(seconds=30))
        first = SEEN[0]
        assert [(each.tree, each.deadline) for each in first.trees] == [(0, None), (1, 30.0)]
        assert first.tokens_per_tree is None
        # The other tree's thread is open and does nothing.
        assert [each.speaking for each in first.trees] == [0, 1]
        assert max(load.speaking for load in SEEN) == 2
        assert all(each.seconds >= 0 for load in SEEN for each in load.trees)
        SEEN.clear()
        answer = await engine.run("1")
        assert [each.tree for each in SEEN[0].trees] == [2]
        assert SEEN[0].tokens_per_tree == answer.usage.generated


async def test_threads_that_wait_for_children_do_not_speak() -> None:
    policy = Policy(spawn=Loaded())
    async with engine_under(ScriptedDevice(scripts(TREE)), policy=policy) as engine, engine.thread("5") as root:
        await root.join([root.spawn("6", program=spawning)])
    assert [each.speaking for each in SEEN[0].trees] == [1]


async def spawning(thread: ReasoningThread) -> None:
    """Its child's model asks for a child; it waits, and so does its parent."""
    await thread.join([thread.spawn("3")])


async def test_decisions_are_played_back_and_not_made_again(tmp_path: Path) -> None:
    file = tmp_path / "run.trace"
    policy = Policy(spawn=Loaded())
    refuses = SpawnDecision(run=False, reason="no slack")
    ANSWERS.extend([lambda: SpawnDecision(run=True), lambda: refuses, lambda: SpawnDecision(run=True)])
    async with Engine.open("countdown", policy=policy, trace=file, seed=3) as engine:
        with anyio.fail_after(60):
            answer = await engine.run("22 26 31 53 -> 27")
    decided = len(SEEN)
    assert decided
    ANSWERS.extend([lambda: refuses] * 50)
    async with Engine.playback(traces.read(file)) as played:
        again = await played.run("22 26 31 53 -> 27")
    assert (again.tokens, again.usage.threads) == (answer.tokens, answer.usage.threads)
    assert len(SEEN) == decided


async def test_such_a_policy_gives_children_nothing_else() -> None:
    ANSWERS.append(lambda: SpawnDecision(run=True, limits=Limits(tokens=4)))
    async with engine_under(ScriptedDevice(scripts(TREE)), policy=Policy(spawn=Loaded())) as engine:
        with pytest.raises(PolicyError, match="gave a child a depth or limits"):
            await engine.run("1")

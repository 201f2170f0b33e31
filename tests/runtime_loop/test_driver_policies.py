"""What policies decide where a model orchestrates: which children run, and which of several answers counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from policies import (
    BestOf,
    ByEntropy,
    DepthPolicy,
    Fixed,
    MaxChildren,
    NoChildren,
    Policy,
    SelfConsistency,
    SpawnDecision,
    SpawnPolicy,
    SpawnRequest,
    TreeView,
)
from policies.depth.base import Role
from runtime import CapacityError, PolicyError
from runtime.link.commands import Generate, OpenThread
from runtime.link.events import Spawned
from tests.runtime_loop.engines import TREE, engine_under
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import Say, Speaker, assert_all_closed, scripts
from tests.runtime_loop.turns import turn
from tests.runtime_loop.words import ids

pytestmark = pytest.mark.anyio


class Inspecting(SpawnPolicy, frozen=True):
    """Grants the first of every two, and keeps what it was asked."""

    seen: list[tuple[SpawnRequest, TreeView]] = []  # noqa: RUF012

    reads = "entropy"

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        self.seen.append((request, tree))
        return SpawnDecision(run=request.index % 2 == 0, depth=Fixed(max_iterations=7), reason="because")


async def test_the_policy_decides_what_runs() -> None:
    spawns = " ".join(["<spawn> 2 </spawn>"] * 4)
    device = SteppedDevice(scripts({"1": f"{spawns} <join> <spawn> 2 </spawn> <join> <return> 9 <end>", "2": "<end>"}))
    policy = Inspecting(seen=[])
    async with engine_under(device, policy=Policy(spawn=policy)) as engine, anyio.create_task_group() as group:
        group.start_soon(engine.run, "1")
        for _ in range(30):
            await turn()
            device.step()
    asked = [(request.index, request.granted) for request, _ in policy.seen]
    assert asked == [(0, 0), (1, 1), (2, 1), (3, 2), (0, 0)]
    request, tree = policy.seen[0]
    assert (request.parent, request.message, request.entropy) == ((0,), (2,), 0.5)
    assert (tree.threads, tree.running) == (1, 1)
    assert 0 < tree.tokens <= 3
    assert policy.seen[2][1].threads == 2
    assert {
        c.depth.max_iterations for c in device.core.commands if isinstance(c, OpenThread) and len(c.thread) > 1
    } == {7}
    spawned = [(e.child is not None, e.reason) for e in device.core.events if isinstance(e, Spawned)]
    assert spawned == [(True, "because"), (False, "because")] * 2 + [(True, "because")]
    assert_all_closed(device.core)


@pytest.mark.parametrize(
    ("policy", "granted", "entropies"),
    [
        (SpawnPolicy(), 4, False),
        (NoChildren(), 0, False),
        (MaxChildren(1), 2, False),
        (ByEntropy(threshold=0.4), 4, True),
        (ByEntropy(threshold=0.6), 0, True),
    ],
)
async def test_shipped_policies_decide(policy: SpawnPolicy, granted: int, entropies: bool) -> None:
    device = ScriptedDevice(scripts(TREE))
    async with engine_under(device, policy=Policy(spawn=policy)) as engine:
        answer = await engine.run("1")
        assert answer.text == "9 9"
        assert answer.usage.spawns_granted == granted
    assert {c.entropies for c in device.core.commands if isinstance(c, Generate)} == {entropies}


class Raising(SpawnPolicy, frozen=True):
    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        raise ZeroDivisionError("no budget")


class Wrong(SpawnPolicy, frozen=True):
    def decide(self, request: SpawnRequest, tree: TreeView) -> Any:
        return True


class RaisingDepth(Fixed, frozen=True):
    def for_thread(self, role: Role, tree_depth: int) -> DepthPolicy:
        if role == "child":
            raise ZeroDivisionError("no depth")
        return self


async def test_a_policy_that_raises_ends_its_thread_only() -> None:
    device = ScriptedDevice(scripts(TREE))
    async with engine_under(device) as engine:
        with pytest.raises(PolicyError, match=r"Raising.decide raised for thread \(0,\): ZeroDivisionError: no budget"):
            await engine.run("1", policy=Policy(spawn=Raising()))
        with pytest.raises(PolicyError, match="must be a SpawnDecision"):
            await engine.run("1", policy=Policy(spawn=Wrong()))
        with pytest.raises(PolicyError, match=r"RaisingDepth\.for_thread raised"):
            await engine.run("1", policy=Policy(depth=RaisingDepth()))
        assert (await engine.run("2")).text == "7"
        assert engine.usage.generated == device.statistics.generated
    assert_all_closed(device.core)


def by_tree(answers: list[str]) -> Say:
    """Each tree gives its own answer."""

    def say(speaker: Speaker) -> int:
        return ids(f"<return> {answers[speaker.path[0]]} <end>")[speaker.emitted]

    return say


async def test_several_samples_and_a_choice() -> None:
    device = ScriptedDevice(by_tree(["4", "5", "5", "6"]))
    async with engine_under(device) as engine:
        answer = await engine.run("1", policy=Policy(select=SelfConsistency(4)))
        assert (answer.text, answer.path) == ("5", (1,))
        assert answer.usage.threads == 4
        assert answer.usage.generated == 12
    device = ScriptedDevice(by_tree(["4", "5", "5", "6"]))
    async with engine_under(device) as engine:

        class Highest(BestOf, frozen=True):
            def score(self, prompt: str, answer: str) -> float:
                return float(answer) if prompt == "1" else 0.0

        answer = await engine.run("1", policy=Policy(select=Highest(4)))
        assert answer.text == "6"


class OutOfRange(SelfConsistency, frozen=True):
    def choose(self, prompt: str, answers: Sequence[str]) -> int:
        return 99


class NoChoice(SelfConsistency, frozen=True):
    def choose(self, prompt: str, answers: Sequence[str]) -> int:
        raise ZeroDivisionError


async def test_a_wrong_choice_is_told_and_a_failed_sample_ends_the_run() -> None:
    device = ScriptedDevice(by_tree(["4"] * 20))
    async with engine_under(device) as engine:
        with pytest.raises(PolicyError, match="answered 99 for 2 answers"):
            await engine.run("1", policy=Policy(select=OutOfRange(2)))
        with pytest.raises(PolicyError, match="choose raised: ZeroDivisionError"):
            await engine.run("1", policy=Policy(select=NoChoice(2)))

    def say(speaker: Speaker) -> int:
        if speaker.path == (1,):
            raise CapacityError("too large")
        return ids("z")[0]

    device = ScriptedDevice(say)
    async with engine_under(device) as engine:
        with pytest.raises(CapacityError):
            await engine.run("1", policy=Policy(select=SelfConsistency(3)))
    assert_all_closed(device.core)

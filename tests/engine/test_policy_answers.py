"""What policies answer, and what they are: used, or refused where it is said, and nobody else notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from policies import DepthPolicy, Fixed, Policy, SelfConsistency, SpawnDecision, SpawnPolicy
from policies.depth.base import Role
from policies.spawn.base import SpawnRequest, TreeView
from runtime import Engine
from runtime.errors import PolicyError
from tests.engine.engines import opened, works
from traces import read

pytestmark = pytest.mark.anyio


class HoldsAFunction(DepthPolicy, frozen=True):
    function: Any = None


class Answers(DepthPolicy, frozen=True):
    answer: Any = None

    def for_thread(self, role: Role, tree_depth: int) -> DepthPolicy:
        chosen: DepthPolicy = self.answer
        return chosen


class Unwritable(DepthPolicy, frozen=True):
    """Raises an error that has no text."""

    def for_thread(self, role: Role, tree_depth: int) -> DepthPolicy:
        class Silent(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        raise Silent


@pytest.mark.parametrize("field", [print, torch.zeros(2), 2**70, b"raw", "caf\udce9", {(1, 2): 3}, object()])
async def test_a_policy_that_cannot_be_recorded_is_refused_while_recording(
    tiny_checkpoint: Path, tmp_path: Path, field: object, anyio_backend: str
) -> None:
    policy = HoldsAFunction(function=field)
    with pytest.raises(TypeError, match="HoldsAFunction cannot be recorded"):
        opened(tiny_checkpoint, trace=tmp_path / "never.trace", policy=Policy(depth=policy))
    async with opened(tiny_checkpoint, trace=tmp_path / "run.trace") as engine, engine.thread([1, 2]) as thread:
        with pytest.raises(TypeError, match="HoldsAFunction cannot be recorded"):
            await thread.generate(1, depth=policy)
        with pytest.raises(TypeError, match="HoldsAFunction cannot be recorded"):
            async with engine.thread([1], policy=Policy(depth=policy)):
                pass
        assert await works(engine)
    assert read(tmp_path / "run.trace").lost is None


@pytest.mark.parametrize("policy", [Answers(answer=None), Answers(answer=Fixed), Unwritable()])
async def test_a_policy_that_answers_nonsense_ends_its_call(
    engine: Engine, policy: DepthPolicy, anyio_backend: str
) -> None:
    async with engine.thread([1, 2]) as thread:
        with pytest.raises(PolicyError, match=r"for_thread .*[^.]\.$"):
            await thread.generate(1, depth=policy)
        assert await works(engine)


class Decides(SpawnPolicy, frozen=True):
    answer: Any

    def decide(self, request: SpawnRequest, tree: TreeView) -> SpawnDecision:
        return SpawnDecision(**self.answer) if isinstance(self.answer, dict) else self.answer


@pytest.mark.parametrize("count", [0, -1, None, "2", 2.5])
def test_how_many_roots_answer_is_checked_where_it_is_said(count: Any) -> None:
    with pytest.raises(ValueError, match="SelfConsistency: samples"):
        SelfConsistency(count)


@pytest.mark.parametrize("answer", [{"run": "yes"}, {"run": True, "depth": Fixed}, {"run": True, "reason": None}])
def test_a_decision_is_checked_where_it_is_made(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SpawnDecision: "):
        Decides(answer).decide(SpawnRequest((0,), (1,), 0, 0, 0.0), TreeView(1, 1, 0, 0, 0))


class BoundedBy(DepthPolicy, frozen=True):
    answer: Any = None

    def constant_bound(self, mean_recurrence: int) -> int | None:
        bound: int | None = self.answer
        return bound


class Incomparable(Fixed, frozen=True):
    def __eq__(self, other: object) -> bool:
        raise ArithmeticError("no equality")

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize("answer", ["x", 2.5, 0, -1])
async def test_a_bound_that_is_none_ends_its_call(engine: Engine, answer: object, anyio_backend: str) -> None:
    async with engine.thread([1, 2]) as thread:
        with pytest.raises(PolicyError, match=r"constant_bound\(\) is .*[^.]\.$"):
            await thread.generate(1, depth=BoundedBy(answer=answer))
    assert await works(engine)


async def test_a_policy_that_cannot_be_compared_fails_its_call_and_the_engine_can_be_left(
    engine: Engine, anyio_backend: str
) -> None:
    async with engine.thread([1, 2]) as thread:
        with pytest.raises(ArithmeticError, match="no equality"):
            await thread.generate(1, depth=Incomparable(2))
    assert await works(engine)

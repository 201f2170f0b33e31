"""Depth policies that raise or answer nonsense end their threads alone, and the engine forgets them with those."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from policies import DepthPolicy, DepthView, EntryView, Fixed, LatentDiff, Policy
from policies.depth.base import IntArray
from runtime import Engine
from runtime.errors import PolicyError
from runtime.link.commands import (
    CloseThread,
    Failed,
    Finished,
)
from runtime.model.transformer import Transformer
from tests.engine.commanding import POLICY, asking, beginning, bystander, ended, prompt_for, said, settings
from tests.engine.solo import Solo


class HoldsAList(DepthPolicy, frozen=True):
    steps: list[int] = []  # noqa: RUF012

    def bound(self, entering: EntryView) -> IntArray:
        return np.full(len(entering.position), self.steps[0], np.int32)


class BadWidth(DepthPolicy, frozen=True):
    reads: ClassVar[Literal["latent"]] = "latent"

    def previous_width(self, width: int, vocab: int) -> int:
        raise ArithmeticError("no width")


class BadBegin(LatentDiff, frozen=True):
    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        raise ArithmeticError("no beginning")


class BadMask(LatentDiff, frozen=True):
    def is_done(self, values: Tensor) -> Tensor:
        return torch.ones(len(values) + 1, dtype=torch.bool)


class NumbersAsMask(LatentDiff, frozen=True):
    def is_done(self, values: Tensor) -> Tensor:
        return torch.zeros(len(values), dtype=torch.int64)


class Leaves(LatentDiff, frozen=True):
    """Raises, in one of its methods, what would end the program on its main thread."""

    method: str = ""

    def _maybe(self, method: str) -> None:
        if self.method == method:
            sys.exit("enough")

    def constant_bound(self, mean_recurrence: int) -> int | None:
        self._maybe("constant_bound")
        return super().constant_bound(mean_recurrence)

    def bound(self, entering: EntryView) -> IntArray:
        self._maybe("bound")
        return super().bound(entering)

    def previous_width(self, width: int, vocab: int) -> int:
        self._maybe("previous_width")
        return super().previous_width(width, vocab)

    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        self._maybe("begin")
        return super().begin(latent, vocab)

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        self._maybe("measure")
        return super().measure(view)

    def is_done(self, values: Tensor) -> Tensor:
        self._maybe("is_done")
        return super().is_done(values)


LEAVING = [
    Leaves(0.7, max_iterations=3, method=method)
    for method in ("constant_bound", "bound", "previous_width", "begin", "measure", "is_done")
]


@pytest.mark.parametrize(
    "policy",
    [
        HoldsAList(steps=[2]),
        *LEAVING,
        BadWidth(),
        BadBegin(0.7, max_iterations=3),
        BadMask(0.7, max_iterations=3),
        NumbersAsMask(0.7, max_iterations=3),
    ],
)
def test_a_policy_that_fails_ends_its_threads_alone(model: Transformer, policy: DepthPolicy) -> None:
    for opened_with in (policy, POLICY):
        solo, expected = bystander(model)
        later = None if opened_with is policy else policy
        for number in range(2):
            solo.send(*beginning((number,), prompt_for(number), 3, policy=opened_with, depth=later))
        reports = ended(solo)
        for number in range(2):
            failure = reports[number,][-1]
            assert isinstance(failure, Failed)
            assert isinstance(failure.error, PolicyError)
            assert type(policy).__name__ in str(failure.error)
        (other,) = reports[9,]
        assert isinstance(other, Finished)
        assert other.tokens == expected


class SometimesNoMask(LatentDiff, frozen=True):
    """Cannot decide about values of groups, which are means, below 10."""

    def is_done(self, values: Tensor) -> Tensor:
        if len(values) > 1:
            raise ArithmeticError("one at a time")
        return super().is_done(values)


def test_a_test_that_is_repeated_measures_each_token_once(model: Transformer) -> None:
    """A batch whose test raises is tested group by group; what the policy remembers must be as before."""
    policy = SometimesNoMask(0.7, max_iterations=6)
    crowd = Solo.over(model, settings(), policy)
    for number in range(4):
        crowd.send(*beginning((number,), prompt_for(number), 5, policy=policy))
    together = ended(crowd)
    for number in range(4):
        alone = Solo.over(model, settings(), policy)
        alone.send(*beginning((number,), prompt_for(number), 5, policy=policy))
        (report,) = together[number,]
        assert isinstance(report, Finished)
        assert report.depths == said(alone, (number,)).depths


class AsksForAll(DepthPolicy, frozen=True):
    """Spends what is left, at most three iterations a token."""

    def bound(self, entering: EntryView) -> IntArray:
        return np.clip(entering.iterations_left, 1, 3).astype(np.int32)


def test_a_limit_beyond_32_bits_is_no_limit_to_a_policy(model: Transformer) -> None:
    solo = Solo.over(model, settings(), POLICY)
    solo.send(*beginning((0,), prompt_for(0), 3, policy=AsksForAll(), max_iterations=10**10))
    assert said(solo).work.generated == 3


def test_policies_of_threads_that_are_gone_are_forgotten(model: Transformer) -> None:
    solo = Solo.over(model, settings(), POLICY)
    for number in range(200):
        policy = LatentDiff(0.3 + number / 1000, max_iterations=3)
        later = LatentDiff(0.6 + number / 1000, max_iterations=3)
        solo.send(*beginning((number,), prompt_for(number), 1, policy=policy))
        said(solo, (number,))
        solo.send(asking((number,), 1, depth=later))
        said(solo, (number,))
        solo.send(CloseThread((number,)))
    assert solo.backend.policies_known < 50


class FailsFrom(DepthPolicy, frozen=True):
    """Raises for tokens from a position on."""

    position: int = 0

    def bound(self, entering: EntryView) -> IntArray:
        if entering.position.max() >= self.position:
            raise ArithmeticError("too far")
        return np.full(len(entering.position), 2, np.int32)


@pytest.mark.anyio
async def test_a_failed_generate_leaves_the_context_as_it_was(tiny_checkpoint: Path) -> None:
    """On the device too: what it had sampled before it failed is not what the next generate goes on from."""
    prompt = prompt_for(1, 5)
    async with Engine.open(tiny_checkpoint, page_size=4, num_pages=64, max_in_flight=16, prefill_chunk=16) as engine:
        async with engine.thread(prompt, policy=Policy(depth=Fixed(2))) as whole:
            expected = await whole.generate(max_tokens=8)
        async with engine.thread(prompt) as thread:
            with pytest.raises(PolicyError, match="too far"):
                await thread.generate(max_tokens=20, depth=FailsFrom(position=9))
            assert thread.tokens == prompt
            assert (await thread.generate(max_tokens=8, depth=Fixed(2))).tokens == expected.tokens

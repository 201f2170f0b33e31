"""What is shared is what a thread would have computed alone, and rows, pages and memory that are short stop nobody."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policies import Fixed, LatentDiff
from runtime.backend.interface import Tick, TickResult
from runtime.link.commands import (
    Finished,
    Interrupt,
)
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from tests.engine.commanding import POLICY, asking, beginning, ended, prompt_for, said, settings
from tests.engine.solo import Solo


@pytest.mark.parametrize("length", [7, 13, 23])
def test_shared_slots_and_shared_prefixes_agree(model: Transformer, length: int) -> None:
    """With few slots a token's content depends on what was in flight with it; a shared prompt must not change that."""
    alone, solo = (Solo.over(model, settings(iteration_slots=1, deterministic=True), Fixed(5)) for _ in range(2))
    prompt = prompt_for(9, length)
    alone.send(*beginning((1,), prompt, 6, policy=Fixed(5)))
    solo.send(*beginning((0,), prompt, 6, policy=Fixed(5)))
    said(solo)
    solo.send(*beginning((1,), prompt, 6, policy=Fixed(5)))
    assert said(solo, (1,)).logprobs == said(alone, (1,)).logprobs


@pytest.mark.parametrize("length", [7, 13, 20])
def test_shared_slots_and_generating_again_agree(model: Transformer, length: int) -> None:
    alone, solo = (Solo.over(model, settings(iteration_slots=1, deterministic=True), Fixed(5)) for _ in range(2))
    for each in (alone, solo):
        each.send(*beginning((0,), prompt_for(9, length), 6, policy=Fixed(5)))
    expected = said(alone)
    while solo.core.journal.work.generated < 1:
        solo.core.step()
    solo.send(Interrupt((0,)))
    said(solo)
    solo.send(asking((0,), 6))
    assert said(solo).logprobs == expected.logprobs


def test_what_a_limit_made_shallow_is_not_shared(model: Transformer) -> None:
    policy = LatentDiff(0.01, max_iterations=6)
    prompt = prompt_for(9, 33)
    alone, solo = (Solo.over(model, settings(), policy) for _ in range(2))
    alone.send(*beginning((1,), prompt, 4, policy=policy))
    solo.send(*beginning((0,), prompt, 4, policy=policy, max_iterations=40))
    said(solo)
    solo.send(*beginning((1,), prompt, 4, policy=policy))
    assert said(solo, (1,)).logprobs == pytest.approx(said(alone, (1,)).logprobs, abs=1e-5)


def test_what_another_policy_computed_is_not_shared(model: Transformer) -> None:
    """A prompt that one policy began and another finished belongs to neither."""
    shallow, deep = LatentDiff(50.0, max_iterations=6), LatentDiff(0.01, max_iterations=6)
    prompt = prompt_for(9, 33)
    alone, solo = (Solo.over(model, settings(), POLICY) for _ in range(2))
    for each in (alone, solo):
        if each is solo:
            each.send(*beginning((0,), prompt, 4, policy=deep))
            while each.core.journal.work.computed < 16:
                each.core.step()
            each.send(Interrupt((0,)))
            said(each)
            each.send(asking((0,), 4, depth=shallow))
            said(each)
        each.send(*beginning((1,), prompt, 4, policy=deep))
    assert said(solo, (1,)).logprobs == pytest.approx(said(alone, (1,)).logprobs, abs=1e-5)


def test_one_row_is_not_held_against_a_thread_that_comes_first(model: Transformer) -> None:
    """The later thread has the only row, the earlier one the pages it needs: neither may wait for the other."""
    tight = settings(max_in_flight=1, prefill_chunk=1, num_pages=8)
    solo = Solo.over(model, tight, Fixed(2))
    solo.send(*beginning((0,), prompt_for(0, 14), 2, policy=Fixed(2)))
    said(solo)
    solo.send(*beginning((1,), prompt_for(1, 4), 20, policy=Fixed(2)))
    for _ in range(20):
        solo.core.step()
    solo.send(asking((0,), 6))
    reports = ended(solo)
    assert [report.thread for (report,) in reports.values()] == [(0,), (1,)]


def test_a_thread_of_priority_does_not_wait_for_a_row(model: Transformer) -> None:
    solo = Solo.over(model, settings(max_in_flight=2, prefill_chunk=2), Fixed(2))
    for number in range(2):
        solo.send(*beginning((number,), prompt_for(number, 4), 30, policy=Fixed(2)))
    for _ in range(12):
        solo.core.step()
    solo.send(*beginning((5,), prompt_for(5, 4), 3, policy=Fixed(2), priority=1))
    reports = ended(solo)
    assert next(iter(reports)) == (5,)
    expected = Solo.over(model, settings(max_in_flight=2, prefill_chunk=2), Fixed(2))
    expected.send(*beginning((1,), prompt_for(1, 4), 30, policy=Fixed(2)))
    (report,) = reports[1,]
    assert isinstance(report, Finished)
    assert report.tokens == said(expected, (1,)).tokens


@pytest.mark.parametrize("where", ["_prelude", "_iterate", "_logits"])
@pytest.mark.parametrize(
    "changes", [{"backend": "torch"}, {"backend": "torch", "deterministic": True}, {"backend": "native"}]
)
def test_memory_that_runs_out_in_the_middle_of_a_tick_changes_nothing(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, where: str, changes: dict[str, Any]
) -> None:
    sizes = settings(**changes)
    expected, solo = (Solo.over(model, sizes, POLICY) for _ in range(2))
    for number in range(8):
        for each in (expected, solo):
            each.send(*beginning((number,), prompt_for(number, 9), 5, sampling=Sampling(repetition_penalty=1.2)))
    want = {path: report.tokens for path, (report,) in ended(expected).items() if isinstance(report, Finished)}
    step, tick = getattr(solo.backend, where), solo.backend.tick
    entering = failed = 0  # groups that enter in the present tick; ticks that failed

    def measured(this: Tick) -> TickResult:
        nonlocal entering
        entering = len(set(this.entering.group.tolist()))
        return tick(this)

    def sometimes(*arguments: Any) -> Tensor | None:
        nonlocal failed
        if entering > 1:
            failed += 1
            raise torch.OutOfMemoryError("no memory")
        return step(*arguments)

    monkeypatch.setattr(solo.backend, "tick", measured)
    monkeypatch.setattr(solo.backend, where, sometimes)
    found = {path: report.tokens for path, (report,) in ended(solo).items() if isinstance(report, Finished)}
    assert failed > 3
    assert found == want

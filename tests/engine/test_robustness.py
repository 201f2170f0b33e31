"""What must not hurt anybody else: bad commands, policies and watchers that raise, shortage, and long lives."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from policies import DepthPolicy, EntryView, Fixed, LatentDiff, Policy
from policies.depth.base import IntArray
from runtime import Engine
from runtime.backend.interface import Tick, TickResult
from runtime.device.build import build_loop
from runtime.device.loop import ModelDevice
from runtime.errors import BraidError, PolicyError, PromptError, ProtocolError, ThreadStateError
from runtime.link.commands import (
    CloseThread,
    Command,
    Extend,
    Failed,
    Finished,
    Foresight,
    Generate,
    Interrupt,
    OpenThread,
    Signal,
    ThreadPath,
)
from runtime.link.events import Event
from runtime.model.transformer import Transformer
from runtime.sampling import Sampling
from runtime.settings import EngineSettings
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model

POLICY = LatentDiff(0.7, max_iterations=6)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(3)


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        **{"num_pages": 128, "page_size": 4, "max_in_flight": 64, "prefill_chunk": 16, "most_iterations": 6, **changes}
    )


def prompt_for(number: int, length: int = 7) -> tuple[int, ...]:
    return tuple((number * 17 + position * 5 + position * position) % 40 for position in range(length))


def opening(path: ThreadPath, policy: DepthPolicy = POLICY, **changes: Any) -> OpenThread:
    return OpenThread(thread=path, seed=5, depth=policy, **changes)


def asking(path: ThreadPath, tokens: int = 4, **changes: Any) -> Generate:
    return Generate(thread=path, max_tokens=tokens, **{"sampling": Sampling(), **changes})


def beginning(path: ThreadPath, prompt: tuple[int, ...], tokens: int = 4, **changes: Any) -> list[Command]:
    policy = changes.pop("policy", POLICY)
    priority = changes.pop("priority", 0)
    return [opening(path, policy, priority=priority), Extend(path, prompt), asking(path, tokens, **changes)]


def ended(solo: Solo) -> dict[ThreadPath, list[Finished | Failed]]:
    """Ends of calls by thread, once there is nothing left to do."""
    found: dict[ThreadPath, list[Finished | Failed]] = {}
    ticks = 0
    while solo.core.has_work:
        solo.core.step()
        solo.core.check_integrity()
        ticks += 1
        assert ticks < 3000, "the engine does not come to an end"
    for report in solo.core.journal.take_reports():
        if isinstance(report, Finished | Failed):
            found.setdefault(report.thread, []).append(report)
    return found


def said(solo: Solo, path: ThreadPath = (0,)) -> Finished:
    (report,) = ended(solo)[path]
    assert isinstance(report, Finished), report
    return report


def bystander(model: Transformer, **changes: Any) -> tuple[Solo, tuple[int, ...]]:
    """A core with thread (9,) in flight, and what that will have said at the end."""
    solos = [Solo.over(model, settings(**changes), POLICY) for _ in range(2)]
    for solo in solos:
        solo.send(*beginning((9,), prompt_for(9), 6))
    expected = said(solos[0], (9,)).tokens
    for _ in range(3):
        solos[1].core.step()
    return solos[1], expected


# ---- bad commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "failures", "error", "words"),
    [
        ([asking((0,))], 1, ThreadStateError, "not open"),
        ([Extend((0,), (1, 2))], 1, ThreadStateError, "not open"),
        ([opening((0,), inherits=(7,))], 1, ThreadStateError, "not open"),
        ([opening((0,), inherits=(9,))], 1, ThreadStateError, "generating"),
        ([*beginning((0,), (1, 2)), asking((0,))], 2, ThreadStateError, "cannot generate while it is generating. "),
        (
            [*beginning((0,), (1, 2)), Extend((0,), (3,))],
            1,
            ThreadStateError,
            "cannot append while it is generating. ",
        ),
        ([*beginning((0,), (1, 2)), opening((0,))], 1, ThreadStateError, "open already"),
        ([opening((0,)), asking((0,))], 1, ThreadStateError, "has an empty context. Append a prompt"),
        ([opening((0,)), Extend((0,), (1,) * 10**5)], 1, PromptError, "would have 100000 tokens; the model's context"),
        (
            [opening((0,)), Extend((0,), (1, 40))],
            1,
            PromptError,
            "received 40: not a token id, of which there are",
        ),
        ([opening((0,)), Extend((0,), (1, -1))], 1, PromptError, "-1"),
        ([opening((0,)), Extend((0,), (1, 2**31))], 1, PromptError, str(2**31)),
    ],
)
def test_a_bad_command_fails_its_thread_alone(
    model: Transformer, commands: list[Command], failures: int, error: type[Exception], words: str
) -> None:
    solo, expected = bystander(model)
    for command in commands:
        solo.send(command)
    reports = ended(solo)
    assert [type(report) for report in reports[0,]] == [Failed] * failures
    for report in reports[0,]:
        assert isinstance(report, Failed)
        assert isinstance(report.error, error)
        assert words in str(report.error)
    (other,) = reports[9,]
    assert isinstance(other, Finished)
    assert other.tokens == expected
    solo.send(CloseThread((0,)), CloseThread((9,)))
    assert solo.core.statistics().pages_used == 0


def test_commands_for_threads_that_are_gone_are_harmless(model: Transformer) -> None:
    solo, expected = bystander(model)
    solo.send(Interrupt((0,)), CloseThread((0,)))
    assert said(solo, (9,)).tokens == expected


def test_interrupting_a_fork_that_never_generated_leaves_its_context(model: Transformer) -> None:
    solo = Solo.over(model, settings(), POLICY)
    solo.send(*beginning((0,), prompt_for(0), 6))
    said(solo)
    solo.send(opening((0, 0), inherits=(0,)), Interrupt((0, 0)), asking((0, 0), 3))
    alone = Solo.over(model, settings(), POLICY)
    alone.send(*beginning((0,), prompt_for(0), 9))
    assert said(solo, (0, 0)).tokens == said(alone).tokens[6:]


# ---- watchers and policies ------------------------------------------------------------------------------------------


class Raises:
    """A watcher that raises at its second token."""

    def __init__(self) -> None:
        self.fed = 0

    def feed(self, token: int) -> tuple[Signal, ...]:
        self.fed += 1
        if self.fed == 2:
            raise LookupError("no such word")
        return ()


class Misplaces:
    """A watcher whose signal begins after the last token."""

    def feed(self, token: int) -> tuple[Signal, ...]:
        return (Signal("spawn", start=5),)


@pytest.mark.parametrize("watcher", [Raises, Misplaces])
def test_a_watcher_that_raises_ends_its_thread_alone(model: Transformer, watcher: type[Any]) -> None:
    solo, expected = bystander(model)
    solo.send(*beginning((0,), prompt_for(0), 9, watcher=watcher(), entropies=True))
    reports = ended(solo)
    (failure,) = reports[0,]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, ProtocolError)
    assert watcher.__name__ in str(failure.error)
    assert failure.error.__cause__ is not None
    assert failure.work.generated == (2 if watcher is Raises else 1)
    (other,) = reports[9,]
    assert isinstance(other, Finished)
    assert other.tokens == expected


class Unforeseen:
    """A watcher that raises where it is asked how far its thread may go by itself."""

    def foresee(self) -> Foresight | None:
        raise LookupError("no such future")

    def feed(self, token: int) -> tuple[Signal, ...]:
        return ()


def test_a_watcher_that_cannot_foresee_ends_its_thread_alone(model: Transformer) -> None:
    core = build_loop(model, settings(), POLICY)
    for command in (*beginning((0,), prompt_for(0), 9, watcher=Unforeseen()), *beginning((9,), prompt_for(9), 6)):
        core.handle(command)
    while core.has_work:
        core.step()
        core.check_integrity()
    failure, other = core.journal.take_reports()
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, BraidError)
    assert "LookupError: no such future." in str(failure.error)
    assert isinstance(other, Finished)
    assert other.tokens == bystander(model)[1]
    core.close()


@pytest.mark.parametrize("where", ["open", "extend", "generate", "interrupt", "close"])
def test_a_command_that_fails_unforeseen_ends_its_thread_alone(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    solo, expected = bystander(model)
    threads = solo.core.threads
    original: Any = getattr(threads, where)

    def fails(command: Any) -> None:
        if command.thread == (0,):
            raise LookupError("no such thing")
        original(command)

    monkeypatch.setattr(threads, where, fails)
    solo.send(*beginning((0,), prompt_for(0), 3), Interrupt((0,)), CloseThread((0,)))
    reports = ended(solo)
    failures = [report for report in reports[0,] if isinstance(report, Failed)]
    assert any("LookupError: no such thing." in str(failure.error) for failure in failures)
    assert all(isinstance(failure.error, BraidError) for failure in failures)
    (other,) = reports[9,]
    assert isinstance(other, Finished)
    assert other.tokens == expected


class HoldsAList(DepthPolicy, frozen=True):
    steps: list[int] = []  # noqa: RUF012

    def bound(self, entering: EntryView) -> IntArray:
        return np.full(len(entering.position), self.steps[0], np.int32)


class BadWidth(DepthPolicy, frozen=True):
    reads: ClassVar[Literal["latent"]] = "latent"

    def memory_width(self, width: int, vocab: int) -> int:
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


@pytest.mark.parametrize(
    "policy",
    [
        HoldsAList(steps=[2]),
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


# ---- memory ---------------------------------------------------------------------------------------------------------


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


# ---- the device -----------------------------------------------------------------------------------------------------


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


def test_what_happens_while_idle_is_recorded_and_seen(model: Transformer) -> None:
    """Threads close when there is nothing left to do: load and trace must not wait for the next tick."""

    class Lines:
        def __init__(self) -> None:
            self.kinds: list[str] = []

        def now(self) -> float:
            return 0.0

        def write_many(self, events: list[Event]) -> None:
            self.kinds += [type(event).__name__ for event in events]
            if self.kinds[-1] == "ThreadClosed":
                closed.set()

        def close(self) -> None:
            self.kinds.append("end")

        def abandon(self) -> None:
            self.kinds.append("loss")

    closed, lines = threading.Event(), Lines()
    device = ModelDevice(lambda: build_loop(model, settings(), POLICY, lines))
    device.start(lambda reports: None)
    device.send(opening((0,)))
    device.send(CloseThread((0,)))
    try:
        assert closed.wait(20)
    finally:
        device.stop()
    assert lines.kinds == ["ThreadOpened", "ThreadClosed", "end"]


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

"""Nothing of what threads guess is kept, heard or counted: at an end, an interruption, a fork, or without room."""

from __future__ import annotations

import msgspec
import pytest
import torch

from policies import Speculative
from runtime.backend.interface import Tick, TickResult
from runtime.link.commands import (
    CloseThread,
    Emitted,
    Finished,
    Generate,
    Interrupt,
    OpenThread,
    Signal,
    ThreadPath,
)
from runtime.link.sampling import Sampling
from tests.engine.solo import Solo
from tests.engine.speculating import (
    PLAIN,
    PROMPT,
    ROOMY,
    SPECULATIVE,
    Drafts,
    ask,
    only,
    plain_tokens,
    solo_over,
    step_until_drafts_fly,
)
from tests.engine.test_programs import CONTEXT
from tests.engine.tiny import tiny_model


class Listens:
    """A watcher that stops at the n-th token and keeps what it was fed."""

    def __init__(self, stop_after: int) -> None:
        self.fed: list[int] = []
        self.stop_after = stop_after

    def feed(self, token: int) -> tuple[Signal, ...]:
        self.fed.append(token)
        return (Signal(kind="stop", stops=True),) if len(self.fed) == self.stop_after else ()


@pytest.mark.parametrize("stop_after", [1, 2, 5, 9])
def test_watchers_and_streams_get_what_is_said_and_no_guesses(stop_after: int) -> None:
    solo, watcher = solo_over(), Listens(stop_after)
    ask(solo, SPECULATIVE, 30, watcher=watcher, stream=True)
    reports = solo.run()
    expected = plain_tokens(stop_after)
    (finished,) = [report for report in reports if isinstance(report, Finished)]
    assert finished.tokens == tuple(watcher.fed) == expected
    assert finished.reason == "stop"
    assert sum((report.tokens for report in reports if isinstance(report, Emitted)), ()) == expected


def test_a_stop_token_ends_it_and_nothing_is_drafted_behind_one(monkeypatch: pytest.MonkeyPatch) -> None:
    before, drafts = solo_over(), Drafts()
    drafts.watch(before)
    ask(before, SPECULATIVE, 30)
    everything = only(before).tokens
    firsts = [at for at, token in enumerate(everything) if everything.index(token) == at]
    stop = next(everything[at] for at in firsts if drafts.at.get(len(PROMPT) + at) == everything[at])
    solo, drafts = solo_over(), Drafts()
    drafts.watch(solo)
    tick_of = solo.core.backend.tick
    entered: list[int] = []

    def tick(tick: Tick) -> TickResult:
        entered.extend(tick.entering.token.tolist())
        return tick_of(tick)

    monkeypatch.setattr(solo.core.backend, "tick", tick)
    ask(solo, SPECULATIVE, 30, stop_tokens=frozenset({stop}))
    finished = only(solo)
    assert finished.tokens == everything[: everything.index(stop) + 1]
    assert finished.reason == "stop"
    assert stop in drafts.at.values()
    assert stop not in entered[len(PROMPT) :]


@pytest.mark.parametrize("tokens", [1, 2, 3, 7])
def test_nothing_is_computed_beyond_the_last_token(tokens: int) -> None:
    solo = solo_over()
    ask(solo, Speculative(1, 8, max_iterations=6, adaptive=False), tokens)
    finished = only(solo)
    assert finished.tokens == plain_tokens(tokens)
    assert finished.reason == "length"
    # The prompt, and all but the last token that is sampled.
    assert finished.work.computed == len(PROMPT) + tokens - 1
    assert solo.core.journal.drafted <= sum(range(tokens - 1))


def test_the_context_ends_as_without_drafts() -> None:
    solo = solo_over()
    ask(solo, SPECULATIVE, 100)
    finished = only(solo)
    assert finished.reason == "context"
    assert finished.tokens == plain_tokens(100)
    assert len(PROMPT) + len(finished.tokens) == CONTEXT


def test_an_iteration_limit_is_spent_on_what_is_said() -> None:
    solo, plain = solo_over(), solo_over()
    ask(solo, SPECULATIVE, 30, max_iterations=90)
    ask(plain, PLAIN, 30, max_iterations=90)
    assert only(solo) == only(plain)
    assert solo.core.journal.drafted == 0


def test_entropies_and_likeliest_tokens_are_those_of_full_depth() -> None:
    solo, plain = solo_over(), solo_over()
    for device, policy in ((solo, SPECULATIVE), (plain, PLAIN)):
        ask(device, policy, 12, entropies=True, sampling=Sampling(temperature=0.8, logprobs=3))
    assert only(solo).top_logprobs == only(plain).top_logprobs


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_interrupting_throws_drafts_away_and_the_thread_goes_on(keep: int) -> None:
    everything = plain_tokens(30)
    solo = solo_over()
    ask(solo, SPECULATIVE, 30)
    while solo.core.journal.work.generated < 4:
        solo.core.step()
    step_until_drafts_fly(solo)
    solo.send(Interrupt((0,), keep=keep))
    solo.core.check_integrity()
    assert only(solo).tokens == everything[:keep]
    solo.send(Generate(thread=(0,), max_tokens=10, sampling=Sampling()))
    assert only(solo).tokens == everything[keep : keep + 10]


def test_closing_and_forking() -> None:
    everything = plain_tokens(30)
    solo = solo_over()
    ask(solo, SPECULATIVE, 8)
    assert only(solo).tokens == everything[:8]
    solo.send(OpenThread(thread=(0, 0), seed=5, depth=SPECULATIVE, inherits=(0,)))
    for path in ((0,), (0, 0)):
        solo.send(Generate(thread=path, max_tokens=20, sampling=Sampling()))
    step_until_drafts_fly(solo)
    solo.send(CloseThread((0,)))
    solo.core.check_integrity()
    parent, child = sorted((report for report in solo.run() if isinstance(report, Finished)), key=lambda r: r.thread)
    assert parent.reason == "interrupted"
    assert child.tokens == everything[8:28]
    solo.send(CloseThread((0, 0)))
    assert solo.core.statistics().pages_used == 0


def test_a_fork_speculates_with_noise_of_its_own() -> None:
    """States start from noise, whose key is the parent's up to the fork and the child's from there on."""
    said = []
    for policy in (PLAIN, SPECULATIVE):
        solo = Solo.over(tiny_model(1, state_init="like-init"), ROOMY, PLAIN)
        ask(solo, policy, 8)
        only(solo)
        solo.send(OpenThread(thread=(0, 0), seed=9, depth=policy, inherits=(0,)))
        solo.send(Generate(thread=(0, 0), max_tokens=30, sampling=Sampling(temperature=0.5)))
        child = only(solo)
        said.append((child.tokens, child.logprobs))
    assert solo.core.journal.accepted > 0
    assert said[0] == said[1]


def test_a_tick_that_does_not_fit_is_retried_without_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    solo = solo_over()
    tick_of, refused = solo.backend.tick, 0

    def tick(tick: Tick) -> TickResult:
        nonlocal refused
        entering = tick.entering
        # A draft is a lane whose thread has another in flight already.
        if refused < 5 and solo.core.journal.drafted > refused and len(entering.lane) == 1:
            refused += 1
            raise torch.OutOfMemoryError("no room")
        return tick_of(tick)

    monkeypatch.setattr(solo.core.backend, "tick", tick)
    ask(solo, SPECULATIVE, 20)
    assert only(solo).tokens == plain_tokens(20)
    assert refused == 5


def test_drafts_wait_for_threads_that_want_to_enter() -> None:
    """A prompt takes six of eight lanes: until all prompts are in, drafts would keep them waiting."""
    solo = solo_over(engine=msgspec.structs.replace(ROOMY, max_in_flight=8, prefill_chunk=8, reuse_prefixes=False))
    for number in range(3):
        ask(solo, SPECULATIVE, 12, path=(number,), stream=True)
    begun: set[ThreadPath] = set()
    answers: list[tuple[int, ...]] = []
    while solo.core.has_work:
        before = solo.core.journal.drafted
        solo.core.step()
        assert len(begun) == 3 or solo.core.journal.drafted == before
        for report in solo.core.journal.take_reports():
            assert isinstance(report, Emitted | Finished)
            begun.add(report.thread)
            answers += [report.tokens] if isinstance(report, Finished) else []
    assert solo.core.journal.drafted > 0
    assert answers == [plain_tokens(12)] * 3

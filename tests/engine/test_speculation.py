"""Threads that speculate: they say what plain decoding says, sooner, and nothing of what they guess is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from policies import ByLoad, DepthPolicy, EvenBudget, Fixed, LatentDiff, Policy, Speculative
from runtime import Engine
from runtime.backend.interface import Tick, TickResult
from runtime.device.speculation import reach
from runtime.errors import PolicyError
from runtime.link.commands import (
    CloseThread,
    Emitted,
    Extend,
    Failed,
    Finished,
    Generate,
    Interrupt,
    OpenThread,
    Signal,
    ThreadPath,
)
from runtime.link.events import GenerateFinished, Sampled
from runtime.model.checkpoint import load_checkpoint
from runtime.sampling import Sampling
from runtime.settings import EngineSettings
from tests.engine.solo import Solo
from tests.engine.test_goldens import GOLDEN, NEW_TOKENS
from tests.engine.test_goldens import settings as golden_settings
from tests.engine.test_programs import CONTEXT, MOST, PAGE, PAGES_FOR_ONE, SAMPLINGS, Program, prompts, say_alone
from tests.engine.tiny import tiny_model
from traces import imbalances, read
from traces.__main__ import main as traces_command

ROOMY = EngineSettings(
    num_pages=128, page_size=4, max_in_flight=64, prefill_chunk=16, most_iterations=6, deterministic=True
)
PROMPT = (3, 17, 5, 30, 11, 8)
PLAIN = Fixed(6)


@dataclass
class Drafts:
    """Every draft that a backend makes, by the position that it guesses; the last of several."""

    at: dict[int, int] = field(default_factory=dict)
    position: dict[int, int] = field(default_factory=dict)
    """Of the token in each lane."""

    def watch(self, solo: Solo) -> None:
        tick_of = solo.backend.tick

        def tick(tick: Tick) -> TickResult:
            entering = tick.entering
            self.position |= zip(entering.lane.tolist(), entering.position.tolist(), strict=True)
            result = tick_of(tick)
            for lane, token in zip(result.drafting.tolist(), result.drafted.tolist(), strict=True):
                self.at[self.position[lane] + 1] = token
            return result

        pytest.MonkeyPatch().setattr(solo.core.backend, "tick", tick)

    def rounds(self, tokens: list[int], start: int, look: int) -> list[int]:
        """Tokens appended in each round of draft and verification, as the reference does it from position `start`."""
        found = []
        while start < len(tokens):
            right = 0
            while right < look and self.at.get(start + right) == tokens[start + right]:
                right += 1
            found.append(min(right + 1, look))
            start += found[-1]
        return found


def solo_over(seed: int = 1, engine: EngineSettings = ROOMY, coda: int = 1) -> Solo:
    return Solo.over(tiny_model(seed, coda=coda), engine, PLAIN)


def ask(solo: Solo, policy: DepthPolicy, tokens: int, path: ThreadPath = (0,), **changes: Any) -> None:
    solo.send(
        OpenThread(thread=path, seed=5, depth=policy),
        Extend(path, PROMPT),
        Generate(thread=path, max_tokens=tokens, **{"sampling": Sampling(), **changes}),
    )


def only(solo: Solo) -> Finished:
    (finished,) = [report for report in solo.run() if isinstance(report, Finished | Failed)]
    assert isinstance(finished, Finished), finished
    return finished


def step_until_drafts_fly(solo: Solo) -> None:
    before = solo.core.journal.drafted
    while solo.core.journal.drafted < before + 2:
        solo.core.step()
        solo.core.check_integrity()


# ---- the reference --------------------------------------------------------------------------------------------------

SPECULATIONS = [(prompt, *lengths) for lengths in ((2, 4), (4, 4), (3, 8)) for prompt in ("p0", "p2")]


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize(("prompt", "draft", "look"), SPECULATIONS)
def test_reference_speculation(prompt: str, draft: int, look: int, backend: str) -> None:
    golden, tag = load_file(GOLDEN / "golden.safetensors"), f"spec.{prompt}.draft{draft}.look{look}.n8"
    expected, given = golden[f"{tag}.tokens"].tolist(), golden[f"prompt.{prompt}"].tolist()
    policy = Speculative(draft, look, max_iterations=8, adaptive=False)
    solo, drafts = Solo.over(load_checkpoint(GOLDEN).model, golden_settings(backend), policy), Drafts()
    drafts.watch(solo)
    # One more, because the last token of all drafts nothing.
    finished = solo.generate(given, policy, len(expected) - len(given) + 1)
    assert [*given, *finished.tokens[:-1]] == expected
    assert set(finished.depths) == {8}
    assert len(finished.tokens) > NEW_TOKENS
    assert drafts.rounds(expected, len(given) + 1, look) == golden[f"{tag}.accepted_per_round"].tolist()


# ---- lossless -------------------------------------------------------------------------------------------------------

policies = st.one_of(
    st.builds(
        lambda most, draft, look, adaptive: Speculative(
            min(draft, most - 1), look, max_iterations=most, adaptive=adaptive
        ),
        st.integers(2, MOST),
        st.integers(1, MOST - 1),
        st.integers(1, 6),
        st.booleans(),
    ),
    st.sampled_from([Fixed(2), LatentDiff(0.7, max_iterations=MOST), Fixed(3, carry="raw")]),
)
beginnings = st.lists(
    st.tuples(policies, prompts, st.integers(2, 40), st.sampled_from(SAMPLINGS)), min_size=1, max_size=6
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("open"), policies, prompts),
        st.tuples(st.just("extend"), st.integers(0, 9), prompts),
        st.tuples(st.just("generate"), st.integers(0, 9), st.integers(1, 20), st.sampled_from(SAMPLINGS)),
        st.tuples(st.just("generate"), st.integers(0, 9), st.integers(1, 20), st.sampled_from(SAMPLINGS)),
        st.tuples(st.just("fork"), st.integers(0, 9)),
        st.tuples(st.just("interrupt"), st.integers(0, 9), st.integers(0, 6)),
        st.tuples(st.just("close"), st.integers(0, 9)),
        st.tuples(st.just("advance"), st.integers(1, 12)),
    ),
    max_size=24,
)


@st.composite
def setups(draw: st.DrawFn) -> tuple[EngineSettings, str, int]:
    engine = EngineSettings(
        num_pages=draw(st.sampled_from([PAGES_FOR_ONE, PAGES_FOR_ONE + 3, 3 * PAGES_FOR_ONE])),
        page_size=PAGE,
        max_in_flight=draw(st.sampled_from([8, 16, 32])),
        prefill_chunk=draw(st.sampled_from([4, 8])),
        most_iterations=MOST,
        # A tick of PyTorch's takes ten times as long.
        backend=draw(st.sampled_from(["native", "native", "native", "torch"])),
        deterministic=True,
        cpu_threads=1,
    )
    return engine, draw(st.sampled_from(["zero", "like-init"])), draw(st.sampled_from([0, 1]))


def perform(program: Program, operation: tuple[Any, ...]) -> None:
    name, *arguments = operation
    if name == "open":
        program.open(*arguments)
    elif name == "advance":
        program.advance(arguments[0])
    elif name in ("interrupt", "close"):
        threads = [said for said in program.threads.values() if said.alive]
        threads = [said for said in threads if name == "close" or said.generating is not None]
        if threads:
            said = threads[arguments[0] % len(threads)]
            program.solo.send(Interrupt(said.path, arguments[1])) if name == "interrupt" else program.close(said)
    elif idle := program.idle():
        said = idle[arguments[0] % len(idle)]
        begin: dict[str, Callable[..., None]] = {
            "extend": program.extend,
            "generate": program.generate,
            "fork": program.fork,
        }
        begin[name](said, *arguments[1:])
    program.take_reports()
    program.solo.core.check_integrity()


@settings(max_examples=80)
@given(setups(), beginnings, operations)
def test_threads_that_speculate_say_what_plain_ones_say(
    setup: tuple[EngineSettings, str, int], begun: list[tuple[Any, ...]], steps: list[tuple[Any, ...]]
) -> None:
    program = Program(setup)
    for number, (policy, prompt, count, sampling) in enumerate(begun):
        program.open(policy, prompt)
        program.generate(program.threads[number,], count, sampling)
    for operation in steps:
        perform(program, operation)
    ticks = 0
    while program.solo.core.has_work:
        program.advance(1)
        ticks += 1
        assert ticks < 5000, "the program does not end"
    program.take_reports()
    for said in program.threads.values():
        if said.alive and not said.origins:
            if isinstance(said.policy, Speculative):
                said.policy = Fixed(said.policy.max_iterations)
            say_alone(program, said)
    for said in program.threads.values():
        program.close(said)
    program.take_reports()
    journal = program.solo.core.journal
    program.solo.core.check_integrity()
    load = program.solo.core.statistics()
    assert load.pages_used == 0
    spent = [report.work for report in program.finished] + [report.work for report in program.failed]
    for name in ("generated", "computed", "iterations", "recomputed", "cached_tokens"):
        reported = sum(getattr(work, name) for work in spent)
        assert getattr(load, name) == reported, name
    event("drafts were thrown away" if journal.accepted < journal.drafted else "all drafts were right")
    event(f"drafted: {journal.drafted > 0}, recomputed: {journal.work.recomputed > 0}")
    assert journal.accepted <= journal.drafted


@settings(max_examples=20)
@given(
    st.integers(0, 5), st.integers(1, 5), st.integers(1, 8), st.booleans(), st.sampled_from(SAMPLINGS), st.booleans()
)
def test_fewer_ticks_and_only_what_was_thrown_away_more(
    seed: int, draft: int, look: int, adaptive: bool, sampling: Sampling, coda: bool
) -> None:
    plain, speculating = (solo_over(seed, coda=int(coda)) for _ in range(2))
    ask(plain, PLAIN, 30, sampling=sampling)
    ask(speculating, Speculative(draft, look, max_iterations=6, adaptive=adaptive), 30, sampling=sampling)
    expected, finished = only(plain), only(speculating)
    assert finished.tokens == expected.tokens
    assert finished.logprobs == expected.logprobs
    assert finished.depths == expected.depths
    assert (finished.work.generated, finished.work.computed) == (expected.work.generated, expected.work.computed)
    journal = speculating.core.journal
    assert journal.drafted > 0
    # A draft that was right saves the iterations that it had done by then.
    saved = plain.core.journal.ticks - journal.ticks
    assert journal.accepted <= saved <= journal.accepted * (6 - draft)
    wasted = finished.work.iterations - expected.work.iterations
    assert journal.drafted - journal.accepted <= wasted <= (journal.drafted - journal.accepted) * (6 - draft)


# ---- what is emitted ------------------------------------------------------------------------------------------------


class Listens:
    """A watcher that stops at the n-th token and keeps what it was fed."""

    def __init__(self, stop_after: int) -> None:
        self.fed: list[int] = []
        self.stop_after = stop_after

    def feed(self, token: int) -> tuple[Signal, ...]:
        self.fed.append(token)
        return (Signal(kind="stop", stops=True),) if len(self.fed) == self.stop_after else ()


SPECULATIVE = Speculative(2, 4, max_iterations=6, adaptive=False)


def plain_tokens(count: int, **changes: Any) -> tuple[int, ...]:
    solo = solo_over()
    ask(solo, PLAIN, count, **changes)
    return only(solo).tokens


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


# ---- in the middle of it --------------------------------------------------------------------------------------------


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


# ---- traces ---------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_recorded_run_adds_up_and_verifies(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, policy = tmp_path / "run.trace", Policy(depth=Speculative(2, 3, max_iterations=4))
    sizes: dict[str, Any] = {"num_pages": 30, "page_size": 4, "max_in_flight": 16, "prefill_chunk": 8}
    answers: list[tuple[int, ...]] = []
    async with Engine.open(
        tiny_checkpoint, policy=policy, trace=path, seed=7, sampling=Sampling(temperature=0.7), **sizes
    ) as engine:

        async def ask_one(number: int) -> None:
            async with engine.thread(f"w{number} w{number + 3} w5") as thread:
                answers.append((await thread.generate(max_tokens=24)).tokens)

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(ask_one, number)
    events = read(path).events
    assert imbalances(events) == []
    ends = [event for event in events if isinstance(event, GenerateFinished)]
    assert sum(end.drafted for end in ends) > sum(end.accepted for end in ends) > 0
    said = [event.token for event in events if isinstance(event, Sampled)]
    assert sorted(said) == sorted(token for answer in answers for token in answer)
    assert await anyio.to_thread.run_sync(traces_command, ["replay", str(path), "--verify"]) == 0


# ---- how far ---------------------------------------------------------------------------------------------------------


def test_adaptive_threads_look_as_far_as_their_drafts_are_good() -> None:
    policy = Speculative(2, 4)
    assert [reach(policy, share) for share in (1.0, 0.8, 0.7, 0.6, 0.5, 0.0)] == [4, 4, 3, 2, 1, 1]
    assert reach(Speculative(2, 4, adaptive=False), 0.0) == 4


def test_adaptive_threads_waste_less_where_drafts_are_bad() -> None:
    wasted = []
    for adaptive in (False, True):
        solo = solo_over(1)
        ask(solo, Speculative(1, 5, max_iterations=6, adaptive=adaptive), 50, sampling=Sampling(temperature=3.0))
        only(solo)
        wasted.append(solo.core.journal.drafted - solo.core.journal.accepted)
    assert wasted[1] < wasted[0]


@pytest.mark.parametrize(
    ("policy", "slots", "said"),
    [
        (Speculative(2, 4, max_iterations=6), 3, "keeps 3 of them"),
        (Speculative(3), None, "less than the 3 iterations"),
        (ByLoad(EvenBudget(Speculative(2, max_iterations=6))), None, "not for Speculative"),
    ],
)
def test_what_cannot_be_followed_is_refused(policy: DepthPolicy, slots: int | None, said: str) -> None:
    solo = solo_over(
        engine=EngineSettings(
            num_pages=64, page_size=4, max_in_flight=16, prefill_chunk=8, most_iterations=6, iteration_slots=slots
        )
    )
    ask(solo, policy, 5)
    (failed,) = solo.run()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, PolicyError)
    assert said in str(failed.error)

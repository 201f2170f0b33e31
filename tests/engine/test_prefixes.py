"""Equal prompts are computed once, across trees and policies, also when they arrive together."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from torch import Tensor

from policies import DepthPolicy, Fixed, LatentDiff, Policy
from runtime import Engine, EngineSettings
from runtime.device.prefix_rule import MOST_KNOWN, PrefixRules
from runtime.link.commands import CloseThread, Extend, Finished, Generate, Interrupt, OpenThread, Statistics, ThreadPath
from runtime.link.events import Computed
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo
from traces import imbalances, read, totals_of
from traces.totals import statistics_after

MOST = 6
PROMPT = tuple((5 * position + position * position) % 40 for position in range(43))
"""Ten full pages of four tokens, and three tokens more."""
SHAREABLE = 40
POLICIES = [Fixed(3), LatentDiff(0.7, max_iterations=MOST), LatentDiff(0.7, max_iterations=MOST, exit_received=False)]


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        **{
            "num_pages": 256,
            "page_size": 4,
            "max_in_flight": 64,
            "prefill_chunk": 16,
            "most_iterations": MOST,
            "deterministic": True,
        }
        | changes
    )


def ask(solo: Solo, path: ThreadPath, policy: DepthPolicy, prompt: tuple[int, ...] = PROMPT, **changes: Any) -> None:
    solo.send(
        OpenThread(thread=path, seed=5, depth=policy),
        Extend(path, prompt),
        Generate(thread=path, sampling=Sampling(), **{"max_tokens": 4, **changes}),
    )


def finished(solo: Solo) -> dict[ThreadPath, Finished]:
    return {report.thread: report for report in solo.run() if isinstance(report, Finished)}


def alone(model: Transformer, policy: DepthPolicy, prompt: tuple[int, ...] = PROMPT, **changes: Any) -> Finished:
    solo = Solo.over(model, settings(reuse_prefixes=False, **changes), policy)
    ask(solo, (0,), policy, prompt)
    return finished(solo)[0,]


@pytest.mark.parametrize("lanes", [16, 64, 256])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_threads_that_arrive_together_compute_a_prompt_once(
    model: Transformer, policy: DepthPolicy, lanes: int
) -> None:
    solo = Solo.over(model, settings(max_in_flight=lanes), policy)
    for number in range(12):
        ask(solo, (number,), policy)
    found = finished(solo)
    expected = alone(model, policy)
    assert {(report.tokens, report.logprobs, report.depths) for report in found.values()} == {
        (expected.tokens, expected.logprobs, expected.depths)
    }
    journal = solo.core.journal
    prompts = journal.work.computed - sum(report.work.generated - 1 for report in found.values())
    assert prompts == len(PROMPT) + 11 * (len(PROMPT) - SHAREABLE)
    assert (journal.work.cached_tokens, journal.work.prompt_tokens) == (11 * SHAREABLE, 12 * len(PROMPT))


def test_shared_slots_are_shared_in_whole_groups(model: Transformer) -> None:
    policy = Fixed(3)
    solo = Solo.over(model, settings(iteration_slots=1), policy)
    for number in range(6):
        ask(solo, (number,), policy)
    found = finished(solo)
    assert {report.logprobs for report in found.values()} == {alone(model, policy, iteration_slots=1).logprobs}
    assert solo.core.journal.work.cached_tokens == 5 * 32


def test_policies_share_what_is_the_same_under_both(model: Transformer) -> None:
    """Depth six everywhere is one content; twelve threads of three policies compute it once, and depth three once."""
    solo = Solo.over(model, settings(), Fixed(MOST))
    policies = [
        Fixed(MOST),
        LatentDiff(0.7, max_iterations=MOST, exit_received=False),
        Fixed(MOST, carry="raw"),
        Fixed(3),
    ]
    for number in range(16):
        ask(solo, (number,), policies[number % 4])
    found = finished(solo)
    assert solo.core.journal.work.cached_tokens == 14 * SHAREABLE
    for number in range(16):
        expected = alone(model, policies[number % 4])
        assert found[number,].logprobs == expected.logprobs


@pytest.mark.parametrize("how", ["closed", "interrupted", "limited"])
def test_followers_go_on_without_their_leader(model: Transformer, how: str) -> None:
    policy = Fixed(3)
    solo = Solo.over(model, settings(), policy)
    # One whose iterations may run out is not followed: what a limit has bounded is not stored.
    ask(solo, (0,), policy, max_iterations=20 if how == "limited" else None)
    for number in range(1, 5):
        ask(solo, (number,), policy)
    solo.core.step()
    assert bool(solo.flight_lanes((1,))) == (how == "limited")
    assert not solo.flight_lanes((2,))
    if how != "limited":
        solo.send(CloseThread((0,)) if how == "closed" else Interrupt((0,)))
    solo.core.check_integrity()
    found = finished(solo)
    assert {found[number,].logprobs for number in range(1, 5)} == {alone(model, policy).logprobs}
    assert solo.core.journal.work.cached_tokens == 3 * SHAREABLE


def test_followers_can_be_cancelled(model: Transformer) -> None:
    solo = Solo.over(model, settings(), Fixed(3))
    for number in range(4):
        ask(solo, (number,), Fixed(3))
    solo.core.step()
    solo.send(CloseThread((1,)), Interrupt((2,)))
    solo.core.check_integrity()
    found = finished(solo)
    assert found[2,].tokens == ()
    assert found[0,].logprobs == found[3,].logprobs == alone(model, Fixed(3)).logprobs


def test_followers_may_lose_their_rows(model: Transformer) -> None:
    """With fewer rows than threads, ones of higher priority take those of threads that wait for a prefix."""
    policy = Fixed(3)
    solo = Solo.over(model, settings(max_in_flight=16), policy)
    for number in range(16):
        ask(solo, (number,), policy)
    solo.core.step()
    for number in range(16, 24):
        solo.send(OpenThread(thread=(number,), seed=5, depth=policy, priority=1), Extend((number,), PROMPT))
        solo.send(Generate(thread=(number,), max_tokens=4, sampling=Sampling()))
    found = finished(solo)
    assert len(found) == 24
    assert {report.logprobs for report in found.values()} == {alone(model, policy).logprobs}
    assert solo.core.journal.work.cached_tokens == 23 * SHAREABLE


@pytest.mark.parametrize(
    ("slots", "shared", "waits"), [(None, 4, False), (None, 8, True), (1, 12, False), (1, 16, True)]
)
def test_nobody_waits_for_little(model: Transformer, slots: int | None, shared: int, waits: bool) -> None:
    """At least half of a group is to be in flight elsewhere, all of it where only whole groups are shared."""
    solo = Solo.over(model, settings(iteration_slots=slots), Fixed(3))
    ask(solo, (0,), Fixed(3))
    ask(solo, (1,), Fixed(3), (*PROMPT[:shared], *(token + 1 for token in PROMPT[shared:40])))
    solo.core.step()
    assert solo.flight_lanes((0,))
    assert bool(solo.flight_lanes((1,))) != waits
    assert finished(solo)[1,].work.cached_tokens == (shared if waits else 0)


def test_a_prompt_outlives_the_tree_that_brought_it(model: Transformer) -> None:
    solo = Solo.over(model, settings(), Fixed(3))
    ask(solo, (0,), Fixed(3))
    first = finished(solo)[0,]
    solo.send(CloseThread((0,)))
    assert solo.core.statistics().pages_used == 0
    ask(solo, (1,), Fixed(3))
    second = finished(solo)[1,]
    assert (first.work.cached_tokens, second.work.cached_tokens) == (0, SHAREABLE)
    assert (first.work.prompt_tokens, second.work.prompt_tokens) == (len(PROMPT), len(PROMPT))
    assert second.logprobs == first.logprobs


def test_what_a_fork_inherits_is_not_received(model: Transformer) -> None:
    solo = Solo.over(model, settings(), Fixed(3))
    ask(solo, (0,), Fixed(3))
    solo.run()
    solo.send(OpenThread(thread=(0, 0), seed=5, depth=Fixed(3), inherits=(0,)), Extend((0, 0), (1, 2, 3)))
    solo.send(Generate(thread=(0, 0), max_tokens=2, sampling=Sampling()))
    fork = finished(solo)[0, 0]
    assert (fork.work.prompt_tokens, fork.work.cached_tokens) == (3, 0)


@pytest.mark.anyio
async def test_the_hit_rate_is_the_same_in_usage_and_trace(tiny_checkpoint: Path, tmp_path: Path) -> None:
    examples = " ".join(f"w{(7 * step) % 32}" for step in range(24))
    trace, trees, policy = tmp_path / "run.trace", 8, Policy(depth=Fixed(4))
    async with Engine.open(
        tiny_checkpoint, policy=policy, trace=trace, page_size=4, prefill_chunk=16, max_in_flight=64, num_pages=256
    ) as engine:
        shares: list[float] = []

        async def ask_one(number: int) -> None:
            async with engine.thread(f"{examples} w{number}") as root:
                await root.generate(max_tokens=3)
                shares.append(root.usage.hit_rate)

        async with anyio.create_task_group() as group:
            for number in range(trees):
                group.start_soon(ask_one, number)
        usage, load = engine.usage, engine.statistics
    events = read(trace).events
    recorded = totals_of(events)
    assert imbalances(events) == []
    first = next(event for event in events if isinstance(event, Computed) and event.received)
    forged = [replace(event, received=event.received - 1) if event is first else event for event in events]
    assert any("prompt tokens" in line for line in imbalances(forged))
    counted = reduce(statistics_after, events, Statistics())
    assert (counted.prompt_tokens, counted.cached_tokens) == (load.prompt_tokens, load.cached_tokens)
    assert (
        (usage.prompt_tokens, usage.cached_tokens)
        == (load.prompt_tokens, load.cached_tokens)
        == (recorded.prompt_tokens, recorded.cached_tokens)
    )
    assert usage.prompt_tokens == trees * (usage.prompt_tokens // trees)
    assert usage.cached_tokens == (trees - 1) * 24
    assert usage.hit_rate == recorded.hit_rate == usage.cached_tokens / usage.prompt_tokens > 0.7
    assert sorted(shares)[0] == 0
    assert sorted(shares)[1] == pytest.approx(24 / (usage.prompt_tokens / trees))


def test_policies_of_one_name_share_nothing(model: Transformer) -> None:
    """Two classes with one name and equal fields, as a module of a user's own or a notebook's cell run again has."""

    def of_one_name(patient: bool) -> DepthPolicy:
        class Careful(LatentDiff, frozen=True, kw_only=True, tag="Careful"):
            def is_done(self, values: Tensor) -> Tensor:
                return values < (-1.0 if patient else 1e9)

        return Careful(threshold=0.7, max_iterations=MOST)

    first, second = of_one_name(False), of_one_name(True)
    assert len({f"{type(policy).__module__}.{type(policy).__qualname__}" for policy in (first, second)}) == 1
    solo = Solo.over(model, settings(), first)
    for number, policy in enumerate((first, second, second)):
        ask(solo, (number,), policy)
        (report,) = finished(solo).values()
        assert report.work.cached_tokens == (SHAREABLE if number == 2 else 0)
        expected = alone(model, policy)
        assert (report.tokens, report.logprobs, report.depths) == (
            expected.tokens,
            expected.logprobs,
            expected.depths,
        )


def test_rules_of_policies_long_unused_are_forgotten() -> None:
    rules = PrefixRules()
    policies = [LatentDiff(0.1 + number / 10_000, max_iterations=MOST) for number in range(MOST_KNOWN + 1)]
    tags = [rules.rule_of(policy, MOST) for policy in policies]
    assert len(set(tags)) == len(policies)
    assert rules.rule_of(policies[-1], MOST) == tags[-1]
    assert rules.rule_of(replace(policies[-1], carry="raw"), MOST) == tags[-1]
    assert rules.rule_of(policies[0], MOST) not in tags

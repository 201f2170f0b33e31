"""Continuous thought by thread: what carries and what does not share batches, memory and prompts."""

from __future__ import annotations

from typing import Any

import pytest

from policies import DepthPolicy, EvenBudget, Fixed, LatentDiff
from runtime.device.build import build_loop
from runtime.device.settings import EngineSettings
from runtime.link.commands import CloseThread, Extend, Finished, Generate, OpenThread, ThreadPath
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo

MOST = 6
RAW, NORMED = Fixed(3, carry="raw"), Fixed(3, carry="normed")
ADAPTIVE = LatentDiff(0.7, max_iterations=MOST, carry="raw")
POLICIES = [Fixed(3), RAW, NORMED, ADAPTIVE, LatentDiff(0.7, max_iterations=MOST), EvenBudget(ADAPTIVE)]


def settings(backend: str = "native", **changes: Any) -> EngineSettings:
    sizes: dict[str, Any] = {
        "num_pages": 256,
        "page_size": 4,
        "max_in_flight": 32,
        "prefill_chunk": 16,
        "most_iterations": MOST,
    }
    return EngineSettings(**sizes | {"deterministic": True, "backend": backend} | changes)


def prompt_for(number: int, length: int = 9) -> tuple[int, ...]:
    return tuple((number * 17 + position * 5 + position * position) % 40 for position in range(length))


def ask(solo: Solo, path: ThreadPath, tokens: int, policy: DepthPolicy | None = None) -> None:
    solo.send(Generate(thread=path, max_tokens=tokens, sampling=Sampling(), depth=policy))


def start(solo: Solo, path: ThreadPath, prompt: tuple[int, ...], tokens: int, policy: DepthPolicy) -> None:
    solo.send(OpenThread(thread=path, seed=5, depth=policy), Extend(path, prompt))
    ask(solo, path, tokens)


def finished(solo: Solo) -> dict[ThreadPath, Finished]:
    return {report.thread: report for report in solo.run() if isinstance(report, Finished)}


def alone(
    model: Transformer,
    policy: DepthPolicy,
    prompt: tuple[int, ...],
    tokens: int,
    backend: str = "native",
    **changes: Any,
) -> Finished:
    solo = Solo.over(model, settings(backend, **changes), policy)
    start(solo, (0,), prompt, tokens, policy)
    return finished(solo)[0,]


def test_carrying_changes_what_is_said(model: Transformer) -> None:
    said = {alone(model, policy, prompt_for(1), 12).logprobs for policy in (Fixed(3), RAW, NORMED)}
    assert len(said) == 3


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_threads_that_carry_and_threads_that_do_not_share_batches(model: Transformer, backend: str) -> None:
    crowd = Solo.over(model, settings(backend), Fixed(3))
    for number in range(12):
        start(crowd, (number,), prompt_for(number), 12, POLICIES[number % len(POLICIES)])
    together = finished(crowd)
    for number in range(12):
        by_itself = alone(model, POLICIES[number % len(POLICIES)], prompt_for(number), 12, backend)
        assert together[number,].logprobs == by_itself.logprobs
        assert together[number,].depths == by_itself.depths
        assert together[number,].tokens == by_itself.tokens


def test_threads_go_on_by_themselves_beside_one_that_carries(model: Transformer) -> None:
    """Unwatched, lanes of the native backend feed back their own tokens; those that carry come back for each."""
    solo = Solo(build_loop(model, settings(), Fixed(3)))
    for number in range(6):
        start(solo, (number,), prompt_for(number), 12, POLICIES[number])
    together = finished(solo)
    for number in range(6):
        assert together[number,].logprobs == alone(model, POLICIES[number], prompt_for(number), 12).logprobs


def test_both_backends_carry_alike(model: Transformer) -> None:
    for policy in (RAW, NORMED, ADAPTIVE):
        native, plain = (alone(model, policy, prompt_for(2), 16, backend) for backend in ("native", "torch"))
        assert (native.tokens, native.depths) == (plain.tokens, plain.depths)
        assert native.logprobs == pytest.approx(plain.logprobs, abs=1e-4)


@pytest.mark.parametrize("pages", [14, 256])
@pytest.mark.parametrize("policy", [RAW, NORMED, ADAPTIVE], ids=repr)
def test_a_state_that_is_lost_is_computed_again(model: Transformer, policy: DepthPolicy, pages: int) -> None:
    """Eight rows for twelve threads that ask again and again, and sometimes pages for two or three."""
    solo = Solo.over(model, settings(max_in_flight=8, prefill_chunk=8, num_pages=pages), policy)
    said: dict[ThreadPath, tuple[int, ...]] = {(number,): () for number in range(12)}
    for path in said:
        solo.send(OpenThread(thread=path, seed=5, depth=policy), Extend(path, prompt_for(path[0])))
    for _ in range(3):
        for path in said:
            ask(solo, path, 5)
        for path, report in finished(solo).items():
            said[path] += report.tokens
    assert solo.core.journal.work.recomputed > 0
    for path, tokens in said.items():
        assert tokens == alone(model, policy, prompt_for(path[0]), 15, prefill_chunk=8).tokens


@pytest.mark.parametrize("slots", [None, 1])
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_prompt_taken_over_leaves_the_state_after_it_to_be_computed(
    model: Transformer, backend: str, slots: int | None
) -> None:
    """What is stored of an evicted thread's prompt ends where its first carrying token starts."""
    solo = Solo.over(model, settings(backend, num_pages=16, prefill_chunk=4, iteration_slots=slots), RAW)
    prompt = prompt_for(1, 12)
    start(solo, (0,), prompt_for(0, 7), 32, Fixed(3))
    start(solo, (1,), prompt, 31, RAW)
    found = finished(solo)[1,]
    by_itself = alone(model, RAW, prompt, 31, backend, prefill_chunk=4, iteration_slots=slots)
    assert found.tokens == by_itself.tokens
    assert found.logprobs == by_itself.logprobs
    assert found.work.recomputed > 0
    assert found.work.cached_tokens == 8, "all but the page of the token whose state the next one needs"


@pytest.mark.parametrize("slots", [None, 1])
def test_tokens_carry_as_they_did_when_the_policy_has_changed(model: Transformer, slots: int | None) -> None:
    """Tokens sampled under one policy are computed again as that policy had them, whatever the thread follows now."""
    turns = [(RAW, 4), (Fixed(3), 5), (NORMED, 3), (ADAPTIVE, 4), (Fixed(2), 6)]
    said = []
    for pages in (256, 14):
        solo = Solo.over(model, settings(num_pages=pages, iteration_slots=slots), Fixed(3))
        paths: list[ThreadPath] = [(number,) for number in range(4 if pages == 14 else 1)]
        for path in paths:
            solo.send(OpenThread(thread=path, seed=5, depth=Fixed(3)), Extend(path, prompt_for(4)))
        reports = []
        for policy, tokens in turns:
            for path in paths:
                ask(solo, path, tokens, policy)
            reports.append(finished(solo)[0,])
            for path in paths:
                solo.send(Extend(path, (7, 8)))
        said.append([(report.tokens, report.logprobs, report.depths) for report in reports])
        assert (solo.core.journal.work.recomputed > 0) == (pages == 14)
    assert said[0] == said[1]


def test_a_fork_carries_on_from_its_parents_last_token(model: Transformer) -> None:
    solo = Solo.over(model, settings(), RAW)
    start(solo, (0,), prompt_for(5), 6, RAW)
    before = finished(solo)[0,].tokens
    solo.send(OpenThread(thread=(0, 0), seed=5, depth=RAW, inherits=(0,)))
    ask(solo, (0,), 6)
    ask(solo, (0, 0), 6)
    after = finished(solo)
    assert after[0,].tokens == after[0, 0].tokens
    assert before + after[0,].tokens == alone(model, RAW, prompt_for(5), 12).tokens
    assert after[0,].work.recomputed == 0, "the parent kept its state"
    solo.send(CloseThread((0, 0)), CloseThread((0,)))
    assert solo.core.statistics().pages_used == 0


def test_prompts_are_shared_whatever_is_carried(model: Transformer) -> None:
    prompt = prompt_for(6, 33)
    policies = [LatentDiff(0.7, max_iterations=MOST, carry=carry) for carry in ("none", "raw", "normed")]
    solo = Solo.over(model, settings(), policies[0])
    for number, policy in enumerate(policies):
        start(solo, (number,), prompt, 8, policy)
    found = finished(solo)
    assert solo.core.journal.work.cached_tokens == 2 * 32
    for number, policy in enumerate(policies):
        assert found[number,].logprobs == alone(model, policy, prompt, 8, reuse_prefixes=False).logprobs

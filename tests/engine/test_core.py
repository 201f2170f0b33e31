"""The device core on a tiny model: batching, memory, modes and failures, tick by tick."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from policies import Fixed, LatentDiff
from runtime.backend.interface import Tick, TickResult
from runtime.device.settings import EngineSettings
from runtime.errors import CapacityError, PolicyError, PromptError
from runtime.link.commands import CloseThread, Extend, Failed, Finished, Generate, Interrupt, OpenThread, ThreadPath
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model

POLICY = LatentDiff(0.7, max_iterations=6)


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        **{"num_pages": 128, "page_size": 4, "max_in_flight": 64, "prefill_chunk": 16, "most_iterations": 6, **changes}
    )


def prompt_for(number: int, length: int = 7) -> tuple[int, ...]:
    return tuple((number * 17 + position * 5 + position * position) % 40 for position in range(length))


def start(solo: Solo, path: ThreadPath, prompt: tuple[int, ...], tokens: int, **changes: Any) -> None:
    opening = {name: changes.pop(name) for name in ("priority",) if name in changes}
    depth = changes.pop("policy", POLICY)
    solo.send(
        OpenThread(thread=path, seed=5, depth=depth, **opening),
        Extend(path, prompt),
        Generate(thread=path, max_tokens=tokens, **{"sampling": Sampling(), **changes}),
    )


def finished(solo: Solo) -> dict[ThreadPath, Finished]:
    return {report.thread: report for report in solo.run() if isinstance(report, Finished)}


def test_exited_tokens_are_replaced_without_waiting(model: Transformer) -> None:
    solo = Solo.over(model, settings(), POLICY)
    for number in range(8):
        start(solo, (number,), prompt_for(number), 12)
    longest = max(sum(report.depths) for report in finished(solo).values())
    assert solo.core.statistics().ticks == longest, (
        "nobody waits: the longest chain of iterations is all that takes ticks"
    )


def test_depth_first_order_under_pressure(model: Transformer) -> None:
    """With lanes for one, the oldest tree is served to its end before the next begins."""
    solo = Solo.over(model, settings(max_in_flight=16), Fixed(2))
    order: list[ThreadPath] = []
    for path in ((1,), (0, 1), (0,), (0, 0)):
        start(solo, path, prompt_for(1, 16), 2, policy=Fixed(2))
    while solo.core.has_work:
        solo.core.step()
        order += [r.thread for r in solo.core.journal.take_reports() if isinstance(r, Finished)]
    assert order == sorted(order)


def test_priority_goes_before_depth_first(model: Transformer) -> None:
    solo = Solo.over(model, settings(max_in_flight=16), Fixed(2))
    start(solo, (0,), prompt_for(0, 16), 3, policy=Fixed(2))
    start(solo, (1,), prompt_for(1, 16), 3, policy=Fixed(2), priority=1)
    order = [report.thread for report in solo.run() if isinstance(report, Finished)]
    assert order == [(1,), (0,)]


def test_equal_prompts_share_pages(model: Transformer) -> None:
    prompt = prompt_for(9, 33)
    solo = Solo.over(model, settings(), POLICY)
    start(solo, (0,), prompt, 3)
    first = finished(solo)[0,]
    start(solo, (1,), prompt, 3)
    second = finished(solo)[1,]
    assert second.tokens == first.tokens
    assert second.depths == first.depths
    assert (first.work.cached_tokens, second.work.cached_tokens) == (0, 32)
    assert second.work.iterations < first.work.iterations / 2
    used = solo.core.statistics().pages_used
    assert used <= 8 + 2 * 2, "the eight full pages of the prompt are held once"


def test_different_policies_do_not_share_pages(model: Transformer) -> None:
    prompt = prompt_for(9, 33)
    solo = Solo.over(model, settings(), POLICY)
    start(solo, (0,), prompt, 1)
    start(solo, (1,), prompt, 1, policy=LatentDiff(0.6, max_iterations=6))
    start(solo, (2,), prompt, 1, policy=Fixed(6))
    assert all(report.work.cached_tokens == 0 for report in finished(solo).values())


def test_noise_forbids_sharing_but_not_reproduction() -> None:
    noisy = tiny_model(3, state_init="like-init")
    runs = []
    for _ in range(2):
        solo = Solo.over(noisy, settings(), POLICY)
        for number in range(3):
            start(solo, (number,), prompt_for(9, 33), 4)
        runs.append(finished(solo))
    assert all(report.work.cached_tokens == 0 for report in runs[0].values())
    assert [report.logprobs for report in runs[0].values()] == [report.logprobs for report in runs[1].values()]
    assert len({report.logprobs for report in runs[0].values()}) == 3, "each thread has noise of its own"


def test_sampling_does_not_depend_on_company(model: Transformer) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9)
    crowd = Solo.over(model, settings(), POLICY)
    for number in range(6):
        start(crowd, (number,), prompt_for(number), 10, sampling=sampling)
    together = finished(crowd)
    for number in range(6):
        alone = Solo.over(model, settings(), POLICY)
        start(alone, (number,), prompt_for(number), 10, sampling=sampling)
        assert finished(alone)[number,].tokens == together[number,].tokens


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_deterministic_mode_is_bitwise(model: Transformer, backend: str) -> None:
    modes = settings(deterministic=True, backend=backend)
    crowd = Solo.over(model, modes, POLICY)
    for number in range(9):
        start(crowd, (number,), prompt_for(number, 3 + 4 * number), 8)
    together = finished(crowd)
    for number in range(9):
        alone = Solo.over(model, modes, POLICY)
        start(alone, (number,), prompt_for(number, 3 + 4 * number), 8)
        assert finished(alone)[number,].logprobs == together[number,].logprobs


def test_eviction_recomputes_at_the_depths_there_were(model: Transformer) -> None:
    roomy, tight = Solo.over(model, settings(), POLICY), Solo.over(model, settings(num_pages=16), POLICY)
    for solo in (roomy, tight):
        for number in range(5):
            start(solo, (number,), prompt_for(number, 20), 24)
    expected, found = finished(roomy), finished(tight)
    assert {path: report.tokens for path, report in found.items()} == {
        path: report.tokens for path, report in expected.items()
    }
    assert sum(report.work.recomputed for report in found.values()) > 0
    assert all(report.work.recomputed == 0 for report in expected.values())


def test_a_thread_larger_than_the_pool_fails_alone(model: Transformer) -> None:
    solo = Solo.over(model, settings(num_pages=4), POLICY)
    start(solo, (0,), prompt_for(0, 20), 2)
    start(solo, (1,), prompt_for(1, 5), 2)
    reports = {report.thread: report for report in solo.run() if isinstance(report, Finished | Failed)}
    failure = reports[0,]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, CapacityError)
    assert "needs 5 pages" in str(failure.error)
    assert isinstance(reports[1,], Finished)


def test_a_context_ends_and_takes_no_more(model: Transformer) -> None:
    solo = Solo.over(model, settings(), POLICY)
    start(solo, (0,), prompt_for(0, 60), 50)
    assert finished(solo)[0,].reason == "context"
    solo.send(Extend((0,), (1,)))
    (failure,) = solo.run()
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, PromptError)
    assert "holds 64" in str(failure.error)


def test_the_iteration_limit_ends_a_call(model: Transformer) -> None:
    solo = Solo.over(model, settings(), Fixed(4))
    start(solo, (0,), prompt_for(0, 5), 50, policy=Fixed(4), max_iterations=37)
    report = finished(solo)[0,]
    assert report.reason == "iterations"
    assert report.work.iterations == 37
    assert report.work.generated == 6  # 5 * 4 for the prompt, 4 * 4 for four tokens, and one at depth 1


def test_a_bound_above_the_engine_s_most_is_refused(model: Transformer) -> None:
    solo = Solo.over(model, settings(), POLICY)
    start(solo, (0,), prompt_for(0), 2, policy=Fixed(7))
    (failure,) = solo.run()
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, PolicyError)
    assert "most_iterations" in str(failure.error)


def test_interrupting_keeps_what_was_asked_to_be_kept(model: Transformer) -> None:
    whole = Solo.over(model, settings(), POLICY)
    start(whole, (0,), prompt_for(0), 10)
    expected = finished(whole)[0,].tokens
    solo = Solo.over(model, settings(), POLICY)
    start(solo, (0,), prompt_for(0), 10)
    for _ in range(20):
        solo.core.step()
    solo.send(Interrupt((0,), keep=2))
    (report,) = solo.run()
    assert isinstance(report, Finished)
    assert (report.reason, report.tokens) == ("interrupted", expected[:2])
    assert report.work.generated > 2
    solo.send(Generate(thread=(0,), max_tokens=8, sampling=Sampling()))
    (report,) = solo.run()
    assert isinstance(report, Finished)
    assert report.tokens == expected[2:]


def test_a_tick_that_does_not_fit_is_retried_smaller(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Solo.over(model, settings(), POLICY)
    solo = Solo.over(model, settings(), POLICY)
    real, sizes = solo.backend.tick, []

    def small(tick: Tick) -> TickResult:
        sizes.append(len(tick.entering.lane))
        if len(tick.entering.lane) > 10:
            raise torch.OutOfMemoryError("no memory for so many")
        return real(tick)

    monkeypatch.setattr(solo.backend, "tick", small)
    for number in range(8):
        for each in (expected, solo):
            start(each, (number,), prompt_for(number, 5), 4)
    assert {path: report.tokens for path, report in finished(solo).items()} == {
        path: report.tokens for path, report in finished(expected).items()
    }
    assert max(sizes) == 40


def test_bfloat16_runs_and_stays_close(model: Transformer) -> None:
    exact = Solo.over(model, settings(), Fixed(3))
    rounded = Solo.over(tiny_model(3).to(torch.bfloat16), settings(), Fixed(3))
    for solo in (exact, rounded):
        start(solo, (0,), prompt_for(0, 20), 1, policy=Fixed(3), sampling=Sampling(logprobs=40))
    likely = [finished(solo)[0,].top_logprobs[0] for solo in (exact, rounded)]
    best = max(likely[0], key=lambda token: likely[0][token])
    assert abs(likely[0][best] - likely[1][best]) < 0.15


def test_entropies_and_signals_are_of_the_right_token(model: Transformer) -> None:
    solo = Solo.over(model, settings(), POLICY)
    start(solo, (0,), prompt_for(0), 5, sampling=Sampling(logprobs=40), entropies=True)
    report = finished(solo)[0,]
    call_entropies = [
        -sum(value * torch.tensor(value).exp().item() for value in top.values()) for top in report.top_logprobs
    ]
    assert all(entropy > 0 for entropy in call_entropies)


def test_closing_everything_empties_the_pool_at_any_tick(model: Transformer) -> None:
    for ticks in range(0, 30, 3):
        solo = Solo.over(model, settings(), POLICY)
        for number in range(4):
            start(solo, (number,), prompt_for(number, 12), 10)
        for _ in range(ticks):
            solo.core.step()
        for number in range(4):
            solo.send(CloseThread((number,)))
        solo.run()
        assert solo.core.statistics().pages_used == 0
        assert solo.core.statistics().open_threads == 0


def test_forks_draw_for_themselves(model: Transformer) -> None:
    """Forks that begin in the same state sample different tokens, each the same whenever it is run."""
    runs = []
    for _ in range(2):
        solo = Solo.over(model, settings(), POLICY)
        solo.send(OpenThread(thread=(0,), seed=5, depth=POLICY), Extend((0,), prompt_for(0)))
        for number in range(8):
            solo.send(
                OpenThread(thread=(0, number), seed=5, depth=POLICY, inherits=(0,)),
                Generate(thread=(0, number), max_tokens=1, sampling=Sampling(temperature=3.0)),
            )
        runs.append([report.tokens for _, report in sorted(finished(solo).items())])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 3

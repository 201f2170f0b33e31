"""Contexts that outgrow what LongRoPE turns by its short factors: what is said is what transformers' forward of the
whole context says, whoever was forked, evicted, guessed for or cut back on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Fixed, Policy, Speculative
from policies.training.examples import Example
from policies.training.teacher_forcing import exactness
from runtime import Engine
from runtime.device.build import build_loop
from runtime.device.settings import EngineSettings
from runtime.link.commands import CloseThread, Extend, Failed, Finished, Generate, Interrupt, OpenThread, ThreadPath
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import load_checkpoint
from runtime.model.transformer import Transformer
from tests.engine.recorded_trees import verified
from tests.engine.solo import Solo
from tests.families.checkpoints import make, save
from tests.families.test_parity import random_tokens, run_dense

SHORT = 28
"""Tokens of the longest context that is turned by the short factors."""
SIZES: dict[str, Any] = {
    "page_size": 4,
    "num_pages": 200,
    "max_in_flight": 32,
    "prefill_chunk": 8,
    "cpu_threads": 1,
    "most_iterations": 1,
}
TEXT = tuple(random_tokens(90).tolist())
Dense = Callable[[tuple[int, ...]], list[float]]


@pytest.fixture(
    scope="module", params=[("phi3", "factor"), ("phi3", "longrope"), ("mistral", "longrope")], ids="-".join
)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("long"), make(*request.param))


@pytest.fixture(scope="module")
def model(directory: Path) -> Transformer:
    model: Transformer = load_checkpoint(directory).model
    assert model.specification.short_context == SHORT
    return model


@pytest.fixture(scope="module")
def logprobs(model: Transformer) -> Dense:
    @functools.cache
    def of_next(context: tuple[int, ...]) -> list[float]:
        found: list[float] = run_dense(model, torch.tensor([context]))[0, -1].log_softmax(-1).tolist()
        return found

    return of_next


@pytest.fixture(params=["torch", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def continued(logprobs: Dense, context: tuple[int, ...], count: int) -> tuple[int, ...]:
    for _ in range(count):
        scores = logprobs(context)
        context += (scores.index(max(scores)),)
    return context


def over(model: Transformer, backend: str, policy: Fixed | Speculative, **changes: Any) -> Solo:
    drafts = model if isinstance(policy, Speculative) else None
    return Solo(build_loop(model, EngineSettings(**SIZES | {"backend": backend} | changes), policy, drafts=drafts))


def begin(
    solo: Solo, path: ThreadPath, context: tuple[int, ...], count: int, inherits: ThreadPath | None = None
) -> None:
    solo.send(OpenThread(thread=path, seed=0, depth=Fixed(1), inherits=inherits), Extend(path, context))
    solo.send(Generate(thread=path, max_tokens=count, sampling=Sampling()))


def finish(solo: Solo) -> Iterator[Finished]:
    for report in solo.run():
        assert not isinstance(report, Failed), report
        if isinstance(report, Finished):
            yield report


@pytest.mark.parametrize("pages", [200, 17], ids=["room", "evictions"])
def test_contexts_cross_beside_others_that_do_not(
    model: Transformer, backend: str, logprobs: Dense, pages: int
) -> None:
    """Equal beginnings, of lengths around where keys turn otherwise; some start beyond it."""
    solo = over(model, backend, Fixed(1), num_pages=pages)
    given = (5, 20, 24, 27, 28, 29, 40, 51)
    lengths: dict[ThreadPath, int] = {(0, number): length for number, length in enumerate(given)}
    for path, length in lengths.items():
        begin(solo, path, TEXT[:length], 12)
    for report in finish(solo):
        context = TEXT[: lengths[report.thread]]
        assert context + report.tokens == continued(logprobs, context, 12)
        assert report.logprobs == pytest.approx(
            [max(logprobs(context + report.tokens[:at])) for at in range(12)], abs=2e-4
        )
    crossed = [path for path, length in lengths.items() if length <= SHORT < length + 11]
    assert all(solo.core.threads[path].is_long for path in crossed)
    # Pages of long contexts are shared as those of short ones are.
    assert solo.core.statistics().recomputed > 0


def test_prefixes_are_found_by_contexts_of_their_kind_alone(model: Transformer, backend: str, logprobs: Dense) -> None:
    solo = over(model, backend, Fixed(1))
    for round_of, (length, reused) in enumerate([(24, 0), (60, 0), (61, 56), (25, 20), (SHORT, 20), (SHORT + 1, 24)]):
        path = (round_of,)
        begin(solo, path, TEXT[:length], 3)
        (report,) = finish(solo)
        assert TEXT[:length] + report.tokens == continued(logprobs, TEXT[:length], 3)
        assert (report.work.cached_tokens > 0) == (reused > 0), f"{report.work.cached_tokens} of {length}"
        solo.send(CloseThread(path))


def test_forks_cross_each_for_itself(model: Transformer, backend: str, logprobs: Dense) -> None:
    solo = over(model, backend, Fixed(1))
    begin(solo, (0,), TEXT[:20], 6)
    (parent,) = finish(solo)
    context = TEXT[:20] + parent.tokens
    begin(solo, (0, 0), (), 1, inherits=(0,))
    begin(solo, (0, 1), (7,), 4, inherits=(0,))
    begin(solo, (0, 2), TEXT[:30], 4, inherits=(0,))
    said = {report.thread: report.tokens for report in finish(solo)}
    for path, more in {(0, 0): (), (0, 1): (7,), (0, 2): TEXT[:30]}.items():
        assert context + more + said[path] == continued(logprobs, context + more, len(said[path]))
    solo.send(Generate(thread=(0,), max_tokens=5, sampling=Sampling()))
    (again,) = finish(solo)
    assert context + again.tokens == continued(logprobs, context, 5)


def test_scores_are_those_of_the_whole(model: Transformer, backend: str, logprobs: Dense) -> None:
    """And the thread that was scored after goes on as if nothing had been."""
    solo = over(model, backend, Fixed(1))
    begin(solo, (0,), TEXT[:20], 2)
    (first,) = finish(solo)
    context, scored = TEXT[:20] + first.tokens, TEXT[40:60]
    solo.send(Generate(thread=(0,), max_tokens=1, sampling=Sampling(), scores=scored))
    (report,) = finish(solo)
    whole = run_dense(model, torch.tensor([context + scored[:-1]]))[0].log_softmax(-1)
    expected = [whole[len(context) - 1 + at, token].item() for at, token in enumerate(scored)]
    assert report.logprobs == pytest.approx(expected, abs=2e-4)
    solo.send(Generate(thread=(0,), max_tokens=9, sampling=Sampling()))
    (again,) = finish(solo)
    assert context + again.tokens == continued(logprobs, context, 9)


def test_what_is_cut_back_turns_as_before(model: Transformer, backend: str, logprobs: Dense) -> None:
    solo = over(model, backend, Fixed(1))
    begin(solo, (0,), TEXT[:24], 12)
    (report,) = finish(solo)
    solo.send(Interrupt((0,), keep=2), Generate(thread=(0,), max_tokens=8, sampling=Sampling()))
    (again,) = finish(solo)
    context = TEXT[:24] + report.tokens[:2]
    assert context + again.tokens == continued(logprobs, context, 8)


@pytest.mark.parametrize("lookahead", [1, 4])
def test_guesses_do_not_cross(model: Transformer, backend: str, logprobs: Dense, lookahead: int) -> None:
    policy = Speculative(max_iterations=1, drafts="model", lookahead=lookahead)
    solo = over(model, backend, policy)
    for number, length in enumerate((22, 25, SHORT, 33)):
        begin(solo, (number,), TEXT[:length], 10)
        solo.send(Interrupt((number,), keep=0))
        solo.send(Generate(thread=(number,), max_tokens=10, sampling=Sampling(), depth=policy))
    reports = [report for report in finish(solo) if report.tokens]
    for report in reports:
        context = TEXT[: (22, 25, SHORT, 33)[report.thread[0]]]
        assert context + report.tokens == continued(logprobs, context, 10)
    assert solo.core.journal.accepted > 0


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_nothing_else_changes_what_is_said(model: Transformer, logprobs: Dense, data: st.DataObject) -> None:
    """Threads that are cut back, sent more, forked, scored, and run out of pages, rows and lanes."""
    changes = {"num_pages": data.draw(st.integers(16, 40)), "max_in_flight": data.draw(st.sampled_from([8, 12, 32]))}
    solo = over(model, data.draw(st.sampled_from(["torch", "native"])), Fixed(1), **changes)
    contexts: dict[ThreadPath, tuple[int, ...]] = {}
    for number in range(data.draw(st.integers(1, 4))):
        contexts[number,] = TEXT[: data.draw(st.integers(1, 40))]
        solo.send(OpenThread(thread=(number,), seed=0, depth=Fixed(1)), Extend((number,), contexts[number,]))
    for round_number in range(data.draw(st.integers(1, 3))):
        for path in contexts:
            scores = TEXT[: data.draw(st.sampled_from([0, 0, 0, 9]))]
            tokens = data.draw(st.integers(1, 9))
            solo.send(Generate(thread=path, max_tokens=tokens, sampling=Sampling(), scores=scores))
        for _ in range(data.draw(st.integers(0, 12))):
            if solo.core.has_work:
                solo.core.step()
                solo.core.check_integrity()
        cut, kept = data.draw(st.sampled_from(sorted(contexts))), data.draw(st.integers(0, 3))
        solo.send(Interrupt(cut, keep=kept))
        solo.run()
        for path, context in contexts.items():
            now = tuple(solo.core.threads[path].tokens)
            assert now == continued(logprobs, context, len(now) - len(context))
            contexts[path] = now
        if more := TEXT[: data.draw(st.integers(0, 12))]:
            solo.send(Extend((0,), more))
            contexts[0,] += more
        if data.draw(st.booleans()):
            child = (0, round_number)
            solo.send(OpenThread(thread=child, seed=0, depth=Fixed(1), inherits=(0,)))
            contexts[child] = contexts[0,]


@pytest.mark.anyio
async def test_a_trace_of_it_is_executed_again(directory: Path, backend: str, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    async with (
        Engine.open(directory, policy=Policy(depth=Fixed(1)), trace=path, **SIZES | {"backend": backend}) as engine,
        engine.thread(TEXT[:20]) as root,
    ):
        await root.generate(max_tokens=5)
        children = [root.fork([number], max_tokens=6) for number in range(3)]
        await root.join(children)
    assert await verified(path) == 0


def test_training_refuses_contexts_that_some_are_turned_otherwise_in(model: Transformer) -> None:
    """Padding does not count."""
    fitting, long = (Example(list(TEXT[:length]), [1.0] * length) for length in (SHORT, SHORT + 2))
    assert 0 <= exactness(model, [fitting], 1) <= 1
    with pytest.raises(ValueError, match=f"{SHORT + 1} tokens; beyond {SHORT}, LongRoPE"):
        exactness(model, [fitting, long], 1)
    short, padded = model.batch_rotation(SHORT, SHORT), model.batch_rotation(2 * SHORT, SHORT)
    assert torch.equal(padded[0][:, :SHORT], short[0])

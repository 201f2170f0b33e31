"""Lanes that go on by themselves and are interrupted, evicted, or out of pages: nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from policies import Fixed, LatentDiff
from runtime.link.commands import Finished, Interrupt, OpenThread, Report
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from tests.engine.lanes import MOST, SEED, Bench, both, core_settings
from tests.engine.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(7)


def in_a_run(model: Transformer, **changes: Any) -> Bench:
    """Thread (0,) is in the middle of a run, with tokens that nobody was told of."""
    bench = Bench.over(model, core_settings(**changes), most_ticks=3)
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.generate((0,), 40)
    for _ in range(12):
        assert not bench.step()
    (lane,) = bench.flight_lanes((0,))
    run = bench.core.backend.run_of(lane)
    assert run is not None
    assert len(run.token) > 3
    return bench


@pytest.mark.parametrize("keep", [0, 1, 5, 100])
def test_an_interrupted_run_keeps_what_it_is_told_to_keep(model: Transformer, keep: int) -> None:
    whole, _ = both(model, lambda bench: bench.generate((0,), 40))
    bench = in_a_run(model)
    bench.core.handle(Interrupt((0,), keep))
    cut = bench.finished()[0,]
    assert 4 < cut.work.generated < 40
    kept = min(keep, cut.work.generated)
    assert cut.reason == "interrupted"
    assert (cut.tokens, cut.logprobs, cut.depths) == (whole.tokens[:kept], whole.logprobs[:kept], whole.depths[:kept])
    load = bench.core.statistics()
    assert (load.generated, load.computed, load.iterations) == (
        cut.work.generated,
        cut.work.computed,
        cut.work.iterations,
    )
    bench.generate((0,), 40 - kept)
    rest = bench.finished()[0,]
    assert cut.tokens + rest.tokens == whole.tokens
    assert cut.logprobs + rest.logprobs == whole.logprobs


def stopped(model: Transformer, page_size: int) -> Bench:
    """Thread (0,) came to a stop token in the middle of its pages, and could have gone on for more of them."""
    whole, _ = both(model, lambda bench: bench.generate((0,), 40))
    stop = next(token for token in whole.tokens[5:] if whole.tokens.index(token) > 4)
    bench = Bench.over(model, core_settings(page_size=page_size))
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.generate((0,), 40, stop_tokens=frozenset({stop}))
    assert bench.finished()[0,].tokens == whole.tokens[: whole.tokens.index(stop) + 1]
    assert bench.longest > 1
    return bench


def interrupted(model: Transformer, page_size: int) -> Bench:
    bench = in_a_run(model, page_size=page_size)
    bench.core.handle(Interrupt((0,), 4))
    bench.run()
    return bench


@pytest.mark.parametrize("page_size", [3, 4, 16])
def test_pages_taken_ahead_are_given_back_when_the_call_ends(model: Transformer, page_size: int) -> None:
    bench = in_a_run(model, page_size=page_size)
    bench.core.handle(Interrupt((0,), 100))
    sampled = bench.finished()[0,].work.generated
    assert bench.pages_used == math.ceil((3 + sampled - 1) / page_size)
    bench = stopped(model, page_size)
    assert bench.pages_used == math.ceil((3 + bench.core.statistics().generated - 1) / page_size)


@pytest.mark.parametrize("ended", [stopped, interrupted])
@pytest.mark.parametrize("page_size", [3, 4, 16])
def test_a_child_of_a_thread_that_had_taken_pages_writes_to_its_own(
    model: Transformer, page_size: int, ended: Callable[[Transformer, int], Bench]
) -> None:
    """Both go on with other tokens at the same positions; neither must see the other's."""
    said = []
    for company in (True, False):
        bench = ended(model, page_size)
        bench.core.handle(OpenThread(thread=(0, 0), seed=SEED, depth=Fixed(2), inherits=(0,)))
        if company:
            bench.generate((0,), 30)
        bench.generate((0, 0), 30, sampling=Sampling(temperature=2.0))
        ends = bench.finished()
        if not company:
            bench.generate((0,), 30)
            ends |= bench.finished()
        assert ends[0,].tokens != ends[0, 0].tokens
        said.append({path: (report.tokens, report.logprobs) for path, report in ends.items()})
    assert said[0] == said[1]


def test_without_pages_to_spare_a_run_ends_with_its_page(model: Transformer) -> None:
    """Pages are not taken ahead from those who will need them."""
    spare, scarce = (Bench.over(model, core_settings(page_size=4, num_pages=pages)) for pages in (300, 17))
    said = []
    for bench in (spare, scarce):
        for number in range(3):
            bench.open((number,), Fixed(2), (number, 2, 3))
            bench.generate((number,), 18)
        said.append({path: (report.tokens, report.logprobs) for path, report in bench.finished().items()})
    assert said[0] == said[1]
    assert spare.longest > 8
    assert 1 < min(len(run.token) for run in scarce.runs) <= 4
    assert scarce.core.statistics().recomputed == 0


@pytest.mark.parametrize("most_ticks", [1, 2, 5])
def test_eviction_in_the_middle_of_runs(model: Transformer, most_ticks: int) -> None:
    """Memory for one and a half threads: later ones lose their pages in the middle of their runs, and no token."""
    said = []
    for pages in (300, 24):
        reports: list[Report] = []
        bench = Bench.over(model, core_settings(page_size=4, num_pages=pages), most_ticks=most_ticks)
        for number in (3, 2, 1, 0):
            bench.open((number,), LatentDiff(0.7, max_iterations=MOST), (number, 2, 3))
            bench.generate((number,), 50)
            for _ in range(30 // most_ticks):
                reports += bench.step()
        reports += bench.run()
        ends = {report.thread: report for report in reports if isinstance(report, Finished)}
        assert len(ends) == len(reports) == 4
        said.append({path: (end.tokens, end.logprobs, end.depths) for path, end in ends.items()})
        assert (bench.core.statistics().recomputed > 0) == (pages == 24)
    assert said[0] == said[1]

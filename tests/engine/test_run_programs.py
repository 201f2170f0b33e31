"""Any program of lanes that go on by themselves says what it says token by token, and nothing is lost."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from policies import DepthPolicy
from runtime.device.settings import EngineSettings
from runtime.link.commands import (
    CloseThread,
    Extend,
    Finished,
    Generate,
    Interrupt,
    OpenThread,
    Report,
    Signal,
    Signalled,
)
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from tests.engine.lanes import (
    CONTEXT,
    POLICIES,
    SAMPLINGS,
    SEED,
    Bench,
    ForeseeingSpotter,
    Spotter,
    Step,
    Told,
    again,
    core_settings,
)
from tests.engine.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(7)


class Program:
    """Interprets operations, and notes what took effect in the order in which it did."""

    def __init__(self, bench: Bench, roomy: bool) -> None:
        self.bench = bench
        self.roomy = roomy
        self.threads: list[Told] = []
        self.log: list[Step] = []
        self.reports: list[Finished] = []

    def open(self, policy: DepthPolicy, prompt: tuple[int, ...]) -> None:
        told = Told((len(self.threads),), policy)
        self.threads.append(told)
        self.bench.open(told.path, policy, prompt)
        told.length = len(prompt)
        self.log.append(("open", told, prompt))

    def fork(self, parent: Told) -> None:
        told = Told((*parent.path, len(self.threads)), parent.policy, parent.length, uncut=parent.uncut)
        self.threads.append(told)
        self.bench.core.handle(OpenThread(thread=told.path, seed=SEED, depth=told.policy, inherits=parent.path))
        self.log.append(("fork", told, parent.path))

    def extend(self, told: Told, tokens: tuple[int, ...]) -> None:
        if told.length + len(tokens) <= CONTEXT:
            self.bench.core.handle(Extend(told.path, tokens))
            told.length += len(tokens)
            self.log.append(("extend", told, tokens))

    def generate(self, told: Told, tokens: int, sampling: Sampling, stops: frozenset[int], more: Any) -> None:
        watcher, max_iterations = more
        told.request = Generate(
            thread=told.path,
            max_tokens=tokens,
            sampling=sampling,
            stop_tokens=stops,
            watcher=watcher and watcher[0](*watcher[1:]),
            max_iterations=max_iterations if self.roomy else None,
        )
        told.signals = []
        self.bench.core.handle(told.request)

    def interrupt(self, told: Told, keep: int) -> None:
        self.bench.core.handle(Interrupt(told.path, keep))
        told.uncut = False

    def take(self, reports: list[Report]) -> None:
        by_path = {told.path: told for told in self.threads}
        for report in reports:
            assert isinstance(report, Signalled | Finished), report
            told = by_path[report.thread]
            if isinstance(report, Signalled):
                told.signals.append(report.signal)
                continue
            assert told.request is not None
            self.reports.append(report)
            self.log.append(("say", told, (told.request, report, told.signals)))
            told.length += len(report.tokens)
            told.request = None

    def finish(self) -> None:
        steps = 0
        while self.bench.core.has_work:
            self.take(self.bench.step())
            steps += 1
            assert steps < 5000, "the program does not end"
        self.take(self.bench.step())
        assert all(told.request is None for told in self.threads)
        for told in self.threads:
            self.bench.core.handle(CloseThread(told.path))
        self.take(self.bench.step())
        load = self.bench.core.statistics()
        assert (load.pages_used, load.open_threads) == (0, 0)
        for name in ("generated", "computed", "iterations", "recomputed", "cached_tokens"):
            assert getattr(load, name) == sum(getattr(report.work, name) for report in self.reports), name


def repeat(model: Transformer, program: Program, engine: EngineSettings) -> None:
    """Everything once more, one call after the other and token by token, in an engine with memory to spare."""
    bench = Bench.over(model, engine, stepwise=True)
    for kind, told, what in program.log:
        if kind == "open":
            bench.open(told.path, told.policy, what)
        elif kind == "fork":
            bench.core.handle(OpenThread(thread=told.path, seed=SEED, depth=told.policy, inherits=what))
        elif kind == "extend":
            bench.core.handle(Extend(told.path, what))
        else:
            request, report, signals = what
            _say_again(bench, told, request, report, signals, counts=program.roomy and told.uncut)
    bench.core.close()


def _say_again(
    bench: Bench, told: Told, request: Generate, report: Finished, signals: list[Signal], counts: bool
) -> None:
    cut = report.reason == "interrupted"
    if cut and not report.tokens:
        return
    before = bench.core.statistics().generated
    bench.core.handle(msgspec.structs.replace(request, watcher=again(request)))
    reports: list[Report] = []
    if cut:
        while bench.core.statistics().generated < before + len(report.tokens):
            reports += bench.step()
        bench.core.handle(Interrupt(told.path, len(report.tokens)))
    reports += bench.run()
    (found,) = [report for report in reports if isinstance(report, Finished)]
    assert found.tokens == report.tokens
    assert found.logprobs == report.logprobs
    assert found.depths == report.depths
    heard = [report.signal for report in reports if isinstance(report, Signalled)]
    if cut:
        # What was sampled behind what is kept has been listened to as well.
        assert signals[: len(heard)] == heard
        return
    assert signals == heard
    assert found.reason == report.reason
    assert found.work.generated == report.work.generated
    if counts:
        assert (found.work.computed, found.work.iterations) == (report.work.computed, report.work.iterations)


ids = st.integers(0, 39)
prompts = st.lists(ids, min_size=1, max_size=14).map(tuple)
some_ids = st.one_of(st.just(frozenset[int]()), st.frozensets(ids, min_size=1, max_size=3))
watchers = st.one_of(
    st.none(),
    st.tuples(st.sampled_from([Spotter, ForeseeingSpotter, ForeseeingSpotter]), some_ids, st.integers(1, 40)),
)
generates = st.tuples(
    st.just("generate"),
    st.integers(0, 9),
    st.integers(1, 50),
    st.sampled_from(SAMPLINGS),
    some_ids,
    st.tuples(watchers, st.one_of(st.none(), st.none(), st.integers(1, 120))),
)
opens = st.tuples(st.just("open"), st.sampled_from(POLICIES), prompts)
operations = st.lists(
    st.one_of(
        opens,
        st.tuples(st.just("extend"), st.integers(0, 9), prompts),
        generates,
        generates,
        st.tuples(st.just("fork"), st.integers(0, 9)),
        st.tuples(st.just("interrupt"), st.integers(0, 9), st.integers(0, 30)),
        st.tuples(st.just("close"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    max_size=25,
)


@settings(max_examples=70)
@given(
    st.booleans(),
    st.sampled_from([3, 4, 16]),
    st.sampled_from([8, 16, 48]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([1, 5, 64]),
    st.integers(1, 3),
    st.tuples(opens, generates, opens, generates),
    operations,
)
def test_any_program_says_what_it_says_token_by_token(
    model: Transformer,
    roomy: bool,
    page_size: int,
    lanes: int,
    slots: int | None,
    most_ticks: int,
    scarcity: int,
    first: tuple[tuple[Any, ...], ...],
    steps: list[tuple[Any, ...]],
) -> None:
    one = math.ceil(CONTEXT / page_size)
    calm = core_settings(page_size=page_size, iteration_slots=slots, num_pages=30 * one)
    tight = core_settings(
        page_size=page_size,
        iteration_slots=slots,
        max_in_flight=lanes,
        num_pages=scarcity * one,
        reuse_prefixes=True,
        prefill_chunk=8,
    )
    program = Program(Bench.over(model, calm if roomy else tight, most_ticks=most_ticks), roomy)
    for name, *arguments in [*first, *steps]:
        idle = [told for told in program.threads if told.request is None and told.alive]
        busy = [told for told in program.threads if told.request is not None]
        if name == "open":
            program.open(*arguments)
        elif name == "step":
            for _ in range(arguments[0]):
                program.take(program.bench.step())
        elif name == "interrupt" and busy:
            program.interrupt(busy[arguments[0] % len(busy)], arguments[1])
        elif name == "close" and busy + idle:
            told = (busy + idle)[arguments[0] % len(busy + idle)]
            program.bench.core.handle(CloseThread(told.path))
            told.alive = False
        elif name in ("generate", "extend", "fork") and idle:
            getattr(program, name)(idle[arguments[0] % len(idle)], *arguments[1:])
        program.bench.core.check_integrity()
        program.take(program.bench.core.journal.take_reports())
    program.finish()
    program.bench.core.close()
    event("went on" if program.bench.longest > 1 else "did not go on")
    repeat(model, program, calm)


# ---- where calls end ------------------------------------------------------------------------------------------------

"""Lanes that go on by themselves: the same tokens, counts and ends as token by token, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from policies import KL, Cosine, DepthPolicy, EntryView, EvenBudget, Fixed, LatentDiff
from policies.depth.base import IntArray
from runtime.backend.interface import Run
from runtime.commands import (
    CloseThread,
    Emitted,
    Extend,
    Failed,
    Finished,
    Foresight,
    Generate,
    Interrupt,
    OpenThread,
    Report,
    Signal,
    Signalled,
    ThreadPath,
)
from runtime.device.build import build_core
from runtime.device.core import DeviceCore
from runtime.errors import ProtocolError
from runtime.metering import LIMIT_REACHED, Meter, MeteredWatcher
from runtime.model.raven import Raven
from runtime.sampling import Sampling
from runtime.settings import EngineSettings
from tests.backend.conversations import watch
from tests.engine.tiny import tiny_model

MOST = 4
CONTEXT = 64
SEED = 3


class ByPosition(DepthPolicy, frozen=True):
    """Bounds that differ from token to token."""

    def bound(self, entering: EntryView) -> IntArray:
        return (1 + entering.position % MOST).astype(np.int32)


POLICIES: tuple[DepthPolicy, ...] = (
    Fixed(1),
    Fixed(2),
    LatentDiff(0.7, most=MOST),
    Cosine(0.3, most=3),
    KL(0.3, most=3),
    EvenBudget(LatentDiff(0.8, most=MOST)),
    ByPosition(),
)
HOT = Sampling(temperature=1.2)
SAMPLINGS = (Sampling(), HOT, HOT, Sampling(temperature=1.5, top_k=8, repetition_penalty=1.3))


@pytest.fixture(scope="module")
def model() -> Raven:
    return tiny_model(7)


def core_settings(**changes: Any) -> EngineSettings:
    fields = {"pages": 300, "page_size": 16, "lanes": 48, "chunk": 8, "most_iterations": MOST, "backend": "fused"}
    return EngineSettings(**{**fields, "threads": 1, "reuse_prefixes": False, **changes})


class Spotter:
    """Signals at every token of a set, and at every `every`-th token whatever it is; every third signal stops."""

    def __init__(self, tokens: frozenset[int], every: int) -> None:
        self.tokens, self.every = tokens, every
        self.fed: list[int] = []
        self.signals: list[Signal] = []

    def feed(self, token: int) -> tuple[Signal, ...]:
        self.fed.append(token)
        if token not in self.tokens and len(self.fed) % self.every:
            return ()
        stops = len(self.signals) % 3 == 2
        self.signals.append(Signal("stop" if stops else "spawn", (token,), len(self.fed) - 1, stops=stops))
        return (self.signals[-1],)


class ForeseeingSpotter(Spotter):
    def foresee(self) -> Foresight | None:
        return Foresight(self.tokens, self.every - 1 - len(self.fed) % self.every)


@dataclass
class Bench:
    """A core that is stepped, and what came of it."""

    core: DeviceCore
    runs: list[Run] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)

    @classmethod
    def over(cls, model: Raven, settings: EngineSettings, *, stepwise: bool = False, most_ticks: int = 64) -> Bench:
        def observe(*_: object) -> None:
            """Nothing: being there keeps lanes from going on."""

        bench = cls(build_core(model, settings, Fixed(MOST), observe=observe if stepwise else None))
        watch(bench.core, bench.runs, bench.ticks, 1 if stepwise else most_ticks)
        return bench

    def open(self, path: ThreadPath, policy: DepthPolicy, prompt: tuple[int, ...]) -> None:
        self.core.handle(OpenThread(thread=path, seed=SEED, depth=policy))
        self.core.handle(Extend(path, prompt))

    def generate(self, path: ThreadPath, tokens: int, **changes: Any) -> None:
        self.core.handle(Generate(thread=path, max_tokens=tokens, **{"sampling": HOT, **changes}))

    def step(self) -> list[Report]:
        if self.core.has_work:
            self.core.step()
        self.core.scheduler.check_integrity()
        return self.core.ledger.take_reports()

    def run(self) -> list[Report]:
        reports = self.core.ledger.take_reports()
        while self.core.has_work:
            reports += self.step()
        return reports

    def finished(self) -> dict[ThreadPath, Finished]:
        reports = self.run()
        assert not [report for report in reports if isinstance(report, Failed)]
        return {report.thread: report for report in reports if isinstance(report, Finished)}

    @property
    def longest(self) -> int:
        return max((len(run.token) for run in self.runs), default=1)

    @property
    def pages_used(self) -> int:
        return self.core.scheduler.load().pages_used


def both(model: Raven, ask: Callable[[Bench], None], **changes: Any) -> tuple[Finished, Finished]:
    """What thread (0,) says where its lane goes on by itself, and token by token; the first did go on."""
    free, stepwise = (Bench.over(model, core_settings(**changes), stepwise=stepwise) for stepwise in (False, True))
    for bench in (free, stepwise):
        bench.open((0,), Fixed(2), (1, 2, 3))
        ask(bench)
    found, expected = free.finished()[0,], stepwise.finished()[0,]
    assert free.longest > 1
    assert stepwise.longest == 1
    return found, expected


# ---- random programs ------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """A thread, and what is known of it."""

    path: ThreadPath
    policy: DepthPolicy
    length: int = 0
    request: Generate | None = None
    signals: list[Signal] = field(default_factory=list)
    alive: bool = True
    uncut: bool = True
    """Whether it was never interrupted, so that its calls cost what they would have cost token by token."""


Step = tuple[str, Told, Any]


def again(request: Generate) -> Spotter | None:
    """A watcher that has heard nothing yet."""
    watcher = request.watcher
    assert watcher is None or isinstance(watcher, Spotter)
    return None if watcher is None else type(watcher)(watcher.tokens, watcher.every)


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
            assert not isinstance(report, Failed | Emitted), report
            told = by_path[report.thread]
            if isinstance(report, Signalled):
                told.signals.append(report.signal)
                continue
            assert isinstance(report, Finished)
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
        load = self.bench.core.scheduler.load()
        assert (load.pages_used, load.open_threads) == (0, 0)
        for name in ("sampled", "computed", "iterations", "recomputed", "reused"):
            assert getattr(load, name) == sum(getattr(report, name) for report in self.reports), name


def repeat(model: Raven, program: Program, engine: EngineSettings) -> None:
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
            _say_again(bench, told, *what, counts=program.roomy and told.uncut)
    bench.core.close()


def _say_again(
    bench: Bench, told: Told, request: Generate, report: Finished, signals: list[Signal], counts: bool
) -> None:
    cut = report.reason == "interrupted"
    if cut and not report.tokens:
        return
    before = bench.core.scheduler.load().sampled
    bench.core.handle(msgspec.structs.replace(request, watcher=again(request)))
    reports: list[Report] = []
    if cut:
        while bench.core.scheduler.load().sampled < before + len(report.tokens):
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
    assert found.sampled == report.sampled
    if counts:
        assert (found.computed, found.iterations) == (report.computed, report.iterations)


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


@settings(max_examples=100)
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
    model: Raven,
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
    calm = core_settings(page_size=page_size, slots=slots, pages=30 * one)
    tight = core_settings(
        page_size=page_size, slots=slots, lanes=lanes, pages=scarcity * one, reuse_prefixes=True, chunk=8
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
        program.bench.core.scheduler.check_integrity()
        program.take(program.bench.core.ledger.take_reports())
    program.finish()
    program.bench.core.close()
    event("went on" if program.bench.longest > 1 else "did not go on")
    repeat(model, program, calm)


# ---- where calls end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [3, 16, 64])
@pytest.mark.parametrize("tokens", [3, 17, 60])
def test_token_bounds_are_exact(model: Raven, page_size: int, tokens: int) -> None:
    found, expected = both(model, lambda bench: bench.generate((0,), tokens), page_size=page_size)
    assert found == expected
    assert len(found.tokens) == found.sampled == tokens
    assert found.reason == "length"


def test_the_context_ends_where_it_ends(model: Raven) -> None:
    found, expected = both(model, lambda bench: bench.generate((0,), 1000))
    assert found == expected
    assert (len(found.tokens), found.reason) == (CONTEXT - 3, "context")


@pytest.mark.parametrize("most", [6, 7, 8, 39, 40, 41])
def test_iteration_bounds_are_exact(model: Raven, most: int) -> None:
    found, expected = both(model, lambda bench: bench.generate((0,), 1000, max_iterations=max(most, 20)))
    assert found == expected
    assert found.reason == "iterations"
    assert found.iterations <= max(most, 20)


def test_stop_tokens_stop_and_are_kept(model: Raven) -> None:
    said, _ = both(model, lambda bench: bench.generate((0,), 60))
    last = next(token for token in reversed(said.tokens) if said.tokens.index(token) > 5)
    at = said.tokens.index(last)
    # Ids that no token has are not in the way.
    stops = frozenset({last, -1, 40, 10**6})
    found, expected = both(model, lambda bench: bench.generate((0,), 60, stop_tokens=stops))
    assert found == expected
    assert (found.tokens, found.reason) == (said.tokens[: at + 1], "stop")


def test_more_sets_of_stop_tokens_than_are_known_at_a_time(model: Raven) -> None:
    """Also where one of a tick takes the place of another's."""
    ends = []
    for stepwise in (False, True):
        bench = Bench.over(model, core_settings(lanes=128), stepwise=stepwise)
        for number in range(90):
            bench.open((number,), Fixed(1 + number % 3), (number % 40, 7 * number % 40, 3))
            stops = frozenset({number % 40, (3 * number + 1 + number // 40) % 40})
            bench.generate((number,), 40, stop_tokens=stops)
        ends.append(bench.finished())
        assert (bench.longest > 1) != stepwise
    assert ends[0] == ends[1]
    assert {report.reason for report in ends[0].values()} == {"stop", "length"}


# ---- watchers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spawn", "stop"])
def test_signals_that_were_not_announced_end_the_thread_with_a_clear_error(model: Raven, kind: Any) -> None:
    class Surprising:
        def __init__(self) -> None:
            self.fed = 0

        def foresee(self) -> Foresight:
            return Foresight(frozenset(), 100)

        def feed(self, token: int) -> tuple[Signal, ...]:
            self.fed += 1
            return (Signal(kind, (token,), stops=kind == "stop"),) if self.fed == 5 else ()

    bench = Bench.over(model, core_settings(page_size=64))
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.open((1,), Fixed(2), (4, 5, 6))
    bench.generate((0,), 40, watcher=Surprising())
    bench.generate((1,), 40)
    reports = bench.run()
    (failed,) = [report for report in reports if isinstance(report, Failed)]
    (finished,) = [report for report in reports if isinstance(report, Finished)]
    assert failed.thread == (0,)
    assert isinstance(failed.error, ProtocolError)
    assert f"signals {kind!r}, which foresee() did not announce" in str(failed.error)
    assert "Surprising" in str(failed.error)
    assert (finished.thread, len(finished.tokens)) == ((1,), 40)
    load = bench.core.scheduler.load()
    for name in ("sampled", "computed", "iterations"):
        assert getattr(load, name) == getattr(failed, name) + getattr(finished, name)


def test_a_watcher_that_raises_in_a_run_ends_its_thread(model: Raven) -> None:
    class Raising:
        def foresee(self) -> Foresight:
            return Foresight(frozenset(), 100)

        def feed(self, token: int) -> tuple[Signal, ...]:
            raise ArithmeticError("cannot read")

    bench = Bench.over(model, core_settings())
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.generate((0,), 40, watcher=Raising())
    (failed,) = bench.run()
    assert isinstance(failed, Failed)
    assert "cannot read" in str(failed.error)
    assert not bench.core.has_work


def test_watchers_that_do_not_foresee_see_every_token_at_once(model: Raven) -> None:
    bench = Bench.over(model, core_settings())
    bench.open((0,), Fixed(2), (1, 2, 3))
    spotter = Spotter(frozenset(), 1000)
    bench.generate((0,), 30, watcher=spotter)
    while bench.core.has_work:
        before = len(spotter.fed)
        bench.step()
        assert len(spotter.fed) <= before + 1
    assert len(spotter.fed) == 30
    assert bench.longest == 1


def test_policies_that_bound_every_token_are_asked_for_every_token(model: Raven) -> None:
    bench = Bench.over(model, core_settings())
    bench.open((0,), ByPosition(), (1, 2, 3))
    bench.generate((0,), 30)
    depths = bench.finished()[0,].depths
    assert bench.longest == 1
    assert depths[1:] == tuple(1 + position % MOST for position in range(3, 32))


def test_streams_get_their_tokens_one_by_one(model: Raven) -> None:
    bench = Bench.over(model, core_settings())
    bench.open((0,), Fixed(1), (1, 2, 3))
    bench.generate((0,), 20, stream=True)
    reports = bench.run()
    assert [len(report.tokens) for report in reports if isinstance(report, Emitted)] == [1] * 20


# ---- meters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 30, 59, 60, 61])
def test_a_meter_of_one_thread_is_exact(model: Raven, most: int) -> None:
    bench = Bench.over(model, core_settings())
    meter = Meter(most)
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.generate((0,), 60, watcher=MeteredWatcher(None, [meter]))
    finished = bench.finished()[0,]
    assert (len(finished.tokens), finished.sampled, meter.fed) == (min(most, 60),) * 3
    assert finished.reason == ("stop" if most <= 60 else "length")
    assert (bench.longest > 1) == (most > 2)


@settings(max_examples=40)
@given(
    st.integers(1, 150),
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(1, MOST), st.integers(1, 55), st.integers(0, 12)), min_size=1, max_size=6),
    st.sampled_from([1, 7, 64]),
)
def test_meters_that_threads_share_hold(
    model: Raven, most: int, less: int, threads: list[tuple[int, int, int]], most_ticks: int
) -> None:
    """Threads of other depths and lengths join in while others are in the middle of their runs."""
    bench = Bench.over(model, core_settings(), most_ticks=most_ticks)
    shared, of_some = Meter(most), Meter(less)
    watchers: dict[ThreadPath, MeteredWatcher] = {}
    reports: list[Report] = []
    for number, (depth, tokens, wait) in enumerate(threads):
        for _ in range(wait):
            reports += bench.step()
        meters = [of_some, shared] if number % 2 else [shared]
        watchers[number,] = MeteredWatcher(None, meters)
        bench.open((number,), Fixed(depth), (number, 2, 3))
        bench.generate((number,), tokens, watcher=watchers[number,])
    reports += bench.run()
    finished = {report.thread: report for report in reports if isinstance(report, Finished)}
    assert len(finished) == len(threads), reports
    emitted = {path[0]: len(report.tokens) for path, report in finished.items()}
    assert shared.fed == sum(emitted.values())
    assert of_some.fed == sum(emitted[number] for number in range(1, len(threads), 2))
    for meter, users in ((shared, len(threads)), (of_some, len(threads) // 2)):
        assert meter.fed <= meter.most + max(0, users - 1)
    for path, report in finished.items():
        wanted = threads[path[0]][1]
        assert len(report.logprobs) == len(report.depths) == len(report.tokens)
        assert report.sampled >= len(report.tokens)
        if watchers[path].exhausted:
            assert shared.fed >= most or (path[0] % 2 and of_some.fed >= less)
            assert report.reason == "stop"
        else:
            assert (len(report.tokens), report.reason) == (wanted, "length")
    limits = [report for report in reports if isinstance(report, Signalled)]
    assert {report.thread for report in limits} == {path for path in watchers if watchers[path].exhausted}
    assert all(report.signal == LIMIT_REACHED for report in limits)
    load = bench.core.scheduler.load()
    for name in ("sampled", "computed", "iterations"):
        assert getattr(load, name) == sum(getattr(report, name) for report in finished.values()), name


# ---- interrupts and pages -------------------------------------------------------------------------------------------


def in_a_run(model: Raven, **changes: Any) -> Bench:
    """Thread (0,) is in the middle of a run, with tokens that nobody was told of."""
    bench = Bench.over(model, core_settings(**changes), most_ticks=3)
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.generate((0,), 40)
    for _ in range(12):
        assert not bench.step()
    (lane,) = bench.core.scheduler.lanes_of((0,))
    run = bench.core.backend.run_of(lane)
    assert run is not None
    assert len(run.token) > 3
    return bench


@pytest.mark.parametrize("keep", [0, 1, 5, 100])
def test_an_interrupted_run_keeps_what_it_is_told_to_keep(model: Raven, keep: int) -> None:
    whole, _ = both(model, lambda bench: bench.generate((0,), 40))
    bench = in_a_run(model)
    bench.core.handle(Interrupt((0,), keep))
    cut = bench.finished()[0,]
    assert 4 < cut.sampled < 40
    kept = min(keep, cut.sampled)
    assert cut.reason == "interrupted"
    assert (cut.tokens, cut.logprobs, cut.depths) == (whole.tokens[:kept], whole.logprobs[:kept], whole.depths[:kept])
    load = bench.core.scheduler.load()
    assert (load.sampled, load.computed, load.iterations) == (cut.sampled, cut.computed, cut.iterations)
    bench.generate((0,), 40 - kept)
    rest = bench.finished()[0,]
    assert cut.tokens + rest.tokens == whole.tokens
    assert cut.logprobs + rest.logprobs == whole.logprobs


def stopped(model: Raven, page_size: int) -> Bench:
    """Thread (0,) came to a stop token in the middle of its pages, and could have gone on for more of them."""
    whole, _ = both(model, lambda bench: bench.generate((0,), 40))
    stop = next(token for token in whole.tokens[5:] if whole.tokens.index(token) > 4)
    bench = Bench.over(model, core_settings(page_size=page_size))
    bench.open((0,), Fixed(2), (1, 2, 3))
    bench.generate((0,), 40, stop_tokens=frozenset({stop}))
    assert bench.finished()[0,].tokens == whole.tokens[: whole.tokens.index(stop) + 1]
    assert bench.longest > 1
    return bench


def interrupted(model: Raven, page_size: int) -> Bench:
    bench = in_a_run(model, page_size=page_size)
    bench.core.handle(Interrupt((0,), 4))
    bench.run()
    return bench


@pytest.mark.parametrize("page_size", [3, 4, 16])
def test_pages_taken_ahead_are_given_back_when_the_call_ends(model: Raven, page_size: int) -> None:
    bench = in_a_run(model, page_size=page_size)
    bench.core.handle(Interrupt((0,), 100))
    sampled = bench.finished()[0,].sampled
    assert bench.pages_used == math.ceil((3 + sampled - 1) / page_size)
    bench = stopped(model, page_size)
    assert bench.pages_used == math.ceil((3 + bench.core.scheduler.load().sampled - 1) / page_size)


@pytest.mark.parametrize("ended", [stopped, interrupted])
@pytest.mark.parametrize("page_size", [3, 4, 16])
def test_a_child_of_a_thread_that_had_taken_pages_writes_to_its_own(
    model: Raven, page_size: int, ended: Callable[[Raven, int], Bench]
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


def test_without_pages_to_spare_a_run_ends_with_its_page(model: Raven) -> None:
    """Pages are not taken ahead from those who will need them."""
    spare, scarce = (Bench.over(model, core_settings(page_size=4, pages=pages)) for pages in (300, 17))
    said = []
    for bench in (spare, scarce):
        for number in range(3):
            bench.open((number,), Fixed(2), (number, 2, 3))
            bench.generate((number,), 18)
        said.append({path: (report.tokens, report.logprobs) for path, report in bench.finished().items()})
    assert said[0] == said[1]
    assert spare.longest > 8
    assert 1 < min(len(run.token) for run in scarce.runs) <= 4
    assert scarce.core.scheduler.load().recomputed == 0


@pytest.mark.parametrize("most_ticks", [1, 2, 5])
def test_eviction_in_the_middle_of_runs(model: Raven, most_ticks: int) -> None:
    """Memory for one and a half threads: later ones lose their pages in the middle of their runs, and no token."""
    said = []
    for pages in (300, 24):
        bench = Bench.over(model, core_settings(page_size=4, pages=pages), most_ticks=most_ticks)
        for number in (3, 2, 1, 0):
            bench.open((number,), LatentDiff(0.7, most=MOST), (number, 2, 3))
            bench.generate((number,), 50)
            for _ in range(30 // most_ticks):
                assert not bench.step()
        said.append({path: (end.tokens, end.logprobs, end.depths) for path, end in bench.finished().items()})
        assert (bench.core.scheduler.load().recomputed > 0) == (pages == 24)
    assert said[0] == said[1]

"""Conversations with lanes that go on by themselves, and the same ones token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from policies import KL, Cosine, DepthPolicy, EntryView, EvenBudget, Fixed, LatentDiff
from policies.depth.base import IntArray
from runtime.backend.interface import Run
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.device.settings import EngineSettings
from runtime.link.commands import Extend, Failed, Finished, Foresight, Generate, OpenThread, Report, Signal, ThreadPath
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from tests.backend.conversations import watch

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
    LatentDiff(0.7, max_iterations=MOST),
    Cosine(0.3, max_iterations=3),
    KL(0.3, max_iterations=3),
    EvenBudget(LatentDiff(0.8, max_iterations=MOST)),
    ByPosition(),
)
HOT = Sampling(temperature=1.2)
SAMPLINGS = (Sampling(), HOT, HOT, Sampling(temperature=1.5, top_k=8, repetition_penalty=1.3))


def core_settings(**changes: Any) -> EngineSettings:
    fields = {
        "num_pages": 300,
        "page_size": 16,
        "max_in_flight": 48,
        "prefill_chunk": 8,
        "most_iterations": MOST,
        "backend": "native",
    }
    return EngineSettings(**{**fields, "cpu_threads": 1, "reuse_prefixes": False, **changes})


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

    core: DeviceLoop
    runs: list[Run] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)

    @classmethod
    def over(
        cls, model: Transformer, settings: EngineSettings, *, stepwise: bool = False, most_ticks: int = 64
    ) -> Bench:
        def observe(*_: object) -> None:
            """Nothing: being there keeps lanes from going on."""

        bench = cls(build_loop(model, settings, Fixed(MOST), observe=observe if stepwise else None))
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
        self.core.check_integrity()
        return self.core.journal.take_reports()

    def run(self) -> list[Report]:
        reports = self.core.journal.take_reports()
        while self.core.has_work:
            reports += self.step()
        return reports

    def finished(self) -> dict[ThreadPath, Finished]:
        reports = self.run()
        assert not [report for report in reports if isinstance(report, Failed)]
        return {report.thread: report for report in reports if isinstance(report, Finished)}

    def flight_lanes(self, path: ThreadPath) -> list[int]:
        """Lanes of a thread's tokens in flight, in order of position."""
        flight = self.core.threads[path].flight
        return [] if flight is None else flight.lanes

    @property
    def longest(self) -> int:
        return max((len(run.token) for run in self.runs), default=1)

    @property
    def pages_used(self) -> int:
        return self.core.statistics().pages_used


def both(model: Transformer, ask: Callable[[Bench], None], **changes: Any) -> tuple[Finished, Finished]:
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

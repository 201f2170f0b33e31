"""Drives a device core without a thread, for tests that look at single ticks."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.depth.base import DepthPolicy
from runtime.backend.interface import TickResult
from runtime.backend.ticking import LaneBackend
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.device.scheduler import Scheduler
from runtime.device.settings import EngineSettings
from runtime.link.commands import (
    CloseThread,
    Command,
    Extend,
    Failed,
    Finished,
    Generate,
    OpenThread,
    Report,
    Request,
    ThreadPath,
)
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from runtime.protocol.constraints import Matchers


@dataclass
class Solo:
    """A core that is stepped until what was asked is done, and all that it reported."""

    core: DeviceLoop
    reports: list[Report] = field(default_factory=list)
    tests: dict[ThreadPath, list[float]] = field(default_factory=dict)
    """Exit values by thread, in order, over all its tokens."""

    @classmethod
    def over(
        cls, model: Transformer, settings: EngineSettings, policy: DepthPolicy, matchers: Matchers | None = None
    ) -> Solo:
        tests: dict[ThreadPath, list[float]] = {}

        def observe(scheduler: Scheduler, result: TickResult) -> None:
            for lane, value in zip(result.tested.tolist(), result.exit_value.tolist(), strict=True):
                sequence = scheduler.in_flight.in_lane(lane)
                assert sequence is not None
                tests.setdefault(sequence.path, []).append(value)

        return cls(build_loop(model, settings, policy, observe=observe, matchers=matchers), tests=tests)

    @property
    def backend(self) -> LaneBackend:
        assert isinstance(self.core.backend, LaneBackend)
        return self.core.backend

    def flight_lanes(self, path: ThreadPath) -> list[int]:
        """Lanes of a thread's tokens in flight, in order of position."""
        flight = self.core.threads[path].flight
        return [] if flight is None else flight.lanes

    def send(self, *commands: Command | Request) -> None:
        for command in commands:
            self.core.handle(command)

    def run(self, check: bool = True) -> list[Report]:
        """Ticks until there is no work; returns the new reports."""
        new: list[Report] = []
        while self.core.has_work:
            self.core.step()
            if check:
                self.core.check_integrity()
            new += self.core.journal.take_reports()
        new += self.core.journal.take_reports()
        self.reports += new
        return new

    def generate(
        self,
        prompt: list[int],
        policy: DepthPolicy,
        tokens: int,
        *,
        path: ThreadPath = (0,),
        sampling: Sampling | None = None,
        stop_tokens: frozenset[int] = frozenset(),
    ) -> Finished:
        """One thread from opening to closing."""
        self.send(
            OpenThread(thread=path, seed=0, depth=policy),
            Extend(path, tuple(prompt)),
            Generate(thread=path, max_tokens=tokens, sampling=sampling or Sampling(), stop_tokens=stop_tokens),
        )
        reports = self.run()
        self.send(CloseThread(path))
        (finished,) = [report for report in reports if isinstance(report, Finished | Failed)]
        assert isinstance(finished, Finished), finished
        return finished

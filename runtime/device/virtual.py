"""A device without a model: an engine's own scheduler over a virtual backend, under a clock that the caller steps.

    commands -> handle() -> [ step(): plan -> build -> virtual tick -> commit ] -> take_reports()

What threads say is given with their generates. Seconds are what the costs say, of calls and of what lies between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from policies import DepthPolicy
from runtime.backend.randomness import thread_key
from runtime.backend.virtual import CallWork, Said, VirtualBackend, VirtualClock
from runtime.device.build import wire
from runtime.device.settings import EngineSettings
from runtime.device.sizing import limits_of, most_iterations, sized_cache
from runtime.errors import CheckpointError
from runtime.link.commands import CloseThread, Command, Generate, OpenThread, Report, Statistics, ThreadPath
from runtime.model.checkpoint import describe
from runtime.model.specification import Specification


class HostWork(msgspec.Struct, frozen=True):
    """What the device thread did between two calls of the backend."""

    stopped: int
    """Tokens that left in the call before and whose lanes did not go on."""
    entering: int
    """Tokens that entered with the call."""
    commands: int


class VirtualCosts(Protocol):
    """What work takes on some machine."""

    def call_seconds(self, work: CallWork) -> float:
        """Of a call of the backend."""
        ...

    def host_seconds(self, work: HostWork) -> float:
        """Of the device thread's own work around a call."""
        ...


class ModelSizes(msgspec.Struct, frozen=True):
    """What a simulation has to know of a model: nothing of it is loaded."""

    specification: Specification

    @classmethod
    def of(cls, checkpoint: str | Path) -> ModelSizes:
        """As its files declare it. Raises `CheckpointError` where they are missing or wrong, and for a model that
        transformers' own code runs, whose sizes are known when it is loaded."""
        specification = describe(checkpoint).config.specification
        if not isinstance(specification, Specification):
            raise CheckpointError(f"{checkpoint}: transformers' own code runs this model, and cannot be simulated.")
        return cls(specification)


class VirtualDevice:
    """Executes commands one by one and ticks one call at a time, in no time but its own; of one thread alone.

    It decides as an engine with these settings would: order, lanes, rows, pages, prefixes, evictions. Text, signals
    and what a program does with them are the caller's. Raises `CapacityError` and `PolicyError` as an engine does,
    but for what the machine at hand has: the simulated one may have more.
    """

    def __init__(self, model: ModelSizes, settings: EngineSettings, policy: DepthPolicy, costs: VirtualCosts) -> None:
        own = model.specification
        most = most_iterations(own, settings, policy)
        is_fixed = settings.deterministic and settings.device not in (None, "cpu")
        sized = sized_cache(own, settings, most, has_room_for_holes=not is_fixed)
        self.page_bytes = sized.page_bytes
        """Bytes of keys and values that a page takes."""
        self._costs = costs
        self._clock = VirtualClock()
        self._backend = VirtualBackend(sized.shape, self._clock, costs.call_seconds)
        limits = limits_of(own, settings, most)
        self._loop = wire(self._backend, limits, settings.prefill_chunk, clock=self._clock)
        self._keys: dict[ThreadPath, int] = {}
        self._stopped = 0
        self._commands = 0

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return self._clock.now

    def wait_until(self, time: float) -> None:
        """Lets time pass in which there is nothing to do; none, if that was before."""
        self._clock.advance(time - self._clock.now)

    def handle(self, command: Command, said: Said | None = None) -> None:
        """Executes a command, as between two ticks. A generate that samples has to have what it will say, at least as
        many tokens as it may sample."""
        self._commands += 1
        if isinstance(command, OpenThread):
            self._keys[command.thread] = thread_key(command.seed, command.thread)
        elif isinstance(command, Generate) and said is not None and command.thread in self._keys:
            self._backend.say(self._keys[command.thread], said)
        self._loop.handle(command)
        if isinstance(command, CloseThread) and command.thread in self._keys:
            self._backend.forget(self._keys.pop(command.thread))

    @property
    def has_work(self) -> bool:
        return self._loop.has_work

    def step(self) -> None:
        """One call of the backend, and the work around it; there must be some."""
        self._loop.step()
        last = self._backend.last
        work = HostWork(self._stopped, last.entering, self._commands)
        self._stopped, self._commands = last.stopped, 0
        self._clock.advance(self._costs.host_seconds(work))

    def take_reports(self) -> list[Report]:
        """What has been reported since they were last taken; a program hears of it now."""
        return self._loop.journal.take_reports()

    @property
    def statistics(self) -> Statistics:
        return self._loop.statistics()

    @property
    def pages_used(self) -> int:
        """Pages that threads refer to now."""
        return self._loop.scheduler.kv_cache.pool.used

    @property
    def waiting(self) -> int:
        """Threads that have something to generate and no row now."""
        return self._loop.scheduler.waiting

    @property
    def evictions(self) -> int:
        """Threads that lost their pages to others, so far."""
        return self._loop.journal.evictions

    @property
    def preemptions(self) -> int:
        """Threads that lost their row of the page table to others while they generated, so far."""
        return self._loop.journal.preemptions

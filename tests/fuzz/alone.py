"""What a thread was told and what it said, and saying it again alone, with memory to spare."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from policies import DepthPolicy
from runtime import EngineSettings, Sampling
from runtime.link.commands import Answered, CloseThread, Extend, Finished, Generate, Merge, OpenThread, ThreadPath
from runtime.link.constraints import Constraint
from tests.engine.solo import Solo
from tests.fuzz.generating import CONTEXT
from tests.fuzz.program import Setup
from tests.fuzz.subjects import DEPTHS, MOST, matchers_of, model_of

_KEPT = 24
"""Engines that are kept for the next program."""


class Received(msgspec.Struct, frozen=True):
    tokens: tuple[int, ...]


class Sampled(msgspec.Struct, frozen=True):
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    """None where the API did not tell, as of streams that were left."""
    sampling: Sampling
    depth: DepthPolicy
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Merged:
    """What forks had beyond the context."""

    tokens: tuple[int, ...]
    children: tuple[Said, ...]


Step = Received | Sampled | Merged


@dataclass
class Said:
    """One thread's life, as far as it went into its context."""

    path: ThreadPath
    depth: DepthPolicy
    """That it was opened with, for its role."""
    steps: list[Step] = field(default_factory=list)
    origin: tuple[Said, int] | None = None
    """For a fork, its parent and how many of the parent's steps it began with."""
    is_comparable: bool = True
    """Whether what it said is a function of what it was told alone."""
    cut: set[DepthPolicy] = field(default_factory=set)
    """Policies of calls that were cut: they may have computed some of what later calls build on."""
    fills: DepthPolicy | None = None
    """Under which policy the rest of it is computed where it is merged."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The whole context."""
        inherited = () if self.origin is None else self.origin[0].tokens_after(self.origin[1])
        return inherited + self.tokens_after(len(self.steps), own=True)

    def tokens_after(self, steps: int, own: bool = False) -> tuple[int, ...]:
        """The context after so many steps of its own, without what it inherited where `own`."""
        inherited = () if own or self.origin is None else self.origin[0].tokens_after(self.origin[1])
        return inherited + tuple(token for step in self.steps[:steps] for token in step.tokens)

    def receive(self, tokens: tuple[int, ...]) -> None:
        if tokens:
            self.steps.append(Received(tokens))

    def merge(self, tokens: tuple[int, ...], children: tuple[Said, ...], is_known: bool) -> None:
        if tokens:
            self.steps.append(Merged(tokens, children))
            self.is_comparable &= is_known and all(
                child.is_comparable and not child.cut - {child.fills} for child in children
            )

    def sample(
        self,
        tokens: tuple[int, ...],
        logprobs: tuple[float, ...] | None,
        sampling: Sampling,
        depth: DepthPolicy,
        constraint: Constraint | None = None,
    ) -> None:
        """A call went into the context, whole or as far as it was kept."""
        if self.cut - {depth}:
            self.is_comparable = False
        if tokens:
            self.steps.append(Sampled(tokens, logprobs, sampling, depth, constraint))

    def fork(self, path: ThreadPath, depth: DepthPolicy) -> Said:
        child = Said(path, depth, origin=(self, len(self.steps)), is_comparable=self.is_comparable, cut=set(self.cut))
        return child


class Roomy:
    """Engines with memory to spare, one for each kind of setup, on which a thread is alone."""

    def __init__(self) -> None:
        self._solos: OrderedDict[tuple[object, ...], Solo] = OrderedDict()

    def differences(self, setup: Setup, said: Said) -> list[str]:
        """Where a thread alone says something else than it said in company; empty where it says the same."""
        solo = self._solo(setup)
        self._seed = setup.seed
        found: list[str] = []
        solo.send(*self._opening(setup, said))
        for step in said.steps:
            found += self._repeat(solo, said, step)
        solo.send(CloseThread(said.path))
        solo.core.journal.take_reports()
        # What computed masks is begun again where another one is needed.
        solo.core.threads.end()
        return found

    def _opening(self, setup: Setup, said: Said) -> list[OpenThread]:
        if said.origin is None:
            return [OpenThread(thread=said.path, seed=setup.seed, depth=said.depth)]
        parent, steps = said.origin
        solo = self._solo(setup)
        solo.send(*self._opening(setup, parent))
        for step in parent.steps[:steps]:
            self._repeat(solo, parent, step)
        solo.send(OpenThread(thread=said.path, seed=setup.seed, depth=said.depth, inherits=parent.path))
        solo.send(CloseThread(parent.path))
        return []

    def _repeat(self, solo: Solo, said: Said, step: Step) -> list[str]:
        if isinstance(step, Received):
            solo.send(Extend(said.path, step.tokens))
            return []
        if isinstance(step, Merged):
            return self._merge(solo, said, step)
        solo.send(
            Generate(
                thread=said.path,
                max_tokens=len(step.tokens),
                sampling=step.sampling,
                depth=step.depth,
                constraint=step.constraint,
            )
        )
        (report,) = solo.run(check=False)
        where = f"thread {said.path}"
        if not isinstance(report, Finished):
            return [f"{where} fails alone: {report}"]
        if report.tokens != step.tokens:
            return [f"{where} said {step.tokens}, alone it says {report.tokens}"]
        if step.logprobs is not None and report.logprobs != step.logprobs:
            return [f"{where} had log-probabilities {step.logprobs}, alone {report.logprobs}"]
        return []

    def _merge(self, solo: Solo, said: Said, step: Merged) -> list[str]:
        found: list[str] = []
        paths = tuple(child.path for child in step.children)
        for child in step.children:
            solo.send(OpenThread(thread=child.path, seed=self._seed, depth=child.depth, inherits=said.path))
            for own in child.steps:
                found += self._repeat(solo, child, own)
            solo.send(Generate(thread=child.path, max_tokens=0, sampling=Sampling(), depth=child.fills, fills=True))
            solo.run(check=False)
        solo.send(Merge(said.path, paths))
        solo.send(*(CloseThread(path) for path in paths))
        errors = [report.error for report in solo.core.journal.take_reports() if isinstance(report, Answered)]
        return [*found, *(f"thread {said.path} cannot merge alone: {error}" for error in errors if error is not None)]

    def _solo(self, setup: Setup) -> Solo:
        key = (setup.model, setup.backend, setup.slots, setup.chunk, setup.page_size)
        if key in self._solos:
            self._solos.move_to_end(key)
        else:
            settings = EngineSettings(
                num_pages=4 * math.ceil(CONTEXT / setup.page_size),
                page_size=setup.page_size,
                max_in_flight=16,
                prefill_chunk=setup.chunk,
                most_iterations=MOST,
                iteration_slots=setup.slots,
                backend=setup.backend,
                cpu_threads=1,
                deterministic=True,
                reuse_prefixes=False,
            )
            self._solos[key] = Solo.over(model_of(setup.model), settings, DEPTHS["deep"], matchers_of(setup.model))
            if len(self._solos) > _KEPT:
                self._solos.popitem(last=False)[1].core.close()
        return self._solos[key]

    def close(self) -> None:
        while self._solos:
            self._solos.popitem()[1].core.close()

"""What enters the next tick, and what becomes of what left the last one.

    plan():    threads in order -> next group of tokens of each -> lanes, pages, bounds -> Tick
    commit():  lanes that left -> tokens appended, watchers fed, calls finished -> reports

The scheduler steps with the ticks, on the device thread, and never touches a tensor.
"""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from runtime.backend.interface import Backend, Tick, TickResult
from runtime.commands import Load, ThreadPath
from runtime.device.admission import Admission
from runtime.device.bounds import Pressure, bounds_of, policy_error
from runtime.device.calls import Calls
from runtime.device.entering import Group, build_entering
from runtime.device.ledger import Ledger
from runtime.device.memory import ThreadMemory
from runtime.device.runs import freedom_of
from runtime.device.sequence import Call, Sequence
from runtime.device.speculation import Speculation
from runtime.device.threads import OpenThreads
from runtime.errors import CapacityError
from runtime.settings import EngineSettings
from traces import events


class ModelLimits(Struct, frozen=True, kw_only=True):
    """What the scheduler has to know of the model."""

    context: int
    """Most tokens of one thread."""
    vocab: int
    """Token ids are below it."""
    mean_recurrence: int
    most_iterations: int
    shares_prefixes: bool
    """Whether equal prompts give equal states in every thread: not so where they start from noise."""


class Scheduler:
    """Owns the threads, their memory and the lanes; `ledger` keeps the counts and takes reports and trace events.

    `threads` takes the commands.
    """

    def __init__(
        self,
        backend: Backend,
        settings: EngineSettings,
        model: ModelLimits,
        ledger: Ledger,
        *,
        stepwise: bool = False,
    ) -> None:
        """`stepwise` where every token is to be seen when its tick is done: lanes then never go on by themselves, nor
        do they while the ledger has a recorder."""
        cache = backend.cache
        self.ledger = ledger
        groups_matter = cache.slots < model.most_iterations
        self.memory = ThreadMemory(
            cache, backend.page_table, settings.chunk, reuse=model.shares_prefixes, whole_groups=groups_matter
        )
        self._backend = backend
        self._model = model
        self._lockstep = settings.lockstep
        self._lanes = cache.lanes
        self._admission = Admission(
            self.memory,
            cache.lanes,
            settings.chunk,
            groups_matter=groups_matter,
            evict=self._evict,
            unseat=self._unseat,
        )
        self._speculation = Speculation(
            ledger,
            self.memory,
            self._admission,
            context=model.context,
            mean_recurrence=model.mean_recurrence,
            slots=cache.slots,
            is_off=settings.lockstep,
        )
        self._calls = Calls(
            ledger,
            self.memory,
            self._admission,
            speculation=self._speculation,
            context=model.context,
            run_of=backend.run_of,
        )
        self.threads = OpenThreads(
            ledger,
            self.memory,
            self._admission,
            self._calls,
            self._speculation,
            backend,
            context=model.context,
            vocab=model.vocab,
            mean_recurrence=model.mean_recurrence,
        )
        self._goes_on = not (self._lockstep or stepwise)
        self._nothing = build_entering([])

    # ---- what enters ------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a tick would do anything."""
        return bool(self._calls.flying or self._calls.dropped or self._admission.ready or self._admission.waiting)

    @property
    def waiting(self) -> int:
        """Threads with a call that are not seated."""
        return len(self._admission.waiting)

    @property
    def in_flight(self) -> int:
        """Tokens in flight between two ticks. Where a token has left and its thread goes on, one takes its place."""
        following = sum(sequence.call is not None and sequence.call.computed > 0 for sequence in self._admission.ready)
        return self._lanes - len(self._admission.free_lanes) - len(self._calls.dropped) + following

    def plan(self) -> list[Group]:
        """Chooses what enters the next tick and puts it into flight."""
        if self._lockstep and self._calls.flying:
            return []
        in_flight = self.in_flight
        chosen = self._choose()
        runs = self._goes_on and self.ledger.recorder is None
        pressure = Pressure(in_flight, self.waiting, self._lanes, self._model.mean_recurrence)
        bounds, failed = bounds_of(chosen, pressure, self._model.most_iterations)
        entering = []
        for group in chosen:
            if group.last in failed:
                self._admission.give_back(group)
                self._calls.fail(group.sequence, failed[group.last])
            elif min(bounds[group.last]) < 1:
                self._admission.give_back(group)
                self._calls.finish(group.sequence, "iterations")
            else:
                self._calls.take_off(group, bounds[group.last])
                try:
                    self._let_go(group, bounds[group.last], runs)
                    entering.append(group)
                except Exception as cause:
                    self._calls.take_back(group)
                    self._calls.blame(group.sequence, cause)
        return entering + self._speculation.choose()

    def _let_go(self, group: Group, bounds: list[int], runs: bool) -> None:
        """Says how far a group's thread may go by itself: by drafts, or by a run where there may be `runs`."""
        group.draft = self._speculation.draft_of(group, bounds)
        if runs and not group.draft:
            model = self._model
            group.run, group.halts = freedom_of(group, bounds[0], model.context, model.mean_recurrence, self.memory)

    def build(self, groups: list[Group], most_ticks: int = 1) -> Tick:
        """Arrays for groups that enter, with the copies and drops that are due."""
        # In most ticks nothing enters, and a dozen empty arrays would have to be made again.
        built = build_entering(groups) if groups else self._nothing
        return Tick(
            copies=np.array(self.memory.copies, np.int32).reshape(-1, 2),
            dropped=np.array(self._calls.dropped, np.int32),
            entering=built.entering,
            samplings=built.samplings,
            halting=built.halting,
            contexts=built.contexts,
            most_ticks=most_ticks,
        )

    def retract(self, groups: list[Group]) -> None:
        """Takes groups out of a tick that was not executed; they are ready again."""
        for group in groups:
            self._calls.take_back(group)

    def _choose(self) -> list[Group]:
        """The next group of each thread in order, until lanes, rows or pages run out."""
        admission, chosen = self._admission, list[Group]()
        while (sequence := admission.first()) is not None:
            call = sequence.call
            assert call is not None
            if sequence.row < 0:
                admission.seat(sequence)
            if sequence.lacks_state:
                admission.step_back(sequence, sequence.carrying_from(sequence.computed) - 1)
            if sequence.computed < sequence.spans[0].end:
                self._reuse(sequence, call)
            start, end = admission.next_group(sequence)
            needed = math.ceil(end / self.memory.page_size)
            if needed > self.memory.pool.size:
                error = CapacityError(
                    f"thread {sequence.path} needs {needed} pages of {self.memory.page_size} tokens; the pool has "
                    f"{self.memory.pool.size}. Raise EngineSettings.memory or EngineSettings.pages."
                )
                self._calls.fail(sequence, error)
                continue
            leader = self.memory.leader_of(sequence, end)
            if leader is not None:
                admission.follow(sequence, leader)
                continue
            if not admission.make_room(sequence, end):
                break
            lanes = admission.take_lanes(end - start)
            if lanes is None:
                break
            self.memory.lead(sequence, end, call.iterations_left)
            self.memory.grow(sequence, end)
            admission.ready.remove(sequence) if admission.ready[0] is not sequence else admission.ready.pop(0)
            chosen.append(Group(sequence, call, start, end, start < len(sequence.depths), lanes))
        return chosen

    def _reuse(self, sequence: Sequence, call: Call) -> None:
        """Gives a thread what is stored of its prompt instead of computing it."""
        reused = self.memory.reuse_prefix(sequence)
        call.reused += reused
        call.received += reused
        self.ledger.reused += reused
        self.ledger.received += reused

    def _evict(self, victim: Sequence) -> None:
        """Takes a thread's pages; its tokens are computed again when it goes on."""
        self._calls.land(victim)
        self._admission.leave_queues(victim)
        pages = self.memory.clear(victim)
        if victim.call is not None:
            self._admission.enqueue(victim)
        self.ledger.record(events.Evicted, thread=victim.path, pages=pages)

    def _unseat(self, victim: Sequence) -> None:
        """Takes the row of a thread that has a call; it waits for another."""
        self._calls.land(victim)
        self._admission.leave_queues(victim)
        self.memory.unseat(victim)
        if victim.call is not None:
            self._admission.enqueue(victim)

    # ---- what left --------------------------------------------------------------------------------------------------

    def commit(self, result: TickResult) -> None:
        """Takes in what a tick did."""
        ledger = self.ledger
        ledger.ticks += result.ticks
        ledger.iterations += result.iterations
        self.memory.copies.clear()
        self._admission.free_lanes.extend(self._calls.dropped)
        self._calls.dropped.clear()
        for lane, cause in result.failures.items():
            sequence = self._calls.flying[lane]
            self._calls.land(sequence)
            self._calls.fail(sequence, policy_error(sequence.depth, cause))
        rows = zip(
            result.lane.tolist(), result.depth.tolist(), result.token.tolist(), result.logprob.tolist(), strict=True
        )
        for index, (lane, depth, token, logprob) in enumerate(rows):
            leaving = self._calls.flying.get(lane)
            if leaving is not None:
                try:
                    self._calls.arrive(leaving, result, index, depth, token, logprob)
                except Exception as cause:
                    self._calls.blame(leaving, cause)
        for lane, token in zip(result.drafting.tolist(), result.drafted.tolist(), strict=True):
            self._calls.hear_draft(lane, token)

    # ---- for looking in ---------------------------------------------------------------------------------------------

    def load(self) -> Load:
        ledger = self.ledger
        return Load(
            ticks=ledger.ticks,
            in_flight=self.in_flight,
            open_threads=len(self.threads),
            waiting=self.waiting,
            pages_used=self.memory.pool.used,
            pages=self.memory.pool.size,
            sampled=ledger.sampled,
            computed=ledger.computed,
            iterations=ledger.iterations,
            recomputed=ledger.recomputed,
            reused=ledger.reused,
            received=ledger.received,
        )

    def thread_in_lane(self, lane: int) -> ThreadPath | None:
        """The thread whose flight ends in this lane."""
        sequence = self._calls.flying.get(lane)
        return None if sequence is None else sequence.path

    def lanes_of(self, path: ThreadPath) -> list[int]:
        """Lanes of a thread's tokens in flight, in order of position."""
        flight = self.threads[path].flight
        return [] if flight is None else list(flight.lanes)

    def check_integrity(self) -> None:
        """Raises `AssertionError` if pages, rows or lanes are lost, shared by mistake, or counted wrong."""
        self.memory.check_integrity(self.threads)
        flying = [lane for sequence in self._calls.flying.values() if sequence.flight for lane in sequence.flight.lanes]
        drafts = self._speculation.lanes(self.threads)
        lanes = sorted([*flying, *drafts, *self._calls.dropped, *self._admission.free_lanes])
        assert lanes == list(range(self._lanes)), "lanes are lost or doubled"
        for leader in self._admission.following:
            assert self.threads[leader].flight is not None, f"threads follow {leader}, which has nothing in flight"
        for sequence in self.threads:
            held = (sequence.pages or sequence.row >= 0) and sequence.call is None
            assert bool(held) == (sequence.path in self._admission.parked), f"{sequence.path} is parked wrongly"

"""What enters the next tick, and what becomes of what left the last one.

    plan():    threads in order -> next flight of each -> lanes, pages, bounds -> build(): Tick
    commit():  lanes that left -> tokens appended, watchers fed, generates finished -> reports

The scheduler steps with the ticks, on the device thread, and never touches a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from runtime.backend.interface import Tick, TickResult
from runtime.device.active_generate import Drawn
from runtime.device.bounds import Pressure, bounds_of, policy_error
from runtime.device.flight import arrays_of
from runtime.device.generates import Generates
from runtime.device.grouping import Grouping
from runtime.device.in_flight import InFlight
from runtime.device.journal import Journal
from runtime.device.kv_cache import KVCache
from runtime.device.model_limits import ModelLimits
from runtime.device.queues import Queues
from runtime.device.run_ahead import run_ahead_of
from runtime.device.scoring import scored_in
from runtime.device.sequence import Flight, Sequence
from runtime.device.speculation import Speculation
from runtime.device.switching import Switching
from runtime.errors import CapacityError, row_full
from runtime.link import events


class Scheduler:
    """Plans ticks over the parts that it is given, and commits what they did."""

    def __init__(
        self,
        model: ModelLimits,
        journal: Journal,
        queues: Queues,
        kv_cache: KVCache,
        in_flight: InFlight,
        grouping: Grouping,
        speculation: Speculation,
        switching: Switching,
        generates: Generates,
        *,
        stepwise: bool = False,
    ) -> None:
        """`stepwise` where every token is to be seen when its tick is done: lanes then never go on by themselves."""
        self._model = model
        self._journal = journal
        self._queues = queues
        self.kv_cache = kv_cache
        self.in_flight = in_flight
        self._grouping = grouping
        self._speculation = speculation
        self._switching = switching
        self._generates = generates
        self._stepwise = stepwise
        self._nothing = arrays_of([])

    # ---- plan: what enters ------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a tick would do anything."""
        return bool(self.in_flight) or bool(self.in_flight.dropped) or self._queues.have_work

    @property
    def waiting(self) -> int:
        """Threads that have something to generate and no row."""
        return len(self._queues.waiting)

    @property
    def tokens_in_flight(self) -> int:
        """Tokens in flight between two ticks. Where a token has left and its thread goes on, one takes its place."""
        return self.in_flight.occupied + self._queues.count_going_on()

    @property
    def is_stepwise(self) -> bool:
        """Whether lanes stop at every token."""
        return self._stepwise

    def plan(self) -> list[Flight]:
        """Chooses what enters the next tick and puts it into flight."""
        self._switching.speak()
        tokens_in_flight = self.tokens_in_flight
        chosen = self._choose()
        pressure = Pressure(tokens_in_flight, self.waiting, self.in_flight.lanes, self._model.mean_recurrence)
        bounds, failed = bounds_of(chosen, pressure, self._model.most_iterations)
        entering = []
        for flight in chosen:
            lane = flight.last_lane
            if lane in failed:
                self._generates.land(flight)
                self._generates.fail(flight.sequence, failed[lane])
            elif min(bounds[lane]) < 1:
                self._generates.land(flight)
                self._generates.finish(flight.sequence, "iterations")
            else:
                try:
                    self._set_out(flight, bounds[lane])
                    entering.append(flight)
                except BaseException as cause:
                    self._generates.fail_unforeseen(flight.sequence, cause)
        if self._queues.first(self.kv_cache.has_free_row) is None:
            entering += self._speculation.guess(entering)
            entering += self._speculation.choose()
        return entering

    def build(self, flights: list[Flight], most_ticks: int = 1) -> Tick:
        """Arrays for flights that enter, with the copies and drops that are due."""
        # In most ticks nothing enters, and a dozen empty arrays would have to be made again.
        arrays = arrays_of(flights) if flights else self._nothing
        return Tick(
            copies=np.array(self.kv_cache.copies, np.int32).reshape(-1, 2),
            dropped=np.array(self.in_flight.dropped, np.int32),
            entering=arrays.entering,
            samplings=arrays.samplings,
            halting=arrays.halting,
            contexts=arrays.contexts,
            masks=arrays.masks,
            most_ticks=most_ticks,
            number=self._journal.ticks,
        )

    def retract(self, entering: list[Flight]) -> list[Flight]:
        """Takes flights out of a tick that did not fit; they are to enter again. Returns those that stay in it.

        Guesses of another model go first and are not made again; of the rest, half.
        """
        followed = {id(flight.sequence): flight.sequence for flight in entering if self._speculation.is_guess(flight)}
        if followed:
            kept = [flight for flight in entering if not self._speculation.is_guess(flight)]
            for sequence in followed.values():
                self._speculation.withdraw(sequence)
            return kept
        kept, left = entering[: len(entering) // 2], entering[len(entering) // 2 :]
        for flight in left:
            if flight.guessed:
                self._speculation.take_back(flight)
            else:
                self._generates.land(flight)
                self._queues.make_ready(flight.sequence)
        return kept

    def _choose(self) -> list[Flight]:
        """The next flight of each thread in order, until lanes, rows or pages run out."""
        chosen: list[Flight] = []
        while (sequence := self._queues.first(self.kv_cache.has_free_row)) is not None:
            if self._set_aside(sequence):
                continue
            if sequence.row is None:
                self._give_row(sequence)
            self.kv_cache.settle_length(sequence)
            if sequence.lacks_state:
                self.kv_cache.step_back(sequence, sequence.carrying_from(sequence.computed) - 1)
            if sequence.computed < sequence.spans[0].end:
                self._reuse_prefix(sequence)
            self.kv_cache.free_unseen(sequence)
            start, end = self._grouping.next_flight(sequence)
            end = min(end, sequence.needed)
            if not self._fits_pool(sequence, end):
                continue
            leader = self.kv_cache.leader_of(sequence, end)
            if leader is not None:
                self._queues.follow(sequence, leader)
                continue
            if not self._make_room(sequence, end):
                break
            lanes = self.in_flight.take_lanes(end - start)
            if lanes is None:
                break
            flight = Flight(sequence, start, end, start < len(sequence.depths), lanes)
            self.kv_cache.lead(sequence, end, flight.generate.iterations_left)
            self.kv_cache.grow(sequence, end)
            self._queues.take_off(sequence)
            self.in_flight.begin(flight)
            chosen.append(flight)
        # Followers that an eviction has set free may come before those chosen already, and take what they were given.
        return [flight for flight in chosen if flight.sequence.flight is flight]

    def _set_out(self, flight: Flight, bounds: list[int]) -> None:
        """Settles how deep a flight goes, and how far its thread goes on by itself."""
        flight.bounds, flight.entered_tick = bounds, self._journal.ticks
        flight.draft = self._speculation.draft_of(flight)
        latents = self._journal.latents
        is_watched = latents is not None and latents.is_watched(flight.sequence.path)
        if not (flight.draft or self.is_stepwise or is_watched or self._speculation.wants_guesses(flight)):
            flight.run, flight.halts = run_ahead_of(flight, self._model.max_context, self.kv_cache)

    def _set_aside(self, sequence: Sequence) -> bool:
        """Sets a thread aside whose next token another model says; one fails whose policy cannot say."""
        try:
            is_elsewhere = self._switching.is_elsewhere(sequence)
        except BaseException as cause:
            self._generates.fail(sequence, policy_error(sequence.depth, cause))
            return True
        if is_elsewhere:
            self._queues.set_aside(sequence)
        return is_elsewhere

    def _reuse_prefix(self, sequence: Sequence) -> None:
        """Gives a thread what is stored of its prompt instead of computing it."""
        generate = sequence.generate
        assert generate is not None
        reused = self.kv_cache.reuse_prefix(sequence)
        for work in (generate.work, self._journal.work):
            work.cached_tokens += reused
            work.prompt_tokens += reused

    def _fits_pool(self, sequence: Sequence, end: int) -> bool:
        """Whether the pool could hold a context up to position `end`; a thread fails whose context it could not."""
        needed = self.kv_cache.least_pages(sequence, end)
        if end > self.kv_cache.longest(sequence):
            self._generates.fail(sequence, row_full(sequence.path))
            return False
        if needed <= self.kv_cache.pool.size:
            return True
        error = CapacityError(
            f"thread {sequence.path} needs {needed} pages of {self.kv_cache.page_size} tokens; the pool has "
            f"{self.kv_cache.pool.size}. Raise EngineSettings.kv_cache_bytes or EngineSettings.num_pages."
        )
        self._generates.fail(sequence, error)
        return False

    def _give_row(self, sequence: Sequence) -> None:
        """Gives a waiting thread a row. If none is free, one is taken from a parked thread, else from the last in
        order."""
        if not self.kv_cache.has_free_row:
            parked = self._queues.parked_with_row()
            if parked is None:
                self._preempt(self._queues.last_with_row())
            else:
                self.kv_cache.take_row(parked)
                self._queues.lose_row(parked)
        self._queues.leave(sequence)
        self.kv_cache.give_row(sequence)
        self._queues.enqueue(sequence)

    def _make_room(self, sequence: Sequence, end: int) -> bool:
        """Frees the pages to compute up to position `end`; False if threads that come first hold them."""
        if self.kv_cache.is_writable(sequence, end):
            return True
        while self.kv_cache.pages_needed(sequence, end) > self.kv_cache.pool.free:
            victim = self._queues.parked_with_pages()
            if victim is None:
                victim = self._queues.last_with_pages()
                if victim is None or victim.order <= sequence.order:
                    return False
            self._evict(victim)
        return True

    def _evict(self, victim: Sequence) -> None:
        """Takes a thread's pages; its tokens are computed again when it goes on."""
        self._generates.abort(victim)
        self._queues.leave(victim)
        pages = self.kv_cache.clear(victim)
        if victim.generate is not None:
            self._queues.enqueue(victim)
        self._journal.evictions += 1
        self._journal.record(events.Evicted, thread=victim.path, pages=pages)

    def _preempt(self, victim: Sequence) -> None:
        """Takes the row of a thread that generates; it waits for another."""
        self._journal.preemptions += 1
        self._generates.abort(victim)
        self._queues.leave(victim)
        self.kv_cache.take_row(victim)
        if victim.generate is not None:
            self._queues.enqueue(victim)

    # ---- commit: what left ------------------------------------------------------------------------------------------

    def commit(self, result: TickResult) -> None:
        """Takes in what a tick did."""
        self._journal.ticks += result.ticks
        self._journal.work.iterations += result.iterations
        self.kv_cache.copies.clear()
        self.in_flight.backend_has_dropped()
        for lane, cause in result.failures.items():
            sequence = self.in_flight.in_lane(lane)
            assert sequence is not None
            self._generates.abort(sequence)
            self._generates.fail(sequence, policy_error(sequence.depth, cause))
        rows = zip(
            result.lane.tolist(), result.depth.tolist(), result.token.tolist(), result.logprob.tolist(), strict=True
        )
        row_of: dict[int, int] | None = None
        for row, (lane, depth, token, logprob) in enumerate(rows):
            leaving = self.in_flight.in_lane(lane)
            if leaving is None:
                continue
            self._arrive(leaving, result, row, depth, token, logprob)
            while leaving.flight is not None:
                # A draft that was right goes on, or, as a guess of another model, has left in the same tick.
                if row_of is None:
                    row_of = {each: index for index, each in enumerate(result.lane.tolist())}
                guess = row_of.get(leaving.flight.last_lane)
                if guess is None:
                    break
                said = result.depth[guess], result.token[guess], result.logprob[guess]
                self._arrive(leaving, result, guess, *(number.item() for number in said))
        for lane, token in zip(result.drafting.tolist(), result.drafted.tolist(), strict=True):
            self._speculation.take_draft(lane, token)

    def tell_streams(self) -> int:
        """Reports what lanes have sampled by themselves to streams; of how many."""
        return self._generates.tell_streams()

    def _arrive(
        self, sequence: Sequence, result: TickResult, index: int, depth: int, token: int, logprob: float
    ) -> None:
        """Takes in a flight that left with row `index` of a tick's result; what fails of that ends the generate."""
        try:
            self._take_in(sequence, result, index, depth, token, logprob)
        except BaseException as cause:
            self._generates.fail_unforeseen(sequence, cause)

    def _take_in(
        self, sequence: Sequence, result: TickResult, index: int, depth: int, token: int, logprob: float
    ) -> None:
        """Takes in a flight that left; the thread goes on if its generate does."""
        flight = sequence.flight
        assert flight is not None
        run = result.runs.get(flight.last_lane) if result.runs else None
        left = self._journal.ticks - (result.ticks - result.left_at[index] if result.left_at else 0)
        self.in_flight.end(flight)
        if run is None:
            self._generates.take_computed(flight, depth, left, left - 1)
        else:
            self._generates.take_computed(flight, int(run.depth[0]), left, int(run.tick[0]))
        self._generates.stop_leading(sequence)
        sequence.state_at = flight.end - 1
        if run is not None:
            self._generates.take_run(sequence, run, len(run.token) - 1)
        if sequence.generate is not None and sequence.generate.request.scores:
            self._generates.take_scores(flight, scored_in(flight, result))
        elif sequence.generate is not None and sequence.generate.request.fills:
            if sequence.computed == len(sequence.tokens):
                self._generates.finish(sequence, "filled")
        elif token >= 0 and sequence.generate is not None:
            if sequence.chain is not None and not self._speculation.is_right(sequence, token):
                self._speculation.drop(sequence)
            entropy = float(result.entropy[index]) if sequence.keeps_entropies else None
            top = result.top[index] if sequence.generate.request.sampling.logprobs else None
            drawn = Drawn(token, depth, logprob, entropy, top)
            self._generates.take_sampled(sequence, sequence.generate, drawn, left - 1)
        if sequence.generate is None:
            return
        if sequence.chain is None:
            self._queues.make_ready(sequence)
        else:
            # Its next token is in flight already, as a draft that was right.
            self._speculation.promote(sequence)

    def close(self) -> None:
        """No tick follows."""
        self._speculation.close()

    # ---- for looking in ---------------------------------------------------------------------------------------------

    def check_integrity(self, threads: Iterable[Sequence]) -> None:
        """Raises `AssertionError` if pages, rows or lanes are lost, shared by mistake, or counted wrong."""
        everyone = list(threads)
        self.kv_cache.check_integrity(everyone)
        lanes = sorted([*self.in_flight.all_lanes(), *self._speculation.lanes(everyone)])
        assert lanes == list(range(self.in_flight.lanes)), "lanes are lost or doubled"
        for sequence in everyone:
            self._queues.check_integrity(sequence)

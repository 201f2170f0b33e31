"""Tokens that are computed before it is sure that they are said: drafts of threads that speculate.

    tick          0    d    2d   3d   ...            a token drafts its successor after d iterations and goes on;
    position p    ====D=========V                    the successor enters in the next tick. When a token has done all
    position p+1       ====D=========V               its iterations, what is sampled from it (V) is what the thread
    position p+2            ====D=========V          says. If that is what it drafted, its successor goes on as the
                                                     thread's flight; else all that follow are thrown away.

A draft's iterations are the first ones of its whole computation, so nothing is computed twice: iteration i of a token
reads what iteration i of those before it has written, whether they have left or are just ahead. Random numbers depend
on thread and position alone, so a draft is drawn with those of the token that it guesses, and tokens are bit by bit
those of `Fixed(most)`.

Guesses of another model are there before anything is computed. They enter in the same tick as the token that they
follow, go through the same iterations, and leave with it:

    position p    ==========V
    position p+1  ==========V
    position p+2  ==========V
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from policies import Bounding, DepthPolicy, EntropySwitch, Speculative
from runtime.console.logs import logger
from runtime.device.active_generate import ActiveGenerate
from runtime.device.drafter import Drafter, DraftRequest
from runtime.device.in_flight import InFlight
from runtime.device.journal import Journal
from runtime.device.kv_cache import KVCache
from runtime.device.sequence import Chain, Flight, Sequence
from runtime.link.commands import ThreadPath

_log = logger("runtime.device")

REMEMBERED = 8
"""About as many of the last drafts count for how often they are right."""
LIKELY = 1 / 3
"""Least chance that a token further ahead than one must have to be drafted by adaptive policies."""


_by_order = attrgetter("order")


class Speculation:
    """The drafts of all threads. A thread's chain hangs on its flight: whoever ends the one drops the other."""

    def __init__(
        self,
        journal: Journal,
        kv_cache: KVCache,
        in_flight: InFlight,
        *,
        max_context: int,
        slots: int,
        drafter: Drafter | None = None,
    ) -> None:
        self._journal = journal
        self._kv_cache = kv_cache
        self._in_flight = in_flight
        self._max_context = max_context
        self._slots = slots
        self._drafter = drafter
        self._by_lane: dict[int, Sequence] = {}
        """By lanes of drafted tokens in flight."""
        self._pending: dict[ThreadPath, Sequence] = {}
        """Threads with a drafted token that has not entered."""

    def check(self, policy: DepthPolicy, most: int) -> None:
        """Raises `ValueError` if a policy, whose tokens get `most` iterations, speculates as this engine cannot."""
        if isinstance(policy, Bounding) and isinstance(policy.innermost, Speculative):
            raise ValueError("bounds that change are not for Speculative; bound Fixed, or a policy that tests.")
        if isinstance(policy.innermost, EntropySwitch):
            if policy is not policy.innermost:
                raise ValueError("bounds that change are not for EntropySwitch; bound Fixed, or a policy that tests.")
            if self._drafter is None:
                raise ValueError("there is no second model; open the engine with drafts=, or take Fixed.")
        if not isinstance(policy, Speculative):
            return
        if policy.drafts == "self" and policy.draft_iterations >= most:
            raise ValueError(
                f"draft_iterations ({policy.draft_iterations}) must be less than the {most} iterations that its "
                "tokens get."
            )
        if most > self._slots:
            raise ValueError(
                f"its tokens get {most} iterations, and this engine keeps {self._slots} of them a token; raise "
                "EngineSettings.iteration_slots, or take Fixed."
            )

    def draft_of(self, flight: Flight) -> int:
        """Iterations after which a flight drafts a successor; 0 unless it is a sampled token that nothing follows."""
        sequence, generate, policy = flight.sequence, flight.generate, flight.sequence.depth
        if (
            not isinstance(policy, Speculative)
            or policy.drafts != "self"
            or flight.bounds != [sequence.constant_bound]
            or not flight.samples
            or generate.request.matcher is not None
        ):
            return 0
        # An iteration limit is not spent on what may be thrown away: a generate would end sooner.
        if generate.request.max_iterations is not None or flight.start >= self._last_computed(sequence, generate):
            return 0
        return policy.draft_iterations if flight.guessed or sequence.span_at(flight.start).sampled else 0

    def take_draft(self, lane: int, token: int) -> None:
        """A lane has drafted its token's successor; of one that was thrown away meanwhile it is of no interest."""
        sequence = self._in_flight.in_lane(lane) or self._by_lane.get(lane)
        if sequence is None or sequence.generate is None or token in sequence.generate.request.stop_tokens:
            return
        if sequence.chain is None:
            sequence.chain = Chain([], [])
        sequence.chain.tokens.append(token)
        self._pending[sequence.path] = sequence

    def choose(self) -> list[Flight]:
        """Drafted tokens that enter now, in flight already. To be asked while no thread waits for room."""
        chosen: list[Flight] = []
        for sequence in sorted(self._pending.values(), key=_by_order):
            flight = self._next(sequence)
            if flight is not None:
                chosen.append(flight)
        return chosen

    def wants_guesses(self, flight: Flight) -> int:
        """How many tokens another model is to guess behind a flight that enters; 0 for none."""
        sequence, generate, policy = flight.sequence, flight.generate, flight.sequence.depth
        if self._drafter is None or not isinstance(policy, Speculative) or policy.drafts != "model":
            return 0
        if generate.request.matcher is not None:
            # Tokens are the same without guesses, and what may follow a guess is not computed.
            return 0
        if flight.known or not flight.samples or set(flight.bounds) != {sequence.constant_bound}:
            return 0
        # An iteration limit is not spent on what may be thrown away: a generate would end sooner.
        if generate.request.max_iterations is not None:
            return 0
        left = self._last_computed(sequence, generate) - (flight.end - 1)
        return max(0, min(reach(policy, sequence.acceptance), left))

    def guess(self, entering: list[Flight]) -> list[Flight]:
        """What another model guesses behind flights that enter, to enter with them. To be asked while no thread waits
        for room."""
        wanted = [(flight, count) for flight in entering if (count := self.wants_guesses(flight))]
        if self._drafter is None or not wanted:
            return []
        requests = [
            DraftRequest(
                path=flight.sequence.path,
                seed=flight.sequence.seed,
                tokens=flight.sequence.tokens,
                count=count,
                sampling=flight.generate.request.sampling,
            )
            for flight, count in wanted
        ]
        try:
            guesses = self._drafter.draft(requests)
        except Exception as cause:
            # Tokens are the same without guesses.
            _log.warning("draft_model_failed", error=repr(cause))
            self._drafter = None
            return []
        return [
            guess
            for (flight, _), tokens in zip(wanted, guesses, strict=True)
            for guess in self._line_up(flight, tokens)
        ]

    def is_guess(self, flight: Flight) -> bool:
        """Whether another model guessed a flight's token, with which it entered."""
        policy = flight.sequence.depth
        return bool(flight.guessed) and isinstance(policy, Speculative) and policy.drafts == "model"

    def withdraw(self, sequence: Sequence) -> None:
        """Takes a thread's guesses out of a tick that was not executed."""
        assert sequence.chain is not None
        for flight in sequence.chain.flights:
            del self._by_lane[flight.last_lane]
            self._in_flight.free.extend(flight.lanes)
        sequence.chain = None

    def forget(self, path: ThreadPath) -> None:
        """A thread was closed."""
        if self._drafter is not None:
            self._drafter.forget(path)

    def close(self) -> None:
        """No tick follows."""
        if self._drafter is not None:
            self._drafter.close()

    def take_back(self, flight: Flight) -> None:
        """Takes a drafted token out of a tick that was not executed."""
        sequence = flight.sequence
        assert sequence.chain is not None
        sequence.chain.flights.pop()
        del self._by_lane[flight.last_lane]
        self._in_flight.free.extend(flight.lanes)
        self._pending[sequence.path] = sequence

    def is_right(self, sequence: Sequence, token: int) -> bool:
        """Whether a thread that samples a token has it in flight as a draft. Remembers how often drafts are right."""
        chain = sequence.chain
        assert chain is not None
        found = chain.tokens[0] == token
        sequence.acceptance += (found - sequence.acceptance) / REMEMBERED
        return found and bool(chain.flights)

    def promote(self, sequence: Sequence) -> None:
        """Makes the first drafted token, which has been sampled now, the thread's flight."""
        chain, generate = sequence.chain, sequence.generate
        assert chain is not None
        assert generate is not None
        flight = chain.flights.pop(0)
        del chain.tokens[0]
        del self._by_lane[flight.last_lane]
        if not chain.tokens:
            sequence.chain = None
        self._in_flight.begin(flight)
        self._journal.accepted += 1
        generate.accepted += 1

    def drop(self, sequence: Sequence) -> None:
        """Throws a thread's drafts away, if it has any, their work lost but counted."""
        chain, generate = sequence.chain, sequence.generate
        if chain is None or generate is None:
            return
        for flight in chain.flights:
            generate.work.iterations += flight.iterations(self._journal.ticks)
            del self._by_lane[flight.last_lane]
            self._in_flight.dropped.append(flight.last_lane)
        self._pending.pop(sequence.path, None)
        sequence.chain = None

    def lanes(self, sequences: Iterable[Sequence]) -> list[int]:
        """Lanes of all drafted tokens in flight. Raises `AssertionError` if something is wrong with a chain."""
        threads = [sequence for sequence in sequences if sequence.chain is not None]
        found = dict[int, Sequence]()
        for thread in threads:
            assert thread.chain is not None
            assert thread.flight is not None, f"{thread.path} has drafts behind nothing"
            waiting = len(thread.chain.tokens) - len(thread.chain.flights)
            assert waiting == (thread.path in self._pending), f"{thread.path} waits wrongly with a draft"
            found |= dict.fromkeys((flight.last_lane for flight in thread.chain.flights), thread)
        assert found == self._by_lane, "drafts are lost or doubled"
        assert self._pending.keys() <= {thread.path for thread in threads}, "threads without drafts wait with one"
        return list(found)

    # ---- small parts ------------------------------------------------------------------------------------------------

    def _line_up(self, ahead: Flight, tokens: tuple[int, ...]) -> list[Flight]:
        """Puts guesses into flight behind a flight, up to one that would end the generate, as far as there is room."""
        sequence, generate, chain = ahead.sequence, ahead.generate, Chain([], [])
        for token in tokens:
            position = ahead.end + len(chain.flights)
            if token in generate.request.stop_tokens or not self._has_page(sequence, position):
                break
            lanes = self._in_flight.take_lanes(1)
            if lanes is None:
                break
            chain.tokens.append(token)
            flight = Flight(sequence, position, position + 1, False, lanes, guessed=tuple(chain.tokens))
            flight.bounds, flight.entered_tick = ahead.bounds[-1:], ahead.entered_tick
            chain.flights.append(flight)
            self._by_lane[flight.last_lane] = sequence
        if chain.flights:
            sequence.chain = chain
            self._journal.drafted += len(chain.flights)
            generate.drafted += len(chain.flights)
        return chain.flights

    def _next(self, sequence: Sequence) -> Flight | None:
        """Puts a thread's next drafted token into flight, if it may look so far and there is room."""
        chain, generate, ahead, policy = sequence.chain, sequence.generate, sequence.flight, sequence.depth
        assert chain is not None
        assert generate is not None
        assert ahead is not None
        assert isinstance(policy, Speculative)
        position = ahead.end + len(chain.flights)
        if len(chain.flights) >= reach(policy, sequence.acceptance) or not self._has_page(sequence, position):
            return None
        lanes = self._in_flight.take_lanes(1)
        if lanes is None:
            return None
        flight = Flight(sequence, position, position + 1, False, lanes, guessed=tuple(chain.tokens))
        flight.bounds, flight.entered_tick = ahead.bounds, self._journal.ticks
        flight.draft = self.draft_of(flight)
        chain.flights.append(flight)
        self._by_lane[flight.last_lane] = sequence
        del self._pending[sequence.path]
        self._journal.drafted += 1
        generate.drafted += 1
        return flight

    def _has_page(self, sequence: Sequence, position: int) -> bool:
        """Whether a position can be written, beside keys that turn as its own does; takes a page for it where there are
        plenty."""
        if position >= self._kv_cache.longest_alike(sequence):
            return False
        if self._kv_cache.writable_after(sequence, position) < 1:
            self._kv_cache.grow_ahead(sequence, position + 1)
        return self._kv_cache.writable_after(sequence, position) > 0

    def _last_computed(self, sequence: Sequence, generate: ActiveGenerate) -> int:
        """The last position that is computed if nothing stops a generate: what it samples last is not computed."""
        left = generate.tokens_left(sequence.next_position, self._max_context)
        return len(sequence.tokens) + left - 2


def reach(policy: Speculative, acceptance: float) -> int:
    """How many tokens ahead a thread drafts, of whose drafts this share was right of late."""
    if not policy.adaptive:
        return policy.lookahead
    far = 1
    while far < policy.lookahead and acceptance ** (far + 1) >= LIKELY:
        far += 1
    return far

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
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from policies.depth.base import DepthPolicy
from policies.depth.bounding import Bounding
from policies.depth.speculative import Speculative
from runtime.commands import ThreadPath
from runtime.device.admission import Admission
from runtime.device.entering import Group, fly
from runtime.device.ledger import Ledger
from runtime.device.memory import ThreadMemory
from runtime.device.runs import AMPLE
from runtime.device.sequence import Call, Chain, Flight, Sequence

MEMORY = 8
"""About as many of the last drafts count for how often they are right."""
LIKELY = 1 / 3
"""Least chance that a token further ahead than one must have to be drafted by adaptive policies."""

_by_order = attrgetter("order")


class Speculation:
    """Follows the drafts of all threads. A thread's chain hangs on its flight: whoever ends the one drops the other."""

    def __init__(
        self,
        ledger: Ledger,
        memory: ThreadMemory,
        admission: Admission,
        *,
        context: int,
        mean_recurrence: int,
        slots: int,
        is_off: bool,
    ) -> None:
        """`is_off` where tokens only enter when none is in flight: nothing is drafted then."""
        self._ledger = ledger
        self._memory = memory
        self._admission = admission
        self._context = context
        self._mean_recurrence = mean_recurrence
        self._slots = slots
        self._is_off = is_off
        self._by_lane: dict[int, Sequence] = {}
        """By lanes of drafted tokens in flight."""
        self._pending: dict[ThreadPath, Sequence] = {}
        """Threads with a drafted token that has not entered."""

    def check(self, policy: DepthPolicy) -> None:
        """Raises `ValueError` if a policy speculates in a way that this engine cannot follow."""
        if isinstance(policy, Bounding) and isinstance(_innermost(policy), Speculative):
            raise ValueError("bounds that change are not for Speculative; bound Fixed, or a policy that tests.")
        if not isinstance(policy, Speculative):
            return
        most = self._most(policy)
        if policy.draft >= most:
            raise ValueError(f"draft ({policy.draft}) must be less than the {most} iterations that its tokens get.")
        if most > self._slots:
            raise ValueError(
                f"its tokens get {most} iterations, and this engine keeps {self._slots} of them a token; raise "
                "EngineSettings.slots, or take Fixed."
            )

    def draft_of(self, group: Group, bounds: list[int]) -> int:
        """Iterations after which a group drafts a successor; 0 unless it is a sampled token that nothing follows."""
        sequence, call, policy = group.sequence, group.call, group.sequence.depth
        if not isinstance(policy, Speculative) or self._is_off or bounds != [self._most(policy)] or not group.samples:
            return 0
        # An iteration limit is not spent on what may be thrown away: a call would end sooner.
        if call.request.max_iterations is not None or group.start >= self._last(call):
            return 0
        return policy.draft if group.guessed or sequence.span_at(group.start).sampled else 0

    def hear(self, sequence: Sequence, token: int) -> None:
        """The last token in flight of a thread has drafted its successor."""
        assert sequence.call is not None
        if token in sequence.call.request.stop_tokens:
            return
        if sequence.chain is None:
            sequence.chain = Chain([], [])
        sequence.chain.tokens.append(token)
        self._pending[sequence.path] = sequence

    def sequence_in(self, lane: int) -> Sequence | None:
        """The thread whose drafted token is in this lane."""
        return self._by_lane.get(lane)

    def choose(self) -> list[Group]:
        """Drafted tokens that enter now, in flight already: where threads wait for room, none do."""
        chosen: list[Group] = []
        if not self._pending or self._admission.first() is not None:
            return chosen
        for sequence in sorted(self._pending.values(), key=_by_order):
            group = self._next(sequence)
            if group is not None:
                chosen.append(group)
        return chosen

    def take_back(self, group: Group) -> None:
        """Takes a drafted token out of a tick that was not executed."""
        sequence = group.sequence
        assert sequence.chain is not None
        sequence.chain.flights.pop()
        del self._by_lane[group.last]
        self._admission.give_back(group)
        self._pending[sequence.path] = sequence

    def is_right(self, sequence: Sequence, token: int) -> bool:
        """Whether a thread that samples a token has it in flight as a draft. Remembers how often drafts are right."""
        chain = sequence.chain
        assert chain is not None
        found = chain.tokens[0] == token
        sequence.acceptance += (found - sequence.acceptance) / MEMORY
        return found and bool(chain.flights)

    def promote(self, sequence: Sequence, call: Call) -> Flight:
        """Makes the first drafted token, which has been sampled now, the thread's flight."""
        chain = sequence.chain
        assert chain is not None
        flight = sequence.flight = chain.flights.pop(0)
        del chain.tokens[0]
        del self._by_lane[flight.lanes[-1]]
        if not chain.tokens:
            sequence.chain = None
        self._ledger.accepted += 1
        call.accepted += 1
        return flight

    def drop(self, sequence: Sequence, call: Call) -> list[int]:
        """Throws a thread's drafts away, their work lost but counted; the lanes that the backend is to forget."""
        chain = sequence.chain
        if chain is None:
            return []
        lanes = [flight.lanes[-1] for flight in chain.flights]
        call.iterations += sum(flight.iterations(self._ledger.ticks) for flight in chain.flights)
        for lane in lanes:
            del self._by_lane[lane]
        self._pending.pop(sequence.path, None)
        sequence.chain = None
        return lanes

    def lanes(self, sequences: Iterable[Sequence]) -> list[int]:
        """Lanes of all drafted tokens in flight. Raises `AssertionError` if something is wrong with a chain."""
        threads = [sequence for sequence in sequences if sequence.chain is not None]
        found = dict[int, Sequence]()
        for thread in threads:
            assert thread.chain is not None
            assert thread.flight is not None, f"{thread.path} has drafts that follow nothing"
            waiting = len(thread.chain.tokens) - len(thread.chain.flights)
            assert waiting == (thread.path in self._pending), f"{thread.path} waits wrongly with a draft"
            found |= dict.fromkeys((flight.lanes[-1] for flight in thread.chain.flights), thread)
        assert found == self._by_lane, "drafts are lost or doubled"
        assert self._pending.keys() <= {thread.path for thread in threads}, "threads without drafts wait with one"
        return list(found)

    # ---- small parts ------------------------------------------------------------------------------------------------

    def _next(self, sequence: Sequence) -> Group | None:
        """Puts a thread's next drafted token into flight, if it may look so far and there is room."""
        chain, call, flight, policy = sequence.chain, sequence.call, sequence.flight, sequence.depth
        assert chain is not None
        assert call is not None
        assert flight is not None
        assert isinstance(policy, Speculative)
        position, bounds = flight.end + len(chain.flights), flight.bounds
        if len(chain.flights) >= reach(policy, sequence.acceptance):
            return None
        if not self._has_page(sequence, position):
            return None
        lanes = self._admission.take_lanes(1)
        if lanes is None:
            return None
        group = Group(sequence, call, position, position + 1, False, lanes, guessed=tuple(chain.tokens))
        group.draft = self.draft_of(group, bounds)
        chain.flights.append(fly(group, bounds, self._ledger.ticks))
        self._by_lane[group.last] = sequence
        del self._pending[sequence.path]
        self._ledger.drafted += 1
        call.drafted += 1
        return group

    def _has_page(self, sequence: Sequence, position: int) -> bool:
        """Whether a position can be written; takes a page for it where there are plenty."""
        memory = self._memory
        if position >= len(sequence.pages) * memory.page_size and memory.pool.free * AMPLE > memory.pool.size:
            memory.grow_ahead(sequence, position + 1)
        return position < len(sequence.pages) * memory.page_size

    def _most(self, policy: Speculative) -> int:
        return self._mean_recurrence if policy.most is None else policy.most

    def _last(self, call: Call) -> int:
        """The last position that a call computes if nothing stops it: what it samples last is not computed."""
        return min(call.start + call.request.max_tokens, self._context) - 2


def _innermost(policy: DepthPolicy) -> DepthPolicy:
    while isinstance(policy, Bounding):
        policy = policy.criterion
    return policy


def reach(policy: Speculative, acceptance: float) -> int:
    """How many tokens ahead a thread drafts, of whose drafts this share was right of late."""
    if not policy.adaptive:
        return policy.look
    far = 1
    while far < policy.look and acceptance ** (far + 1) >= LIKELY:
        far += 1
    return far

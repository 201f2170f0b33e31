"""From groups of tokens chosen by the scheduler to the arrays of a tick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from runtime.backend.interface import CARRY_KINDS, Entering, Int32
from runtime.device.sequence import Call, Flight, Sequence, Span
from runtime.sampling import Sampling


@dataclass(slots=True)
class Group:
    """Tokens `start .. end` of a sequence that enter together, and the lanes they take."""

    sequence: Sequence
    call: Call
    start: int
    end: int
    known: bool
    """Whether their depths are known from an earlier computation: they are forced to them."""
    lanes: list[int]
    run: int = 0
    """Sampled tokens that its lane may go on with by itself."""
    halts: frozenset[int] = frozenset()
    """Tokens at which the lane then stops."""
    guessed: tuple[int, ...] = ()
    """For a drafted token: what was drafted after the sequence's last token, up to this one."""
    draft: int = 0
    """Iterations after which its token drafts its successor; 0 for never."""
    flight: Flight | None = None
    """Where it is in flight."""

    @property
    def last(self) -> int:
        """The lane that names the group."""
        return self.lanes[-1]

    @property
    def samples(self) -> bool:
        """Whether its last token's logits are sampled from."""
        return self.end >= len(self.sequence.tokens)


class Built(NamedTuple):
    """Arrays of a tick for the groups that enter."""

    entering: Entering
    samplings: tuple[Sampling, ...]
    halting: tuple[frozenset[int], ...]
    contexts: dict[int, Int32]


def fly(group: Group, bounds: list[int], tick: int) -> Flight:
    """The flight of a group that is in flight from `tick` on."""
    recomputed = group.end - group.start if group.known else 0
    group.flight = Flight(group.start, group.end, group.lanes, bounds, tick, recomputed)
    return group.flight


def build_entering(groups: list[Group]) -> Built:
    """Arrays for groups that are in flight from this tick on."""
    columns: list[list[int]] = [[] for _ in range(13)]
    lane, row, position, token, bound, until, tests, policy, last, noise, draws, carries, sample = columns
    entropy, run, halts, keeps, draft = list[int](), list[int](), list[int](), list[bool](), list[int]()
    samplings: dict[Sampling, int] = {}
    halting: dict[frozenset[int], int] = {}
    contexts: dict[int, Int32] = {}
    for group in groups:
        sequence, count, flight = group.sequence, group.end - group.start, group.flight
        assert flight is not None
        guessed = group.guessed
        span = Span(group.start, group.end, True, sequence.key) if guessed else sequence.span_at(group.end - 1)
        one_span = span.start <= group.start
        lane += group.lanes
        row += [sequence.row] * count
        position += range(group.start, group.end)
        token += guessed[-1:] or sequence.tokens[group.start : group.end]
        bound += flight.bounds
        until += [max(flight.bounds)] * count
        tests += [not group.known and (span.sampled or sequence.depth.exit_received)] * count
        policy += [sequence.policy] * count
        last += [group.last] * count
        noise += [span.key] * count if one_span else [sequence.span_at(p).key for p in range(group.start, group.end)]
        draws += [sequence.key] * count
        carries += [CARRY_KINDS[span.carry]] * count
        keeps += [False] * (count - 1) + [not guessed and sequence.carries_at(group.end)]
        sample += [-1] * count
        entropy += [False] * count
        draft += [group.draft] * count
        run += [group.run] * count
        halts += [halting.setdefault(group.halts, len(halting)) if group.run else 0] * count
        if group.samples:
            sampling = group.call.request.sampling
            sample[-1] = samplings.setdefault(sampling, len(samplings))
            entropy[-1] = group.call.request.entropies
            if sampling.repetition_penalty != 1.0:
                contexts[group.last] = np.array([*sequence.tokens, *guessed], np.int32)
    entering = Entering(
        lane=np.array(lane, np.int32),
        row=np.array(row, np.int32),
        position=np.array(position, np.int32),
        token=np.array(token, np.int32),
        bound=np.array(bound, np.int32),
        until=np.array(until, np.int32),
        tests=np.array(tests, np.bool_),
        policy=np.array(policy, np.int32),
        group=np.array(last, np.int32),
        noise_key=np.array(noise, np.int64),
        sampling_key=np.array(draws, np.int64),
        carries=np.array(carries, np.int32),
        keeps=np.array(keeps, np.bool_),
        sample=np.array(sample, np.int32),
        entropy=np.array(entropy, np.bool_),
        draft=np.array(draft, np.int32),
        run=np.array(run, np.int32),
        halts=np.array(halts, np.int32),
    )
    return Built(entering, tuple(samplings), tuple(halting), contexts)

"""The arrays of flights: what a tick's entering tokens are, one row a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from runtime.backend.interface import CARRY_KINDS, Entering, Int32
from runtime.device.scoring import targets_of
from runtime.device.sequence import Flight, Span
from runtime.link.constraints import TokenMask
from runtime.link.sampling import Sampling


class EnteringArrays(NamedTuple):
    """What a tick has for the flights that enter with it."""

    entering: Entering
    samplings: tuple[Sampling, ...]
    halting: tuple[frozenset[int], ...]
    contexts: dict[int, Int32]
    masks: dict[int, TokenMask]


def arrays_of(flights: list[Flight]) -> EnteringArrays:
    """Arrays for flights that enter with the next tick."""
    columns: list[list[int]] = [[] for _ in range(13)]
    lane, row, position, token, bound, until, tests, policy, last, noise, draws, carries, sample = columns
    entropy, run, halts, keeps, draft = list[int](), list[int](), list[int](), list[bool](), list[int]()
    samplings: dict[Sampling, int] = {}
    halting: dict[frozenset[int], int] = {}
    contexts, masks, is_long = dict[int, Int32](), dict[int, TokenMask](), list[bool]()
    displaced = list[tuple[slice, int]]()
    """Rows of the arrays of tokens that are so many places from their positions."""
    target: dict[int, int] = {}
    """By row of the arrays."""
    for flight in flights:
        sequence, count, guessed = flight.sequence, len(flight), flight.guessed
        assert sequence.row is not None
        assert sequence.policy is not None
        span = Span(flight.start, flight.end, True, sequence.key) if guessed else sequence.span_at(flight.end - 1)
        one_span = span.start <= flight.start
        lane += flight.lanes
        row += [sequence.row] * count
        first = flight.start
        if sequence.layout is not None:
            first = sequence.position(flight.start)
            rows = slice(len(position), len(position) + count)
            displaced.append((rows, sequence.place_in_row(flight.start) - first))
        position += range(first, first + count)
        token += guessed[-1:] or sequence.tokens[flight.start : flight.end]
        bound += flight.bounds
        until += [max(flight.bounds)] * count
        tests += [not flight.known and (span.sampled or sequence.depth.exit_received)] * count
        policy += [sequence.policy] * count
        last += [flight.last_lane] * count
        is_long += [sequence.is_long] * count
        noise += [span.key] * count if one_span else [sequence.span_at(p).key for p in range(flight.start, flight.end)]
        draws += [sequence.key] * count
        carries += [CARRY_KINDS[span.carry]] * count
        keeps += [False] * (count - 1) + [not guessed and sequence.carries_at(flight.end)]
        sample += [-1] * count
        entropy += [False] * count
        draft += [flight.draft] * count
        run += [flight.run] * count
        halts += [halting.setdefault(flight.halts, len(halting)) if flight.run else 0] * count
        if flight.generate.request.scores:
            index = samplings.setdefault(flight.generate.request.sampling, len(samplings))
            for offset, successor in targets_of(flight):
                at = offset - count
                sample[at] = index
                target[len(lane) + at] = successor
        elif flight.samples:
            request = flight.generate.request
            sample[-1] = samplings.setdefault(request.sampling, len(samplings))
            entropy[-1] = sequence.keeps_entropies
            if request.matcher is not None and (mask := request.matcher.mask()) is not None:
                masks[flight.last_lane] = mask
            if request.sampling.repetition_penalty != 1.0:
                contexts[flight.last_lane] = np.array([*sequence.tokens, *guessed], np.int32)
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
        place=_displaced(position, displaced) if displaced else None,
        is_long=np.array(is_long, np.bool_) if any(is_long) else None,
        target=_sparse(target, len(lane)) if target else None,
    )
    return EnteringArrays(entering, tuple(samplings), tuple(halting), contexts, masks)


def _displaced(position: list[int], displaced: list[tuple[slice, int]]) -> Int32:
    """Places of tokens at these positions."""
    place = np.array(position, np.int32)
    for rows, distance in displaced:
        place[rows] += distance
    return place


def _sparse(values: Mapping[int, int], size: int) -> Int32:
    """[size] with these values, and -1 everywhere else."""
    array = np.full(size, -1, np.int32)
    array[list(values)] = list(values.values())
    return array

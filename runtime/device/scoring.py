"""Tokens that are scored: given ones that follow a context, computed like received ones, whose logits say what each is
worth.

    context  a b c            c d e are computed, and the logits of
    scores         d e f      c say what d is worth, of d what e is, of e what f is; f itself is not needed
"""

from __future__ import annotations

import math
from typing import NamedTuple

from runtime.backend.interface import TickResult
from runtime.device.sequence import Flight


class Target(NamedTuple):
    """A token of a flight whose successor is scored."""

    offset: int
    """In the flight."""
    token: int
    """The successor."""


class Scored(NamedTuple):
    """A token that was scored."""

    token: int
    depth: int
    """Iterations that made the logits."""
    logprob: float
    """NaN where the logits are not all finite."""
    top: dict[int, float]


def targets_of(flight: Flight) -> list[Target]:
    """What a flight of a generate that scores scores, in order: nothing that was scored before its tokens had to be
    computed again."""
    generate, tokens = flight.generate, flight.sequence.tokens
    first = max(flight.start, generate.start - 1 + len(generate.logprobs))
    return [Target(position - flight.start, tokens[position + 1]) for position in range(first, flight.end)]


def scored_in(flight: Flight, result: TickResult) -> list[Scored]:
    """What a flight that left with a tick has scored, up to the first token whose logits are not all finite."""
    row_of = {lane: row for row, lane in enumerate(result.lane.tolist())}
    found = []
    for target in targets_of(flight):
        row = row_of[flight.lanes[target.offset]]
        logprob = float(result.logprob[row])
        top = result.top[row] if result.top else {}
        found.append(Scored(target.token, int(result.depth[row]), logprob, top))
        if not math.isfinite(logprob):
            break
    return found

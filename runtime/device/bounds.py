"""How deep the tokens that enter may go: the policies' bounds, and the threads' iteration limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies import DepthPolicy, EntryView
from policies.conversion import shown
from runtime.device.sequence import Flight
from runtime.errors import PolicyError, described

NO_LIMIT = 2**31 - 1


@dataclass(slots=True, frozen=True)
class Pressure:
    """How busy the engine is, as policies see it."""

    in_flight: int
    waiting: int
    lanes: int
    mean_recurrence: int


def bounds_of(
    flights: list[Flight], pressure: Pressure, most: int
) -> tuple[dict[int, list[int]], dict[int, PolicyError]]:
    """Iteration bounds of each flight's tokens, and errors of those whose policy failed; both by the last lane.

    A bound of 0 means that the thread's iterations are used up.
    """
    bounds: dict[int, list[int]] = {}
    errors: dict[int, PolicyError] = {}
    by_policy: dict[int | None, list[Flight]] = {}
    for flight in flights:
        sequence = flight.sequence
        if flight.known:
            bounds[flight.last_lane] = list(sequence.depths[flight.start : flight.end])
        elif sequence.constant_bound is not None and sequence.constant_bound <= most:
            bounds[flight.last_lane] = [sequence.constant_bound] * len(flight)
        else:
            by_policy.setdefault(sequence.policy, []).append(flight)
    for members in by_policy.values():
        _ask(members, pressure, most, bounds, errors)
    for flight in flights:
        left = flight.generate.iterations_left
        asked = bounds.get(flight.last_lane)
        if left is not None and asked is not None and sum(asked) > left:
            # Tokens whose depths are known cannot go back shallower: what others read of them would be another's.
            bounds[flight.last_lane] = [0 if flight.known else min(bound, left // len(asked)) for bound in asked]
    return bounds, errors


def _ask(
    members: list[Flight],
    pressure: Pressure,
    most: int,
    bounds: dict[int, list[int]],
    errors: dict[int, PolicyError],
) -> None:
    """One question for all; if it fails, one for each, so that only those whose own answer fails are ended."""
    policy = members[0].sequence.depth
    try:
        answer = _checked(policy, entry_view(members, pressure), most)
    except BaseException as cause:
        if len(members) == 1:
            errors[members[0].last_lane] = policy_error(policy, cause)
        else:
            for flight in members:
                _ask([flight], pressure, most, bounds, errors)
        return
    start = 0
    for flight in members:
        # A flight leaves together, so its tokens share the deepest bound among them.
        bounds[flight.last_lane] = [max(answer[start : start + len(flight)])] * len(flight)
        start += len(flight)


def _checked(policy: DepthPolicy, view: EntryView, most: int) -> list[int]:
    answer: list[int] = np.asarray(policy.bound(view)).astype(np.int64).tolist()
    if len(answer) != len(view.position):
        raise ValueError(f"bound() answered {len(answer)} values for {len(view.position)} tokens.")
    if min(answer) < 1 or max(answer) > most:
        raise ValueError(
            f"bound() answered {min(answer)} to {max(answer)} iterations; this engine allows 1 to {most} "
            "(EngineSettings.most_iterations)."
        )
    return answer


def policy_error(policy: DepthPolicy, cause: BaseException) -> PolicyError:
    error = PolicyError(f"depth policy {shown(policy)} failed: {described(cause)}.")
    error.__cause__ = cause
    return error


def entry_view(flights: list[Flight], pressure: Pressure) -> EntryView:
    """What a policy sees of the flights of threads under it; one row a token."""
    columns: list[list[int]] = [[] for _ in range(5)]
    position, received, tree_depth, tokens_left, iterations_left = columns
    for flight in flights:
        count, sequence, generate = len(flight), flight.sequence, flight.generate
        left = generate.iterations_left
        first = sequence.position(flight.start)
        position += range(first, first + count)
        received += [not sequence.span_at(flight.start).sampled] * count
        tree_depth += [len(sequence.path) - 1] * count
        to_compute = generate.request.max_tokens - generate.work.generated + len(sequence.tokens) - flight.start - 1
        tokens_left += [min(NO_LIMIT, to_compute)] * count
        iterations_left += [NO_LIMIT if left is None else min(NO_LIMIT, left)] * count
    return EntryView(
        position=np.array(position, np.int32),
        is_received=np.array(received, np.bool_),
        tree_depth=np.array(tree_depth, np.int32),
        tokens_left=np.array(tokens_left, np.int32),
        iterations_left=np.array(iterations_left, np.int32),
        in_flight=pressure.in_flight,
        waiting=pressure.waiting,
        lanes=pressure.lanes,
        mean_recurrence=pressure.mean_recurrence,
    )

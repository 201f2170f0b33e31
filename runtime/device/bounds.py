"""How deep the tokens that enter may go: the policies' bounds, and the threads' iteration limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.conversion import shown
from policies.depth.base import DepthPolicy, EntryView
from runtime.device.entering import Group
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
    groups: list[Group], pressure: Pressure, most: int
) -> tuple[dict[int, list[int]], dict[int, PolicyError]]:
    """Iteration bounds of each group's tokens, and errors of those whose policy failed; both by the group's last lane.

    A bound of 0 means that the thread's iterations are used up.
    """
    bounds: dict[int, list[int]] = {}
    errors: dict[int, PolicyError] = {}
    by_policy: dict[int, list[Group]] = {}
    for group in groups:
        if group.known:
            bounds[group.last] = list(group.sequence.depths[group.start : group.end])
        else:
            by_policy.setdefault(group.sequence.policy, []).append(group)
    for members in by_policy.values():
        _ask(members, pressure, most, bounds, errors)
    for group in groups:
        left = group.call.iterations_left
        asked = bounds.get(group.last)
        if left is not None and asked is not None and sum(asked) > left:
            # Tokens whose depths are known cannot go back shallower: what others read of them would be another's.
            bounds[group.last] = [0 if group.known else min(bound, left // len(asked)) for bound in asked]
    return bounds, errors


def _ask(
    members: list[Group],
    pressure: Pressure,
    most: int,
    bounds: dict[int, list[int]],
    errors: dict[int, PolicyError],
) -> None:
    """One question for all; if it fails, one for each, so that only those to blame are ended."""
    policy = members[0].sequence.depth
    constant = constant_bound(policy, pressure.mean_recurrence)
    if constant is not None and constant <= most:
        for group in members:
            bounds[group.last] = [constant] * (group.end - group.start)
        return
    try:
        answer = _checked(policy, entry_view(members, pressure), most)
    except Exception as cause:
        if len(members) == 1:
            errors[members[0].last] = policy_error(policy, cause)
        else:
            for group in members:
                _ask([group], pressure, most, bounds, errors)
        return
    start = 0
    for group in members:
        count = group.end - group.start
        # A group leaves together, so its tokens share the deepest bound among them.
        bounds[group.last] = [max(answer[start : start + count])] * count
        start += count


def constant_bound(policy: DepthPolicy, mean_recurrence: int) -> int | None:
    """The bound of every token, where the policy does not ask which token it is; None where it does."""
    if type(policy).bound is not DepthPolicy.bound:
        return None
    return mean_recurrence if policy.most is None else policy.most


def _checked(policy: DepthPolicy, view: EntryView, most: int) -> list[int]:
    answer: list[int] = np.asarray(policy.bound(view)).astype(np.int64).tolist()
    if len(answer) != len(view.position):
        raise ValueError(f"bound() answered {len(answer)} values for {len(view.position)} tokens")
    if min(answer) < 1 or max(answer) > most:
        raise ValueError(
            f"bound() answered {min(answer)} to {max(answer)} iterations; this engine allows 1 to {most} "
            "(EngineSettings.most_iterations)"
        )
    return answer


def policy_error(policy: DepthPolicy, cause: Exception) -> PolicyError:
    error = PolicyError(f"depth policy {shown(policy)} failed: {described(cause)}.")
    error.__cause__ = cause
    return error


def entry_view(groups: list[Group], pressure: Pressure) -> EntryView:
    """What a policy sees of the groups that follow it; one row a token."""
    columns: list[list[int]] = [[] for _ in range(5)]
    position, received, tree_depth, tokens_left, iterations_left = columns
    for group in groups:
        count, call = group.end - group.start, group.call
        left = call.iterations_left
        position += range(group.start, group.end)
        received += [not group.sequence.span_at(group.start).sampled] * count
        tree_depth += [len(group.sequence.path) - 1] * count
        to_compute = call.request.max_tokens - call.sampled + len(group.sequence.tokens) - group.start - 1
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

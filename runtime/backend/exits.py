"""The depth policies' exit tests, vectorised over the lanes that are due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policies import DepthPolicy, DepthView, exit_rule
from runtime.backend.interface import Bool, Entering, Int32, Int64
from runtime.backend.lanes import Lanes
from runtime.model.served import Served

Finish = Callable[[Int64, Bool], Tensor]
"""Runs the coda over lanes and returns the logits of those marked; see `TorchBackend`."""


@dataclass(slots=True, frozen=True)
class Measured:
    """What policies may look at after an iteration."""

    state: Tensor
    """[lanes, width] latent states."""
    exit_probability: Tensor | None
    """[lanes] float32, cumulative; None without an exit gate."""
    finish: Finish


@dataclass(slots=True)
class Tested:
    """Groups that were tested in one tick, named by their last lanes."""

    lane: Int64
    value: Tensor
    """[n] float32 exit values, reduced over each group."""
    done: Bool
    logits: Tensor | None
    """[n, vocab] where the policy reads logits, else None."""


@dataclass(slots=True)
class TickExits:
    """All tests of a tick."""

    tested: list[Tested]
    failures: dict[int, BaseException]
    """By the last lane of the group whose policy raised."""
    remembered: list[tuple[Tensor, Tensor, Tensor]]
    """What tests of a policy left, lanes of it, and what they are to remember once the tick is done."""

    def done(self) -> Int64:
        """Last lanes of groups that exit."""
        return np.concatenate([tested.lane[tested.done] for tested in self.tested] or [np.empty(0, np.int64)])


KEPT = 16
"""Policies without threads of which `previous` is kept, because the next thread is likely to follow one of them."""


def check_readable(policy: DepthPolicy, specification: Served) -> None:
    """Raises `ValueError` for a policy that reads what a model has not."""
    if policy.reads == "gate" and not specification.exit_gate:
        raise ValueError(f"{policy!r} reads an exit gate, and the model has none; use LatentDiff, say.")


class ExitTests:
    """Registered policies and what they remember of each token in flight."""

    def __init__(self, lanes: int, width: int, vocab: int, device: torch.device) -> None:
        self._lanes, self._width, self._vocab, self._device = lanes, width, vocab, device
        self._policies: list[DepthPolicy] = []
        self._users: list[int] = []
        """By policy: how many have registered it and not released it."""
        self._unused: dict[int, None] = {}
        """Policies without users, longest unused first."""
        self._index: dict[DepthPolicy, int] = {}
        self._previous: list[Tensor] = []
        """By policy: [lanes, previous_width] float32."""

    def register(self, policy: DepthPolicy) -> int:
        index = self._index.get(policy)
        if index is None:
            previous = self._previous_for(policy)
            if len(self._unused) > KEPT:
                index = next(iter(self._unused))
                del self._index[self._policies[index]]
                self._policies[index], self._previous[index] = policy, previous
            else:
                index = len(self._policies)
                self._policies.append(policy)
                self._previous.append(previous)
                self._users.append(0)
            self._index[policy] = index
        self._users[index] += 1
        self._unused.pop(index, None)
        return index

    def _previous_for(self, policy: DepthPolicy) -> Tensor:
        """[lanes, previous_width] float32."""
        width = policy.previous_width(self._width, self._vocab) if policy.reads != "nothing" else 0
        return torch.zeros(self._lanes, width, device=self._device)

    def release(self, index: int) -> None:
        self._users[index] -= 1
        if not self._users[index]:
            self._unused[index] = None

    def __len__(self) -> int:
        """Policies that `previous` is kept for."""
        return len(self._policies)

    def begin(self, entering: Entering, state: Tensor) -> dict[int, BaseException]:
        """Sets what the first test of entering tokens finds as `previous`; their latent states are `state` [n, width].

        Returns what policies raised, by the last lane of the group that they raised for.
        """
        failures: dict[int, BaseException] = {}
        for index in np.unique(entering.policy[entering.tests]):
            if self._previous[index].shape[1]:
                rows = np.flatnonzero((entering.policy == index) & entering.tests)
                self._begin(index, rows, entering, state, failures)
        return failures

    def _begin(
        self, index: int, rows: Int64, entering: Entering, state: Tensor, failures: dict[int, BaseException]
    ) -> None:
        """Begins all groups of one policy together; if that raises, each group alone, so that only those that it
        raises for fail."""
        at, lane = self._on_device(rows), self._on_device(entering.lane[rows])
        try:
            self._previous[index][lane] = self._policies[index].begin(state[at].float(), self._vocab)
        except torch.OutOfMemoryError:
            raise
        except BaseException as cause:  # a policy may raise SystemExit too
            groups = np.unique(entering.group[rows])
            if len(groups) == 1:
                failures[int(groups[0])] = cause
                return
            for group in groups:
                self._begin(index, rows[entering.group[rows] == group], entering, state, failures)

    def run(
        self, lanes: Lanes, active: Int64, state: Tensor, finish: Finish, exit_probability: Tensor | None = None
    ) -> TickExits:
        """Tests the active lanes whose policies are due; lane ages count the iteration just done.

        `state` is [lanes, width], `exit_probability` [lanes] of models with an exit gate.

        Changes nothing: `remember` does, when the tick is sure to be done.
        """
        exits = TickExits([], {}, [])
        candidates = active[lanes.tests[active]]
        for index in np.unique(lanes.policy[candidates]):
            policy = self._policies[index]
            if policy.reads == "nothing":
                continue
            own = candidates[lanes.policy[candidates] == index]
            due = own[exit_rule.is_due(lanes.age[own], policy.min_iterations, policy.check_every)]
            if len(due):
                self._test(index, lanes, due, Measured(state, exit_probability, finish), exits)
        return exits

    def remember(self, exits: TickExits) -> None:
        """Keeps what policies are to know at their next tests."""
        for previous, at, remembered in exits.remembered:
            previous[at] = remembered

    def _test(self, index: int, lanes: Lanes, due: Int64, measured: Measured, exits: TickExits) -> None:
        """Tests whole groups of one policy together; if that raises, each group alone, so that only those that it
        raises for fail."""
        # What the backend fails of here is no failure of the policy's.
        logits = measured.finish(due, lanes.group[due] == due) if self._policies[index].reads == "logits" else None
        try:
            self._measure(index, lanes, due, measured, logits, exits)
        except torch.OutOfMemoryError:
            raise
        except BaseException as cause:  # a policy may raise SystemExit too
            groups = np.unique(lanes.group[due])
            if len(groups) == 1:
                exits.failures[int(groups[0])] = cause
                return
            for group in groups:
                self._test(index, lanes, due[lanes.group[due] == group], measured, exits)

    def _measure(
        self, index: int, lanes: Lanes, due: Int64, measured: Measured, logits: Tensor | None, exits: TickExits
    ) -> None:
        policy, previous = self._policies[index], self._previous[index]
        group = lanes.group[due]
        is_last = group == due
        rows = due[is_last] if exit_rule.is_by_last_token(policy) else due
        at, age = self._on_device(rows), self._on_device(lanes.age[rows])
        gate = measured.exit_probability
        probability = gate[at] if policy.reads == "gate" and gate is not None else None
        view = DepthView(age, measured.state[at].float(), logits, previous[at], probability)
        values, remembered = self._values(policy, rows, view)
        if values.shape != (len(rows),):
            raise ValueError(f"measure() answered values of shape {tuple(values.shape)} for {len(rows)} rows.")
        if remembered.shape != (len(rows), previous.shape[1]):
            raise ValueError(
                f"measure() answered a tensor of shape {tuple(remembered.shape)} as `previous`; previous_width() says "
                f"{(len(rows), previous.shape[1])}."
            )
        tested = rows
        if not (is_last.all() or exit_rule.is_by_last_token(policy)):
            # A group's last token may rest at its bound already, while others go on and are tested.
            tested, number, sizes = np.unique(group, return_inverse=True, return_counts=True)
            values = exit_rule.group_means(values, self._on_device(number), self._on_device(sizes))
        done = policy.is_done(values)
        if done.shape != values.shape or done.dtype != torch.bool:
            raise ValueError(
                f"is_done() answered {done.dtype} of shape {tuple(done.shape)} for {len(values)} values; it must be "
                "one bool for each."
            )
        exits.tested.append(Tested(tested, values, done.cpu().numpy(), logits))
        exits.remembered.append((previous, at, remembered))

    def _values(self, policy: DepthPolicy, lanes: Int64, view: DepthView) -> tuple[Tensor, Tensor]:
        """What a policy measures of lanes; a backend may know a faster way."""
        return policy.measure(view)

    def _on_device(self, numbers: Int32 | Int64) -> Tensor:
        # From pageable memory, a copy that is not waited for has still read all of it when the call returns.
        return torch.from_numpy(numbers.astype(np.int64, copy=False)).to(self._device, non_blocking=True)

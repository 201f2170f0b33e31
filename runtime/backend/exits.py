"""The depth policies' exit tests, vectorised over the lanes that are due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policies.depth.base import DepthPolicy, DepthView
from runtime.backend.interface import Bool, Entering, Int64
from runtime.backend.lanes import Lanes

Finish = Callable[[Int64, Bool], Tensor]
"""Runs the coda over lanes and returns the logits of those marked; see `TorchBackend`."""


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
    failures: dict[int, Exception]
    """By the last lane of the group whose policy raised."""

    def done(self) -> Int64:
        """Last lanes of groups that exit."""
        return np.concatenate([tested.lane[tested.done] for tested in self.tested] or [np.empty(0, np.int64)])


class ExitTests:
    """Registered policies and what they remember of each token in flight."""

    def __init__(self, lanes: int, width: int, vocab: int, device: torch.device) -> None:
        self._lanes, self._width, self._vocab, self._device = lanes, width, vocab, device
        self._policies: list[DepthPolicy] = []
        self._index: dict[DepthPolicy, int] = {}
        self._memory: list[Tensor] = []
        """By policy: [lanes, memory_width] float32."""

    def register(self, policy: DepthPolicy) -> int:
        index = self._index.get(policy)
        if index is None:
            index = self._index[policy] = len(self._policies)
            self._policies.append(policy)
            width = policy.memory_width(self._width, self._vocab) if policy.reads != "nothing" else 0
            self._memory.append(torch.zeros(self._lanes, width, device=self._device))
        return index

    def begin(self, entering: Entering, state: Tensor) -> None:
        """Sets the memory of entering tokens whose initial latent states are `state` [n, width]."""
        for index in np.unique(entering.policy[entering.tests]):
            policy, memory = self._policies[index], self._memory[index]
            if memory.shape[1]:
                rows = np.flatnonzero((entering.policy == index) & entering.tests)
                lane = torch.from_numpy(entering.lane[rows].astype(np.int64)).to(self._device)
                memory[lane] = policy.begin(state[torch.from_numpy(rows).to(self._device)].float(), self._vocab)

    def run(self, lanes: Lanes, active: Int64, state: Tensor, finish: Finish) -> TickExits:
        """Tests the active lanes whose policies are due; lane ages count the iteration just done."""
        exits = TickExits([], {})
        candidates = active[lanes.tests[active]]
        for index in np.unique(lanes.policy[candidates]):
            policy = self._policies[index]
            if policy.reads == "nothing":
                continue
            own = candidates[lanes.policy[candidates] == index]
            checks = lanes.age[own] - policy.minimum - 1
            due = own[(checks >= 0) & (checks % policy.every == 0)]
            if len(due):
                self._test(index, lanes, due, state, finish, exits)
        return exits

    def _test(self, index: int, lanes: Lanes, due: Int64, state: Tensor, finish: Finish, exits: TickExits) -> None:
        """Tests whole groups of one policy together; if that raises, each group alone, so that one is to blame."""
        try:
            exits.tested.append(self._measure(index, lanes, due, state, finish))
        except Exception as cause:
            groups = np.unique(lanes.group[due])
            if len(groups) == 1:
                exits.failures[int(groups[0])] = cause
                return
            for group in groups:
                self._test(index, lanes, due[lanes.group[due] == group], state, finish, exits)

    def _measure(self, index: int, lanes: Lanes, due: Int64, state: Tensor, finish: Finish) -> Tested:
        policy, memory = self._policies[index], self._memory[index]
        is_last = lanes.group[due] == due
        logits = finish(due, is_last) if policy.reads == "logits" else None
        rows = due[is_last] if policy.reads == "logits" else due
        at = torch.from_numpy(rows).to(self._device)
        age = torch.from_numpy(lanes.age[rows].astype(np.int64)).to(self._device)
        values, remembered = policy.measure(DepthView(age, state[at].float(), logits, memory[at]))
        if values.shape != (len(rows),):
            raise ValueError(f"measure() answered values of shape {tuple(values.shape)} for {len(rows)} rows")
        memory[at] = remembered
        last = due[is_last]
        if policy.reads == "latent" and len(last) < len(due):
            values = self._mean_by_group(values, lanes.group[due], last)
        return Tested(last, values, policy.is_done(values).cpu().numpy(), logits)

    def _mean_by_group(self, values: Tensor, group: np.ndarray, last: Int64) -> Tensor:
        number_of = np.zeros(self._lanes, np.int64)
        number_of[last] = np.arange(len(last))
        number = number_of[group]
        index = torch.from_numpy(number).to(self._device)
        sums = torch.zeros(len(last), dtype=values.dtype, device=self._device).index_add_(0, index, values)
        return sums / torch.from_numpy(np.bincount(number, minlength=len(last))).to(self._device)

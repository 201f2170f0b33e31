"""What a model's exit gate has said of the tokens in flight so far."""

from __future__ import annotations

from torch import Tensor


class GateSums:
    """Probabilities to have exited, by lane (Ouro; `p_r = l_r (1 - l_1) ... (1 - l_{r-1})`, and their sums)."""

    def __init__(self, exit_probability: Tensor, going_on: Tensor) -> None:
        self.exit_probability = exit_probability
        """[lanes] float32: p_1 + ... + p_r after r iterations."""
        self._going_on = going_on
        """[lanes] float32: (1 - l_1) ... (1 - l_r)."""
        self._before = self._going_on[:0].long(), self.exit_probability[:0], self._going_on[:0]

    def begin(self, lanes: Tensor) -> None:
        """For tokens that enter in lanes [n]."""
        self.exit_probability[lanes] = 0.0
        self._going_on[lanes] = 1.0

    def add(self, lanes: Tensor, gates: Tensor) -> None:
        """After an iteration of lanes [n] at which the gate says `gates` [n]."""
        total, going_on = self.exit_probability[lanes], self._going_on[lanes]
        self._before = lanes, total, going_on
        self.exit_probability[lanes] = total + gates * going_on
        self._going_on[lanes] = going_on * (1 - gates)

    def undo(self) -> None:
        """Forgets the last `add`, unless that was done already."""
        lanes, total, going_on = self._before
        self.exit_probability[lanes], self._going_on[lanes] = total, going_on
        self._before = lanes[:0], total[:0], going_on[:0]

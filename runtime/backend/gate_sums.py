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

    def begin(self, lanes: Tensor) -> None:
        """For tokens that enter in lanes [n]."""
        self.exit_probability[lanes] = 0.0
        self._going_on[lanes] = 1.0

    def add(self, lanes: Tensor, gates: Tensor) -> None:
        """After an iteration of lanes [n] at which the gate says `gates` [n]."""
        going_on = self._going_on[lanes]
        self.exit_probability[lanes] += gates * going_on
        self._going_on[lanes] = going_on * (1 - gates)

    def copy(self, lanes: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of lanes [n], for `restore`."""
        return self.exit_probability[lanes], self._going_on[lanes]

    def restore(self, lanes: Tensor, copied: tuple[Tensor, Tensor]) -> None:
        """Makes of lanes [n] what they were when they were copied."""
        self.exit_probability[lanes], self._going_on[lanes] = copied

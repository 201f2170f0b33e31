"""Exit when the model's own exit gate says so."""

from __future__ import annotations

from torch import Tensor

from policies.depth.base import DepthPolicy, DepthView


class GateExit(DepthPolicy, frozen=True):
    """Exits once the cumulative probability to exit reaches `threshold` (Ouro, `early_exit_gate`).

    With l_r, the gate's probability after iteration r, that is 1 - (1 - l_1) ... (1 - l_r). A threshold of 0 or less
    exits after the first iteration; one above 1 never exits before the bound. For models with an exit gate only.
    """

    threshold: float = 0.5

    reads = "gate"

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        assert view.exit_probability is not None
        return view.exit_probability, view.previous

    def is_done(self, values: Tensor) -> Tensor:
        return values >= self.threshold

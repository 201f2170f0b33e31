"""Exit when the latent state hardly moves."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.depth.base import DepthPolicy, DepthView


class LatentDiff(DepthPolicy, frozen=True):
    """Exits below a relative change |s_new - s_old| / |s_new| of the latent state between two tests.

    From a zero initial state the value at iteration 1 is 1. Remembers the latent state of the last test.
    """

    threshold: float = 0.03

    reads = "latent"

    def previous_width(self, width: int, vocab: int) -> int:
        return width

    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        return latent.float()

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        latent = view.latent.float()
        change = torch.linalg.vector_norm(latent - view.previous, dim=-1)
        return change / torch.linalg.vector_norm(latent, dim=-1), latent

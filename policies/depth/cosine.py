"""Exit when the latent state keeps its direction."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.depth.base import DepthPolicy, DepthView


class Cosine(DepthPolicy, frozen=True):
    """Exits below a cosine distance 1 - cos(s_new, s_old) of the latent states of two successive tests.

    From a zero initial state, which has no direction, the value at the first test is NaN: nothing exits there.
    Remembers the latent state of the last test.
    """

    threshold: float = 1e-3

    reads = "latent"

    def previous_width(self, width: int, vocab: int) -> int:
        return width

    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        return latent.float()

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        latent, before = view.latent.float(), view.previous
        # Divided one after the other, as the reference does: 0 / 0 must stay NaN.
        similarity = (latent * before).sum(-1) / torch.linalg.vector_norm(latent, dim=-1)
        return 1 - similarity / torch.linalg.vector_norm(before, dim=-1), latent

"""Exit when the uncertainty about the next token settles."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.depth.base import DepthPolicy, DepthView

_BEFORE = 100.0
"""Entropy before the first test: far from any real one, so that nothing exits there."""


class EntropyDiff(DepthPolicy, frozen=True):
    """Exits below a change |H_new - H_old| in nats of the next-token entropy between two successive tests.

    Remembers the entropy of the last test.
    """

    threshold: float = 1e-3

    reads = "logits"

    def previous_width(self, width: int, vocab: int) -> int:
        return 1

    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        return latent.new_full((len(latent), 1), _BEFORE, dtype=torch.float32)

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        assert view.logits is not None
        probs = view.logits.softmax(-1)
        entropy = -(probs * (probs + 1e-10).log()).sum(-1, keepdim=True)
        return (entropy - view.previous).abs().squeeze(-1), entropy

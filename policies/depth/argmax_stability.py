"""Exit when the likeliest next token stays the same."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.depth.base import DepthPolicy, DepthView
from policies.validation import check_count


class ArgmaxStability(DepthPolicy, frozen=True):
    """Exits once the likeliest next token was the same in `threshold` tests after the one that first found it.

    Its value is that count, and it exits at or above the threshold. Remembers the token and the count.
    """

    threshold: int = 5

    reads = "logits"

    def __post_init__(self) -> None:
        check_count(self, "threshold", self.threshold, 1)
        super().__post_init__()

    def previous_width(self, width: int, vocab: int) -> int:
        return 2

    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        return latent.new_tensor([-1.0, 0.0], dtype=torch.float32).repeat(len(latent), 1)

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        assert view.logits is not None
        best = view.logits.argmax(-1).float()  # exact below 2**24 tokens
        before, stable = view.previous.unbind(-1)
        stable = torch.where(best == before, stable + 1, 0.0)
        return stable, torch.stack([best, stable], dim=-1)

    def is_done(self, values: Tensor) -> Tensor:
        return values >= self.threshold

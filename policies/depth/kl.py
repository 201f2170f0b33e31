"""Exit when the next-token distribution settles, by Kullback-Leibler divergence."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.depth.base import DepthPolicy, DepthView

_MIN_P = 0.1
"""Share of the likeliest token's probability below which `MinPKL` makes tokens equal; the reference's."""


class KL(DepthPolicy, frozen=True):
    """Exits below a divergence KL(p_old || p_new) in nats between the distributions of two successive tests.

    Before the first test the distribution counts as uniform. Remembers the log-probabilities of the last test.
    """

    threshold: float = 1e-3

    reads = "logits"

    def previous_width(self, width: int, vocab: int) -> int:
        return vocab

    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        return latent.new_full((len(latent), vocab), -math.log(vocab), dtype=torch.float32)

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        assert view.logits is not None
        log_probs = self.log_probs(view.logits)
        return F.kl_div(log_probs, view.previous, reduction="none", log_target=True).sum(-1), log_probs

    def log_probs(self, logits: Tensor) -> Tensor:
        """The log-probabilities to compare, [n, vocab] float32, from logits of that shape."""
        return F.log_softmax(logits, dim=-1)


class MinPKL(KL, frozen=True):
    """As `KL`, but tokens under a tenth of the likeliest one's probability all count as 1 / vocab: the tail is noise.

    The distribution is renormalised after that.
    """

    threshold: float = 1e-5

    def log_probs(self, logits: Tensor) -> Tensor:
        probs = logits.softmax(-1)
        is_tail = probs < _MIN_P * probs.amax(-1, keepdim=True)
        probs = probs.masked_fill(is_tail, 1 / logits.shape[-1])
        return (probs / probs.sum(-1, keepdim=True)).log()

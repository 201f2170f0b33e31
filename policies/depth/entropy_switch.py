"""Two models that speak in turns, the smaller one while it is clear what comes next (Entropy Adaptive Decoding, arXiv
2502.06833)."""

from __future__ import annotations

from collections.abc import Sequence

from policies.depth.base import DepthPolicy
from policies.validation import check_count, refuse_fields


class EntropySwitch(DepthPolicy, frozen=True):
    """The smaller model that an engine was opened with (`Engine.open(large, drafts=small)`) says the next token where
    the last `window` tokens of the call came from distributions with a mean entropy below `threshold`, in nats,
    whichever model had said them; else the engine's own model does, and it says the first token of every call.

    This is the two-model form of adaptive depth, and it changes what is said: tokens of the smaller model have depth 0,
    in answers and in traces. What it computes is in no usage. A model that has not spoken reads what the other said as
    it reads messages. Tokens of the engine's own model get `max_iterations`, as under `Fixed`.

    A subclass may decide otherwise in `is_clear`. In an engine without a second model, a thread under it fails with a
    `PolicyError`.
    """

    threshold: float = 0.5
    window: int = 1

    def __post_init__(self) -> None:
        unused = ("min_iterations", "check_every", "exit_received", "carry")
        refuse_fields(self, unused, "all tokens of the larger model go to the same depth")
        super().__post_init__()
        check_count(self, "window", self.window, 1)

    def is_clear(self, entropies: Sequence[float]) -> bool:
        """Whether the smaller model says the next token, from the entropies, in nats, of the distributions that the
        call's tokens so far were sampled from; at least one. Runs on the device thread, for every token."""
        last = entropies[-self.window :]
        return sum(last) / len(last) < self.threshold

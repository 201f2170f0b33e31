"""One generate in progress: what was asked for, what is known of its tokens, and when it is at its bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from runtime.link.commands import Generate
from runtime.link.work import Work


class Drawn(NamedTuple):
    """A token that was sampled."""

    token: int
    depth: int
    """Iterations that made its logits; 0 where another model said it."""
    logprob: float
    entropy: float | None
    """Nats, of the distribution that it came from; None where that is of no interest."""
    top_logprobs: dict[int, float] | None
    """The likeliest tokens, where the sampling asks for them."""


@dataclass(slots=True)
class ActiveGenerate:
    """One generate in progress, and what it has cost so far."""

    request: Generate
    start: int
    """Length of the context when it began."""
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    drafted: int = 0
    """Tokens that entered before it was sure that they are said."""
    accepted: int = 0
    """Those of them that were said."""
    is_alone: bool = False
    """Whether a second model that was to speak too could not go on."""

    told: int = 0
    """Tokens of the lane's present run that its stream has."""

    def keep(self, count: int) -> None:
        """Forgets what is known of sampled tokens after the first `count`; what they cost still counts."""
        for kept in (self.logprobs, self.entropies, self.top_logprobs, self.depths):
            del kept[count:]

    def tokens_left(self, length: int, max_context: int) -> int:
        """Tokens that may still be sampled into a context of `length` tokens that holds `max_context`."""
        return min(self.request.max_tokens - self.work.generated, max_context - length)

    def bound_reached(self, length: int, max_context: int) -> Literal["length", "context"] | None:
        """Which bound lets no further token be sampled; None where one may be."""
        if self.tokens_left(length, max_context) > 0:
            return None
        return "length" if self.work.generated >= self.request.max_tokens else "context"

    @property
    def iterations_left(self) -> int | None:
        most = self.request.max_iterations
        return None if most is None else most - self.work.iterations

"""Speculation: the same depth for every token, and tokens guessed ahead, from fewer iterations or by another model."""

from __future__ import annotations

from typing import Literal, get_args

from policies.depth.base import DepthPolicy
from policies.validation import check_choice, check_count, check_flag, refuse_fields

Drafts = Literal["self", "model"]


class Speculative(DepthPolicy, frozen=True):
    """`max_iterations` for every token, as `Fixed`, and the same tokens: drafts only make them come sooner.

    After `draft_iterations` a sampled token's state is read as if it were done. The token that it drafts starts at once
    behind it, and goes on as the next token if the finished state then samples the same; else it and what follows it
    are thrown away. Never takes more ticks than `Fixed`, but more iterations, counted in usage, by those that were
    thrown away. Received tokens and calls with an iteration limit are not speculated about.

    `lookahead` is the most drafted tokens in flight. Where `adaptive`, a thread drafts the k-th token ahead only while
    its last drafts were right often enough that this one would be with a chance of at least a third (and one always).

    With `drafts="model"`, the model that an engine was opened with beside its own (`Engine.open(..., drafts=)`) guesses
    `lookahead` tokens at a time, which enter together with the token that they follow; `draft_iterations` has no
    meaning then. In an engine without one this is `Fixed`.

    Needs an iteration slot for each of the `max_iterations`: in an engine with fewer, a thread under it fails with a
    `PolicyError`.
    """

    draft_iterations: int = 2
    lookahead: int = 4
    adaptive: bool = True
    drafts: Drafts = "self"

    def __post_init__(self) -> None:
        unused = ("min_iterations", "check_every", "exit_received", "threshold", "carry")
        refuse_fields(self, unused, "all its tokens go to the same depth, and none waits for another's last state")
        super().__post_init__()
        check_count(self, "draft_iterations", self.draft_iterations, 1)
        check_count(self, "lookahead", self.lookahead, 1)
        check_flag(self, "adaptive", self.adaptive)
        check_choice(self, "drafts", self.drafts, get_args(Drafts))
        if self.drafts == "self" and self.max_iterations is not None and self.draft_iterations >= self.max_iterations:
            raise ValueError(
                f"Speculative: draft_iterations ({self.draft_iterations}) leaves nothing to verify before "
                f"max_iterations ({self.max_iterations}); lower draft_iterations, "
                "or take Fixed."
            )

"""The same depth for every token."""

from __future__ import annotations

from policies.depth.base import DepthPolicy
from policies.validation import refuse_fields


class Fixed(DepthPolicy, frozen=True):
    """`max_iterations` iterations for every token, or the model's mean recurrence for None; nothing is tested."""

    max_iterations: int | None = None

    def __post_init__(self) -> None:
        unused = ("min_iterations", "check_every", "exit_received", "threshold")
        refuse_fields(self, unused, "it tests nothing: drop it, or take a policy that tests, such as LatentDiff")
        super().__post_init__()

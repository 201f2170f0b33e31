"""Base of depth policies that lower the bound of another one and leave its exit test alone."""

from __future__ import annotations

from typing import Self

import msgspec
from torch import Tensor

from policies.depth.base import DepthPolicy, DepthView, Reads, Role
from policies.depth.fixed import Fixed
from policies.printing import as_written
from policies.validation import check_policy, field_defaults

_SHARED = ("min_iterations", "max_iterations", "check_every", "exit_received", "threshold", "carry")


class CriterionReads:
    """What the criterion reads, seen as the `reads` of the policy that holds it."""

    def __get__(self, policy: DepthPolicy | None, kind: type | None = None) -> Reads:
        return policy.criterion.reads if isinstance(policy, Bounding) else "nothing"


class Bounding(DepthPolicy, frozen=True):
    """Exits as `criterion` does. A subclass overrides `bound`, starting from `self.criterion.bound(entering)`.

    min_iterations, max_iterations, check_every, exit_received, threshold and carry are the criterion's and are given to
    it; `max_iterations` may also be given here if the criterion has none.
    """

    criterion: DepthPolicy = Fixed()

    reads = CriterionReads()

    def __post_init__(self) -> None:
        check_policy(self, "criterion", self.criterion, DepthPolicy)
        if self.max_iterations is not None and self.criterion.max_iterations is None:
            criterion = msgspec.structs.replace(self.criterion, max_iterations=self.max_iterations)
            msgspec.structs.force_setattr(self, "criterion", criterion)
        defaults = field_defaults(DepthPolicy)
        for name in _SHARED:
            own, wanted = getattr(self, name), getattr(self.criterion, name)
            if own not in (defaults[name], wanted):
                raise ValueError(
                    f"{type(self).__name__}: {name} is {own!r}, but its criterion's is {wanted!r}; "
                    f"give it to the criterion: {type(self).__name__}({type(self.criterion).__name__}({name}={own!r}))."
                )
            # The backend reads these from the policy it was given.
            msgspec.structs.force_setattr(self, name, wanted)

    def __repr__(self) -> str:
        return as_written(self, hidden=_SHARED)

    @property
    def innermost(self) -> DepthPolicy:
        return self.criterion.innermost

    def for_thread(self, role: Role, tree_depth: int) -> Self:
        criterion = self.criterion.for_thread(role, tree_depth)
        if criterion == self.criterion:
            return self
        shared = {name: getattr(criterion, name) for name in _SHARED}
        return msgspec.structs.replace(self, criterion=criterion, **shared)

    def deepest(self, mean_recurrence: int) -> int:
        return self.criterion.deepest(mean_recurrence)

    def previous_width(self, width: int, vocab: int) -> int:
        return self.criterion.previous_width(width, vocab)

    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        return self.criterion.begin(latent, vocab)

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        return self.criterion.measure(view)

    def is_done(self, values: Tensor) -> Tensor:
        return self.criterion.is_done(values)

"""What a select policy is: several independent root threads answer one prompt, and one of the answers is given."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from policies.printing import as_written
from policies.validation import check_count


class SelectPolicy(msgspec.Struct, frozen=True, tag=True):
    """Base of all select policies; a subclass registers by being defined. This one gives the first root's answer.

    Roots differ only by their randomness, so a temperature above 0 is needed for answers that differ.
    """

    samples: int
    """How many independent root threads answer one prompt."""

    def __post_init__(self) -> None:
        check_count(self, "samples", self.samples, 1)

    def __repr__(self) -> str:
        return as_written(self)

    def choose(self, prompt: str, answers: Sequence[str]) -> int:
        """Index of the answer to give back among those that were given (at least one); must not block."""
        return 0

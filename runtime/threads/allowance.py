"""How many tokens a thread that its model drives may still sample."""

from __future__ import annotations


class Allowance:
    """Over all the generates of a thread's life; `left` is None where there is no bound."""

    __slots__ = ("left",)

    def __init__(self, most: int | None) -> None:
        self.left = most

    def spend(self, count: int) -> bool:
        """Counts what was sampled; whether the thread may go on."""
        if self.left is not None:
            self.left -= count
        return self.left is None or self.left > 0

"""Token limits that hold over several threads at once, kept where tokens are made: on the device thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.link.commands import Foresight, Signal, Watcher

LIMIT_REACHED = Signal("stop", stops=True)


class Meter:
    """Tokens emitted under one limit. Only the device thread adds to it; the event loop reads it."""

    __slots__ = ("fed", "most", "users")

    def __init__(self, most: int) -> None:
        self.most = most
        self.fed = 0
        self.users = 0
        """Watchers that feed it now."""


class MeteredWatcher:
    """Counts a thread's tokens on meters, and stops it where one has run out.

    Threads that share a meter overshoot it by at most one token each: what was sampled beside the last one.
    """

    __slots__ = ("_meters", "exhausted", "inner")

    def __init__(self, inner: Watcher | None, meters: Sequence[Meter]) -> None:
        self.inner = inner
        """What it wraps."""
        self._meters = meters
        for meter in meters:
            meter.users += 1
        self.exhausted = False
        """Whether a meter, and not what it wraps, stopped the thread."""

    def release(self) -> None:
        """Says that this watcher is fed no more, so that others may have its share. The event loop calls it."""
        for meter in self._meters:
            meter.users -= 1

    def foresee(self) -> Foresight | None:
        """What is left on a meter is shared out, so that threads that go on by themselves do not overshoot it."""
        if self.inner is None:
            inner = Foresight(frozenset(), 2**31)
        else:
            foresee: Callable[[], Foresight | None] | None = getattr(self.inner, "foresee", None)
            foreseen = None if foresee is None else foresee()
            if foreseen is None:
                return None
            inner = foreseen
        shares = [max(0, (meter.most - meter.fed) // max(1, meter.users) - 1) for meter in self._meters]
        return Foresight(inner.tokens, min([inner.quiet, *shares]))

    def feed(self, token: int) -> tuple[Signal, ...]:
        signals = () if self.inner is None else self.inner.feed(token)
        out = False
        for meter in self._meters:
            meter.fed += 1
            out |= meter.fed >= meter.most
        if not out or any(signal.stops for signal in signals):
            return signals
        self.exhausted = True
        return (*signals, LIMIT_REACHED)

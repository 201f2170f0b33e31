"""A watcher for calls whose tokens are known, because they were said before."""

from __future__ import annotations

from runtime.link.commands import Signal


class Retold:
    """Ends a generate with its last known token, or with the first that differs."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self._tokens = tokens
        self._seen = 0

    def feed(self, token: int) -> tuple[Signal, ...]:
        at = self._seen
        self._seen += 1
        if token == self._tokens[at] and self._seen < len(self._tokens):
            return ()
        return (Signal(kind="stop", tokens=(token,), start=at, stops=True),)

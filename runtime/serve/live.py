"""Running trees, for those who watch: what there is when they come, and then what happens."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable

import anyio

from runtime.serve.openai_format import Json
from runtime.serve.refusals import Refusal

MOST_TREES = 24
"""Whose story is kept for those who come later."""
MOST_EVENTS = 1000
"""Of one of them."""
MOST_PENDING = 5000
"""For one who watches; who falls further behind begins anew."""
LONGEST_TEXT = 400
"""Characters of a text that is shown."""


class LiveTrees:
    """Takes events of all trees, and gives them to all who watch. Used on the event loop."""

    def __init__(self, most_viewers: int) -> None:
        self._most_viewers = most_viewers
        self._stories: dict[int, list[Json]] = {}
        """By tree number, oldest first."""
        self._viewers: set[_Viewer] = set()
        self._is_closed = False

    def add(self, event: Json) -> None:
        """An event as `told` gives it."""
        event = {**event, "text": _short(event.get("text", "")), "error": _short(event.get("error", ""))}
        tree = event["thread"][0]
        story = self._stories.setdefault(tree, [])
        if len(story) < MOST_EVENTS:
            story.append(event)
        if len(self._stories) > MOST_TREES:
            del self._stories[next(iter(self._stories))]
        for viewer in self._viewers:
            viewer.give(event, self._begins)

    def close(self) -> None:
        """Everybody who watches has seen the end."""
        self._is_closed = True
        for viewer in self._viewers:
            viewer.fresh.set()

    async def watch(self) -> AsyncGenerator[list[Json], None]:
        """Events as they come, those of the trees that there are first. Raises `Refusal` where too many watch."""
        if len(self._viewers) >= self._most_viewers:
            raise Refusal(429, f"{self._most_viewers} watch already. Try again later.", retry_after=10)
        viewer = _Viewer()
        viewer.pending.extend(self._begins())
        self._viewers.add(viewer)
        try:
            while not self._is_closed:
                if viewer.pending:
                    events = list(viewer.pending)
                    viewer.pending.clear()
                    yield events
                else:
                    viewer.fresh = anyio.Event()
                    await viewer.fresh.wait()
        finally:
            self._viewers.discard(viewer)

    def _begins(self) -> list[Json]:
        return [{"type": "begin"}, *(event for story in self._stories.values() for event in story)]


class _Viewer:
    def __init__(self) -> None:
        self.pending: deque[Json] = deque()
        self.fresh = anyio.Event()

    def give(self, event: Json, begins: Callable[[], list[Json]]) -> None:
        if len(self.pending) >= MOST_PENDING:
            self.pending.clear()
            self.pending.extend(begins())
        else:
            self.pending.append(event)
        self.fresh.set()


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"

"""The thread tree as it grows: a rich view over the engine's tree events.

Threads from the third level on, of which there can be hundreds, are counted; only those that returned have a line.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from runtime.link import Event, Joined, RunStarted, Spawned, ThreadEnded, ThreadPath

STYLES = {"returned": "bold green", "nothing": "dim", "cancelled": "yellow", "failed": "bold red"}


class LiveTree:
    """Give `observe` to `Engine.open`; render the object itself."""

    def __init__(self, question_of: Callable[[RunStarted | Spawned], str]) -> None:
        """`question_of` says what is written beside a thread, from the event with which it begins."""
        self._question_of = question_of
        self._questions: dict[ThreadPath, str] = {}
        self._outcomes: dict[ThreadPath, ThreadEnded] = {}
        self._is_joining: set[ThreadPath] = set()

    def observe(self, event: Event) -> None:
        match event:
            case RunStarted(thread=path):
                self._questions[path] = self._question_of(event)
            case Spawned(child=child) if child is not None:
                self._questions[child] = self._question_of(event)
            case Joined(thread=path):
                self._is_joining.add(path)
            case ThreadEnded(thread=path):
                self._outcomes[path] = event

    def __rich__(self) -> RenderableType:
        roots = [path for path in self._questions if len(path) == 1]
        return Group(*(self._branch(path) for path in roots))

    def _branch(self, path: ThreadPath) -> Tree:
        tree = Tree(self._label(path), guide_style="dim")
        below = sorted(other for other in self._questions if other[:-1] == path)
        if len(path) == 1:
            shown = below
        else:
            shown = [child for child in below if self._is_returned(child)]
            over = sum(child in self._outcomes for child in below)
            if below:
                tree.add(Text(f"{over} of {len(below)} threads ended", "dim"))
        tree.children.extend(self._branch(child) for child in shown)
        return tree

    def _is_returned(self, path: ThreadPath) -> bool:
        outcome = self._outcomes.get(path)
        return outcome is not None and outcome.outcome == "returned"

    def _label(self, path: ThreadPath) -> Text:
        label = Text.assemble((".".join(map(str, path)), "cyan"), "  ", self._questions[path])
        outcome = self._outcomes.get(path)
        if outcome is not None:
            shown = outcome.text or outcome.error or outcome.outcome
            label.append(f"  {shown}", STYLES[outcome.outcome])
        elif path in self._is_joining:
            label.append("  answering", "magenta")
        else:
            label.append("  thinking", "blue")
        return label

"""The trees of a run as they grow, for a terminal: a rich view over events, of a trace or of an engine's observer.

Threads from the third level on, of which there can be hundreds, are counted; only those that returned have a line. Of
many trees the last ones are shown. What a terminal would act on is spelled out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from runtime.console import visible
from runtime.link import (
    Event,
    Joined,
    RunStarted,
    Sampled,
    Spawned,
    ThreadEnded,
    ThreadPath,
    ToolCalled,
)

STYLES = {"returned": "bold green", "nothing": "dim", "cancelled": "yellow", "failed": "bold red"}

MOST_TREES = 8
"""That are shown at a time."""

MOST_CHILDREN = 24
"""Lines below a root."""


class LiveTree:
    """Give `observe` to `Engine.open(observer=)`, or events of a trace one by one; render the object itself."""

    def __init__(self, question_of: Callable[[RunStarted | Spawned], str]) -> None:
        """`question_of` says what is written beside a thread, from the event with which it begins."""
        self._question_of = question_of
        self._questions: dict[ThreadPath, str] = {}
        self._below: defaultdict[ThreadPath, list[ThreadPath]] = defaultdict(list)
        self._outcomes: dict[ThreadPath, ThreadEnded] = {}
        self._is_joining: set[ThreadPath] = set()
        self._sampled: defaultdict[ThreadPath, int] = defaultdict(int)

    def observe(self, event: Event) -> None:
        match event:
            case RunStarted(thread=path):
                self._questions[path] = visible(self._question_of(event))
                self._below[()].append(path)
            case Spawned(child=child) if child is not None:
                self._questions[child] = visible(self._question_of(event))
                self._below[child[:-1]].append(child)
            case ToolCalled(thread=path, name=name, arguments=arguments):
                self._questions[path] = visible(f"{name}({arguments})")
            case Joined(thread=path):
                self._is_joining.add(path)
            case Sampled(thread=path):
                self._sampled[path] += 1
            case ThreadEnded(thread=path):
                self._outcomes[path] = event

    def __rich__(self) -> RenderableType:
        roots = self._below[()]
        shown = [self._branch(path) for path in roots[-MOST_TREES:]]
        if len(roots) <= MOST_TREES:
            return Group(*shown)
        ended = sum(path in self._outcomes for path in roots)
        return Group(Text(f"{len(roots)} trees, {ended} of them ended; the last:", "dim"), *shown)

    def _branch(self, path: ThreadPath) -> Tree:
        tree = Tree(self._label(path), guide_style="dim")
        below = sorted(self._below.get(path, ()))
        if len(path) == 1:
            shown = below[-MOST_CHILDREN:]
            if len(below) > len(shown):
                tree.add(Text(f"{len(below) - len(shown)} threads before these", "dim"))
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
        label = Text.assemble((".".join(map(str, path)), "cyan"), "  ", self._questions.get(path, ""))
        outcome = self._outcomes.get(path)
        if outcome is not None:
            shown = visible(outcome.text or outcome.error or outcome.outcome)
            label.append(f"  {shown}", STYLES.get(outcome.outcome, "magenta"))
            return label
        is_joining = path in self._is_joining
        label.append("  answering" if is_joining else "  thinking", "magenta" if is_joining else "blue")
        if sampled := self._sampled.get(path, 0):
            label.append(f", {sampled} tokens", "dim")
        return label

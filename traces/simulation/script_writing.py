"""From the events of one thread, one after the other, to its script."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from runtime import Said
from runtime.link import Computed, GenerateStarted, Joined, Merged, Received, Sampled, Spawned, ThreadOpened, ThreadPath
from traces.causal_chain import end_of_first
from traces.simulation.scripts import Await, Cut, Receive, Say, Script, Start, Step, TakeOver


class _Call:
    """A generate while its events come."""

    def __init__(self, started: GenerateStarted, said_before: int) -> None:
        self.started = started
        self.said_before = said_before
        """Tokens that the thread had said before it."""
        self.tokens = array("i")
        self.depths = array("i")
        self.received: list[tuple[int, int]] = []
        self.at = -1
        """Which step it became."""


class ScriptWriter:
    """Takes the events of a thread in their order."""

    def __init__(self, opened: ThreadOpened) -> None:
        self.path = opened.thread
        self.inherits = opened.inherits
        self._opened = opened
        self._steps: list[Step] = []
        self._calls: list[_Call] = []
        self._current: _Call | None = None
        self._written = array("i")
        """All that it said."""
        self._spawns: list[tuple[int, ThreadPath]] = []
        """After how many of them, and which child."""
        self._searched = 0
        self._length = 0
        self.halts: set[int] = set()
        """Tokens at which something happened: ends of calls, and of spawns."""

    @property
    def started(self) -> Iterable[ThreadPath]:
        """The children that it lets begin."""
        yield from (child for _, child in self._spawns)
        yield from (step.child for step in self._steps if isinstance(step, Start))

    def inherit(self, length: int) -> None:
        self._length = length

    @property
    def length(self) -> int:
        """Tokens in its context."""
        return self._length

    def receive(self, event: Received) -> None:
        self._cut_to(event.position)
        self._steps.append(Receive(event.tokens))
        self._length = event.position + len(event.tokens)

    def take_over(self, event: Merged) -> None:
        self._cut_to(event.position)
        self._steps.append(TakeOver(event.children))
        self._length = event.position + len(event.tokens)

    def begin(self, event: GenerateStarted) -> None:
        self._cut_to(event.position)
        self._current = _Call(event, len(self._written))

    def compute(self, event: Computed) -> None:
        call = self._current
        if call is None or event.recomputed:
            return
        if event.position < call.started.position or call.started.scores:
            call.received.append((event.position + event.count, event.depth))

    def say(self, event: Sampled) -> None:
        if self._current is not None:
            self._current.tokens.append(event.token)
            self._current.depths.append(max(1, event.depth))
            self._written.append(event.token)

    def end(self, position: int | None, reason: str) -> None:
        """A generate is over, with the context so long; None where that is not known."""
        call, self._current = self._current, None
        if call is None:
            return
        if reason == "stop" and call.tokens:
            self.halts.add(call.tokens[-1])
        begin, scores = call.started.position, call.started.scores
        self._length = begin + len(call.tokens)
        if call.tokens or scores or call.started.fills:
            call.at = len(self._steps)
            self._calls.append(call)
            self._steps.append(self._spoken(call, ()))
            if position is not None and position < self._length:
                self._cut_to(position)

    def spawn(self, event: Spawned) -> None:
        """Of a fork, its opening tells when it began."""
        if event.child is None or event.fork:
            return
        if not event.by_model:
            self._steps.append(Start(event.child))
            return
        if not event.tokens:
            # A call of a tool, which takes the device no time.
            return
        end = end_of_first(event.tokens, self._written, self._searched)
        if end is not None:
            # The token that closes it follows, if the thread said more.
            end = min(end + 1, len(self._written))
            self._searched = end
            self.halts.add(self._written[end - 1])
        last = self._spawns[-1][0] if self._spawns else 0
        self._spawns.append((max(last, end or len(self._written)), event.child))

    def start(self, child: ThreadPath) -> None:
        """A thread that inherits from this one begins now."""
        self._steps.append(Start(child))

    def wait(self, event: Joined) -> None:
        """A join is recorded when what it brings is in the context already."""
        at = len(self._steps)
        while at and isinstance(self._steps[at - 1], Receive | TakeOver | Cut):
            at -= 1
        awaited = tuple(child for child in event.children if child not in event.cancelled)
        self._steps.insert(at, Await(awaited, event.cancelled))

    def script(self) -> Script:
        """All that it did."""
        self.end(None, "")
        spawned = iter(self._spawns)
        spawn = next(spawned, None)
        for call in self._calls:
            first, last = call.said_before, call.said_before + len(call.tokens)
            own: list[tuple[int, ThreadPath]] = []
            while spawn is not None and spawn[0] <= last:
                if spawn[0] > first:
                    own.append((spawn[0] - first, spawn[1]))
                spawn = next(spawned, None)
            if own:
                self._steps[call.at] = self._spoken(call, tuple(own))
        lost = [child for at, child in self._spawns if not at]
        steps: list[Step] = [*(Start(child) for child in lost), *self._steps]
        return Script(
            path=self.path,
            inherits=self.inherits,
            seed=self._opened.seed,
            depth=self._opened.depth,
            steps=tuple(steps),
        )

    def _cut_to(self, position: int) -> None:
        if position < self._length and self._calls:
            keep = max(0, position - self._calls[-1].started.position)
            self._steps.append(Cut(keep))
        self._length = min(self._length, position)

    def _spoken(self, call: _Call, spawns: tuple[tuple[int, ThreadPath], ...]) -> Say:
        started = call.started
        said = Said(
            np.array(call.tokens, np.int32),
            np.array(call.depths, np.int32),
            tuple(sorted(call.received)),
        )
        return Say(
            said=said,
            sampling=started.sampling,
            depth=started.depth,
            scores=started.scores,
            fills=started.fills,
            spawns=spawns,
        )

"""Making a context again on another replica: what it received is sent again, and what it said is said again.

Since sampling is keyed by the thread's path and position, it says the same. What it was forked from is made again under
a path of its own beside it, drawing as the thread that it stands in for, and is closed when the fork has begun with it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import msgspec

from policies import DepthPolicy
from runtime.cluster.courier import Courier
from runtime.cluster.history import Asked, Merged, Received, Said, Snapshot
from runtime.cluster.routed import RoutedThread
from runtime.cluster.seat import Seat
from runtime.errors import BraidError
from runtime.link.commands import (
    Answered,
    CloseThread,
    Command,
    Extend,
    Failed,
    Finished,
    Generate,
    Merge,
    ThreadPath,
)
from runtime.link.retold import Retold
from runtime.link.sampling import Sampling

FIRST_STAND_IN = 2**40
"""Numbers of trees from here on are no user's."""

Awaited = Finished | Failed | Answered
Script = Generator[Command, Awaited | None, None]
"""Commands; after a generate or a merge it is sent what came of it."""


class Restoring:
    """One thread on its way to a replica."""

    def __init__(
        self,
        thread: RoutedThread,
        seat: Seat,
        courier: Courier,
        new_tree: Callable[[], int],
        number: Callable[[], int],
        fill: bool,
        under_way: dict[ThreadPath, Restoring],
    ) -> None:
        """`new_tree` numbers stand-ins, `number` numbers merges; `fill` has all of the context computed. `under_way`
        has it, until it is stopped, by every path under which it sends something."""
        self.thread = thread
        self._under_way = under_way
        self._seat = seat
        self._courier = courier
        self._new_tree = new_tree
        self._number = number
        self.depth: DepthPolicy = thread.opening.depth
        """In force at its end."""
        self._script = self._of(thread.snapshot(), thread.path, fill)
        self._paths: set[ThreadPath] = {thread.path}
        self.merge_number: int | None = None
        """Of the merge whose answer it awaits."""

    def start(self) -> bool:
        """Sends what can be sent at once; whether that was everything. Raises what `feed` raises."""
        self._under_way[self.thread.path] = self
        return self._go_on(None)

    def feed(self, report: Awaited) -> bool:
        """Takes what it waited for, and goes on; whether it is done. Raises what the thread fails of: `BraidError`
        where it says something else than before."""
        return self._go_on(report)

    def stop(self) -> None:
        """Nothing more is sent."""
        self._script.close()
        for path in self._paths:
            self._under_way.pop(path, None)

    def _go_on(self, report: Awaited | None) -> bool:
        self.merge_number = None
        while True:
            try:
                command = self._script.send(report)
            except StopIteration:
                return True
            self._seat.outbox.append(command)
            report = None
            if isinstance(command, Merge):
                self.merge_number = command.number
                return False
            if isinstance(command, Generate):
                return False

    def _of(self, snapshot: Snapshot, path: ThreadPath, fill: bool) -> Script:
        opening, history = snapshot.opening, snapshot.history
        depth = opening.depth
        draws_as = None if path == snapshot.draws_as else snapshot.draws_as
        inherits = None
        if history.inherited is not None:
            inherits = self._stand_in(history.inherited.draws_as)
            yield from self._of(history.inherited, inherits, fill=False)
        yield msgspec.structs.replace(opening, thread=path, inherits=inherits, draws_as=draws_as)
        if inherits is not None:
            yield CloseThread(inherits)
        for entry in history.entries:
            if isinstance(entry, Received):
                yield Extend(path, entry.tokens)
            elif isinstance(entry, Said | Asked):
                yield from self._said(path, entry, depth)
                depth = entry.depth
            else:
                yield from self._merged(path, entry)
        if path == self.thread.path:
            self.depth = depth
        if fill and history.length:
            checked(path, (yield Generate(thread=path, max_tokens=0, sampling=Sampling(), fills=True)))

    def _said(self, path: ThreadPath, entry: Said | Asked, depth: DepthPolicy) -> Script:
        report = yield msgspec.structs.replace(
            entry.request,
            thread=path,
            depth=None if depth == entry.depth else entry.depth,
            stop_tokens=frozenset(),
            watcher=self._courier.freeze(Retold(entry.tokens)) if entry.tokens else None,
            matcher=None,
            stream=False,
            # What was found in a cache then is computed now. Bounds that are alike for all tokens look at no budget.
            max_iterations=None if entry.depth.bounds_all_alike else entry.request.max_iterations,
        )
        finished = checked(path, report)
        if isinstance(entry, Said) and finished.tokens != entry.tokens:
            raise said_otherwise(self.thread.path)

    def _merged(self, path: ThreadPath, entry: Merged) -> Script:
        children = []
        for child in entry.children:
            stand_in = self._stand_in(child.draws_as)
            children.append(stand_in)
            yield msgspec.structs.replace(child.opening, thread=stand_in, inherits=path, draws_as=child.draws_as)
            depth = child.opening.depth
            for part in child.history.entries:
                if isinstance(part, Received):
                    yield Extend(stand_in, part.tokens)
                elif isinstance(part, Said | Asked):
                    yield from self._said(stand_in, part, depth)
                    depth = part.depth
                else:
                    yield from self._merged(stand_in, part)
            checked(stand_in, (yield Generate(thread=stand_in, max_tokens=0, sampling=Sampling(), fills=True)))
        answer = yield Merge(path, tuple(children), self._number())
        if isinstance(answer, Answered) and answer.error is not None:
            raise answer.error
        for stand_in in children:
            yield CloseThread(stand_in)

    def _stand_in(self, path: ThreadPath) -> ThreadPath:
        """A path of the same depth, which policies may look at."""
        found = (FIRST_STAND_IN + self._new_tree(), *path[1:])
        self._paths.add(found)
        self._under_way[found] = self
        return found


def checked(path: ThreadPath, report: Awaited | None) -> Finished:
    """What a generate came to. Raises what it failed of."""
    if isinstance(report, Failed):
        raise report.error
    if not isinstance(report, Finished):
        raise BraidError(f"Thread {path} was told of something that it has not asked for.")
    return report


def said_otherwise(path: ThreadPath) -> BraidError:
    """A thread is not what it was."""
    return BraidError(
        f"Thread {path} said something else when it was computed again on another replica. Open the cluster with "
        "deterministic=True, and give no policy that looks at the load of an engine."
    )

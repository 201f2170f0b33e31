"""One device of a simulation: recorded threads do on it what they did, one step when the one before it is done."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import msgspec

from policies import DepthPolicy, from_builtins
from runtime import PolicyError, Sampling, TraceError, VirtualDevice
from runtime.link import (
    CloseThread,
    Extend,
    Failed,
    Finished,
    Foresight,
    Generate,
    Interrupt,
    Merge,
    OpenThread,
    Signal,
    Signalled,
    ThreadPath,
)
from traces.simulation.scenario import Order
from traces.simulation.scripts import Await, Cut, Receive, Say, Script, ScriptedTree, Start, TakeOver


class RunningTree(msgspec.Struct, kw_only=True):
    """A question in progress."""

    number: int
    tree: ScriptedTree
    came: float
    """Seconds, as `admitted` and `ended`."""
    admitted: float = 0.0
    ended: float = 0.0
    has_ended: bool = False
    taken_over: frozenset[ThreadPath] = frozenset()
    """Threads of it that stay open until another has taken over what they say."""
    priority: int = 0


class _Marks:
    """A watcher that signals after so many tokens each time: the model has asked for a child."""

    def __init__(self, at: tuple[int, ...], halts: frozenset[int]) -> None:
        self._at = at
        self._halts = halts
        self._fed = 0
        self._passed = 0

    def feed(self, token: int) -> tuple[Signal, ...]:
        self._fed += 1
        signals = []
        while self._passed < len(self._at) and self._at[self._passed] == self._fed:
            signals.append(Signal("spawn", start=self._passed))
            self._passed += 1
        return tuple(signals)

    def foresee(self) -> Foresight:
        quiet = 2**31 if self._passed == len(self._at) else self._at[self._passed] - self._fed - 1
        return Foresight(self._halts, quiet)


class _Player:
    """A thread at some step of its script."""

    __slots__ = ("ended", "next", "path", "script", "spawns", "tree", "waiting_for")

    def __init__(self, script: Script, path: ThreadPath, tree: RunningTree) -> None:
        self.script = script
        self.path = path
        self.tree = tree
        self.next = 0
        self.ended = False
        self.waiting_for: set[ThreadPath] = set()
        self.spawns: tuple[tuple[int, ThreadPath], ...] = ()


class Replica:
    """Plays trees on a device; `ended` is told of each that has been answered."""

    def __init__(
        self,
        device: VirtualDevice,
        *,
        hop: float,
        halts: frozenset[int],
        order: Order,
        policies: PolicyReader,
        ended: Callable[[RunningTree], None],
    ) -> None:
        self.device = device
        self.in_progress = 0
        """Trees."""
        self.failed = 0
        """Threads."""
        self._hop = hop
        self._halts = halts
        self._order = order
        self._policies = policies
        self._ended = ended
        self._numbers = count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        """What programs do, and when; first come, first served."""
        self._players: dict[ThreadPath, _Player] = {}
        self._waiters: dict[ThreadPath, _Player] = {}
        """By thread, who waits for its end."""
        self._opened = 0
        """Threads, so far."""

    @property
    def next_time(self) -> float | None:
        """When it next does something; None if it has nothing to do."""
        if self.device.has_work:
            return self.device.now
        return max(self._due[0][0], self.device.now) if self._due else None

    def ask(self, tree: RunningTree, time: float) -> None:
        """A question comes to this replica."""
        self.in_progress += 1
        self._later(time, lambda: self._begin(tree, tree.tree.root))

    def go_on(self) -> None:
        """Does what programs do now, and then one call of the device, if there is something to compute."""
        if not self.device.has_work and self._due:
            self.device.wait_until(self._due[0][0])
        while self._due and self._due[0][0] <= self.device.now:
            heapq.heappop(self._due)[2]()
        if self.device.has_work:
            self.device.step()
        for report in self.device.take_reports():
            match report:
                case Signalled(thread, signal):
                    player = self._players[thread]
                    self._start(player.tree, player.spawns[signal.start][1], self._hop)
                case Finished():
                    finished = self._players.get(report.thread)
                    if finished is not None and not finished.ended:
                        self._later(self.device.now + self._hop, partial(self._advance, finished))
                case Failed(_, error) if isinstance(error, PolicyError):
                    # No thread would say anything.
                    raise error
                case Failed():
                    self._fail(report.thread)
                case _:
                    pass

    def _later(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time, next(self._numbers), action))

    # ---- a thread ---------------------------------------------------------------------------------------------------

    def _begin(self, tree: RunningTree, recorded: ThreadPath) -> None:
        player = self._known(tree, recorded)
        if player is not None:
            self._open(player)

    def _known(self, tree: RunningTree, recorded: ThreadPath) -> _Player | None:
        """A thread that has been asked for, and from now on is awaited; None where it was before, or there is none."""
        script = tree.tree.scripts.get(recorded)
        path = (tree.number, *recorded[1:])
        if script is None or tree.has_ended or path in self._players:
            return None
        player = self._players[path] = _Player(script, path, tree)
        return player

    def _open(self, player: _Player) -> None:
        if player.ended:
            return
        script, tree = player.script, player.tree
        self._opened += 1
        priority = {"depth-first": 0, "first-come": -self._opened, "shortest-first": tree.priority}[self._order]
        inherits = None if script.inherits is None else (tree.number, *script.inherits[1:])
        self.device.handle(
            OpenThread(
                thread=player.path,
                seed=script.seed,
                depth=self._policies.depth_of(script.depth),
                priority=priority,
                inherits=inherits if inherits in self._players else None,
            )
        )
        self._advance(player)

    def _advance(self, player: _Player) -> None:
        """Does a thread's steps up to one that takes time."""
        steps = player.script.steps
        while not player.ended:
            if player.next == len(steps):
                self._end(player)
                return
            step = steps[player.next]
            player.next += 1
            match step:
                case Receive(tokens):
                    self.device.handle(Extend(player.path, tokens))
                case Cut(keep):
                    self.device.handle(Interrupt(player.path, keep))
                case Start(child):
                    self._start(player.tree, child, 0.0)
                case TakeOver(children):
                    self._take_over(player, children)
                case Await():
                    if self._wait(player, step):
                        return
                case Say():
                    self._say(player, step)
                    return

    def _start(self, tree: RunningTree, recorded: ThreadPath, after: float) -> None:
        """A child begins so many seconds from now; a fork at once, before what it inherits from goes on."""
        child = self._known(tree, recorded)
        if child is None:
            return
        if child.script.inherits is not None:
            self._open(child)
        else:
            self._later(self.device.now + after, partial(self._open, child))

    def _say(self, player: _Player, step: Say) -> None:
        player.spawns = step.spawns
        count = len(step.said.tokens)
        marks = _Marks(tuple(at for at, _ in step.spawns), self._halts) if count else None
        self.device.handle(
            Generate(
                thread=player.path,
                max_tokens=count,
                sampling=self._policies.sampling_of(step.sampling),
                depth=self._policies.depth_of(step.depth),
                watcher=marks,
                scores=step.scores,
                fills=step.fills,
            ),
            step.said,
        )

    def _wait(self, player: _Player, step: Await) -> bool:
        """Whether somebody it waits for has not ended; else others are cancelled."""
        tree = player.tree
        awaited = [self._players.get((tree.number, *child[1:])) for child in step.ended]
        open_ones = [one for one in awaited if one is not None and not one.ended]
        if open_ones:
            player.next -= 1
            player.waiting_for = {one.path for one in open_ones}
            for one in open_ones:
                self._waiters[one.path] = player
            return True
        for child in step.cancelled:
            cancelled = self._players.get((tree.number, *child[1:]))
            if cancelled is not None and not cancelled.ended:
                self._end(cancelled)
        return False

    def _take_over(self, player: _Player, children: tuple[ThreadPath, ...]) -> None:
        paths = tuple((player.tree.number, *child[1:]) for child in children)
        self.device.handle(Merge(player.path, tuple(path for path in paths if path in self._players)))
        for path in paths:
            self._close(path)

    def _end(self, player: _Player) -> None:
        """A thread is over; what it had asked for and nobody took is cancelled when its tree is."""
        player.ended = True
        if player.script.path not in player.tree.taken_over:
            self._close(player.path)
        waiter = self._waiters.pop(player.path, None)
        if waiter is not None:
            waiter.waiting_for.discard(player.path)
            if not waiter.waiting_for and not waiter.ended:
                self._later(self.device.now, lambda: self._advance(waiter))
        if len(player.path) == 1:
            self._end_tree(player.tree)

    def _close(self, path: ThreadPath) -> None:
        self.device.handle(CloseThread(path))

    def _end_tree(self, tree: RunningTree) -> None:
        tree.ended, tree.has_ended = self.device.now, True
        self.in_progress -= 1
        for recorded in tree.tree.scripts:
            path = (tree.number, *recorded[1:])
            player = self._players.pop(path, None)
            if player is not None:
                if not player.ended:
                    player.ended = True
                self._close(path)
            self._waiters.pop(path, None)
        self._ended(tree)

    def _fail(self, path: ThreadPath) -> None:
        player = self._players.get(path)
        if player is not None and not player.ended:
            self.failed += 1
            self._later(self.device.now + self._hop, lambda: None if player.ended else self._end(player))


class PolicyReader:
    """Policies and samplings of a trace, each read once; or one policy in place of all recorded ones."""

    def __init__(self, instead: DepthPolicy | None) -> None:
        self._instead = instead
        self._depths: dict[bytes, DepthPolicy] = {}
        self._samplings: dict[bytes, Sampling] = {}

    def depth_of(self, recorded: Any) -> DepthPolicy:
        """Raises `TraceError` for one that this program does not know."""
        if self._instead is not None:
            return self._instead
        key = msgspec.msgpack.encode(recorded)
        if key not in self._depths:
            try:
                self._depths[key] = from_builtins(recorded, DepthPolicy)
            except ValueError as error:
                raise TraceError(f"A recorded policy cannot be used ({error}); name one with --depth.") from error
        return self._depths[key]

    def sampling_of(self, recorded: Any) -> Sampling:
        key = msgspec.msgpack.encode(recorded)
        if key not in self._samplings:
            try:
                self._samplings[key] = msgspec.convert(recorded, Sampling)
            except msgspec.ValidationError as error:
                raise TraceError(f"A recorded sampling cannot be used ({error}).") from error
        return self._samplings[key]

"""A device that is many: one thread of the operating system routes what the event loop asks for to replicas.

event loop --commands--> [ queue ] --> router --> replicas
replicas   --words-----> [ queue ] --> router --> trace, then reports --> event loop
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple, Protocol

import msgspec

from runtime.cluster.replica import Described
from runtime.cluster.router import Router
from runtime.cluster.seat import Replica, Seat, Word
from runtime.console.logs import logger
from runtime.errors import BraidError, EngineFailed, described
from runtime.link.commands import (
    Command,
    Deliver,
    DeviceFailed,
    OnTraceError,
    Request,
    Statistics,
)

_log = logger("runtime.cluster")

MOST_FAILURES = 3
"""Replicas in a row that cannot be opened, before it is tried no more."""

LINGER = 0.002
"""Seconds that a thread that was closed may wait for other commands to go with."""

MOST_AT_ONCE = 256
"""Messages that are taken before what they have come to is sent."""


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One replica, as it is now."""

    name: str
    pid: int
    """Of its process; 0 until it serves."""
    state: Literal["opening", "serving", "leaving"]
    active: int = 0
    """Calls that it works on."""
    statistics: Statistics = Statistics()


class TracePlan(NamedTuple):
    """The trace that a cluster is opened with."""

    path: Path
    overwrite: bool
    on_error: OnTraceError


class Opening(Protocol):
    """Begins to open a replica under a name; the three functions may be called on any thread from then on."""

    def __call__(
        self,
        name: str,
        on_open: Callable[[Replica, Described], None],
        on_words: Callable[[Replica, list[Word], Statistics], None],
        on_end: Callable[[Replica, Exception], None],
    ) -> Replica: ...


class _Opened(NamedTuple):
    replica: Replica
    described: Described


class _Words(NamedTuple):
    replica: Replica
    words: list[Word]
    statistics: Statistics


class _Ended(NamedTuple):
    replica: Replica
    error: Exception


class _Resize(NamedTuple):
    replicas: int
    done: Future[None]


_Message = Command | Request | _Opened | _Words | _Ended | _Resize


class ClusterDevice:
    """A `Device` over replicas. A replica that is lost is replaced by another."""

    def __init__(
        self, make_router: Callable[[Deliver], Router], open_replica: Opening, replicas: int, trace: TracePlan | None
    ) -> None:
        """`make_router` is called once, with what delivers reports."""
        self._make_router = make_router
        self._open_replica = open_replica
        self._wanted = replicas
        self._trace = trace
        self._messages: SimpleQueue[_Message | None] = SimpleQueue()
        self._made: dict[str, Replica] = {}
        """Those that may still have something to say."""
        self._opening: dict[str, Replica] = {}
        self._seats: dict[str, Seat] = {}
        self._first: list[_Opened] = []
        """Those that were opened before the cluster serves."""
        self._serves = False
        self._failures = 0
        self._numbers = 0
        self._resizes: list[_Resize] = []
        self._statuses: tuple[ReplicaStatus, ...] = ()
        self._statistics = Statistics()
        self._stopped = threading.Event()
        self._opened: Future[None] = Future()
        self._thread: threading.Thread | None = None

    # ---- a device ---------------------------------------------------------------------------------------------------

    def start(self, deliver: Deliver) -> None:
        self._thread = threading.Thread(target=self._run, args=(deliver,), name="braid-cluster", daemon=True)
        self._thread.start()

    def send(self, command: Command | Request) -> None:
        if not self._stopped.is_set():
            self._messages.put(command)

    def stop(self) -> None:
        self._stopped.set()
        self._messages.put(None)
        if self._thread is not None:
            self._thread.join()

    @property
    def first_tree(self) -> int:
        return 0

    @property
    def statistics(self) -> Statistics:
        return self._statistics

    # ---- a cluster --------------------------------------------------------------------------------------------------

    def wait_until_open(self) -> None:
        """Blocks until all replicas serve; raises what keeps the first from that."""
        self._opened.result()

    @property
    def replicas(self) -> tuple[ReplicaStatus, ...]:
        """May be asked for on any thread at any time."""
        return self._statuses

    def resize(self, replicas: int) -> Future[None]:
        """Has so many replicas; done when they serve and those beyond have ended their calls and are gone."""
        done: Future[None] = Future()
        if self._stopped.is_set():
            done.set_exception(BraidError("The cluster is closed."))
        else:
            self._messages.put(_Resize(replicas, done))
        return done

    # ---- its thread -------------------------------------------------------------------------------------------------

    def _run(self, deliver: Deliver) -> None:
        router = self._make_router(deliver)
        is_whole = False
        try:
            try:
                for _ in range(self._wanted):
                    self._open_one()
                self._serve(router)
                is_whole = True
            finally:
                self._stopped.set()
                self._end_replicas()
                router.trace.close(is_whole=is_whole)
                self._statistics = msgspec.structs.replace(
                    self._statistics, in_flight=0, open_threads=0, waiting=0, pages_used=0
                )
        except BaseException as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            _log.error("cluster_failed", error=repr(error))
            deliver([DeviceFailed(error)])
        finally:
            for resize in self._resizes:
                resize.done.set_exception(BraidError("The cluster is closed."))

    def _serve(self, router: Router) -> None:
        lingers_until = math.inf
        while True:
            wait = None if lingers_until == math.inf else max(0.0, lingers_until - time.monotonic())
            try:
                messages = [self._messages.get(timeout=wait)]
            except Empty:
                messages = []
            while len(messages) < MOST_AT_ONCE and not self._messages.empty():
                messages.append(self._messages.get())
            for message in messages:
                if message is None:
                    router.flush()
                    return
                self._take(router, message)
            self._look_after(router)
            is_over = time.monotonic() >= lingers_until
            if not router.flush(lingers=not is_over):
                lingers_until = math.inf
            elif lingers_until == math.inf:
                lingers_until = time.monotonic() + LINGER

    def _take(self, router: Router, message: _Message) -> None:
        match message:
            case _Opened(replica):
                if replica.name in self._opening:
                    self._failures = 0
                    if self._serves:
                        self._join(router, replica)
                    else:
                        self._begin_if_all(router, message)
            case _Words(replica, words, statistics):
                seat = self._seats.get(replica.name)
                if seat is not None:
                    failure = _failure_in(words)
                    if failure is None:
                        router.take(seat, words, statistics)
                    else:
                        self._lose(router, replica, failure)
            case _Ended(replica, error):
                self._made.pop(replica.name, None)
                self._lose(router, replica, error)
            case _Resize():
                self._wanted = message.replicas
                self._resizes.append(message)
            case _:
                router.handle(message)

    def _begin_if_all(self, router: Router, message: _Opened) -> None:
        self._first.append(message)
        if len(self._first) < self._wanted:
            return
        router.trace.fingerprint = message.described.fingerprint
        if len({each.described.fingerprint for each in self._first}) > 1:
            raise EngineFailed("The replicas have read different weights. Give a checkpoint that all of them share.")
        if self._trace is not None:
            router.trace.begin(*self._trace)
        self._serves = True
        for each in self._first:
            self._join(router, each.replica)
        self._first.clear()
        self._statuses = self._described()
        self._opened.set_result(None)

    def _join(self, router: Router, replica: Replica) -> None:
        del self._opening[replica.name]
        self._seats[replica.name] = router.join(replica)
        _log.info("replica serves", replica=replica.name, pid=replica.pid)

    def _lose(self, router: Router, replica: Replica, error: Exception) -> None:
        replica.close()
        seat = self._seats.pop(replica.name, None)
        if seat is not None:
            _log.warning("replica lost", replica=replica.name, error=str(error), active=seat.active)
            router.lose(seat)
            return
        if self._opening.pop(replica.name, None) is None:
            return
        self._failures += 1
        if not self._serves:
            raise error
        _log.warning("replica cannot be opened", replica=replica.name, error=str(error))
        if self._failures >= MOST_FAILURES and not self._seats and not self._opening:
            raise EngineFailed(f"No replica is left, and none can be opened: {described(error)}.") from error

    def _look_after(self, router: Router) -> None:
        """Opens replicas that are missing, ends those that are not wanted, and ends of a trace that was lost."""
        for seat in router.broadcasts.discarded:
            if self._seats.pop(seat.replica.name, None) is not None:
                seat.replica.close()
                router.lose(seat)
        router.broadcasts.discarded.clear()
        if router.trace.failure is not None and not any(seat.active for seat in self._seats.values()):
            raise router.trace.failure
        if self._serves:
            staying = [seat for seat in self._seats.values() if not seat.is_leaving]
            missing = self._wanted - len(staying) - len(self._opening)
            if missing > 0 and self._failures < MOST_FAILURES:
                for _ in range(missing):
                    self._open_one()
            for _ in range(-missing):
                if self._opening:
                    self._opening.popitem()[1].close()
                elif staying:
                    staying.sort(key=lambda seat: -seat.active)
                    router.leave(staying.pop())
            for seat in [seat for seat in self._seats.values() if router.is_free(seat)]:
                del self._seats[seat.replica.name]
                router.lose(seat)
                seat.replica.close()
            self._end_resizes()
        self._statistics = router.statistics()
        self._statuses = self._described()

    def _end_resizes(self) -> None:
        if not self._resizes:
            return
        is_given_up = self._failures >= MOST_FAILURES
        if len(self._seats) == self._wanted and not self._opening:
            for resize in self._resizes:
                resize.done.set_result(None)
        elif is_given_up and not self._opening:
            for resize in self._resizes:
                resize.done.set_exception(BraidError("Replicas cannot be opened; the log says why."))
            self._wanted, self._failures = len(self._seats), 0
        else:
            return
        self._resizes.clear()

    def _described(self) -> tuple[ReplicaStatus, ...]:
        opening = [ReplicaStatus(name=name, pid=0, state="opening") for name in self._opening]
        seated = [
            ReplicaStatus(
                name=name,
                pid=seat.replica.pid,
                state="leaving" if seat.is_leaving else "serving",
                active=seat.active,
                statistics=seat.statistics,
            )
            for name, seat in self._seats.items()
        ]
        return tuple(seated + opening)

    def _open_one(self) -> None:
        name = f"replica-{self._numbers}"
        self._numbers += 1
        self._opening[name] = self._made[name] = self._open_replica(
            name,
            lambda replica, found: self._messages.put(_Opened(replica, found)),
            lambda replica, words, statistics: self._messages.put(_Words(replica, words, statistics)),
            lambda replica, error: self._messages.put(_Ended(replica, error)),
        )

    def _end_replicas(self) -> None:
        for replica in self._made.values():
            replica.close()
        for replica in self._made.values():
            replica.wait()
        self._made.clear()
        self._opening.clear()
        self._seats.clear()
        self._statuses = ()


def _failure_in(words: list[Word]) -> Exception | None:
    """What a replica's device has ended of, if it has."""
    for word in words:
        for report in word if isinstance(word, list) else ():
            if isinstance(report, DeviceFailed):
                return report.error if isinstance(report.error, Exception) else BraidError(described(report.error))
    return None

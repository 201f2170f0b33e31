"""A replica's side: a device of its own in a process of its own, fed with commands and asked for what it has to say."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from policies import Policy
from runtime.cluster.courier import Courier, FrozenWatcher, sendable
from runtime.cluster.seat import Word
from runtime.device.settings import EngineSettings
from runtime.errors import BraidError, described
from runtime.link.commands import Answered, Command, DeviceFailed, Failed, Generate, Report, Request, Statistics
from runtime.link.events import Header
from runtime.link.notes import Notes
from runtime.loading.local import open_device
from runtime.threads.opened import Opened


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What every replica is opened with."""

    checkpoint: str | Path
    settings: EngineSettings
    policy: Policy | None
    seed: int
    drafts: str | Path | None = None


class Described(NamedTuple):
    """What a replica says of itself when it serves."""

    pid: int
    fingerprint: str
    """Of its weights."""


class ReplicaHost:
    """Runs one device. Its methods are called by two threads: one sends, the other takes."""

    def __init__(self, plan: Plan) -> None:
        """Loads the checkpoint, which takes seconds. Raises what `open_device` raises."""
        self._said: list[Word] = []
        self._changed = threading.Condition()
        self._statistics = Statistics()
        self._next = 0
        self._early: dict[int, list[Command | Request]] = {}
        """Batches that came before others that were sent first."""
        opened = open_device(
            plan.checkpoint,
            plan.settings,
            policy=plan.policy,
            trace=None,
            seed=plan.seed,
            drafts=plan.drafts,
            recorder_of=lambda header: ForwardingRecorder(header, self._say),
        )
        self._courier = Courier(opened)
        self._opened: Opened = opened
        assert opened.fingerprint is not None
        self._described = Described(os.getpid(), opened.fingerprint())
        opened.device.start(self._deliver)
        if opened.ready is not None:
            opened.ready()

    def describe(self) -> Described:
        """Returns when it serves."""
        return self._described

    def send(self, number: int, commands: list[Command | Request]) -> None:
        """Takes batch `number` of commands, which are executed in the order of their numbers."""
        self._early[number] = commands
        while (batch := self._early.pop(self._next, None)) is not None:
            self._next += 1
            for command in batch:
                self._execute(command)

    def take(self, seconds: float) -> tuple[list[Word], Statistics]:
        """What it has to say since the last time; waits so long for anything."""
        with self._changed:
            if not self._said:
                self._changed.wait(seconds)
            said, self._said = self._said, []
        return said, self._opened.device.statistics

    def close(self) -> None:
        """Ends the device."""
        self._opened.device.stop()
        if self._opened.close is not None:
            self._opened.close()

    def _execute(self, command: Command | Request) -> None:
        if isinstance(command, Generate) and isinstance(command.watcher, FrozenWatcher):
            try:
                command = msgspec.structs.replace(command, watcher=self._courier.thaw(command.watcher))
            except Exception as error:
                failed = BraidError(
                    f"Thread {command.thread} has a watcher that cannot be read here: {described(error)}."
                )
                self._say([Failed(command.thread, failed)])
                return
        self._opened.device.send(command)

    def _deliver(self, reports: list[Report]) -> None:
        self._say([_sendable(report) for report in reports])

    def _say(self, word: Word) -> None:
        with self._changed:
            if isinstance(word, list) and self._said and isinstance(last := self._said[-1], list):
                last += word
            else:
                self._said.append(word)
            self._changed.notify()


class ForwardingRecorder:
    """Says what a device notes, before the reports of it, in place of writing a file.

    Times are those of the machine's clock since the trace was begun, so that replicas on one machine agree.
    """

    def __init__(self, header: Header, say: Callable[[Word], None]) -> None:
        self._say = say
        self._started = time.monotonic() - max(0.0, time.time() - header.started)
        say(header.fingerprint)

    def now(self) -> float:
        return time.monotonic() - self._started

    def take(self, notes: Notes) -> None:
        self._say(notes)

    def afterwards(self, action: Callable[[], None], *, is_urgent: bool) -> None:
        action()

    @property
    def failure(self) -> Exception | None:
        return None

    def close(self) -> None:
        """Nothing is held back."""

    def abandon(self) -> None:
        """Nothing is held back."""


def _sendable(report: Report) -> Report:
    match report:
        case Failed():
            return msgspec.structs.replace(report, error=sendable(report.error))
        case Answered(_, error) if error is not None:
            return msgspec.structs.replace(report, error=sendable(error))
        case DeviceFailed():
            return DeviceFailed(sendable(report.error))
        case _:
            return report

"""Tests that are traces: a program is recorded once, and whether it still does the same is seen without a model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread

from runtime import Engine, TraceError, open_playback
from runtime.link import Command, Deliver, Device, Failed, Generate, Report, Request, Statistics, ThreadPath, Trace
from traces.reader import read
from traces.tree import ThreadRecord, path_name, thread_tree, walk_threads

PLAYED_WITH = ("policy", "seed", "limits", "sampling", "observer")
"""What playback takes of the arguments of `Engine.open`; all else is of the model, which it has not."""


class TraceMismatch(AssertionError):
    """A test is not what its trace says, or has no trace."""


class FollowedDevice:
    """A `Device` that plays a trace back, and notes the first difference and which recorded generates were asked for.

    Commands come on the event loop and reports from the player's own thread; neither note is read before it has
    stopped.
    """

    def __init__(self, player: Device, trace: Trace) -> None:
        self._player = player
        self._threads = {record.path: record for record in walk_threads(thread_tree(trace.events))}
        self._asked: Counter[ThreadPath] = Counter()
        self.difference: str | None = None
        """Thread, place and what differs, of the first command that the recording has not."""

    def start(self, deliver: Deliver) -> None:
        self._player.start(partial(self._deliver, deliver))

    def send(self, command: Command | Request) -> None:
        if isinstance(command, Generate):
            self._asked[command.thread] += 1
        self._player.send(command)

    def stop(self) -> None:
        self._player.stop()

    @property
    def first_tree(self) -> int:
        return self._player.first_tree

    @property
    def statistics(self) -> Statistics:
        return self._player.statistics

    def unplayed(self) -> str | None:
        """Which recorded generates were not asked for; None if all were."""
        left = [
            (call.index, record, number)
            for record in self._threads.values()
            for number, call in enumerate(record.calls)
            if number >= self._asked[record.path]
        ]
        if not left:
            return None
        _, record, number = min(left, key=lambda one: one[0])
        many = "1 recorded generate was" if len(left) == 1 else f"{len(left)} recorded generates were"
        return f"{many} not asked for; the first is {_place(record, number)}."

    def _deliver(self, deliver: Deliver, reports: list[Report]) -> None:
        for report in reports:
            if self.difference is None and isinstance(report, Failed) and isinstance(report.error, TraceError):
                self.difference = self._told(report.thread, report.error)
        deliver(reports)

    def _told(self, thread: ThreadPath, error: TraceError) -> str:
        record = self._threads.get(thread)
        if record is None or not record.calls:
            return str(error)
        number = min(max(self._asked[thread], 1), len(record.calls)) - 1
        return f"{error}\nIt had come to {_place(record, number)}."


def _place(record: ThreadRecord, number: int) -> str:
    call = record.calls[number]
    return (
        f"generate {number + 1} of {len(record.calls)} of thread {path_name(record.path)}, at position {call.position} "
        f"of its context, where {len(call.samples)} tokens were sampled"
    )


class BraidTrace:
    """What the fixture `braid_trace` gives: engines of one test, each recorded, or played back from its file.

    A trace is recorded beside the file that it replaces if the test passes, so that a good one stays until there is a
    better one, also where the process is killed.
    """

    def __init__(self, root: Path, *, records: bool, again: str) -> None:
        """Paths are relative to `root`. `again` is the command that records the traces."""
        self._root = root
        self._records = records
        self._again = again
        self._written: dict[Path, Path] = {}
        """By the file that is to be, the one that has been written."""

    def __call__(
        self, path: str | Path, *, checkpoint: str | Path | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Engine]:
        """An engine for `async with`: played back from the trace at `path` or, under `--record-traces`, recorded there.

        `path` is relative to pytest's root directory. `checkpoint` and `options` (policy, seed, limits, sampling,
        settings, ...) are as in `Engine.open`; the checkpoint is needed to record, and for playback only where it is
        not where the trace says. What they say of policy, seed, sampling and limits holds in playback too, so that a
        test that changes them differs from its trace.

        Raises `TraceMismatch`: on entry where there is no trace that is whole; and on leaving, with the first
        difference, where the program did something else than was recorded, or less. Raises `ValueError`, naming the
        argument, for one that does not fit, and what opening an engine does.
        """
        file = self._root / Path(path).expanduser()
        if own := sorted({"trace", "overwrite"} & options.keys()):
            raise ValueError(f"braid_trace has {own[0]}, which its path says; leave it out.")
        return (self._recorded if self._records else self._played)(file, checkpoint, options)

    def finish(self, *, keep: bool) -> None:
        """Puts what was recorded in its place, or removes it."""
        for file, written in self._written.items():
            if keep:
                os.replace(written, file)
            else:
                with suppress(OSError):
                    written.unlink()
        self._written.clear()

    @asynccontextmanager
    async def _played(
        self, file: Path, checkpoint: str | Path | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Engine]:
        __tracebackhide__ = True
        if not file.exists():
            raise TraceMismatch(f"There is no trace {file}. Record it with: {self._again}")
        trace = await anyio.to_thread.run_sync(read, file)
        if trace.lost is not None:
            raise TraceMismatch(f"The trace {file} is not whole: {trace.lost}. Record it again with: {self._again}")
        # Refuses arguments that no engine is opened with; nothing is loaded.
        Engine.open(checkpoint or trace.header.checkpoint, **options)
        opened = await anyio.to_thread.run_sync(open_playback, trace, checkpoint)
        followed = FollowedDevice(opened.device, trace)
        given = {name: options[name] for name in PLAYED_WITH if name in options}
        given.setdefault("seed", trace.header.seed)
        try:
            async with Engine.from_device(replace(opened, device=followed), **given) as engine:
                yield engine
        except Exception as error:
            if followed.difference is None:
                raise
            told = _difference(file, followed.difference, self._again)
            if not _is_of_playback(error):
                error.add_note(told)
                raise
            raise TraceMismatch(told) from error
        if followed.difference is not None:
            raise TraceMismatch(_difference(file, followed.difference, self._again))
        if (rest := followed.unplayed()) is not None:
            raise TraceMismatch(_difference(file, rest, self._again))

    @asynccontextmanager
    async def _recorded(
        self, file: Path, checkpoint: str | Path | None, options: Mapping[str, Any]
    ) -> AsyncIterator[Engine]:
        __tracebackhide__ = True
        if checkpoint is None:
            raise TraceMismatch(f"Nothing says which model {file} is recorded with; give braid_trace a checkpoint.")
        if file in self._written:
            raise TraceMismatch(f"The test records {file} twice; give each engine a file of its own.")
        written = file.with_name(f".{file.name}.{os.getpid()}.new")
        recorded = Engine.open(checkpoint, trace=written, overwrite=True, **{"on_trace_error": "stop", **options})
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TraceError(f"Cannot record {file}: {error.strerror or error}.") from error
        self._written[file] = written
        async with recorded as engine:
            yield engine
        trace = await anyio.to_thread.run_sync(read, written)
        if trace.lost is not None:
            raise TraceMismatch(f"The trace {file} was not recorded whole: {trace.lost}.")


def _difference(file: Path, what: str, again: str) -> str:
    return f"The program differs from {file}. {what}\nIf that is meant, record it again with: {again}"


def _is_of_playback(error: BaseException) -> bool:
    """Whether an error says nothing but that something was played back that is not in the trace."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_of_playback, error.exceptions))
    return isinstance(error, TraceError)

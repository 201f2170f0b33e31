"""The device's side of the contract of `runtime.link`, with tokens from a function instead of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from runtime.errors import BraidError
from runtime.link.commands import (
    Answered,
    CloseThread,
    Command,
    Emitted,
    Extend,
    Failed,
    Finished,
    FinishReason,
    FlushRecording,
    Generate,
    Interrupt,
    LoadWeights,
    OpenThread,
    Record,
    Report,
    Request,
    Signalled,
    StartRecording,
    Statistics,
    StopRecording,
    ThreadPath,
)
from runtime.link.events import Event
from runtime.link.work import Work
from tests.runtime_loop.words import ids

DEPTH = 3
"""Iterations of every token."""


@dataclass
class Speaker:
    """What is known when a thread is to say its next token."""

    path: ThreadPath
    tokens: Sequence[int]
    emitted: int
    """Tokens of the context that the thread itself sampled."""


Say = Callable[[Speaker], int]


def scripts(texts: Mapping[str, str], otherwise: str = "z") -> Say:
    """Threads whose context begins with a key say its text, then `otherwise` for ever."""
    said = {ids(key): ids(text) for key, text in texts.items()}

    def say(speaker: Speaker) -> int:
        for key, text in said.items():
            if tuple(speaker.tokens[: len(key)]) == key:
                return text[speaker.emitted] if speaker.emitted < len(text) else ids(otherwise)[0]
        return ids(otherwise)[0]

    return say


def counting(speaker: Speaker) -> int:
    """0, 1, 2, ...: how many tokens the thread has said."""
    return speaker.emitted % 100


class Misused(Exception):
    """A command that `runtime.link.commands` forbids in this state."""


@dataclass
class InProgress:
    """A generate in progress."""

    request: Generate
    start: int
    emitted_before: int
    sampled: int = 0
    computed: int = 0
    iterations: int = 0
    reused: int = 0


@dataclass
class Known:
    """A thread as the device knows it."""

    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    reused: int = 0
    emitted: int = 0
    last_start: int = 0
    emitted_before: int = 0
    work: InProgress | None = None


class ScriptedCore:
    """The contract of `runtime.link`, one tick at a time; every thread that generates says one token a tick."""

    def __init__(self, say: Say, context: int = 10**9) -> None:
        self.say = say
        self.context = context
        self.commands: list[Command | Request] = []
        self.events: list[Event] = []
        self.threads: dict[ThreadPath, Known] = {}
        self.ever: set[ThreadPath] = set()
        self.reports: list[Report] = []
        self.ticks = 0
        self.sampled = self.computed = self.iterations = self.reused = 0
        self.most_open = 0

    def statistics(self) -> Statistics:
        return Statistics(
            ticks=self.ticks,
            open_threads=len(self.threads),
            generated=self.sampled,
            computed=self.computed,
            iterations=self.iterations,
            cached_tokens=self.reused,
        )

    @property
    def has_work(self) -> bool:
        return any(thread.work is not None for thread in self.threads.values())

    def handle(self, command: Command | Request) -> None:
        self.commands.append(command)
        match command:
            case OpenThread():
                self._open(command)
            case Extend(path, tokens):
                thread = self._known(path)
                if thread.work is not None:
                    raise Misused(f"{path} is extended while it generates")
                thread.tokens.extend(tokens)
            case Generate():
                self._generate(command)
            case Interrupt(path, keep):
                self._interrupt(path, keep)
            case CloseThread(path):
                if self._known(path).work is not None:
                    self._finish(path, "interrupted")
                del self.threads[path]
            case Record(event):
                assert isinstance(event, Event)
                self.events.append(event)
            case LoadWeights() | StartRecording() | StopRecording() | FlushRecording():
                self.reports.append(Answered(command.number))

    def tick(self) -> None:
        self.ticks += 1
        for path in sorted(self.threads):
            thread = self.threads[path]
            if thread.work is not None:
                try:
                    self._say_one(path, thread, thread.work)
                except BraidError as error:
                    thread.work = None
                    self.reports.append(Failed(path, error))

    def take_reports(self) -> list[Report]:
        reports, self.reports = self.reports, []
        return reports

    def _known(self, path: ThreadPath) -> Known:
        if path not in self.threads:
            raise Misused(f"{path} is not open")
        return self.threads[path]

    def _open(self, command: OpenThread) -> None:
        if command.thread in self.ever:
            raise Misused(f"{command.thread} is opened twice")
        thread = Known()
        if command.inherits is not None:
            parent = self._known(command.inherits)
            if parent.work is not None:
                raise Misused(f"{command.inherits} is forked while it generates")
            thread.tokens = parent.tokens[:]
            thread.computed = parent.computed
            thread.reused = parent.computed
        self.ever.add(command.thread)
        self.threads[command.thread] = thread
        self.most_open = max(self.most_open, len(self.threads))

    def _generate(self, request: Generate) -> None:
        thread = self._known(request.thread)
        if thread.work is not None or not thread.tokens or request.max_tokens < 1:
            raise Misused(f"{request.thread} cannot generate")
        thread.last_start = len(thread.tokens)
        thread.emitted_before = thread.emitted
        thread.work = InProgress(request, len(thread.tokens), thread.emitted, reused=thread.reused)
        self.reused += thread.reused
        thread.reused = 0
        if len(thread.tokens) >= self.context:
            self._finish(request.thread, "context")

    def _interrupt(self, path: ThreadPath, keep: int) -> None:
        thread = self._known(path)
        length = min(len(thread.tokens), thread.last_start + keep)
        thread.emitted -= len(thread.tokens) - length
        del thread.tokens[length:]
        thread.computed = min(thread.computed, length)
        if thread.work is not None:
            self._finish(path, "interrupted")

    def _say_one(self, path: ThreadPath, thread: Known, work: InProgress) -> None:
        request = work.request
        pending = max(1, len(thread.tokens) - thread.computed)
        if request.max_iterations is not None and work.iterations + pending * DEPTH > request.max_iterations:
            self._finish(path, "iterations")
            return
        work.computed += pending
        self.computed += pending
        work.iterations += pending * DEPTH
        self.iterations += pending * DEPTH
        thread.computed = len(thread.tokens)
        token = self.say(Speaker(path, thread.tokens, thread.emitted))
        thread.tokens.append(token)
        thread.emitted += 1
        work.sampled += 1
        self.sampled += 1
        if request.stream:
            self.reports.append(Emitted(path, (token,), (-0.5,), depths=(DEPTH,)))
        stops = token in request.stop_tokens
        if request.watcher is not None:
            for signal in request.watcher.feed(token):
                self.reports.append(Signalled(path, signal, 0.5 if request.entropies else math.nan))
                stops |= signal.stops
        if stops:
            self._finish(path, "stop")
        elif work.sampled >= request.max_tokens:
            self._finish(path, "length")
        elif len(thread.tokens) >= self.context:
            self._finish(path, "context")

    def _finish(self, path: ThreadPath, reason: FinishReason) -> None:
        thread = self.threads[path]
        work = thread.work
        assert work is not None
        tokens = tuple(thread.tokens[work.start :])
        thread.work = None
        self.reports.append(
            Finished(
                thread=path,
                tokens=tokens,
                logprobs=(-0.5,) * len(tokens),
                top_logprobs=(),
                depths=(DEPTH,) * len(tokens),
                reason=reason,
                work=Work(
                    generated=work.sampled,
                    computed=work.computed,
                    iterations=work.iterations,
                    cached_tokens=work.reused,
                ),
            )
        )


def assert_all_closed(core: ScriptedCore) -> None:
    """Every thread that was opened was closed."""
    opened = [command.thread for command in core.commands if isinstance(command, OpenThread)]
    closed = [command.thread for command in core.commands if isinstance(command, CloseThread)]
    assert sorted(opened) == sorted(closed)
    assert core.threads == {}

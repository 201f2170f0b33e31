"""A device without a model: tokens are digests of a thread's context. It records what a real one records."""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import msgspec

from policies import Fixed
from runtime.errors import PolicyError
from runtime.link import Trace
from runtime.link import events as ev
from runtime.link.commands import (
    CloseThread,
    Command,
    Deliver,
    DeviceFailed,
    Emitted,
    Extend,
    Failed,
    Finished,
    FinishReason,
    Generate,
    Interrupt,
    OpenThread,
    Record,
    Report,
    Request,
    Signal,
    Signalled,
    Statistics,
    ThreadPath,
)
from runtime.link.events import AnyEvent, Header
from runtime.link.sampling import Sampling
from runtime.link.work import Work

VOCAB = 97
DEPTH = Fixed(4)

Path = ThreadPath


def header(**changed: Any) -> Header:
    fields: dict[str, Any] = {
        "format": ev.FORMAT,
        "started": 1.7e9,
        "checkpoint": "toy",
        "fingerprint": "0" * 16,
        "policy": None,
        "seed": 7,
        "engine": {"num_pages": 64},
        "versions": {"python": "3"},
    }
    return Header(**(fields | changed))


def through_builtins(events: list[AnyEvent]) -> list[AnyEvent]:
    """Structs inside of events come back as builtins."""
    return [msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=AnyEvent) for event in events]


class Marks:
    """A watcher: multiples of 5 are spawns, multiples of 13 stop."""

    def __init__(self) -> None:
        self.seen = 0

    def feed(self, token: int) -> tuple[Signal, ...]:
        self.seen += 1
        signals: tuple[Signal, ...] = ()
        if token % 5 == 0:
            signals += (Signal(kind="spawn", tokens=(token,), start=max(0, self.seen - 2)),)
        if token % 13 == 0:
            signals += (Signal(kind="stop", tokens=(token,), start=self.seen - 1, stops=True),)
        return signals


class ToyThread:
    def __init__(self, seed: int, context: list[int]) -> None:
        self.seed = seed
        self.context = context
        self.computed = 0
        self.call: Generate | None = None
        self.call_start = 0
        self.samples: list[ev.Sampled] = []
        self.spent = (0, 0)
        """Tokens and iterations computed in this call."""
        self.is_failed = False


class ToyCore:
    """`change` may replace a token or its depth: it gets the path and position, and gives added amounts."""

    def __init__(
        self,
        change: Callable[[Path, int], tuple[int, int]] = lambda path, position: (0, 0),
        fails: Callable[[Path, int], bool] = lambda path, position: False,
        context_size: int = 10_000,
    ) -> None:
        self.events: list[AnyEvent] = []
        self.reports: list[Report] = []
        self.threads: dict[Path, ToyThread] = {}
        self.ticks = 0
        self._change = change
        self._fails = fails
        self._context_size = context_size

    def record(self, kind: type[AnyEvent], **fields: Any) -> AnyEvent:
        event = kind(time=len(self.events) * 0.001, **fields)
        self.events.append(event)
        return event

    def trace(self) -> Trace:
        return Trace(header=header(), events=self.events, lost=None)

    @property
    def has_work(self) -> bool:
        return any(thread.call is not None for thread in self.threads.values())

    def handle(self, command: Command) -> None:
        if isinstance(command, Record):
            assert isinstance(command.event, AnyEvent)
            self.events.append(msgspec.structs.replace(command.event, time=len(self.events) * 0.001))
            return
        path = command.thread
        if isinstance(command, OpenThread):
            inherited = [] if command.inherits is None else self.threads[command.inherits].context[:]
            self.threads[path] = ToyThread(command.seed, inherited)
            self.record(ev.ThreadOpened, thread=path, inherits=command.inherits, seed=command.seed, depth=command.depth)
            return
        thread = self.threads[path]
        match command:
            case Extend(tokens=tokens):
                self.record(ev.Received, thread=path, position=len(thread.context), tokens=tokens)
                thread.context.extend(tokens)
            case Generate():
                self.record(
                    ev.GenerateStarted,
                    thread=path,
                    position=len(thread.context),
                    max_tokens=command.max_tokens,
                    sampling=command.sampling,
                    depth=command.depth or DEPTH,
                    max_iterations=command.max_iterations,
                )
                thread.call, thread.call_start, thread.samples = command, len(thread.context), []
                thread.spent = (0, 0)
                thread.computed = min(thread.computed, len(thread.context) - 1)
            case Interrupt(keep=keep):
                del thread.context[thread.call_start + keep :]
                self._finish(path, "interrupted")
            case CloseThread():
                self._finish(path, "interrupted")
                self.record(ev.ThreadClosed, thread=path)
                del self.threads[path]

    def tick(self) -> None:
        """One token for every thread that generates; all that it needs is computed in the same tick."""
        in_flight = left = 0
        for path, thread in sorted(self.threads.items()):
            if thread.call is None:
                continue
            position = len(thread.context)
            if self._fails(path, position):
                error = PolicyError(f"toy failure at {position}")
                self.reports.append(Failed(path, error))
                self.record(ev.ThreadFailed, thread=path, error=f"PolicyError: {error}")
                self._close_call(path, "failed")
                thread.is_failed = True
                continue
            digest = zlib.crc32(msgspec.msgpack.encode((thread.seed, path, thread.context)))
            more_token, more_depth = self._change(path, position)
            count, depth = position - thread.computed, 1 + digest % 5 + more_depth
            self.record(
                ev.Computed,
                tick=self.ticks,
                thread=path,
                position=thread.computed,
                count=count,
                depth=depth,
                recomputed=False,
            )
            thread.computed = position
            thread.spent = (thread.spent[0] + count, thread.spent[1] + count * depth)
            in_flight += count * depth
            left += count
            self._sample(path, thread, (digest // 5 + more_token) % VOCAB, depth)
        self.record(
            ev.TickDone,
            tick=self.ticks,
            seconds=0.001,
            entered=left,
            in_flight=in_flight,
            left=left,
            waiting=self.ticks % 3,
            pages_used=len(self.threads),
        )
        self.ticks += 1

    def _sample(self, path: Path, thread: ToyThread, token: int, depth: int) -> None:
        call = thread.call
        assert call is not None
        sample = self.record(
            ev.Sampled,
            tick=self.ticks,
            thread=path,
            position=len(thread.context),
            token=token,
            depth=depth,
            logprob=-0.25,
            entropy=token / 8 if call.entropies else None,
            top_logprobs={token: -0.25, (token - 1) % VOCAB: -0.75} if call.sampling.logprobs else None,
        )
        assert isinstance(sample, ev.Sampled)
        thread.samples.append(sample)
        thread.context.append(token)
        if call.stream:
            top = () if sample.top_logprobs is None else (sample.top_logprobs,)
            self.reports.append(Emitted(path, (token,), (sample.logprob,), top, (sample.depth,)))
        stops = token in call.stop_tokens
        for signal in call.watcher.feed(token) if call.watcher is not None else ():
            entropy = thread.samples[signal.start].entropy
            self.reports.append(Signalled(path, signal, math.nan if entropy is None else entropy))
            stops |= signal.stops
        if stops:
            self._finish(path, "stop")
        elif len(thread.samples) == call.max_tokens:
            self._finish(path, "length")
        elif len(thread.context) >= self._context_size:
            self._finish(path, "context")

    def _finish(self, path: Path, reason: FinishReason) -> None:
        thread = self.threads[path]
        if thread.call is None:
            return
        kept = thread.samples[: len(thread.context) - thread.call_start]
        self.reports.append(
            Finished(
                thread=path,
                tokens=tuple(sample.token for sample in kept),
                logprobs=tuple(sample.logprob for sample in kept),
                top_logprobs=tuple(sample.top_logprobs or {} for sample in kept),
                depths=tuple(sample.depth for sample in kept),
                reason=reason,
                work=Work(
                    generated=len(thread.samples),
                    computed=thread.spent[0],
                    iterations=thread.spent[1],
                    recomputed=0,
                    cached_tokens=0,
                ),
            )
        )
        self._close_call(path, reason)

    def _close_call(self, path: Path, reason: str) -> None:
        thread = self.threads[path]
        self.record(
            ev.GenerateFinished,
            thread=path,
            position=len(thread.context),
            reason=reason,
            work=Work(generated=len(thread.samples), computed=thread.spent[0], iterations=thread.spent[1]),
        )
        thread.call = None


class ToyDevice:
    """A `ToyCore` on a thread of its own."""

    def __init__(self, core: ToyCore) -> None:
        self._core = core
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._worker: threading.Thread | None = None

    def start(self, deliver: Deliver) -> None:
        self._worker = threading.Thread(target=self._run, args=(deliver,), daemon=True)
        self._worker.start()

    def send(self, command: Command | Request) -> None:
        assert isinstance(command, Command), "nobody asks a toy for anything"
        self._commands.put(command)

    def stop(self) -> None:
        self._commands.put(None)
        assert self._worker is not None
        self._worker.join()

    first_tree = 0

    @property
    def statistics(self) -> Statistics:
        return Statistics()

    def _run(self, deliver: Deliver) -> None:
        try:
            self._serve(deliver)
        except Exception as error:
            deliver([DeviceFailed(error)])

    def _serve(self, deliver: Deliver) -> None:
        while True:
            while not self._core.has_work or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                self._core.handle(command)
            self._core.tick()
            if self._core.reports:
                deliver(self._core.reports)
                self._core.reports = []


Log = list[Command | Report]
"""What went to a device and what came back, in order."""

Operation = tuple[int, int]


def run_program(core: ToyCore, operations: list[Operation]) -> Log:
    """Interprets numbers as a program: opens, forks, extends, generates, interrupts, cuts and closes threads."""
    log: Log = []
    opened: dict[Path, int] = {}
    """Children opened so far, by parent."""

    def send(command: Command) -> None:
        log.append(command)
        core.handle(command)
        take()

    def take() -> None:
        log.extend(core.reports)
        core.reports = []

    def open_child(parent: Path, inherits: Path | None) -> None:
        path = (*parent, opened.get(parent, 0))
        opened[parent] = path[-1] + 1
        send(OpenThread(thread=path, seed=7, depth=DEPTH, inherits=inherits))

    def pick(paths: list[Path], number: int) -> Path | None:
        return paths[number % len(paths)] if paths else None

    for kind, number in operations:
        usable = [path for path, thread in sorted(core.threads.items()) if not thread.is_failed]
        idle = [path for path in usable if core.threads[path].call is None]
        ready = [path for path in idle if core.threads[path].context]
        busy = [path for path in usable if core.threads[path].call is not None]
        if kind == 0:
            parent = pick([(), *usable], number)
            open_child(parent or (), None)
        elif kind == 1 and (source := pick(ready, number)) is not None:
            open_child(source, source)
        elif kind == 2 and (path := pick(idle, number)) is not None:
            send(Extend(path, tuple(range(number % 11, number % 11 + 1 + number % 3))))
        elif kind == 3 and (path := pick(ready, number)) is not None:
            send(
                Generate(
                    thread=path,
                    max_tokens=1 + number % 9,
                    sampling=Sampling(temperature=number % 2, logprobs=number % 3),
                    stream=number % 4 < 2,
                    entropies=number % 3 == 0,
                    watcher=Marks() if number % 5 < 3 else None,
                    stop_tokens=frozenset({number % VOCAB}),
                )
            )
        elif kind == 4 and (path := pick(busy, number)) is not None:
            send(Interrupt(path, keep=number % 4))
        elif kind == 5 and (path := pick(idle, number)) is not None:
            thread = core.threads[path]
            if thread.samples and len(thread.context) == thread.call_start + len(thread.samples):
                send(Interrupt(path, keep=number % (len(thread.samples) + 1)))
        elif kind == 6 and (path := pick(sorted(core.threads), number)) is not None:
            send(CloseThread(path))
        elif core.has_work:
            core.tick()
            take()
    while core.has_work:
        core.tick()
        take()
    return log


def again(command: Command) -> Command:
    """The same command with a watcher that has seen nothing."""
    if isinstance(command, Generate) and command.watcher is not None:
        return msgspec.structs.replace(command, watcher=Marks())
    return command

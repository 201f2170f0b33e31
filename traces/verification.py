"""Running a trace again on a real device, and finding where it first goes another way."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Literal

import msgspec

from policies import DepthPolicy, from_builtins
from runtime import EngineFailed, Sampling, TraceError
from runtime.link import (
    CloseThread,
    Device,
    DeviceFailed,
    Extend,
    Failed,
    Finished,
    Generate,
    Interrupt,
    Merge,
    Merged,
    OpenThread,
    Received,
    Report,
    Retold,
    ThreadClosed,
    ThreadOpened,
    ThreadPath,
    Trace,
)
from traces.generate_record import GenerateRecord
from traces.mail import mail_imbalances
from traces.recorded import builtins
from traces.tree import path_name, thread_tree, walk_threads

SCORE_TOLERANCE = 1e-3
"""Nats by which a score may differ: what another order of sums changes, and not another model."""


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """The first place where the device did something else than the recording."""

    thread: ThreadPath
    position: int
    """In the thread's context."""
    kind: Literal["token", "depth", "length", "score", "error"]
    """Another token; another depth (whatever the token); fewer tokens than recorded; a given token is worth something
    else; the thread failed."""
    expected: int | None
    """Token or depth as recorded; None for a score or an error."""
    found: int | None
    """Token or depth now; None where there is none."""
    margin: float | None
    """For a token: by how many nats it was likelier now than the recorded one, where the device can tell. A small
    margin means a tie at float precision, not another model."""
    detail: str
    """The same as a sentence."""


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What a verify replay found."""

    threads: int
    calls: int
    """Generates executed again."""
    tokens: int
    """Tokens found equal, depths included."""
    divergence: Divergence | None
    not_executed: int = 0
    """Generates that sampled, scored and filled nothing, so that there is nothing to compare."""

    @property
    def equal(self) -> bool:
        """Whether something was executed, and everything that was is as recorded."""
        return self.divergence is None and self.calls > 0


def verify(trace: Trace, device: Device) -> Verification:
    """Executes every recorded thread again and compares each sampled token and its depth.

    Commands go out in recorded order, so that forks inherit what they did and about as much runs at a time. Each
    generate gets its recorded bounds and ends after as many tokens as were recorded, however it ended then. Starts
    `device` and stops it; blocks until done, or until the first divergence is certain.

    Policies that look at the load of the engine may decide otherwise in a replay; that shows as kind "depth". So may
    limits on iterations where tokens are evicted and computed again, which counts: kinds "depth" and "length".
    Raises `TraceError` if the trace's events do not fit together or name an unknown policy, `EngineFailed` if the
    device dies.
    """
    if found := mail_imbalances(trace.events):
        raise TraceError(f"The trace's messages do not fit together: {found[0]}.")
    replay = _Replay(trace, device)
    device.start(replay.deliver)
    try:
        return replay.run()
    finally:
        device.stop()


class _Replay:
    def __init__(self, trace: Trace, device: Device) -> None:
        self._reports: SimpleQueue[list[Report]] = SimpleQueue()
        self._events = trace.events
        self._device = device
        self._records = {record.path: record for record in walk_threads(thread_tree(trace.events))}
        self._starts: dict[int, tuple[ThreadPath, GenerateRecord]] = {}
        self._ends: dict[int, tuple[ThreadPath, GenerateRecord]] = {}
        for path, record in self._records.items():
            for call in record.calls:
                if _is_executed(call):
                    self._starts[call.index] = path, call
                    if call.end_index is not None:
                        self._ends[call.end_index] = path, call
        self._lengths: dict[ThreadPath, int] = {}
        self._call_starts: dict[ThreadPath, int] = {}
        self._open: dict[ThreadPath, GenerateRecord] = {}
        """Generates whose answer has not been compared."""
        self._answers: dict[ThreadPath, Finished | Failed] = {}
        self._failures: dict[ThreadPath, Exception] = {}
        self._threads = self._calls = self._tokens = 0

    def deliver(self, reports: list[Report]) -> None:
        """Called by the device."""
        self._reports.put(reports)

    def run(self) -> Verification:
        divergence: Divergence | None = None
        for index, event in enumerate(self._events):
            if index in self._ends:
                path, call = self._ends[index]
                divergence = self._compared(path, call)
            elif index in self._starts:
                path, call = self._starts[index]
                self._generate(path, call)
            elif isinstance(event, ThreadOpened):
                self._open_thread(event)
            elif isinstance(event, Received):
                self._cut(event.thread, event.position)
                self._device.send(Extend(event.thread, event.tokens))
                self._lengths[event.thread] += len(event.tokens)
            elif isinstance(event, Merged):
                self._merge(event)
            elif isinstance(event, ThreadClosed):
                self._close(event.thread)
            if divergence is not None:
                break
        divergence = self._first_of_open(divergence)
        return Verification(
            threads=self._threads,
            calls=self._calls,
            tokens=self._tokens,
            divergence=divergence,
            not_executed=sum(not _is_executed(call) for record in self._records.values() for call in record.calls),
        )

    def _open_thread(self, event: ThreadOpened) -> None:
        inherited = 0
        if event.inherits is not None:
            segments = self._records[event.thread].segments
            inherited = segments[0].position if segments else self._length(event.inherits)
            self._cut(event.inherits, inherited)
        self._lengths[event.thread] = inherited
        self._threads += 1
        depth = _depth_policy(event.depth)
        self._device.send(OpenThread(thread=event.thread, seed=event.seed, depth=depth, inherits=event.inherits))

    def _merge(self, event: Merged) -> None:
        self._cut(event.thread, event.position)
        self._device.send(Merge(event.thread, event.children))
        self._lengths[event.thread] += len(event.tokens)
        if event.tokens:
            self._call_starts[event.thread] = self._lengths[event.thread]

    def _close(self, path: ThreadPath) -> None:
        self._length(path)
        self._device.send(CloseThread(path))
        # A generate that the trace sees ending later has ended with its thread.
        del self._lengths[path]

    def _length(self, path: ThreadPath) -> int:
        """Tokens in the context of a thread that is open."""
        if path not in self._lengths:
            raise TraceError(
                f"Thread {path_name(path)} cannot be executed again: the trace goes on with it where it is not open, "
                "before its beginning or after its end."
            )
        return self._lengths[path]

    def _cut(self, path: ThreadPath, length: int) -> None:
        """Repeats a cut of the context that left no event of its own: what comes next begins below its end."""
        start, present = self._call_starts.get(path, 0), self._length(path)
        if not start <= length <= present:
            raise TraceError(
                f"Thread {path_name(path)} cannot be executed again: the trace goes on at position {length}; between "
                f"{start} and {present} is where a device could."
            )
        if length < present:
            self._device.send(Interrupt(path, keep=length - start))
            self._lengths[path] = length

    def _generate(self, path: ThreadPath, call: GenerateRecord) -> None:
        self._cut(path, call.position)
        sampling = _sampling(call.sampling)
        self._device.send(
            Generate(
                thread=path,
                max_tokens=call.max_tokens,
                max_iterations=call.max_iterations,
                sampling=msgspec.structs.replace(sampling, logprobs=max(2, sampling.logprobs)),
                depth=_depth_policy(call.depth),
                watcher=Retold(tuple(sample.token for sample in call.samples)) if call.samples else None,
                scores=call.scores,
                fills=call.fills,
                constraint=call.constraint,
            )
        )
        self._open[path] = call
        self._call_starts[path] = call.position
        self._lengths[path] = call.position + len(call.samples)
        self._calls += 1

    def _compared(self, path: ThreadPath, call: GenerateRecord) -> Divergence | None:
        """Waits for a generate's answer and compares it; cuts the context as the recording did."""
        del self._open[path]
        answer = self._answer(path)
        if isinstance(answer, Failed):
            return Divergence(
                thread=path,
                position=call.position,
                kind="error",
                expected=None,
                found=None,
                margin=None,
                detail=f"thread {path_name(path)} failed, and did not in the recording: {answer.error}",
            )
        if call.scores:
            divergence, whole = _first_other_score(path, call, answer), len(call.scored)
        else:
            divergence, whole = _first_difference(path, call, answer), len(call.samples)
        self._tokens += whole if divergence is None else divergence.position - call.position
        if call.end_position is not None and divergence is None and path in self._lengths:
            self._cut(path, call.end_position)
        return divergence

    def _answer(self, path: ThreadPath) -> Finished | Failed:
        while path not in self._answers:
            for report in self._reports.get():
                if isinstance(report, DeviceFailed):
                    raise EngineFailed(f"The device failed during verify: {report.error!r}.") from report.error
                if isinstance(report, Finished | Failed):
                    self._answers[report.thread] = report
        return self._answers.pop(path)

    def _first_of_open(self, found: Divergence | None) -> Divergence | None:
        """The earliest divergence as recorded, those of generates that are still open included."""
        candidates = [] if found is None else [found]
        for path, call in list(self._open.items()):
            other = self._compared(path, call)
            if other is not None:
                candidates.append(other)
        return min(candidates, key=self._recorded_at, default=None)

    def _recorded_at(self, divergence: Divergence) -> int:
        for call in self._records[divergence.thread].calls:
            for index, sample in zip(call.sample_indices, call.samples, strict=True):
                if sample.position == divergence.position:
                    return index
        return len(self._events)


def _is_executed(call: GenerateRecord) -> bool:
    """Whether there is something to compare, or others see what it computes."""
    return bool(call.samples or call.scored or (call.fills and call.reason == "filled"))


def _first_difference(path: ThreadPath, call: GenerateRecord, answer: Finished) -> Divergence | None:
    name = path_name(path)
    for at, sample in enumerate(call.samples):
        where = f"thread {name}, position {sample.position}"
        if at == len(answer.tokens):
            return Divergence(
                thread=path,
                position=sample.position,
                kind="length",
                expected=sample.token,
                found=None,
                margin=None,
                detail=f"{where}: {len(call.samples)} tokens were recorded; now there are {at} ({answer.reason})",
            )
        token, depth = answer.tokens[at], answer.depths[at]
        if depth != sample.depth:
            return Divergence(
                thread=path,
                position=sample.position,
                kind="depth",
                expected=sample.depth,
                found=depth,
                margin=None,
                detail=f"{where}: depth {sample.depth} was recorded; now it is {depth} "
                f"(token {sample.token} then, {token} now)",
            )
        if token != sample.token:
            margin = _margin(answer, at, sample.token)
            return Divergence(
                thread=path,
                position=sample.position,
                kind="token",
                expected=sample.token,
                found=token,
                margin=margin,
                detail=f"{where}: token {sample.token} was recorded; now it is {token}"
                + (f", likelier by {margin:.3g} nats" if margin is not None else ""),
            )
    return None


def _first_other_score(path: ThreadPath, call: GenerateRecord, answer: Finished) -> Divergence | None:
    for at, scored in enumerate(call.scored):
        where = f"thread {path_name(path)}, position {scored.position}"
        if at == len(answer.tokens):
            how: Literal["length", "depth", "score"] = "length"
            detail = f"{where}: {len(call.scored)} scores were recorded; now there are {at} ({answer.reason})"
        elif answer.depths[at] != scored.depth:
            how = "depth"
            detail = f"{where}: depth {scored.depth} was recorded; now it is {answer.depths[at]}"
        elif abs(answer.logprobs[at] - scored.logprob) > SCORE_TOLERANCE:
            how = "score"
            detail = (
                f"{where}: token {scored.token} was recorded at {scored.logprob:.6g} nats; now it is at "
                f"{answer.logprobs[at]:.6g}"
            )
        else:
            continue
        return Divergence(
            thread=path,
            position=scored.position,
            kind=how,
            expected=scored.depth if how == "depth" else scored.token if how == "length" else None,
            found=answer.depths[at] if how == "depth" else None,
            margin=None,
            detail=detail,
        )
    return None


def _margin(answer: Finished, at: int, expected: int) -> float | None:
    other = answer.top_logprobs[at].get(expected) if at < len(answer.top_logprobs) else None
    return None if other is None else answer.logprobs[at] - other


def _sampling(recorded: object) -> Sampling:
    try:
        return msgspec.convert(builtins(recorded), Sampling)
    except (msgspec.ValidationError, ValueError) as error:
        raise TraceError(f"The trace's sampling cannot be used: {error}.") from error


def _depth_policy(recorded: object) -> DepthPolicy:
    try:
        return from_builtins(builtins(recorded), DepthPolicy)
    except ValueError as error:
        raise TraceError(f"The trace's depth policy cannot be used: {error}") from error

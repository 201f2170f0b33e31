"""One generate in progress: what is heard of a server becomes tokens of a context, signals, reports and notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from policies import DepthPolicy, Fixed
from runtime.device.journal import Journal
from runtime.device.remote.chunks import Heard
from runtime.errors import ProtocolError, described
from runtime.link import events
from runtime.link.commands import Emitted, Failed, Finished, FinishReason, Generate, Signalled, ThreadPath
from runtime.link.notes import TickNotes
from runtime.link.work import Work


@dataclass(slots=True)
class RemoteThread:
    """A context, as it is known here; the server keeps nothing of it that counts."""

    path: ThreadPath
    depth: DepthPolicy
    priority: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    """Leading tokens that a server has computed for it."""
    received: int = 0
    """Of the tokens after those, how many were received."""
    start: int = 0
    """Length of the context when the last generate began."""
    speaking: Speaking | None = None

    def cut(self, length: int) -> None:
        """Forgets tokens from a length on."""
        del self.tokens[length:]
        self.computed = min(self.computed, length)


class Speaking:
    """A generate, from its command to its end; each chunk is a tick of the device's."""

    def __init__(self, thread: RemoteThread, request: Generate, journal: Journal, max_context: int | None) -> None:
        self.thread = thread
        self.request = request
        self.work = Work()
        self.logprobs: list[float] = []
        self.tops: list[dict[int, float]] = []
        self.depths: list[int] = []
        self.is_over = False
        self._journal = journal
        self._max_context = max_context
        self._since = journal.microseconds()
        policy = thread.depth
        self._depth = policy.max_iterations or 1 if isinstance(policy, Fixed) else 1
        """Iterations of a token, where the server says nothing of it."""

    @property
    def said(self) -> int:
        return self.work.generated

    def bound(self) -> FinishReason | None:
        """Which bound lets no further token be sampled."""
        if self.said >= self.request.max_tokens:
            return "length"
        if self._max_context is not None and len(self.thread.tokens) >= self._max_context:
            return "context"
        most, thread = self.request.max_iterations, self.thread
        if most is not None and self.work.iterations + len(thread.tokens) - thread.computed > most:
            return "iterations"
        return None

    def take(self, heard: Heard) -> None:
        """Takes in what a chunk says; the generate may be over afterwards."""
        iterations = self.work.iterations
        ended: FinishReason | None = None
        tops: Sequence[dict[int, float] | None] = heard.tops or [None] * len(heard.tokens)
        depths = heard.depths or [self._depth] * len(heard.tokens)
        emitted = 0
        try:
            for token, logprob, top, depth in zip(heard.tokens, heard.logprobs, tops, depths, strict=True):
                self._append(token, logprob, top, depth)
                emitted += 1
                ended = "stop" if self._is_last(token) else self.bound()
                if ended is not None:
                    break
        except Exception as cause:
            watcher = type(self.request.watcher).__name__
            error = ProtocolError(f"watcher {watcher} raised at token {token}: {described(cause)}.")
            error.__cause__ = cause
            self._tell_stream(heard, emitted + 1)
            self._tick(iterations)
            self.fail(error)
            return
        self._tell_stream(heard, emitted)
        if emitted:
            self._tick(iterations)
        if ended is not None:
            self.finish(ended)

    def finish(self, reason: FinishReason) -> None:
        """Reports the end and what remains in the context."""
        tokens = self.thread.tokens[self.thread.start :]
        self._journal.reports.append(
            Finished(
                thread=self.thread.path,
                tokens=tuple(tokens),
                logprobs=tuple(self.logprobs),
                top_logprobs=tuple(self.tops),
                depths=tuple(self.depths),
                reason=reason,
                work=self.work,
            )
        )
        self._close(reason)

    def fail(self, error: Exception) -> None:
        self._journal.reports.append(Failed(self.thread.path, error, self.work))
        self._journal.record(events.ThreadFailed, thread=self.thread.path, error=described(error))
        self._close("failed")

    def interrupt(self, keep: int) -> None:
        """Ends it early, with the first `keep` of its tokens."""
        self.thread.cut(min(len(self.thread.tokens), self.thread.start + keep))
        for kept in (self.logprobs, self.tops, self.depths):
            del kept[keep:]
        self.finish("interrupted")

    def scored(self, heard: Sequence[Heard]) -> bool:
        """Takes in an echo; false where that is not one of the tokens that are to be scored."""
        count, start = len(self.request.scores), len(self.thread.tokens)
        tokens = [token for each in heard for token in each.tokens]
        logprobs = [logprob for each in heard for logprob in each.logprobs]
        tops = [top for each in heard for top in each.tops] or [{} for _ in tokens]
        whole = [*self.thread.tokens, *self.request.scores]
        if tokens[: len(whole)] != whole or any(map(math.isnan, logprobs[start : len(whole)])):
            return False
        depths = [depth for each in heard for depth in each.depths] or [self._depth] * len(whole)
        iterations = self.work.iterations
        self._compute(len(whole), depths[-1])
        self.thread.computed = min(self.thread.computed, start)
        for number in range(start, len(whole)):
            self.logprobs.append(logprobs[number])
            self.tops.append(tops[number])
            self.depths.append(depths[number])
            self._journal.record(
                events.Scored,
                tick=self._journal.ticks,
                thread=self.thread.path,
                position=number,
                token=whole[number],
                depth=depths[number],
                logprob=logprobs[number],
                top_logprobs=tops[number] or None,
            )
        self._tick(iterations)
        self._journal.reports.append(
            Finished(
                thread=self.thread.path,
                tokens=self.request.scores,
                logprobs=tuple(self.logprobs),
                top_logprobs=tuple(self.tops) if self.request.sampling.logprobs else (),
                depths=tuple(self.depths),
                reason="scored",
                work=self.work,
            )
        )
        assert len(self.logprobs) == count
        self._close("scored")
        return True

    # ---- a token ----------------------------------------------------------------------------------------------------

    def _append(self, token: int, logprob: float, top: dict[int, float] | None, depth: int) -> None:
        thread, journal = self.thread, self._journal
        position = len(thread.tokens)
        self._compute(position, depth)
        if top is None:
            journal.record_tokens(thread.path, position, (token,), (depth,), (logprob,), (journal.ticks,))
        else:
            self.tops.append(top)
            journal.record(
                events.Sampled,
                tick=journal.ticks,
                thread=thread.path,
                position=position,
                token=token,
                depth=depth,
                logprob=logprob,
                top_logprobs=top,
            )
        thread.tokens.append(token)
        self.logprobs.append(logprob)
        self.depths.append(depth)
        self.work.generated += 1
        journal.work.generated += 1

    def _compute(self, end: int, depth: int) -> None:
        """Counts what the server had to compute before it could say the token at a position. What it computes again,
        or has from others, is its own: nobody tells us."""
        thread, journal = self.thread, self._journal
        begin = min(thread.computed, end - 1)
        for work in (self.work, journal.work):
            work.computed += end - begin
            work.prompt_tokens += thread.received
        self._count_iterations((end - begin) * depth)
        journal.record_computed(
            tick=journal.ticks,
            thread=thread.path,
            position=begin,
            count=end - begin,
            depth=depth,
            recomputed=False,
            received=thread.received,
        )
        thread.computed, thread.received = end, 0

    def _count_iterations(self, count: int) -> None:
        self.work.iterations += count
        self._journal.work.iterations += count

    def _is_last(self, token: int) -> bool:
        stops = token in self.request.stop_tokens
        if self.request.watcher is not None:
            for signal in self.request.watcher.feed(token):
                self._journal.reports.append(Signalled(self.thread.path, signal, math.nan))
                stops |= signal.stops
        return stops

    def _tell_stream(self, heard: Heard, count: int) -> None:
        if self.request.stream and count:
            emitted = Emitted(
                self.thread.path,
                tuple(heard.tokens[:count]),
                tuple(heard.logprobs[:count]),
                tuple(heard.tops[:count]),
                tuple(self.depths[-count:]),
            )
            self._journal.reports.append(emitted)

    def _tick(self, before: int) -> None:
        """Notes that a chunk has come, and the iterations that it stands for."""
        journal = self._journal
        journal.ticks += 1
        now, count = journal.microseconds(), self.work.iterations - before
        columns = {"entered": count, "in_flight": count, "left": count, "waiting": 0, "pages_used": 0}
        took = np.array([now - self._since])
        self._since = now
        rest = {name: np.array([value]) for name, value in columns.items()}
        journal.record_ticks(TickNotes(end=np.array([now]), took=took, **rest))

    def _close(self, reason: str) -> None:
        self.is_over = True
        self.thread.speaking = None
        self._journal.record(
            events.GenerateFinished,
            thread=self.thread.path,
            position=len(self.thread.tokens),
            reason=reason,
            work=self.work,
        )

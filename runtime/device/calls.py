"""What becomes of calls: tokens that left the device, and how a generate ends."""

from __future__ import annotations

import math
from collections.abc import Callable

from runtime.backend.interface import Run, TickResult
from runtime.commands import Emitted, Failed, Finished, FinishReason, Signalled, ThreadPath, Watcher
from runtime.device.admission import Admission
from runtime.device.entering import Group, fly
from runtime.device.ledger import Ledger
from runtime.device.memory import ThreadMemory
from runtime.device.sequence import Call, Flight, Sequence
from runtime.device.speculation import Speculation
from runtime.errors import NumericalError, ProtocolError, described, device_error
from runtime.metering import LIMIT_REACHED
from traces import events


class Calls:
    """Follows each call from its first flight to its end; `flying` and `dropped` are shared with the scheduler."""

    def __init__(
        self,
        ledger: Ledger,
        memory: ThreadMemory,
        admission: Admission,
        *,
        speculation: Speculation,
        context: int,
        run_of: Callable[[int], Run | None],
    ) -> None:
        """`run_of` tells what a lane in flight has sampled since it was entered."""
        self._ledger = ledger
        self._run_of = run_of
        self._memory = memory
        self._admission = admission
        self._speculation = speculation
        self._context = context
        self.flying: dict[int, Sequence] = {}
        """By the last lane of their flight."""
        self.dropped: list[int] = []
        """Lanes that the backend is to forget in the next tick."""

    def take_off(self, group: Group, bounds: list[int]) -> None:
        """Puts a group into flight, to enter with the next tick."""
        group.sequence.flight = fly(group, bounds, self._ledger.ticks)
        self.flying[group.last] = group.sequence

    def take_back(self, group: Group) -> None:
        """Takes a group out of a tick that was not executed; its thread is ready again."""
        if group.guessed:
            self._speculation.take_back(group)
            return
        del self.flying[group.last]
        self._admission.give_back(group)
        group.sequence.flight = None
        self._admission.make_ready(group.sequence)

    def arrive(
        self, sequence: Sequence, result: TickResult, index: int, depth: int, token: int, logprob: float
    ) -> None:
        """Takes in a flight that left with row `index` of a tick's result; the thread goes on if its call does."""
        run = result.runs.get(int(result.lane[index])) if result.runs else None
        left = self._ledger.ticks - (result.ticks - result.left_at[index] if result.left_at else 0)
        self._take_in(sequence, depth if run is None else int(run.depth[0]), left)
        if run is not None:
            self._take_run(sequence, run, len(run.token) - 1)
        if token >= 0 and sequence.call is not None:
            if sequence.chain is not None and not self._speculation.is_right(sequence, token):
                self._drop_drafts(sequence, sequence.call)
            self._sample(sequence, result, index, depth, token, logprob)
        if sequence.call is not None:
            self._go_on(sequence, sequence.call)

    def _go_on(self, sequence: Sequence, call: Call) -> None:
        """A thread goes on: its next token is in flight already, as a draft that was right, or enters next."""
        if sequence.chain is None:
            self._admission.make_ready(sequence)
            return
        flight = self._speculation.promote(sequence, call)
        self.flying[flight.lanes[-1]] = sequence

    def hear_draft(self, lane: int, token: int) -> None:
        """Takes in the token that a lane has drafted; of one that was thrown away meanwhile it is of no interest."""
        sequence = self.flying.get(lane) or self._speculation.sequence_in(lane)
        if sequence is not None:
            self._speculation.hear(sequence, token)

    def _drop_drafts(self, sequence: Sequence, call: Call) -> None:
        self.dropped.extend(self._speculation.drop(sequence, call))

    def _take_run(self, sequence: Sequence, run: Run, count: int) -> None:
        """Takes in the first `count` tokens of a lane's run, and that all but its last are computed.

        The token that entered is counted already.
        """
        call = sequence.call
        assert call is not None
        tokens, depths = run.token[:count].tolist(), run.depth.tolist()
        if tokens:
            sequence.append_run(tokens)
        computed = len(depths) - 1
        sequence.computed += computed
        sequence.depths.extend(depths[1:])
        self._ledger.computed += computed
        self._ledger.sampled += count
        call.computed += computed
        call.sampled += count
        logprobs = run.logprob[:count].tolist()
        call.logprobs.extend(logprobs)
        call.depths.extend(depths[:count])
        # NaN stays NaN in a sum, and looking at every single one would take longer.
        if not math.isfinite(sum(logprobs)):
            first = next(index for index, logprob in enumerate(logprobs) if not math.isfinite(logprob))
            self._fail_numerically(sequence, len(sequence.tokens) - count + first)
            return
        watcher = call.request.watcher
        if watcher is None:
            return
        for after, token in zip(range(len(tokens) - 1, -1, -1), tokens, strict=True):
            try:
                signals = watcher.feed(token)
            except Exception as cause:
                self._blame_watcher(sequence, watcher, token, cause)
                return
            if signals == (LIMIT_REACHED,):
                # Other threads have used up what this one was to share with them.
                self._cut(sequence, call, after)
                return
            if signals:
                broken = RuntimeError(f"it signals {signals[0].kind!r}, which foresee() did not announce")
                self._blame_watcher(sequence, watcher, token, broken)
                return

    def _cut(self, sequence: Sequence, call: Call, count: int) -> None:
        """Forgets the last `count` tokens of a run, at a limit before them; the call is over."""
        length = len(sequence.tokens) - count
        self._memory.release(sequence.truncate(length, self._memory.page_size))
        call.keep(length - call.start)
        self._ledger.reports.append(Signalled(sequence.path, LIMIT_REACHED, math.nan))
        self.finish(sequence, "stop")

    def _blame_watcher(self, sequence: Sequence, watcher: Watcher, token: int, cause: Exception) -> None:
        error = ProtocolError(f"watcher {type(watcher).__name__} raised at token {token}: {described(cause)}.")
        error.__cause__ = cause
        self.fail(sequence, error)

    def _fail_numerically(self, sequence: Sequence, position: int) -> None:
        message = (
            f"thread {sequence.path}: the logits for the token at position {position} are not all finite, so that none "
            "can be chosen. The weights overflow in this dtype on this context; load others, or open the engine with "
            "dtype 'float32'."
        )
        self.fail(sequence, NumericalError(message))

    def _take_in(self, sequence: Sequence, depth: int, left: int) -> None:
        flight, call = sequence.flight, sequence.call
        assert flight is not None
        assert call is not None
        del self.flying[flight.lanes[-1]]
        self._admission.free_lanes.extend(flight.lanes)
        sequence.flight = None
        self._take_computed(sequence, call, flight, depth, left)
        self._admission.stop_leading(sequence)
        sequence.state_at = flight.end - 1

    def _take_computed(self, sequence: Sequence, call: Call, flight: Flight, depth: int, left: int) -> None:
        """Counts what a flight has computed before tick `left`; its tokens have `depth`, unless that was known."""
        count = flight.end - flight.start
        call.iterations += flight.iterations(left)
        call.computed += count
        call.recomputed += flight.recomputed
        received = sequence.received_in(flight.start, flight.end)
        call.received += received
        self._ledger.computed += count
        self._ledger.recomputed += flight.recomputed
        self._ledger.received += received
        sequence.computed = flight.end
        if not flight.recomputed:
            sequence.depths.extend([depth] * count)
            if flight.start < sequence.spans[0].end:
                self._memory.store_prefix(sequence, flight.start, flight.bounds[0])
        if self._ledger.recorder is not None:
            self._record_computed(sequence, flight)

    def _sample(
        self, sequence: Sequence, result: TickResult, index: int, depth: int, token: int, logprob: float
    ) -> None:
        call = sequence.call
        assert call is not None
        if not math.isfinite(logprob):
            self._fail_numerically(sequence, len(sequence.tokens))
            return
        request = call.request
        if self._ledger.recorder is not None:
            self._ledger.record(
                events.Sampled,
                tick=self._ledger.ticks - 1,
                thread=sequence.path,
                position=len(sequence.tokens),
                token=token,
                depth=depth,
                logprob=logprob,
                entropy=float(result.entropy[index]) if request.entropies else None,
                top_logprobs=result.top[index] if request.sampling.logprobs else None,
            )
        sequence.append_sampled(token)
        self._ledger.sampled += 1
        call.sampled += 1
        call.logprobs.append(logprob)
        call.depths.append(depth)
        if request.entropies:
            call.entropies.append(float(result.entropy[index]))
        if request.sampling.logprobs:
            call.top_logprobs.append(result.top[index])
        if request.stream:
            self._ledger.reports.append(Emitted(sequence.path, (token,)))
        stops = token in request.stop_tokens
        if request.watcher is not None:
            try:
                stops |= self._watch(sequence, call, request.watcher, token)
            except Exception as cause:
                self._blame_watcher(sequence, request.watcher, token, cause)
                return
        if stops:
            self.finish(sequence, "stop")
        elif call.sampled >= request.max_tokens:
            self.finish(sequence, "length")
        elif len(sequence.tokens) >= self._context:
            self.finish(sequence, "context")

    def _watch(self, sequence: Sequence, call: Call, watcher: Watcher, token: int) -> bool:
        """Reports what a watcher recognises; whether the thread stops."""
        stops = False
        for signal in watcher.feed(token):
            entropy = call.entropies[signal.start] if call.request.entropies else math.nan
            self._ledger.reports.append(Signalled(sequence.path, signal, entropy))
            stops |= signal.stops
        return stops

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a thread's call and parks it; nothing of it may be in flight."""
        call = sequence.call
        assert call is not None
        assert sequence.flight is None, "a call ended with tokens in flight"
        self._drop_drafts(sequence, call)
        self._ledger.reports.append(
            Finished(
                thread=sequence.path,
                tokens=tuple(sequence.tokens[call.start :]),
                logprobs=tuple(call.logprobs),
                top_logprobs=tuple(call.top_logprobs),
                depths=tuple(call.depths),
                reason=reason,
                sampled=call.sampled,
                computed=call.computed,
                iterations=call.iterations,
                recomputed=call.recomputed,
                reused=call.reused,
                received=call.received,
            )
        )
        self._close_call(sequence, call, reason)

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """Ends a thread's call, if it has one, with an error; nothing of it may be in flight."""
        call = sequence.call
        if call is not None:
            self._drop_drafts(sequence, call)
        counts: tuple[int, ...] = ()
        if call is not None:
            counts = (call.sampled, call.computed, call.iterations, call.recomputed, call.reused, call.received)
        self._ledger.reports.append(Failed(sequence.path, error, *counts))
        self._ledger.record(events.ThreadFailed, thread=sequence.path, error=described(error))
        if call is not None:
            self._close_call(sequence, call, "failed")

    def blame(self, sequence: Sequence, cause: Exception) -> None:
        """Ends a thread's call, wherever it stands, for something unforeseen."""
        self.land(sequence)
        self.fail(sequence, device_error(sequence.path, cause))

    def refuse(self, path: ThreadPath, error: Exception) -> None:
        """Reports a command that its thread, open or not, cannot follow."""
        self._ledger.reports.append(Failed(path, error))

    def _close_call(self, sequence: Sequence, call: Call, reason: str) -> None:
        self._ledger.record(
            events.GenerateFinished,
            thread=sequence.path,
            position=len(sequence.tokens),
            reason=reason,
            sampled=call.sampled,
            computed=call.computed,
            iterations=call.iterations,
            recomputed=call.recomputed,
            reused=call.reused,
            received=call.received,
            drafted=call.drafted,
            accepted=call.accepted,
        )
        sequence.call = None
        # Pages taken ahead are not for a context that others may come to share.
        self._memory.release(sequence.cut_pages(self._memory.page_size))
        self._admission.park(sequence)

    def land(self, sequence: Sequence) -> None:
        """Takes a thread's tokens out of flight, their work lost but counted; the thread is ready again.

        What its lane has sampled and fed back by itself is not lost.
        """
        flight, call = sequence.flight, sequence.call
        if flight is None or call is None:
            return
        del self.flying[flight.lanes[-1]]
        self.dropped.extend(flight.lanes)
        sequence.flight = None
        self._admission.stop_leading(sequence)
        self._drop_drafts(sequence, call)
        run = self._run_of(flight.lanes[-1])
        if run is None:
            call.iterations += flight.iterations(self._ledger.ticks)
        else:
            self._take_computed(sequence, call, flight, int(run.depth[0]), self._ledger.ticks)
            self._take_run(sequence, run, len(run.token))
        if sequence.call is not None:
            self._admission.make_ready(sequence)

    def _record_computed(self, sequence: Sequence, flight: Flight) -> None:
        """One event a run of equal depths."""
        start = flight.start
        for position in range(flight.start + 1, flight.end + 1):
            if position == flight.end or sequence.depths[position] != sequence.depths[start]:
                self._ledger.record(
                    events.Computed,
                    tick=self._ledger.ticks - 1,
                    thread=sequence.path,
                    position=start,
                    count=position - start,
                    depth=sequence.depths[start],
                    recomputed=flight.recomputed > 0,
                    received=sequence.received_in(start, position),
                )
                start = position

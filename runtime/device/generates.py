"""What becomes of a generate: work that is counted, tokens that its lane sampled by itself, and its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from runtime.backend.interface import Run
from runtime.device.active_generate import ActiveGenerate, Drawn
from runtime.device.in_flight import InFlight
from runtime.device.journal import Journal
from runtime.device.kv_cache import KVCache
from runtime.device.queues import Queues
from runtime.device.scoring import Scored
from runtime.device.sequence import Flight, Sequence
from runtime.device.speculation import Speculation
from runtime.errors import ConstraintError, NumericalError, ProtocolError, described, device_error
from runtime.link import events
from runtime.link.commands import Emitted, Failed, Finished, FinishReason, Signalled, ThreadPath, Watcher
from runtime.link.metering import LIMIT_REACHED
from runtime.link.work import Work


class Generates:
    """Counts what generates cost and ends them. Knows nothing of what enters next."""

    def __init__(
        self,
        journal: Journal,
        queues: Queues,
        kv_cache: KVCache,
        in_flight: InFlight,
        speculation: Speculation,
        run_of: Callable[[int], Run | None],
        max_context: int,
    ) -> None:
        """`run_of` tells what a lane in flight has sampled since it was entered; `max_context` is `ModelLimits`'s."""
        self._journal = journal
        self._queues = queues
        self._kv_cache = kv_cache
        self._in_flight = in_flight
        self._speculation = speculation
        self._run_of = run_of
        self._max_context = max_context

    # ---- tokens -----------------------------------------------------------------------------------------------------

    def take_computed(self, flight: Flight, depth: int, left: int, tick: int) -> None:
        """Counts what a flight, and what its lane went on with, has computed before tick `left`; its own tokens, which
        have left in `tick`, have `depth`, unless that was known."""
        sequence, generate = flight.sequence, flight.generate
        received = sequence.received_in(flight.start, flight.end)
        generate.work.iterations += flight.iterations(left)
        for work in (generate.work, self._journal.work):
            work.computed += len(flight)
            work.recomputed += flight.recomputed
            work.prompt_tokens += received
        sequence.computed = flight.end
        if not flight.known:
            sequence.depths.extend([depth] * len(flight))
            if flight.start < sequence.spans[0].end:
                self._kv_cache.store_prefix(sequence, flight.start, flight.bounds[0])
        if self._journal.latents is not None:
            self._journal.latents.take(flight)
        if self._journal.recorder is not None:
            self._record_computed(flight, tick)

    def take_run(self, sequence: Sequence, run: Run, count: int) -> None:
        """Takes in the first `count` tokens of a lane's run, and that all but its last are computed.

        The token that entered is counted already. The generate may be over afterwards.
        """
        generate = sequence.generate
        assert generate is not None
        tokens, depths, logprobs = run.token[:count].tolist(), run.depth.tolist(), run.logprob[:count].tolist()
        computed = len(depths) - 1
        if self._journal.recorder is not None:
            self._record_run(sequence, run, count)
        if tokens:
            sequence.append_run(tokens)
        sequence.computed += computed
        sequence.depths.extend(depths[1:])
        for work in (generate.work, self._journal.work):
            work.computed += computed
            work.generated += count
        generate.logprobs.extend(logprobs)
        generate.depths.extend(depths[:count])
        # NaN stays NaN in a sum, and looking at every single one would take longer.
        is_finite = math.isfinite(sum(logprobs))
        first = 0 if is_finite else next(index for index, each in enumerate(logprobs) if not math.isfinite(each))
        told, generate.told = generate.told, 0
        if generate.request.stream and (fresh := tuple(tokens[told : None if is_finite else first])):
            end = told + len(fresh)
            self._journal.reports.append(
                Emitted(sequence.path, fresh, tuple(logprobs[told:end]), depths=tuple(depths[told:end]))
            )
        if not is_finite:
            self.fail(sequence, numerical_error(sequence, len(sequence.tokens) - count + first))
            return
        watcher, matcher = generate.request.watcher, generate.request.matcher
        if matcher is not None:
            for token in tokens:
                matcher.feed(token)
        if watcher is None:
            return
        for after, token in zip(range(len(tokens) - 1, -1, -1), tokens, strict=True):
            try:
                signals = watcher.feed(token)
            except BaseException as cause:
                self.fail(sequence, watcher_error(watcher, token, cause))
                return
            if signals == (LIMIT_REACHED,):
                # Other threads have used up what this one was to share with them.
                self._cut(sequence, generate, after)
                return
            if signals:
                broken = RuntimeError(f"it signals {signals[0].kind!r}, which foresee() did not announce")
                self.fail(sequence, watcher_error(watcher, token, broken))
                return

    def _record_sampled(self, sequence: Sequence, drawn: Drawn, tick: int) -> None:
        path, position = sequence.path, len(sequence.tokens)
        if drawn.depth and drawn.entropy is None and drawn.top_logprobs is None:
            self._journal.record_tokens(path, position, (drawn.token,), (drawn.depth,), (drawn.logprob,), (tick,))
        else:
            self._journal.record(events.Sampled, tick=tick, thread=path, position=position, **drawn._asdict())

    def tell_streams(self) -> int:
        """Reports what lanes have sampled by themselves to streams; of how many."""
        flights = [flight for flight in self._in_flight.flights() if flight.run and flight.generate.request.stream]
        for flight in flights:
            self._tell_stream(flight)
        return len(flights)

    def _tell_stream(self, flight: Flight) -> None:
        """Reports what a lane in flight has sampled by itself and its stream does not have."""
        generate = flight.generate
        run = self._run_of(flight.last_lane)
        if run is None or len(run.token) <= generate.told or not np.isfinite(run.logprob).all():
            return
        told, count = generate.told, len(run.token)
        tokens, logprobs, depths = (
            tuple(column[told:count].tolist()) for column in (run.token, run.logprob, run.depth)
        )
        self._journal.reports.append(Emitted(flight.sequence.path, tokens, logprobs, depths=depths))
        generate.told = count

    def take_scores(self, flight: Flight, scored: Iterable[Scored]) -> None:
        """Takes in what a flight has scored; the generate is over when all its tokens are, or where one cannot be."""
        sequence, generate = flight.sequence, flight.generate
        for each in scored:
            position = generate.start + len(generate.logprobs)
            if not math.isfinite(each.logprob):
                self.fail(sequence, numerical_error(sequence, position))
                return
            generate.logprobs.append(each.logprob)
            generate.depths.append(each.depth)
            generate.top_logprobs.append(each.top)
            self._journal.record(
                events.Scored,
                tick=self._journal.ticks - 1,
                thread=sequence.path,
                position=position,
                token=each.token,
                depth=each.depth,
                logprob=each.logprob,
                top_logprobs=each.top or None,
            )
        if len(generate.logprobs) == len(generate.request.scores):
            self.finish(sequence, "scored")

    def land(self, flight: Flight) -> None:
        """A flight's tokens have left their lanes; whoever waited for them is ready."""
        self._in_flight.end(flight)
        self.stop_leading(flight.sequence)

    def stop_leading(self, sequence: Sequence) -> None:
        """What a thread was about to compute for others too is there, or never will be."""
        if self._kv_cache.stop_leading(sequence):
            self._queues.release_followers(sequence)

    def take_sampled(self, sequence: Sequence, generate: ActiveGenerate, drawn: Drawn, tick: int | None = None) -> None:
        """Appends a token that was sampled in a tick, the last if none is named, and ends the generate where it was the
        last token."""
        position, request = len(sequence.tokens), generate.request
        if not math.isfinite(drawn.logprob):
            self.fail(sequence, numerical_error(sequence, position))
            return
        is_complete = False
        if request.matcher is not None:
            try:
                is_complete = request.matcher.feed(drawn.token)
            except ConstraintError as error:
                self.fail(sequence, error)
                return
        self._record_sampled(sequence, drawn, self._journal.ticks - 1 if tick is None else tick)
        if drawn.depth:
            sequence.append_sampled(drawn.token)
        else:
            sequence.append_said(drawn.token, generate.start)
        self._journal.work.generated += 1
        generate.work.generated += 1
        generate.logprobs.append(drawn.logprob)
        generate.depths.append(drawn.depth)
        if drawn.entropy is not None:
            generate.entropies.append(drawn.entropy)
        if drawn.top_logprobs is not None:
            generate.top_logprobs.append(drawn.top_logprobs)
        if request.stream:
            top = () if drawn.top_logprobs is None else (drawn.top_logprobs,)
            self._journal.reports.append(Emitted(sequence.path, (drawn.token,), (drawn.logprob,), top, (drawn.depth,)))
        stops = is_complete or drawn.token in request.stop_tokens
        if request.watcher is not None:
            try:
                stops |= self._watch(sequence, generate, request.watcher, drawn.token)
            except BaseException as cause:
                self.fail(sequence, watcher_error(request.watcher, drawn.token, cause))
                return
        reason = "stop" if stops else generate.bound_reached(sequence.next_position, self._max_context)
        if reason is not None:
            self.finish(sequence, reason)

    def _watch(self, sequence: Sequence, generate: ActiveGenerate, watcher: Watcher, token: int) -> bool:
        """Reports what a watcher recognises; whether the thread stops."""
        stops = False
        for signal in watcher.feed(token):
            entropy = generate.entropies[signal.start] if generate.entropies else math.nan
            self._journal.reports.append(Signalled(sequence.path, signal, entropy))
            stops |= signal.stops
        return stops

    # ---- ends -------------------------------------------------------------------------------------------------------

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a thread's generate and parks it; nothing of it may be in flight."""
        generate = sequence.generate
        assert generate is not None
        assert sequence.flight is None, "a generate ended with tokens in flight"
        self._speculation.drop(sequence)
        tokens = tuple(sequence.tokens[generate.start :])
        if generate.request.scores:
            # They were no part of the context; what is known of them may be less than all.
            tokens = tokens[: len(generate.logprobs)]
            self._kv_cache.truncate(sequence, generate.start)
        self._journal.reports.append(
            Finished(
                thread=sequence.path,
                tokens=tokens,
                logprobs=tuple(generate.logprobs),
                top_logprobs=tuple(generate.top_logprobs),
                depths=tuple(generate.depths),
                entropies=tuple(generate.entropies),
                reason=reason,
                work=generate.work,
            )
        )
        self._close(sequence, generate, reason)

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """Ends a thread's generate, if it has one, with an error; nothing of it may be in flight."""
        generate = sequence.generate
        self._speculation.drop(sequence)
        work = Work() if generate is None else generate.work
        self._journal.reports.append(Failed(sequence.path, error, work))
        self._journal.record(events.ThreadFailed, thread=sequence.path, error=described(error))
        if generate is not None:
            self._close(sequence, generate, "failed")

    def fail_unforeseen(self, sequence: Sequence, cause: BaseException) -> None:
        """Ends a thread's generate, wherever it stands, with what the device could not do for it."""
        self.abort(sequence)
        self.fail(sequence, device_error(sequence.path, cause))

    def refuse(self, path: ThreadPath, error: Exception) -> None:
        """Reports a command that its thread, open or not, cannot follow."""
        self._journal.reports.append(Failed(path, error))

    def abort(self, sequence: Sequence) -> None:
        """Takes a thread's tokens out of flight, their work lost but counted; the thread is ready again.

        What its lane has sampled and fed back by itself is not lost, and may end the generate.
        """
        flight, generate = sequence.flight, sequence.generate
        if flight is None or generate is None:
            return
        self._in_flight.drop(flight)
        self.stop_leading(sequence)
        self._speculation.drop(sequence)
        run = self._run_of(flight.last_lane) if flight.bounds else None
        if run is None:
            generate.work.iterations += flight.iterations(self._journal.ticks)
        else:
            self.take_computed(flight, int(run.depth[0]), self._journal.ticks, int(run.tick[0]))
            self.take_run(sequence, run, len(run.token))
        if sequence.generate is not None:
            self._queues.make_ready(sequence)

    def _cut(self, sequence: Sequence, generate: ActiveGenerate, count: int) -> None:
        """Forgets the last `count` tokens of a run, at a limit before them; the generate is over."""
        length = len(sequence.tokens) - count
        self._kv_cache.truncate(sequence, length)
        generate.keep(length - generate.start)
        self._journal.reports.append(Signalled(sequence.path, LIMIT_REACHED, math.nan))
        self.finish(sequence, "stop")

    def _close(self, sequence: Sequence, generate: ActiveGenerate, reason: str) -> None:
        self._journal.record(
            events.GenerateFinished,
            thread=sequence.path,
            position=len(sequence.tokens),
            reason=reason,
            work=generate.work,
            drafted=generate.drafted,
            accepted=generate.accepted,
        )
        sequence.generate = None
        # Pages taken ahead are not for a context that others may come to share.
        self._kv_cache.release_unused(sequence)
        self._queues.park(sequence)

    def _record_run(self, sequence: Sequence, run: Run, count: int) -> None:
        """Each sampled token with the computation of the one before it; and that of the last, where one more was
        sampled from it."""
        path, position = sequence.path, len(sequence.tokens)
        if count:
            self._journal.record_tokens(
                path, position, run.token[:count], run.depth[:count], run.logprob[:count], run.tick[:count]
            )
        if 0 < count < len(run.token):
            self._journal.record_computed(
                tick=int(run.tick[count]),
                thread=path,
                position=position + count - 1,
                count=1,
                depth=int(run.depth[count]),
                recomputed=False,
            )

    def _record_computed(self, flight: Flight, tick: int) -> None:
        """One event a row of equal depths."""
        sequence, start = flight.sequence, flight.start
        for position in range(flight.start + 1, flight.end + 1):
            if position == flight.end or sequence.depths[position] != sequence.depths[start]:
                self._journal.record_computed(
                    tick=tick,
                    thread=sequence.path,
                    position=start,
                    count=position - start,
                    depth=sequence.depths[start],
                    recomputed=flight.known,
                    received=sequence.received_in(start, position),
                )
                start = position


def watcher_error(watcher: Watcher, token: int, cause: BaseException) -> ProtocolError:
    """What a thread fails of whose watcher raised."""
    error = ProtocolError(f"watcher {type(watcher).__name__} raised at token {token}: {described(cause)}.")
    error.__cause__ = cause
    return error


def numerical_error(sequence: Sequence, position: int) -> NumericalError:
    """What a thread fails of whose logits for the token at a position are not all finite."""
    return NumericalError(
        f"thread {sequence.path}: the logits for the token at position {position} are not all finite, so that none can "
        "be chosen. The weights overflow in this dtype on this context; load others, or open the engine with dtype "
        "'float32'."
    )

"""What replicas tell of calls, made into what one engine would have told: nothing twice, and under shared limits."""

from __future__ import annotations

import math

import msgspec

from runtime.cluster.courier import Courier
from runtime.cluster.history import Asked, Said
from runtime.cluster.restoring import said_otherwise
from runtime.cluster.routed import Call, RoutedThread
from runtime.cluster.seat import Seat
from runtime.errors import BraidError
from runtime.link.commands import (
    Emitted,
    Failed,
    Finished,
    Generate,
    Interrupt,
    Report,
    Signalled,
    ThreadPath,
)
from runtime.link.metering import LIMIT_REACHED, MeteredWatcher
from runtime.link.work import Work


class Calls:
    """Reports of running calls, as they come, go to `reports` as they are due."""

    def __init__(self, courier: Courier, reports: list[Report]) -> None:
        self._courier = courier
        self._reports = reports

    def prepared(self, thread: RoutedThread, request: Generate) -> Call:
        """A call that is about to be sent. Raises `BraidError` for a watcher that cannot travel."""
        watcher, is_metered = request.watcher, False
        if isinstance(watcher, MeteredWatcher):
            # Its limit is shared with threads elsewhere, so it is kept here, where their tokens come together.
            watcher, is_metered = watcher.inner, True
        frozen = None if watcher is None else self._courier.freeze(watcher)
        sent = msgspec.structs.replace(request, watcher=frozen, matcher=None, stream=request.stream or is_metered)
        call = Call(request, sent)
        call.sampled_in_trace = thread.history.length
        return call

    def interrupt_when_told(self, thread: RoutedThread) -> None:
        """Has a call end as soon as what is to be kept, and was told before, has been said again."""
        call, seat = thread.call, thread.seat
        if call is None or seat is None or call.keep is None or not call.is_sent:
            return
        if call.heard >= min(call.keep, len(call.tokens)):
            seat.outbox.append(Interrupt(thread.path, call.keep))

    def take(self, thread: RoutedThread, call: Call, seat: Seat, report: Report) -> Finished | Failed | None:
        """Takes a report of a call's replica. Gives what it ended with, if it did, which is still to be told; a thread
        says it by `Failed` where it does not say what it had said."""
        try:
            match report:
                case Emitted():
                    self._take_emitted(thread, call, seat, report)
                case Signalled():
                    self._take_signal(call, report)
                case Finished():
                    return self._finished(thread, call, seat, report)
                case Failed():
                    return report
        except BraidError as error:
            seat.outbox.append(Interrupt(thread.path, 0))
            return Failed(thread.path, error)
        return None

    def _take_emitted(self, thread: RoutedThread, call: Call, seat: Seat, report: Emitted) -> None:
        before, known = call.heard, len(call.tokens)
        call.heard += len(report.tokens)
        again = max(0, min(known - before, len(report.tokens)))
        if tuple(call.tokens[before : before + again]) != report.tokens[:again]:
            raise said_otherwise(thread.path)
        fresh = report.tokens[again:]
        if call.cut is None:
            kept = self._feed(call, fresh)
            if call.request.stream and kept:
                self._reports.append(
                    Emitted(
                        thread.path,
                        fresh[:kept],
                        report.logprobs[again : again + kept],
                        report.top_logprobs[again : again + kept],
                        report.depths[again : again + kept],
                    )
                )
            if call.cut is not None:
                seat.outbox.append(Interrupt(thread.path, call.cut))
        if call.keep is not None and before < min(call.keep, known) <= call.heard:
            seat.outbox.append(Interrupt(thread.path, call.keep))

    def _feed(self, call: Call, tokens: tuple[int, ...]) -> int:
        """Feeds the watcher that the event loop looks at; its signals come from the replica. How many of the tokens
        count: all but those behind a limit."""
        watcher, metered = call.request.watcher, call.metered
        for count, token in enumerate(tokens, start=1):
            call.tokens.append(token)
            if watcher is not None:
                watcher.feed(token)
            if metered is not None and metered.exhausted:
                call.cut = len(call.tokens)
                return count
        return len(tokens)

    def _take_signal(self, call: Call, report: Signalled) -> None:
        call.signals_heard += 1
        if call.cut is None and call.signals_heard > call.signals:
            call.signals += 1
            self._reports.append(report)

    def _finished(self, thread: RoutedThread, call: Call, seat: Seat, report: Finished) -> Finished:
        request = call.request
        if request.scores or request.fills:
            if report.reason in ("scored", "filled"):
                thread.history = thread.history.plus(Asked((), request, thread.depth))
            return report
        known = len(call.tokens) if call.cut is None else 0
        if report.tokens[:known] != tuple(call.tokens)[: len(report.tokens)][:known]:
            raise said_otherwise(thread.path)
        if call.cut is None:
            self._feed(call, report.tokens[known:])
            if call.cut is not None and call.cut < len(report.tokens):
                seat.outbox.append(Interrupt(thread.path, call.cut))
        if call.cut is not None and (call.cut < len(report.tokens) or report.reason in ("length", "interrupted")):
            self._reports.append(Signalled(thread.path, LIMIT_REACHED, math.nan))
            report = cut_finished(report, call.cut)
        thread.history = thread.history.plus(Said(report.tokens, request, thread.depth))
        return report


def cut_finished(report: Finished, count: int) -> Finished:
    """A call that a limit has ended after so many tokens."""
    return msgspec.structs.replace(
        report,
        tokens=report.tokens[:count],
        logprobs=report.logprobs[:count],
        top_logprobs=report.top_logprobs[:count],
        depths=report.depths[:count],
        entropies=report.entropies[:count],
        reason="stop",
    )


def interrupted(path: ThreadPath) -> Finished:
    """What a call comes to that was given up before anybody worked on it."""
    return Finished(thread=path, tokens=(), logprobs=(), top_logprobs=(), depths=(), reason="interrupted", work=Work())

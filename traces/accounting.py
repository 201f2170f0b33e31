"""What a run spent, and whether its trace agrees with itself about it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from runtime.commands import Load
from traces import events as ev
from traces.events import AnyEvent, ThreadPath
from traces.tree import path_name, tree_of, walk


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a run spent."""

    threads: int
    sampled: int
    """Tokens sampled, kept or not."""
    computed: int
    """Tokens that left the device, recomputation included."""
    recomputed: int
    reused: int
    """Of `received`, tokens whose pages were shared instead of computed."""
    received: int
    """Received tokens that were needed: computed, again included, or reused."""
    iterations: int
    """Token-iterations: tokens in flight, summed over ticks."""
    ticks: int
    seconds: float
    """Time of the last event."""

    @property
    def hit_rate(self) -> float:
        """The share of received tokens that were reused, 0 to 1; 0 where none was received."""
        return self.reused / self.received if self.received else 0.0


def usage_of(events: Iterable[AnyEvent]) -> Usage:
    """Totals over a trace's events, from what the device recorded token by token and tick by tick."""
    threads: set[ThreadPath] = set()
    sampled = computed = recomputed = reused = received = iterations = ticks = 0
    seconds = 0.0
    for event in events:
        seconds = max(seconds, event.time)
        match event:
            case ev.ThreadOpened():
                threads.add(event.thread)
            case ev.Sampled():
                sampled += 1
            case ev.Computed():
                computed += event.count
                recomputed += event.count if event.recomputed else 0
                received += event.received
            case ev.TickDone():
                iterations += event.in_flight
                ticks += 1
            case ev.GenerateFinished():
                reused += event.reused
                received += event.reused
            case _:
                pass
    return Usage(
        threads=len(threads),
        sampled=sampled,
        computed=computed,
        recomputed=recomputed,
        reused=reused,
        received=received,
        iterations=iterations,
        ticks=ticks,
        seconds=seconds,
    )


def imbalances(events: Iterable[AnyEvent]) -> list[str]:
    """Where a whole trace contradicts itself; empty for every trace of a correct engine.

    What each generate says it spent must be what was recorded of its thread token by token, and the iterations of
    all generates must be the tokens in flight of all ticks. Calls whose end is not recorded make the last an upper
    bound.
    """
    events = list(events)
    found: list[str] = []
    spent = 0
    unfinished = 0
    for story in walk(tree_of(events)):
        name = path_name(story.path)
        for call in story.calls:
            if call.sampled is None:
                unfinished += 1
            elif call.sampled != len(call.samples):
                found.append(
                    f"thread {name}: a generate says it sampled {call.sampled} tokens; {len(call.samples)} are recorded"
                )
            spent += call.iterations or 0
        if any(call.computed is None for call in story.calls):
            continue
        said, recorded = sum(call.computed or 0 for call in story.calls), sum(done.count for done in story.computed)
        if said != recorded:
            found.append(f"thread {name}: its generates say they computed {said} tokens; {recorded} are recorded")
        said = sum(call.received or 0 for call in story.calls)
        reused = sum(call.reused or 0 for call in story.calls)
        recorded = reused + sum(done.received for done in story.computed)
        # Traces of engines that did not count received tokens say that there were none.
        if said and said != recorded:
            found.append(
                f"thread {name}: its generates say they needed {said} received tokens; {recorded} are recorded"
            )
    ticked = usage_of(events).iterations
    if spent != ticked if not unfinished else spent > ticked:
        found.append(f"all generates say they spent {spent} iterations; all ticks did {ticked}")
    return found


def load_after(load: Load, event: AnyEvent) -> Load:
    """What a device's load is once it has recorded an event, from what it was before."""
    match event:
        case ev.Sampled():
            return replace(load, sampled=load.sampled + 1)
        case ev.Computed():
            again = event.count if event.recomputed else 0
            return replace(
                load,
                computed=load.computed + event.count,
                recomputed=load.recomputed + again,
                received=load.received + event.received,
            )
        case ev.GenerateFinished():
            return replace(load, reused=load.reused + event.reused, received=load.received + event.reused)
        case ev.ThreadOpened():
            return replace(load, open_threads=load.open_threads + 1)
        case ev.ThreadClosed():
            return replace(load, open_threads=load.open_threads - 1)
        case ev.TickDone():
            return replace(
                load,
                ticks=load.ticks + 1,
                in_flight=event.in_flight - event.left,
                iterations=load.iterations + event.in_flight,
                waiting=event.waiting,
                pages_used=event.pages_used,
            )
        case _:
            return load

"""What a run spent, and whether its trace agrees with itself about it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from runtime.link import (
    AnyEvent,
    Computed,
    GenerateFinished,
    Sampled,
    Statistics,
    ThreadClosed,
    ThreadOpened,
    ThreadPath,
    TickDone,
    ToolCalled,
    Work,
)
from traces.mail import mail_imbalances
from traces.tree import path_name, thread_tree, walk_threads


class TraceTotals(Work, kw_only=True):
    """What a run spent, from what the device recorded token by token and tick by tick."""

    threads: int = 0
    tool_calls: int = 0
    """Of which threads are none."""
    ticks: int = 0
    seconds: float = 0.0
    """Time of the last event."""

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that came from the cache, 0 to 1; 0 where there was none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def totals_of(events: Iterable[AnyEvent]) -> TraceTotals:
    """Totals over a trace's events."""
    totals = TraceTotals()
    threads: set[ThreadPath] = set()
    for event in events:
        totals.seconds = max(totals.seconds, event.time)
        match event:
            case ThreadOpened():
                threads.add(event.thread)
            case ToolCalled():
                totals.tool_calls += 1
            case Sampled():
                totals.generated += 1
            case Computed():
                totals.computed += event.count
                totals.recomputed += event.count if event.recomputed else 0
                totals.prompt_tokens += event.received
            case TickDone():
                totals.iterations += event.in_flight
                totals.ticks += 1
            case GenerateFinished():
                totals.cached_tokens += event.work.cached_tokens
                totals.prompt_tokens += event.work.cached_tokens
            case _:
                pass
    totals.threads = len(threads)
    return totals


def imbalances(events: Iterable[AnyEvent]) -> list[str]:
    """Where a whole trace contradicts itself; empty for every trace of a correct engine.

    What each generate says it spent must be what was recorded of its thread token by token, and the iterations of
    all generates must be the tokens in flight of all ticks. Calls whose end is not recorded make the last an upper
    bound. Messages are received once, after they were sent.
    """
    events = list(events)
    found: list[str] = []
    spent = 0
    unfinished = 0
    for record in walk_threads(thread_tree(events)):
        name, said = path_name(record.path), Work()
        for call in record.calls:
            if call.work is None:
                unfinished += 1
                continue
            if call.work.generated != len(call.samples):
                found.append(
                    f"thread {name}: a generate says it sampled {call.work.generated} tokens; {len(call.samples)} are "
                    "recorded"
                )
            said.add(call.work)
        spent += said.iterations
        if any(call.work is None for call in record.calls):
            continue
        computed = sum(done.count for done in record.computed)
        if said.computed != computed:
            found.append(
                f"thread {name}: its generates say they computed {said.computed} tokens; {computed} are recorded"
            )
        needed = said.cached_tokens + sum(done.received for done in record.computed)
        if said.prompt_tokens != needed:
            found.append(
                f"thread {name}: its generates say they needed {said.prompt_tokens} prompt tokens; {needed} are "
                "recorded"
            )
    ticked = totals_of(events).iterations
    if spent != ticked if not unfinished else spent > ticked:
        found.append(f"all generates say they spent {spent} iterations; all ticks did {ticked}")
    return found + mail_imbalances(events)


def statistics_after(before: Statistics, event: AnyEvent) -> Statistics:
    """What a device's statistics are once it has recorded an event, from what they were before."""
    match event:
        case Sampled():
            return replace(before, generated=before.generated + 1)
        case Computed():
            again = event.count if event.recomputed else 0
            return replace(
                before,
                computed=before.computed + event.count,
                recomputed=before.recomputed + again,
                prompt_tokens=before.prompt_tokens + event.received,
            )
        case GenerateFinished():
            cached = event.work.cached_tokens
            return replace(
                before, cached_tokens=before.cached_tokens + cached, prompt_tokens=before.prompt_tokens + cached
            )
        case ThreadOpened():
            return replace(before, open_threads=before.open_threads + 1)
        case ThreadClosed():
            return replace(before, open_threads=before.open_threads - 1)
        case TickDone():
            return replace(
                before,
                ticks=before.ticks + 1,
                in_flight=event.in_flight - event.left,
                iterations=before.iterations + event.in_flight,
                waiting=event.waiting,
                pages_used=event.pages_used,
            )
        case _:
            return before

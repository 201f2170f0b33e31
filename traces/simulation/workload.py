"""From a trace, event by event, to what its threads do and what its calls took; the events are not kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from operator import attrgetter

import msgspec

from runtime import TraceError
from runtime.link import (
    AnyEvent,
    Computed,
    GenerateFinished,
    GenerateStarted,
    Header,
    Joined,
    Merged,
    Received,
    Sampled,
    Spawned,
    ThreadFailed,
    ThreadOpened,
    ThreadPath,
    TickDone,
)
from traces.simulation.call_times import CallTimes, CallTimesWriter
from traces.simulation.script_writing import ScriptWriter
from traces.simulation.scripts import Script, ScriptedTree, Start


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of an engine, and what its device took for it."""

    header: Header
    trees: tuple[ScriptedTree, ...]
    """In the order in which they were asked."""
    halts: frozenset[int]
    """Tokens at which lanes stopped, because something might have happened: they ended a generate or a spawn."""
    times: CallTimes


def workload_of(header: Header, events: Iterable[AnyEvent]) -> Workload:
    """Takes some tens of bytes a token, and linear time. Raises `TraceError` for a trace in which nothing was said."""
    writers: dict[ThreadPath, ScriptWriter] = {}
    times = CallTimesWriter()
    for event in events:
        times.take(event)
        if isinstance(event, TickDone):
            continue
        if isinstance(event, ThreadOpened):
            writers[event.thread] = writer = ScriptWriter(event)
            parent = None if event.inherits is None else writers.get(event.inherits)
            if parent is not None:
                parent.start(event.thread)
                writer.inherit(parent.length)
        elif (known := writers.get(event.thread)) is not None:
            _take(known, event)
    scripts = {path: writer.script() for path, writer in writers.items()}
    trees = _trees(scripts, {child for writer in writers.values() for child in writer.started})
    if not any(tree.tokens for tree in trees):
        raise TraceError(
            f"The trace of {header.checkpoint} has no thread that said anything: nothing can be simulated."
        )
    halts = frozenset(token for writer in writers.values() for token in writer.halts)
    return Workload(header=header, trees=trees, halts=halts, times=times.finished())


def _take(writer: ScriptWriter, event: AnyEvent) -> None:
    match event:
        case Sampled():
            writer.say(event)
        case Computed():
            writer.compute(event)
        case Received():
            writer.receive(event)
        case Merged():
            writer.take_over(event)
        case GenerateStarted():
            writer.begin(event)
        case GenerateFinished():
            writer.end(event.position, event.reason)
        case ThreadFailed():
            writer.end(None, "failed")
        case Spawned():
            writer.spawn(event)
        case Joined():
            writer.wait(event)
        case _:
            pass


def _trees(scripts: dict[ThreadPath, Script], started: set[ThreadPath]) -> tuple[ScriptedTree, ...]:
    """Threads by root, each with somebody who lets it begin."""
    members: dict[ThreadPath, dict[ThreadPath, Script]] = defaultdict(dict)
    orphans: dict[ThreadPath, list[ThreadPath]] = defaultdict(list)
    roots: dict[ThreadPath, ThreadPath] = {}
    # Every path follows those above it.
    for path in sorted(scripts):
        roots[path] = root = roots.get(path[:-1], path)
        members[root][path] = scripts[path]
        if path != root and path not in started:
            # Who asked for it is not in the trace: it begins with its parent.
            orphans[path[:-1]].append(path)
    for parent, children in orphans.items():
        steps = (*(Start(child) for child in children), *scripts[parent].steps)
        members[roots[parent]][parent] = msgspec.structs.replace(scripts[parent], steps=steps)
    trees = (ScriptedTree(root=root, scripts=tree) for root, tree in members.items())
    return tuple(sorted(trees, key=attrgetter("root")))

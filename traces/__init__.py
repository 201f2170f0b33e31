"""What happened in a run: recording it, reading it, playing it back, and looking at it.

Names are loaded when they are first used: what reads a trace does without what executes one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.link import (
        FORMAT,
        AnyEvent,
        Computed,
        Event,
        Evicted,
        GenerateFinished,
        GenerateStarted,
        Header,
        Joined,
        Received,
        RunStarted,
        Sampled,
        Spawned,
        ThreadClosed,
        ThreadEnded,
        ThreadFailed,
        ThreadOpened,
        TickDone,
        Trace,
    )
    from traces.causal_chain import critical_path
    from traces.comparison import ThreadDifference, diff
    from traces.context import ThreadContext, context_of, contexts_of
    from traces.playback import Playback
    from traces.printing import load_decode, show
    from traces.reader import TraceReader, read
    from traces.totals import TraceTotals, imbalances, totals_of
    from traces.tree import ThreadRecord, path_name, thread_tree, walk_threads
    from traces.verification import Divergence, Verification, verify
    from traces.viewer_format import export
    from traces.writer import TraceWriter

_HOMES = {
    "runtime.link": (
        "FORMAT",
        "AnyEvent",
        "Computed",
        "Event",
        "Evicted",
        "GenerateFinished",
        "GenerateStarted",
        "Header",
        "Joined",
        "Received",
        "RunStarted",
        "Sampled",
        "Spawned",
        "ThreadClosed",
        "ThreadEnded",
        "ThreadFailed",
        "ThreadOpened",
        "TickDone",
        "Trace",
    ),
    "traces.causal_chain": ("critical_path",),
    "traces.comparison": ("ThreadDifference", "diff"),
    "traces.context": ("ThreadContext", "context_of", "contexts_of"),
    "traces.playback": ("Playback",),
    "traces.printing": ("load_decode", "show"),
    "traces.reader": ("TraceReader", "read"),
    "traces.totals": ("TraceTotals", "imbalances", "totals_of"),
    "traces.tree": ("ThreadRecord", "path_name", "thread_tree", "walk_threads"),
    "traces.verification": ("Divergence", "Verification", "verify"),
    "traces.viewer_format": ("export",),
    "traces.writer": ("TraceWriter",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "FORMAT",
    "AnyEvent",
    "Computed",
    "Divergence",
    "Event",
    "Evicted",
    "GenerateFinished",
    "GenerateStarted",
    "Header",
    "Joined",
    "Playback",
    "Received",
    "RunStarted",
    "Sampled",
    "Spawned",
    "ThreadClosed",
    "ThreadContext",
    "ThreadDifference",
    "ThreadEnded",
    "ThreadFailed",
    "ThreadOpened",
    "ThreadRecord",
    "TickDone",
    "Trace",
    "TraceReader",
    "TraceTotals",
    "TraceWriter",
    "Verification",
    "context_of",
    "contexts_of",
    "critical_path",
    "diff",
    "export",
    "imbalances",
    "load_decode",
    "path_name",
    "read",
    "show",
    "thread_tree",
    "totals_of",
    "verify",
    "walk_threads",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'traces' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

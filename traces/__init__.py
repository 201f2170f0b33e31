"""What happened in a run: recording it, reading it, and playing it back.

`traces.verify`, `traces.diff`, `traces.show` and `traces.export` each hold the function of their name.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.link.events import FORMAT, AnyEvent, Event, Header
    from traces.context import ThreadContext, context_of, contexts_of
    from traces.playback import Playback
    from traces.reader import Trace, TraceReader, read
    from traces.totals import TraceTotals, imbalances, totals_of
    from traces.tree import ThreadStory, path_name, tree_of, walk
    from traces.writer import TraceWriter

__all__ = [
    "FORMAT",
    "AnyEvent",
    "Event",
    "Header",
    "Playback",
    "ThreadContext",
    "ThreadStory",
    "Trace",
    "TraceReader",
    "TraceTotals",
    "TraceWriter",
    "context_of",
    "contexts_of",
    "imbalances",
    "path_name",
    "read",
    "totals_of",
    "tree_of",
    "walk",
]

_MODULES = {
    "totals": ("TraceTotals", "imbalances", "totals_of"),
    "context": ("ThreadContext", "context_of", "contexts_of"),
    "events": ("FORMAT", "AnyEvent", "Event", "Header"),
    "playback": ("Playback",),
    "reader": ("Trace", "TraceReader", "read"),
    "tree": ("ThreadStory", "path_name", "tree_of", "walk"),
    "writer": ("TraceWriter",),
}


def __getattr__(name: str) -> object:
    # Imported when first used: what reads a trace does without what executes one.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"traces.{module}"), name)
    raise AttributeError(f"module 'traces' has no attribute {name!r}")

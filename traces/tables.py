"""A trace as a table of Apache Arrow, which pandas, polars and DuckDB take as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from runtime.link import Computed, TickDone, Trace
from traces.generate_record import GenerateRecord
from traces.tree import Receipt, ThreadRecord, path_name, thread_tree, walk_threads

if TYPE_CHECKING:
    from pyarrow import Table

Row = Literal["thread", "token", "tick"]

_TYPES = {"text": "string", "whole": "int64", "small": "int32", "number": "float64", "single": "float32", "is": "bool_"}

_THREAD = {
    "thread": "text",
    "parent": "text",
    "tree": "whole",
    "level": "small",
    "inherits": "text",
    "prompt": "text",
    "tool": "text",
    "arguments": "text",
    "opened": "number",
    "closed": "number",
    "outcome": "text",
    "error": "text",
    "text": "text",
    "received_tokens": "whole",
    "generated_tokens": "whole",
    "iterations": "whole",
    "mean_depth": "number",
    "generates": "whole",
    "children": "whole",
    "waited": "number",
    "evictions": "whole",
}
_TOKEN = {
    "thread": "text",
    "tree": "whole",
    "generate": "whole",
    "position": "whole",
    "token": "small",
    "is_sampled": "is",
    "is_kept": "is",
    "depth": "whole",
    "logprob": "single",
    "entropy": "single",
    "tick": "whole",
    "time": "number",
}
_TICK = {
    "tick": "whole",
    "time": "number",
    "seconds": "number",
    "entered": "whole",
    "in_flight": "whole",
    "left": "whole",
    "waiting": "whole",
    "pages_used": "whole",
}


def frame(trace: Trace, by: Row = "thread") -> Table:
    """A `pyarrow.Table` with a row for each thread, token or tick; `.to_pandas()` makes it a pandas DataFrame.

    Times are seconds since the trace's beginning; what the trace does not say is null. Rows of tokens are all that a
    thread received and sampled, in order, also what did not stay in its context (`is_kept`); `depth` of a received one
    is what it was computed at last, null where that came from the cache. A call of a tool is a row of threads. `level`
    of a root is 0, `waited` is seconds at joins, and `generate` counts a thread's generates from 0.

    Raises `ValueError` for other rows, `ImportError`, saying what to install, without pyarrow, and `TraceError` for
    events that do not fit together. Time and memory are linear in what the trace holds.
    """
    kinds: dict[str, tuple[dict[str, str], Callable[[Trace], Iterator[tuple[Any, ...]]]]] = {
        "thread": (_THREAD, _threads),
        "token": (_TOKEN, _tokens),
        "tick": (_TICK, _ticks),
    }
    if by not in kinds:
        raise ValueError(f"by is {by!r}; rows are threads, tokens or ticks: 'thread', 'token' or 'tick'.")
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError("Tables need pyarrow: pip install 'braid-runtime[frame]'.") from error
    fields, rows_of = kinds[by]
    columns: list[list[Any]] = [[] for _ in fields]
    for row in rows_of(trace):
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    schema = pyarrow.schema([(name, getattr(pyarrow, _TYPES[kind])()) for name, kind in fields.items()])
    arrays = [pyarrow.array(column, of.type) for column, of in zip(columns, schema, strict=True)]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _threads(trace: Trace) -> Iterator[tuple[Any, ...]]:
    for record in walk_threads(thread_tree(trace.events)):
        yield (
            path_name(record.path),
            path_name(record.path[:-1]) or None,
            record.path[0],
            len(record.path) - 1,
            None if record.inherits is None else path_name(record.inherits),
            record.prompt,
            None if record.tool is None else record.tool.name,
            None if record.tool is None else record.tool.arguments,
            record.opened,
            record.closed,
            record.outcome,
            record.error or None,
            record.text,
            record.received,
            record.generated,
            record.iterations,
            record.mean_depth if record.generated else None,
            len(record.calls),
            len(record.children),
            math.fsum(wait.ended - wait.started for wait in record.waits),
            len(record.evictions),
        )


def _tokens(trace: Trace) -> Iterator[tuple[Any, ...]]:
    for record in walk_threads(thread_tree(trace.events)):
        name, tree = path_name(record.path), record.path[0]
        generate = 0
        depths = _depths_of_receipts(record)
        for segment in record.segments:
            if isinstance(segment, Receipt):
                for position, token in enumerate(segment.tokens, segment.position):
                    depth = depths.get((segment.index, position))
                    yield name, tree, None, position, token, False, True, depth, None, None, None, segment.time
                continue
            end = math.inf if segment.end_position is None else segment.end_position
            for sample in segment.samples:
                yield (
                    name,
                    tree,
                    generate,
                    sample.position,
                    sample.token,
                    True,
                    sample.position < end,
                    sample.depth,
                    sample.logprob,
                    sample.entropy,
                    sample.tick,
                    sample.time,
                )
            generate += 1


def _depths_of_receipts(record: ThreadRecord) -> dict[tuple[int, int], int]:
    """By receipt and position, how deep a received token was computed last."""
    depths: dict[tuple[int, int], int] = {}
    at: dict[int, int] = {}
    """By position, the receipt whose token stands there now."""
    happened: list[tuple[int, Computed | Receipt | GenerateRecord]] = [
        *zip(record.computed_indices, record.computed, strict=True),
        *((segment.index, segment) for segment in record.segments),
    ]
    for index, event in sorted(happened, key=lambda one: one[0]):
        if isinstance(event, Receipt):
            at.update(dict.fromkeys(range(event.position, event.position + len(event.tokens)), index))
        elif isinstance(event, GenerateRecord):
            for sample in event.samples:
                at.pop(sample.position, None)
        else:
            # A count may say more than a thread ever received.
            computed = range(event.position, event.position + event.count)
            for position in computed if len(computed) < len(at) else [one for one in at if one in computed]:
                if position in at:
                    depths[at[position], position] = event.depth
    return depths


def _ticks(trace: Trace) -> Iterator[tuple[Any, ...]]:
    for event in trace.events:
        if isinstance(event, TickDone):
            yield (
                event.tick,
                event.time,
                event.seconds,
                event.entered,
                event.in_flight,
                event.left,
                event.waiting,
                event.pages_used,
            )

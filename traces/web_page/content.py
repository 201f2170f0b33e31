"""What a page shows of a trace: threads in order, their tokens as words of a table, and ticks, thinned out."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from runtime.link import ThreadPath, TickDone, Trace
from traces.causal_chain import critical_path, critical_threads
from traces.context import context_of
from traces.printing import Decode
from traces.totals import totals_of
from traces.tree import ThreadRecord, path_name, thread_tree, walk_threads

MOST_TOKENS = 120_000
"""Tokens whose text is shown, in order of threads: some 1.5 MB."""

MOST_THREADS = 4_000
"""Threads that are shown at all."""

MOST_TICKS = 800
"""Points of the curve of tokens in flight."""


class PieceShown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens in a row that a thread has received or sampled."""

    sampled: bool
    words: tuple[int, ...]
    """Indices into `Content.words`."""
    depths: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Nats, to two decimals."""


class ThreadShown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    path: str
    parent: int
    """Index among the threads, -1 for a root."""
    first: float
    last: float
    outcome: str
    error: str
    generated: int
    received: int
    iterations: int
    start: int
    """Position of its first own token."""
    prompt: str = ""
    tool: str = ""
    """Of a call of a tool, how it was called; its result is the text."""
    text: str = ""
    forked: bool = False
    is_critical: bool = False
    """Whether the longest chain of tokens, of which each had to wait for the one before, goes through it."""
    waits: tuple[tuple[float, float], ...] = ()
    pieces: tuple[PieceShown, ...] = ()
    is_left_out: bool = False
    """Whether its tokens are, because there are too many in all."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    policy: str
    lost: str
    summarised: str
    """What was left out, and why; empty for nothing."""
    figures: tuple[tuple[str, str], ...]
    """Names and values of totals."""
    seconds: float
    words: tuple[str, ...]
    threads: tuple[ThreadShown, ...]
    ticks: tuple[tuple[float, int], ...]
    """Seconds, and the most tokens in flight since the point before."""


def content_of(trace: Trace, decode: Decode | None) -> Content:
    """What a page shows. Without `decode`, tokens are shown as numbers.

    Raises `TraceError` for events that do not fit together. Time is linear in the trace.
    """
    totals = totals_of(trace.events)
    roots = thread_tree(trace.events)
    records = list(walk_threads(roots))
    words = _Words(decode)
    shown, tokens_left = list[ThreadShown](), MOST_TOKENS
    index: dict[ThreadPath, int] = {}
    critical = {path for root in roots for path in critical_threads(root)}
    for record in records[:MOST_THREADS]:
        index[record.path] = len(shown)
        count = record.received + record.generated
        shown.append(_shown(record, index, critical, words if count <= tokens_left else None))
        tokens_left -= count if count <= tokens_left else 0
    left_out = sum(thread.is_left_out for thread in shown)
    missing = []
    if len(records) > MOST_THREADS:
        missing.append(f"{len(records) - MOST_THREADS:,} of {len(records):,} threads")
    if left_out:
        missing.append(f"the text of {left_out:,} threads")
    return Content(
        title=trace.header.checkpoint,
        policy=trace.header.policy if isinstance(trace.header.policy, str) else _json(trace.header.policy),
        lost=trace.lost or "",
        summarised=f"Left out, to keep the page small: {' and '.join(missing)}." if missing else "",
        figures=(
            ("threads", f"{totals.threads:,}"),
            *((("tool calls", f"{totals.tool_calls:,}"),) if totals.tool_calls else ()),
            ("tokens sampled", f"{totals.generated:,}"),
            ("tokens computed", f"{totals.computed:,}"),
            ("iterations", f"{totals.iterations:,}"),
            ("tokens on the longest critical path", f"{max(map(critical_path, roots), default=0):,}"),
            ("from the cache", f"{totals.hit_rate:.0%}"),
            ("ticks", f"{totals.ticks:,}"),
            ("seconds", f"{totals.seconds:.3f}"),
        ),
        seconds=totals.seconds,
        words=tuple(words.texts),
        threads=tuple(shown),
        ticks=tuple(_thinned(trace)),
    )


class _Words:
    """The texts of tokens, each once."""

    def __init__(self, decode: Decode | None) -> None:
        self.texts: list[str] = []
        self._decode = decode
        self._index: dict[int, int] = {}

    def indices(self, tokens: Iterable[int]) -> tuple[int, ...]:
        return tuple(self._of(token) for token in tokens)

    def _of(self, token: int) -> int:
        index = self._index.get(token)
        if index is None:
            index = self._index[token] = len(self.texts)
            self.texts.append(f"{token} " if self._decode is None else _growth(token, self._decode) or f"<{token}>")
        return index


def _growth(token: int, decode: Decode) -> str:
    """What a text grows by with a token: with the space that some decoders put before it, inside of a text."""
    once, twice = decode([token]), decode([token, token])
    return twice[len(once) :] if twice.startswith(once) else once


def _shown(
    record: ThreadRecord, index: dict[ThreadPath, int], critical: set[ThreadPath], words: _Words | None
) -> ThreadShown:
    pieces = list[PieceShown]()
    start = 0
    if words is not None:
        context = context_of(record)
        start = context.start
        for piece in context.pieces:
            place = slice(piece.start - context.start, piece.end - context.start)
            tokens = words.indices(context.tokens[place])
            depths = context.depths[place]
            if piece.is_sampled:
                logprobs = tuple(round(each, 2) if each is not None else 0.0 for each in context.logprobs[place])
                pieces.append(PieceShown(sampled=True, words=tokens, depths=depths, logprobs=logprobs))
            else:
                pieces.append(PieceShown(sampled=False, words=tokens, depths=depths))
    return ThreadShown(
        path=path_name(record.path),
        parent=next((index[above] for above in _above(record.path) if above in index), -1),
        first=round(record.first or 0.0, 6),
        last=round(record.last or 0.0, 6),
        outcome=record.outcome or "unfinished",
        error=record.error,
        generated=record.generated,
        received=record.received,
        iterations=record.iterations,
        start=start,
        prompt=record.prompt or "",
        tool=record.call,
        text=record.text,
        forked=record.inherits is not None,
        is_critical=record.path in critical,
        waits=tuple((round(wait.started, 6), round(wait.ended, 6)) for wait in record.waits),
        pieces=tuple(pieces),
        is_left_out=words is None,
    )


def _above(path: ThreadPath) -> Iterable[ThreadPath]:
    """Paths of the threads above one, nearest first."""
    return (path[:end] for end in range(len(path) - 1, 0, -1))


def _thinned(trace: Trace) -> Iterable[tuple[float, int]]:
    ticks = [(event.time, event.in_flight) for event in trace.events if isinstance(event, TickDone)]
    step = max(1, -(-len(ticks) // MOST_TICKS))
    for begin in range(0, len(ticks), step):
        some = ticks[begin : begin + step]
        yield round(some[-1][0], 6), max(in_flight for _, in_flight in some)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()

"""A trace as text: the tree of threads with tokens, depths, times and outcomes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.text import Span, Text
from tokenizers import Tokenizer

from runtime import TraceError
from runtime.console import visible
from runtime.link import Trace
from runtime.model import TOKENIZER, tokenizer_file
from traces.totals import totals_of
from traces.tree import Receipt, ThreadRecord, path_name, thread_tree

Decode = Callable[[Sequence[int]], str]

Part = tuple[str, str]
"""Some text of a line, and its style."""

LINES_AT_ONCE = 100
"""A call of the console costs as much as some hundred lines."""

OUTCOME_STYLES = {"returned": "green", "nothing": "yellow", "cancelled": "yellow", "failed": "bold red"}


def show(trace: Trace, console: Console, decode: Decode | None = None) -> None:
    """Prints a trace to `console`, in its width. `decode` turns tokens into text; without it only the texts that the
    trace holds itself (prompts and answers) are shown. Control characters in texts are spelled out."""
    totals = totals_of(trace.events)
    tools = f"{totals.tool_calls} tool calls, " if totals.tool_calls else ""
    header = trace.header
    title = f"{header.checkpoint}, seed {header.seed}, policy {_policy_text(header.policy)}"
    console.print(Text(visible(title), style="bold"))
    console.print(
        f"{totals.threads} threads, {tools}{totals.generated} tokens sampled, {totals.computed} computed "
        f"({totals.recomputed} again), {totals.cached_tokens} of {totals.prompt_tokens} prompt and message tokens "
        f"from the cache ({totals.hit_rate:.0%}), {totals.iterations} iterations in {totals.ticks} ticks, "
        f"{totals.seconds:.3f} s",
        highlight=False,
    )
    lines = _lines(thread_tree(trace.events), console, decode)
    while some := list(islice(lines, LINES_AT_ONCE)):
        console.print(Text("\n").join(some), soft_wrap=True)
    if trace.lost is not None:
        console.print(Text(visible(f"Not all of this trace could be read: {trace.lost}"), style="bold red"))


def load_decode(path: str | os.PathLike[str]) -> Decode:
    """The decoder of a `tokenizer.json`, given by its path or by a checkpoint's directory.

    Raises `TraceError`, and `CheckpointError` for a directory that names no tokenizer there is.
    """
    file = Path(path)
    if file.is_dir():
        file = tokenizer_file(file) or file / TOKENIZER
    if not file.is_file():
        raise TraceError(f"{file} does not exist; give a checkpoint directory with a tokenizer.json, or that file.")
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise TraceError(f"{file} is not a tokenizer: {error}.") from error

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False))

    return decode


def _lines(roots: Iterable[ThreadRecord], console: Console, decode: Decode | None) -> Iterator[Text]:
    """Each thread before its children, under guides of which the outermost are left out where there is no room."""
    width = console.width
    room = max(4, width // 8 * 4)
    stack = [(root, "", "") for root in reversed(list(roots))]
    while stack:
        record, guide, rest = stack.pop()
        for parts in (_label(record), *_texts(record, decode)):
            for line in _fitted(parts, guide, rest, console, width):
                yield line
                guide = rest
        ends = ("└── ", "    ")
        for child in reversed(record.children):
            stack.append((child, (rest + ends[0])[-room:], (rest + ends[1])[-room:]))
            ends = ("├── ", "│   ")


def _fitted(parts: list[Part], guide: str, rest: str, console: Console, width: int) -> Iterable[Text]:
    """One line, or several where it is too long for the console; `guide` before the first, `rest` before others."""
    text = _assembled([(guide, ""), *parts])
    if not {"\n", "\t"} & set(text.plain) and cell_len(text.plain) <= width:
        return [text]
    lines = _assembled(parts).wrap(console, max(1, width - len(rest)))
    return [Text.assemble(rest if number else guide, line) for number, line in enumerate(lines)]


def _assembled(parts: list[Part]) -> Text:
    spans, length = [], 0
    for part, style in parts:
        if style:
            spans.append(Span(length, length + len(part), style))
        length += len(part)
    return Text("".join(part for part, _ in parts), spans=spans)


def _label(record: ThreadRecord) -> list[Part]:
    counts = f"  {visible(record.call)}"
    if record.tool is None:
        counts = f"  received {record.received}, sampled {record.generated}"
        if not math.isnan(record.mean_depth):
            counts += f", depth {record.mean_depth:.2f}"
        counts += f", iterations {record.iterations}"
    parts = [(path_name(record.path), "bold cyan"), (counts, "")]
    if record.first is not None and record.last is not None:
        parts.append((f", {record.first:.3f} to {record.last:.3f} s", "dim"))
    more = "" if record.inherits is None else f", forked from {path_name(record.inherits)}"
    if refused := sum(spawn.child is None for spawn in record.spawns):
        more += f", {refused} spawns refused"
    if record.evictions:
        more += f", evicted {len(record.evictions)} times"
    outcome = record.outcome or "unfinished"
    parts += [(f"{more}  ", ""), (visible(outcome), OUTCOME_STYLES.get(outcome, "magenta"))]
    if record.error:
        parts.append((f": {visible(record.error)}", "red"))
    return parts


def _texts(record: ThreadRecord, decode: Decode | None) -> list[list[Part]]:
    if decode is None:
        own = [[(f"< {visible(record.prompt)}", "dim")]] if record.prompt else []
        return [*own, [(f"> {visible(record.text)}", "")]] if record.text else own
    if record.tool is not None:
        return [[(f"> {visible(record.text)}", "")]] if record.text else []
    return [
        [(f"< {visible(decode(segment.tokens))}", "dim")]
        if isinstance(segment, Receipt)
        else [(f"> {visible(decode(segment.tokens))}", "")]
        for segment in record.segments
        if segment.tokens
    ]


def _policy_text(policy: object) -> str:
    return policy if isinstance(policy, str) else msgspec.json.encode(policy).decode()

"""A trace as text: the tree of threads with tokens, depths, times and outcomes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree
from tokenizers import Tokenizer

from runtime.errors import TraceError
from traces.accounting import usage_of
from traces.reader import Trace
from traces.tree import Receipt, ThreadStory, path_name, tree_of

Decode = Callable[[Sequence[int]], str]

OUTCOME_STYLES = {"returned": "green", "nothing": "yellow", "cancelled": "yellow", "failed": "bold red"}


def show(trace: Trace, console: Console, decode: Decode | None = None) -> None:
    """Prints a trace to `console`, in its width. `decode` turns tokens into text; without it only the texts that the
    trace holds itself (prompts and answers) are shown."""
    usage = usage_of(trace.events)
    header = trace.header
    console.print(Text(f"{header.checkpoint}, seed {header.seed}, policy {_policy_text(header.policy)}", style="bold"))
    console.print(
        f"{usage.threads} threads, {usage.sampled} tokens sampled, {usage.computed} computed "
        f"({usage.recomputed} again), {usage.reused} of {usage.received} prompt and message tokens reused "
        f"({usage.hit_rate:.0%}), {usage.iterations} iterations in {usage.ticks} ticks, "
        f"{usage.seconds:.3f} s",
        highlight=False,
    )
    for root in tree_of(trace.events):
        console.print(_rich_tree(root, decode))
    if trace.lost is not None:
        console.print(Text(f"Not all of this trace could be read: {trace.lost}", style="bold red"))


def load_decode(path: str | os.PathLike[str]) -> Decode:
    """The decoder of a `tokenizer.json`, given by its path or its directory's. Raises `TraceError`."""
    file = Path(path)
    if file.is_dir():
        file /= "tokenizer.json"
    if not file.is_file():
        raise TraceError(f"{file} does not exist; give a checkpoint directory with a tokenizer.json, or that file.")
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise TraceError(f"{file} is not a tokenizer: {error}.") from error

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False))

    return decode


def _rich_tree(root: ThreadStory, decode: Decode | None) -> Tree:
    tree = Tree(_label(root, decode))
    stack = [(root, tree)]
    while stack:
        story, branch = stack.pop()
        stack.extend((child, branch.add(_label(child, decode))) for child in story.children)
    return tree


def _label(story: ThreadStory, decode: Decode | None) -> Group:
    line = Text.assemble((path_name(story.path), "bold cyan"))
    line.append(f"  received {story.received}, sampled {story.sampled}")
    if not math.isnan(story.mean_depth):
        line.append(f", depth {story.mean_depth:.2f}")
    line.append(f", iterations {story.iterations}")
    if story.first is not None and story.last is not None:
        line.append(f", {story.first:.3f} to {story.last:.3f} s", style="dim")
    if story.inherits is not None:
        line.append(f", forked from {path_name(story.inherits)}")
    if refused := sum(spawn.child is None for spawn in story.spawns):
        line.append(f", {refused} spawns refused")
    if story.evictions:
        line.append(f", evicted {len(story.evictions)} times")
    line.append("  ")
    line.append(story.outcome or "unfinished", style=OUTCOME_STYLES.get(story.outcome or "", "magenta"))
    if story.error:
        line.append(f": {story.error}", style="red")
    return Group(line, *_texts(story, decode))


def _texts(story: ThreadStory, decode: Decode | None) -> list[Text]:
    if decode is None:
        own = [Text(f"< {story.prompt}", style="dim")] if story.prompt else []
        return [*own, Text(f"> {story.text}")] if story.text else own
    lines = []
    for segment in story.segments:
        if not segment.tokens:
            continue
        if isinstance(segment, Receipt):
            lines.append(Text(f"< {decode(segment.tokens)}", style="dim"))
        else:
            lines.append(Text(f"> {decode(segment.tokens)}"))
    return lines


def _policy_text(policy: object) -> str:
    return policy if isinstance(policy, str) else msgspec.json.encode(policy).decode()

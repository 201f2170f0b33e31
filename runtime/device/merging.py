"""Merged joins: a thread's context goes on with those of the children that were forked from it, as they are.

thread   P P P P                pages are shared, none is copied; what was evicted meanwhile is computed again
children P P P P A A A          later, as it was
         P P P P B B
merged   P P P P A A A B B      see `runtime.device.layout`
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from runtime.device.kv_cache import KVCache
from runtime.device.layout import Merged, merge_layouts
from runtime.device.sequence import Sequence
from runtime.errors import ThreadStateError, changed_since_fork


def check_merge(parent: Sequence, children: SequenceOf[Sequence]) -> None:
    """Raises `ThreadStateError` where children cannot be merged into a thread that does not generate.

    What children were to see of the thread's context they must all have computed alike: at the same depths.
    """
    length = len(parent.tokens)
    for child in children:
        if child.generate is not None:
            raise ThreadStateError(f"Thread {child.path} generates; it is merged when it has ended.")
        own = parent.layout_or_plain.segments
        if child.layout_or_plain.segments[: len(own)] != own or child.tokens[:length] != parent.tokens:
            raise changed_since_fork(parent.path, child.path)
        if len(child.depths) < len(child.tokens):
            raise ThreadStateError(f"Thread {child.path} is not filled.")
        if len(child.tokens) > length and child.span_at(length).carry != "none":
            raise ThreadStateError(
                f"Thread {child.path} goes on from the latent state of what it was forked from, which a merged join "
                "does not keep. Give it a seed, or take a depth policy that carries nothing."
            )
        if child.depths[:length] != children[0].depths[:length]:
            raise ThreadStateError(
                f"Threads {children[0].path} and {child.path} have computed what they were forked from at different "
                "depths. Let the parent generate before it forks, or give its children one depth policy."
            )


def merge(parent: Sequence, children: SequenceOf[Sequence], kv_cache: KVCache) -> None:
    """Merges children, at least one, that have tokens beyond the thread's context; see `check_merge`.

    Raises `CapacityError` where no row could show it.
    """
    start, first = len(parent.tokens), children[0]
    laid_out = [(child.layout_or_plain, len(child.tokens)) for child in children]
    merged = merge_layouts(start, laid_out, kv_cache.page_size)
    kv_cache.check_width(merged.layout.last.place)
    pages, computed, freed = _pages(start, children, merged, kv_cache)
    kv_cache.take_over(parent, pages, freed)
    parent.computed = computed
    parent.layout = merged.layout
    parent.is_long = first.is_long
    parent.page_keys, parent.page_rule, parent.shareable = first.page_keys[:], first.page_rule, first.shareable
    parent.depths = first.depths[:start]
    for child in children:
        moved = len(parent.tokens) - start
        parent.tokens.extend(child.tokens[start:])
        parent.depths.extend(child.depths[start:])
        parent.spans += [
            replace(span, start=max(span.start, start) + moved, end=span.end + moved)
            for span in child.spans
            if span.end > start
        ]
    parent.generate_start = len(parent.tokens)
    parent.state_at = None
    kv_cache.begin_row(parent)
    # A child that is to be computed again may see pages that the first one gave back.
    kv_cache.release_unused(parent)


def _pages(start: int, children: SequenceOf[Sequence], merged: Merged, kv_cache: KVCache) -> tuple[list[int], int, int]:
    """Pages of the merged context, how many of its tokens they hold, and how many leading ones are given back."""
    first = children[0]
    if any(child.is_long != first.is_long for child in children if child.pages):
        # Their keys turn differently.
        return [], 0, 0
    pages, computed = first.pages[: kv_cache.pages_of(first)], first.computed
    if computed < len(first.tokens):
        return pages, computed, first.freed
    for child, count in zip(children[1:], merged.pages[1:], strict=True):
        if child.computed < len(child.tokens) or child.freed > merged.first_page:
            # Evicted, or without pages that no window of its own reaches: it is computed again, and what follows it.
            break
        pages += child.pages[merged.first_page : kv_cache.pages_of(child)]
        assert len(pages) == count
        computed += len(child.tokens) - start
    return pages, computed, first.freed

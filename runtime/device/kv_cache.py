"""Pages and page-table rows of threads: growing, sharing, copying on write, reusing prefixes, giving back."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from itertools import islice, takewhile

from runtime.backend.interface import CacheShape, Int32, RowHoles
from runtime.device.grouping import Grouping
from runtime.device.pages import PagePool, StoredPage
from runtime.device.prefixes import page_keys
from runtime.device.row_views import RowViews
from runtime.device.sequence import Sequence
from runtime.errors import CapacityError
from runtime.link.commands import ThreadPath

AMPLE = 4
"""Pages are taken ahead while one in so many is free."""


class KVCache:
    """Owns the page pool and the rows of the page table; the scheduler decides who gets what."""

    def __init__(
        self,
        cache: CacheShape,
        page_table: Int32,
        grouping: Grouping,
        *,
        short_context: int | None,
        window: int | None,
        reuse: bool,
        holes: RowHoles,
    ) -> None:
        """`short_context` and `window` are those of `ModelLimits`; `reuse` says whether prefixes are shared."""
        self.page_size = cache.page_size
        self.pool = PagePool(cache.pages)
        self.copies: list[tuple[int, int]] = []
        """Pages (source, destination) to copy at the start of the next tick."""
        self._table = page_table
        self._rows = RowViews(cache.page_size, page_table, holes)
        self._free_rows = list(range(cache.rows - 1, -1, -1))
        self._grouping = grouping
        self._short_context = short_context
        self._window = window
        self._reuse = reuse and grouping.chunk % cache.page_size == 0
        self._led: dict[bytes, Sequence] = {}
        """By key, who has a page of its prompt in flight that will be stored."""
        self._leads: dict[ThreadPath, list[bytes]] = {}
        """Keys of such pages by thread."""

    @property
    def has_free_row(self) -> bool:
        return bool(self._free_rows)

    def give_row(self, sequence: Sequence) -> None:
        """Gives a sequence a row of the page table; one must be free."""
        row = sequence.row = self._free_rows.pop()
        self._rows.begin(sequence)
        if sequence.layout is None:
            self._table[row, : len(sequence.pages)] = sequence.pages

    def take_row(self, sequence: Sequence) -> None:
        """Takes a sequence's row, and with it the latent state that is kept there."""
        if sequence.row is not None:
            self._free_rows.append(sequence.row)
            sequence.row = sequence.state_at = None

    def settle_length(self, sequence: Sequence) -> None:
        """Makes a context be computed again whose keys turn otherwise now, as it has outgrown the model's short context
        or is back in it."""
        is_long = self._short_context is not None and sequence.position(sequence.needed) > self._short_context
        if is_long == sequence.is_long:
            return
        self._start_over(sequence)
        sequence.is_long = is_long
        sequence.page_keys.clear()
        if sequence.page_rule is not None and sequence.page_rule.tests:
            # What exits by tests may have other depths in contexts that were so long from the beginning.
            sequence.page_rule = None

    def longest_alike(self, sequence: Sequence) -> int:
        """How long a sequence may grow before all its keys turn otherwise."""
        if self._short_context is None or sequence.is_long:
            return sys.maxsize
        return self._short_context + len(sequence.tokens) - sequence.next_position

    def free_unseen(self, sequence: Sequence) -> None:
        """Gives back the pages before every window of the tokens that a sequence has still to compute."""
        first = self._first_seen(sequence)
        if first > sequence.freed:
            self.release(sequence.pages[sequence.freed : first])
            sequence.freed = first

    def least_pages(self, sequence: Sequence, end: int) -> int:
        """Pages that a sequence refers to at least, while positions up to `end` are computed."""
        return math.ceil(sequence.place_after(end) / self.page_size) - self._first_seen(sequence)

    def _first_seen(self, sequence: Sequence) -> int:
        """The first page that a token still to be computed sees; of pages that children's were merged behind, none."""
        if self._window is None:
            return 0
        layout, position = sequence.layout, sequence.computed
        if layout is not None:
            position = layout.least_position(position)
        first = max(0, position + 1 - self._window) // self.page_size
        return first if layout is None else min(first, layout.segments[1].place // self.page_size)

    def longest(self, sequence: Sequence) -> int:
        """How many tokens a row can show of a sequence."""
        return self._rows.longest(sequence)

    def check_width(self, place: int) -> None:
        """Raises `CapacityError` where a row cannot show a token at a place."""
        width = self._table.shape[1]
        if place >= width * self.page_size:
            raise CapacityError(
                f"A merged context would take {place // self.page_size} pages, the ends of children's last pages "
                f"included; a row has {width}. Merge fewer or shorter children, or lower EngineSettings.page_size."
            )

    def pages_of(self, sequence: Sequence) -> int:
        """How many pages, from the first, hold what is computed of a sequence."""
        return math.ceil(sequence.place_after(sequence.computed) / self.page_size)

    def take_over(self, sequence: Sequence, pages: list[int], freed: int) -> None:
        """Gives a sequence pages, which others share, instead of its own; the first `freed` are given back."""
        self.share(pages[freed:])
        self._start_over(sequence)
        sequence.pages, sequence.freed = pages, min(freed, len(pages))

    def begin_row(self, sequence: Sequence) -> None:
        """A sequence has another layout."""
        self._rows.begin(sequence)

    def pages_needed(self, sequence: Sequence, end: int) -> int:
        """Pages to allocate before positions `sequence.computed .. end` can be written, a copied page included."""
        missing = math.ceil(sequence.place_after(end) / self.page_size) - len(sequence.pages)
        return max(0, missing) + self._must_copy(sequence)

    def grow(self, sequence: Sequence, end: int) -> None:
        """Makes positions `sequence.computed .. end` writable. The pool must have `pages_needed` free."""
        index = sequence.place(sequence.computed) // self.page_size
        if self.is_writable(sequence, end):
            self.pool.unstore(sequence.pages[index])
            self._rows.show(sequence)
            return
        if self._must_copy(sequence):
            shared = sequence.pages[index]
            own = self.pool.allocate()
            self.copies.append((shared, own))
            self.pool.release(shared)
            sequence.pages[index] = own
            self._rows.replace(sequence, index)
        for written in sequence.pages[index:]:
            self.pool.unstore(written)
        repeated = self._rows.repeated_page(sequence) if index == len(sequence.pages) else None
        self._add_pages(sequence, end)
        if repeated is not None:
            self.copies.append((sequence.pages[repeated], sequence.pages[index]))
        self._rows.show(sequence)

    def _add_pages(self, sequence: Sequence, end: int) -> None:
        """Adds pages for tokens up to `end`, as far as there are any."""
        last = sequence.place_after(end)
        while len(sequence.pages) * self.page_size < last and self.pool.free:
            sequence.pages.append(self.pool.allocate())
            self._rows.replace(sequence, len(sequence.pages) - 1)

    def writable_after(self, sequence: Sequence, index: int) -> int:
        """How many tokens from one on have pages already, if they are all of one segment."""
        return len(sequence.pages) * self.page_size - sequence.place(index)

    def grow_ahead(self, sequence: Sequence, end: int) -> None:
        """Adds pages for positions up to `end` behind those that are writable; none unless there are plenty."""
        if self.pool.free * AMPLE <= self.pool.size:
            return
        self._add_pages(sequence, min(end, self._rows.longest(sequence)))

    def is_writable(self, sequence: Sequence, end: int) -> bool:
        """Whether one page, which is the sequence's own, holds positions `sequence.computed .. end`."""
        size, pages = self.page_size, sequence.pages
        index = sequence.place(sequence.computed) // size
        return sequence.place(end - 1) // size == index < len(pages) and not self.pool.is_shared(pages[index])

    def _must_copy(self, sequence: Sequence) -> bool:
        index = sequence.place(sequence.computed) // self.page_size
        return index < len(sequence.pages) and self.pool.is_shared(sequence.pages[index])

    def share(self, pages: Iterable[int]) -> None:
        """Adds a reference to each page."""
        for page in pages:
            self.pool.share(page)

    def release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.pool.release(page)

    def clear(self, sequence: Sequence) -> int:
        """Takes all pages and the row from a sequence; its tokens stay. Returns how many pages it referred to."""
        count = self._start_over(sequence)
        self.take_row(sequence)
        return count

    def _start_over(self, sequence: Sequence) -> int:
        """Takes all pages from a sequence, whose tokens are to be computed again. Returns how many it referred to."""
        held = sequence.held
        self.release(held)
        sequence.pages.clear()
        sequence.freed = sequence.computed = 0
        return len(held)

    def step_back(self, sequence: Sequence, position: int) -> None:
        """Makes a computed token, and all after it, be computed again, with those that it entered with where that
        matters."""
        sequence.computed = self._grouping.start_of(sequence, position)
        self.release_unused(sequence)

    def release_unused(self, sequence: Sequence) -> None:
        """Drops pages beyond what is computed; all of them where what is next would see some that were given back."""
        self.release(sequence.cut_pages(self.page_size))
        if sequence.freed > self._first_seen(sequence):
            self._start_over(sequence)

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Forgets a context's tokens from `length` on, and their pages."""
        sequence.truncate(length)
        self.release_unused(sequence)

    def reuse_prefix(self, sequence: Sequence) -> int:
        """Gives a sequence what is stored of its prompt behind what it has; returns the number of tokens.

        No token is taken over whose logits are still to be computed, such as the context's last. Nor is one that a
        carrying token follows: its last latent state is needed, and not stored.
        """
        first = len(sequence.pages)
        if not self._reuse or sequence.computed != first * self.page_size:
            return 0
        is_fresh = sequence.computed == len(sequence.depths)
        if first and not self._is_shareable(sequence):
            return 0
        if is_fresh and not first:
            sequence.page_rule = sequence.rule
            sequence.page_keys.clear()
        rule = sequence.page_rule
        if rule is None:
            return 0
        most = sequence.first_wanted if is_fresh else min(sequence.shareable, sequence.first_wanted)
        if sequence.carries_at(most):
            most -= 1
        found: list[StoredPage] = []
        for number, key in enumerate(page_keys(sequence, rule, self.page_size, self._grouping)):
            if number < first:
                continue
            stored = self.pool.find(key) if (number + 1) * self.page_size <= most else None
            if stored is None:
                break
            found.append(stored)
        keep = self._reusable(first + len(found)) - first
        self.release(stored.page for stored in found[keep:])
        del found[keep:]
        sequence.pages += [stored.page for stored in found]
        sequence.computed += len(found) * self.page_size
        if sequence.row is not None:
            self._table[sequence.row, first : len(sequence.pages)] = sequence.pages[first:]
            sequence.row_view = None
        if is_fresh:
            for number, stored in enumerate(found, first):
                end = (number + 1) * self.page_size
                # The rest of the page's flight must get the depth that the page's tokens got.
                known = min(sequence.spans[0].end, self._grouping.flight_end(end - 1)) if rule.tests else end
                sequence.depths.extend([stored.depth] * (known - len(sequence.depths)))
            sequence.shareable = len(sequence.depths)
        return len(found) * self.page_size

    def _is_shareable(self, sequence: Sequence) -> bool:
        """Whether a sequence's next tokens are of its prompt and new, and all before them as its rule gives them."""
        start, prompt = sequence.computed, sequence.spans[0]
        if not self._reuse or sequence.rule is None or sequence.page_rule != sequence.rule:
            return False
        return start == sequence.shareable == len(sequence.depths) and start < prompt.end and not prompt.sampled

    def _reusable(self, pages: int) -> int:
        """How many of so many leading pages may be taken over."""
        if not self._grouping.matters:
            return pages
        return self._grouping.whole_flights(pages * self.page_size) // self.page_size

    # ---- prefixes in flight -----------------------------------------------------------------------------------------

    def lead(self, sequence: Sequence, end: int, iterations_left: int | None) -> None:
        """Lets others know that tokens up to `end` of a sequence's prompt are about to be computed, if they will be
        stored."""
        start, rule = sequence.computed, sequence.rule
        if start >= sequence.spans[0].end or rule is None or not self._is_shareable(sequence):
            return
        if iterations_left is not None and iterations_left < rule.bound * (end - start):
            return
        keys = page_keys(sequence, rule, self.page_size, self._grouping)
        led = list(islice(keys, start // self.page_size, end // self.page_size))
        for key in led:
            self._led.setdefault(key, sequence)
        self._leads[sequence.path] = led

    def stop_leading(self, sequence: Sequence) -> bool:
        """The tokens of a sequence are no longer in flight; whether others may have waited for them."""
        led = self._leads.pop(sequence.path, None)
        for key in led or ():
            if self._led.get(key) is sequence:
                del self._led[key]
        return led is not None

    def leader_of(self, sequence: Sequence, end: int) -> Sequence | None:
        """Who has in flight at least half of what a sequence would compute next, up to `end`: it is worth waiting for.

        None where nobody has, or not as the sequence's rule gives it.
        """
        start, rule = sequence.computed, sequence.rule
        if not self._led or start >= sequence.spans[0].end or rule is None or not self._is_shareable(sequence):
            return None
        first, most = start // self.page_size, min(end, sequence.first_wanted)
        if first * self.page_size != start:
            return None
        keys = islice(page_keys(sequence, rule, self.page_size, self._grouping), first, most // self.page_size)
        leaders = list(takewhile(lambda leader: leader is not None, map(self._led.get, keys)))
        shared = (self._reusable(first + len(leaders)) - first) * self.page_size
        return leaders[0] if leaders and 2 * shared >= end - start else None

    def store_prefix(self, sequence: Sequence, start: int, bound: int) -> None:
        """Makes the full pages of a sequence's prompt from position `start` on findable, as far as computed, where
        they are what its rule gives in any thread: not after a limit or another policy had a part in them.

        `bound` is that of the tokens from `start` on, which have just been computed.
        """
        rule = sequence.rule
        if not self._reuse or rule is None or rule.bound != bound or start != sequence.shareable:
            return
        if sequence.spans[0].sampled or start >= sequence.spans[0].end:
            return
        if start == 0:
            sequence.page_rule = rule
            sequence.page_keys.clear()
        elif sequence.page_rule != rule:
            return
        sequence.shareable = sequence.computed
        for number, key in enumerate(page_keys(sequence, rule, self.page_size, self._grouping)):
            end = (number + 1) * self.page_size
            if end > sequence.computed:
                break
            if end > start:
                self.pool.store(sequence.pages[number], key, sequence.depths[end - 1])

    def forget_prefixes(self) -> None:
        """No page is found again that was stored so far; no thread may be open, or it would store on."""
        self.pool.forget()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raises `AssertionError` unless pages and rows are exactly those that `sequences`, all there are, hold."""
        threads = list(sequences)
        self.pool.check_integrity(page for thread in threads for page in thread.held)
        rows = sorted([*self._free_rows, *(thread.row for thread in threads if thread.row is not None)])
        assert rows == list(range(len(self._table))), "rows are lost or doubled"
        for thread in threads:
            assert thread.place_after(thread.computed) <= len(thread.pages) * self.page_size
            assert thread.freed <= self._first_seen(thread), f"{thread.path} lacks what it sees"
            if thread.row is not None:
                self._rows.check_integrity(thread)

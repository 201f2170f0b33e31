"""What rows of the page table show of contexts into which keys and values were merged; see `runtime.device.layout`.

A row shows what the tokens see that are computed now. A thread whose tokens are computed again, segment after segment,
has its row rewritten between them, so that a child's tokens see again what they saw and no sibling.
"""

from __future__ import annotations

import sys

import numpy as np

from runtime.backend.interface import Int32, RowHoles
from runtime.device.layout import View
from runtime.device.sequence import Sequence

NOTHING = (0, 0, 0)
"""The part of a page that was given back."""


class RowViews:
    """Writes the page table, and the parts of pages in rows with holes."""

    def __init__(self, page_size: int, page_table: Int32, holes: RowHoles) -> None:
        self._page_size = page_size
        self._width = page_table.shape[1]
        self._table = page_table
        self._parts, self._has_holes = holes

    def begin(self, sequence: Sequence) -> None:
        """A sequence has been given a row, or a layout."""
        sequence.row_view, sequence.row_shift = None, 0
        if sequence.row is not None:
            self._has_holes[sequence.row] = sequence.layout is not None

    def longest(self, sequence: Sequence) -> int:
        """How many tokens a sequence may have, so that all that its last segment sees fits into a row."""
        layout = sequence.layout
        if layout is None:
            return sys.maxsize
        return layout.last.start + self._width * self._page_size - layout.last.place

    def replace(self, sequence: Sequence, number: int) -> None:
        """A page of a sequence, by its number, is new or another one."""
        if sequence.layout is None:
            self._table[sequence.row, number] = sequence.pages[number]
        elif sequence.row_view is not None:
            _, view = sequence.row_view
            if number < view.first_page:
                sequence.row_view = None
            else:
                self._write_own(sequence, view, number)

    def repeated_page(self, sequence: Sequence) -> int | None:
        """The number of the page whose content the page that a sequence needs next begins with; None where it begins
        with what is to be computed."""
        layout = sequence.layout
        if layout is None:
            return None
        segment = layout.segments[layout.number_at(sequence.computed)]
        if segment.start != sequence.computed or segment.place % self._page_size == 0:
            return None
        end = segment.sees[-1][1]
        return layout.place(end - 1) // self._page_size

    def show(self, sequence: Sequence) -> None:
        """Makes a sequence's row show what the tokens see that it computes next."""
        layout = sequence.layout
        if layout is None:
            return
        segment = layout.number_at(sequence.computed)
        if sequence.row_view is not None and sequence.row_view[0] == segment:
            return
        view = layout.view(segment, self._page_size)
        row, count = sequence.row, len(view.parts)
        self._table[row, :count] = [sequence.pages[part.number] for part in view.parts]
        shown = [(part.begin, part.end, part.base) if part.number >= sequence.freed else NOTHING for part in view.parts]
        self._parts[row, :count] = np.array(shown, np.int32).reshape(count, 3)
        for number in range(view.first_page, len(sequence.pages)):
            self._write_own(sequence, view, number)
        sequence.row_view = segment, view
        sequence.row_shift = view.shift * self._page_size

    def _write_own(self, sequence: Sequence, view: View, number: int) -> None:
        at, size = number + view.shift, self._page_size
        if at >= self._width:
            # Nothing is computed that is so far behind: it is another segment's.
            return
        begin = view.begin if number == view.first_page else 0
        base = view.base + (number - view.first_page) * size
        self._table[sequence.row, at] = sequence.pages[number]
        self._parts[sequence.row, at] = (begin, size, base) if number >= sequence.freed else NOTHING

    def check_integrity(self, sequence: Sequence) -> None:
        """Raises `AssertionError` unless a sequence's row shows its pages."""
        row, layout, pages = sequence.row, sequence.layout, sequence.pages
        assert self._has_holes[row] == (layout is not None), f"{sequence.path} has a row of the wrong kind"
        if layout is None:
            assert self._table[row, sequence.freed : len(pages)].tolist() == sequence.held
        elif sequence.row_view is not None:
            number, view = sequence.row_view
            assert view == layout.view(number, self._page_size)
            shown = [part.number for part in view.parts] + list(range(view.first_page, len(pages)))
            seen = np.array(shown[: self._width]) >= sequence.freed
            table = self._table[row, : len(seen)]
            assert (table == [pages[number] for number in shown[: self._width]])[seen].all(), sequence.path

"""Where the tokens of a context are, and at which positions, once children's keys and values were merged into it.

    context        P P P P P | A A A | B B B B | C         in order of time and spawn
    positions      0 1 2 3 4   5 6 7   5 6 7 8   9         siblings begin alike; the parent goes on behind the longest
    pages of 4    [P P P P][P A A A][. B B B][B . . .][C
    C sees all; B sees P and itself

A segment is a row of tokens at neighbouring positions and places. Tokens that were forked go on in the middle of a
page, in a copy of the page that they were forked in. So a segment's first page may begin with a copy of what the
segment goes on from; the merged context passes over that, and over what is left of a segment's last page.

A **place** is where a token is in the pages of its thread: page_size places a page. A **row** shows a segment what it
sees, page after page: a part of each, at positions that follow each other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Range = tuple[int, int]
"""The tokens `start .. end` of a context."""


class Segment(NamedTuple):
    """Tokens from `start` to where the next segment starts."""

    start: int
    position: int
    """Of its first token."""
    place: int
    """Of its first token."""
    sees: tuple[Range, ...] = ()
    """What of the context before it its tokens see, besides themselves."""


class Part(NamedTuple):
    """What a row shows of a page."""

    number: int
    """Of the page in its thread."""
    begin: int
    """The first offset that counts."""
    end: int
    """The one after the last."""
    base: int
    """The position that a token at offset 0 has or would have."""


class View(NamedTuple):
    """What a segment's tokens see: parts of pages before its own first page, and then its own pages."""

    parts: tuple[Part, ...]
    first_page: int
    """The number of its first page."""
    begin: int
    """The first offset of that page that counts."""
    base: int
    """As in `Part`, of that page."""

    @property
    def shift(self) -> int:
        """What has to be added to the number of one of its own pages for where that is in the row."""
        return len(self.parts) - self.first_page


class Layout(NamedTuple):
    """The segments of a context, at least one; the last one is what the context goes on with."""

    segments: tuple[Segment, ...]

    def number_at(self, index: int) -> int:
        """Which segment holds a token, or would hold the context's next one."""
        return bisect_right(self.segments, index, key=_start) - 1

    def end(self, index: int) -> int | None:
        """Where the segment of a token ends; None for the last."""
        number = self.number_at(index) + 1
        return self.segments[number].start if number < len(self.segments) else None

    def position(self, index: int) -> int:
        segment = self.segments[self.number_at(index)]
        return segment.position + index - segment.start

    def place(self, index: int) -> int:
        segment = self.segments[self.number_at(index)]
        return segment.place + index - segment.start

    def least_position(self, index: int) -> int:
        """The least position of a token and all after it."""
        later = [segment.position for segment in self.segments if segment.start > index]
        return min([self.position(index), *later])

    @property
    def last(self) -> Segment:
        return self.segments[-1]

    def view(self, number: int, page_size: int) -> View:
        """What a row has to show while tokens of a segment are computed."""
        segment = self.segments[number]
        parts: list[Part] = []
        for seen in segment.sees:
            for part in self._parts_of(seen, page_size):
                last = parts[-1] if parts else None
                if last is not None and (last.end, last.base) == (part.begin, part.base):
                    # Of one page; or of the next segment's, which begins with a copy of what that goes on from. A sum
                    # over keys is of the same parts then as before the segment was merged, to the last bit.
                    parts[-1] = part._replace(begin=last.begin)
                else:
                    parts.append(part)
        first, offset = divmod(segment.place, page_size)
        # What is before a segment in its first page is, or is a copy of, what it goes on from.
        begin = parts.pop().begin if offset else 0
        return View(tuple(parts), first, begin, segment.position - offset)

    def _parts_of(self, seen: Range, page_size: int) -> Iterator[Part]:
        start, end = seen
        while start < end:
            segment, until = self.segments[self.number_at(start)], self.end(start)
            stop = end if until is None else min(end, until)
            place, last = (segment.place + index - segment.start for index in (start, stop))
            for number in range(place // page_size, -(-last // page_size)):
                first = number * page_size
                base = segment.position + first - segment.place
                yield Part(number, max(0, place - first), min(page_size, last - first), base)
            start = stop


PLAIN = Layout((Segment(0, 0, 0),))
"""Of a context into which nothing was merged."""


class Merged(NamedTuple):
    """A context into which children were merged."""

    layout: Layout
    pages: tuple[int, ...]
    """How many of its pages hold the tokens up to the end of each child."""
    first_page: int
    """The number of the page, in each child, from which on its pages are the merged context's; of the first child all
    are."""


def merge_layouts(forked_at: int, children: Sequence[tuple[Layout, int]], page_size: int) -> Merged:
    """The layout of a context of `forked_at` tokens and then those that its children, at least one, have behind them.

    Of each child, its layout and how many tokens it has, more than `forked_at`. All have the same layout up to there.
    """
    layout = children[0][0]
    before = layout.segments[layout.number_at(forked_at)]
    segments = [segment for segment in layout.segments if segment.start < forked_at]
    first_page = layout.place(forked_at) // page_size
    length, count = forked_at, first_page
    ends, position = [], 0
    for own, tokens in children:
        moved, turned = length - forked_at, (count - first_page) * page_size
        begun = [segment for segment in own.segments if segment.start >= forked_at]
        if before.start < forked_at:
            sees = (*before.sees, (before.start, forked_at))
            begun.insert(0, Segment(forked_at, own.position(forked_at), own.place(forked_at), sees))
        for segment in begun:
            if segment.start == tokens:
                # Nothing follows what was merged last.
                continue
            sees = tuple(part for seen in segment.sees for part in _moved(seen, forked_at, moved))
            segments.append(Segment(segment.start + moved, segment.position, segment.place + turned, sees))
        position = max(position, own.position(tokens))
        length += tokens - forked_at
        count = -(-(own.place(tokens - 1) + 1 + turned) // page_size)
        ends.append(count)
    segments.append(Segment(length, position, count * page_size, ((0, length),)))
    return Merged(Layout(tuple(segments)), tuple(ends), first_page)


def _moved(seen: Range, forked_at: int, by: int) -> Iterator[Range]:
    """A range of a child's context in the merged one."""
    start, end = seen
    if start < forked_at:
        yield start, min(end, forked_at)
    if end > forked_at:
        yield max(start, forked_at) + by, end + by


def _start(segment: Segment) -> int:
    return segment.start

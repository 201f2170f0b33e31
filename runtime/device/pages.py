"""The pool of pages that hold keys and values: who refers to which, and which can be found again by content.

A page is **used** while threads refer to it, else **free**. A free page that was stored keeps its content, and can be
found again by its key, until it is allocated for something else. Pages that nobody can find are allocated first, the
last freed of them first, because it is still in the processor's caches; then stored ones, the longest free first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec


class StoredPage(msgspec.Struct, frozen=True):
    """A page whose content can be reused."""

    page: int
    depth: int
    """Iterations that its last token got, and every other token that enters together with it."""


class PagePool:
    """Reference counts over pages 0 .. size - 1. Not thread-safe: the device thread owns it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._references = [0] * size
        self._blank = list(range(size - 1, -1, -1))
        """Free pages that cannot be found; the last freed at the end."""
        self._kept: dict[int, None] = {}
        """Free pages that can be found; the longest free first."""
        self._stored: dict[bytes, StoredPage] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        return len(self._blank) + len(self._kept)

    @property
    def used(self) -> int:
        return self.size - self.free

    def allocate(self) -> int:
        """A free page, now referred to once; its former content can no longer be found. Raises `IndexError` if none."""
        if self._blank:
            page = self._blank.pop()
        elif self._kept:
            page = next(iter(self._kept))
            del self._kept[page]
            self._forget(page)
        else:
            raise IndexError("no free page")
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """Adds a reference to a used page."""
        assert self._references[page] > 0
        self._references[page] += 1

    def release(self, page: int) -> None:
        """Drops a reference; the last one frees the page."""
        self._references[page] -= 1
        assert self._references[page] >= 0
        if self._references[page] == 0:
            if page in self._key_of:
                self._kept[page] = None
            else:
                self._blank.append(page)

    def is_shared(self, page: int) -> bool:
        return self._references[page] > 1

    def store(self, page: int, key: bytes, depth: int) -> None:
        """Makes a used page findable. A key that is known keeps its first page."""
        if key not in self._stored and page not in self._key_of:
            self._stored[key] = StoredPage(page, depth)
            self._key_of[page] = key

    def unstore(self, page: int) -> None:
        """Makes a page unfindable, because its content is about to change."""
        self._forget(page)

    def find(self, key: bytes) -> StoredPage | None:
        """The page stored under a key, with one more reference to it, or None."""
        stored = self._stored.get(key)
        if stored is not None:
            self._references[stored.page] += 1
            self._kept.pop(stored.page, None)
        return stored

    def forget(self) -> None:
        """Makes every page unfindable."""
        self._blank += reversed(self._kept)
        self._kept.clear()
        self._stored.clear()
        self._key_of.clear()

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._stored[key]

    def check_integrity(self, references: Iterable[int]) -> None:
        """Raises `AssertionError` unless `references`, one entry a reference held by a thread, is what is counted."""
        held, blank = Counter(references), set(self._blank)
        for page, count in enumerate(self._references):
            assert count == held[page], f"page {page} counts {count} references, threads hold {held[page]}"
            is_free = (page in blank) + (page in self._kept)
            assert is_free == (count == 0), f"page {page} with {count} references is in the wrong list"
        assert not blank & self._key_of.keys(), "a page that can be found is taken for one that cannot"
        assert all(self._key_of[stored.page] == key for key, stored in self._stored.items())
        assert len(self._stored) == len(self._key_of)

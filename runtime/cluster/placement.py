"""Where a thread goes: to a replica that has the beginning of its prompt, else to the less busy of two."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice

from runtime.cluster.seat import Seat

BLOCK = 16
"""Tokens that a prompt shares at least, where that is to matter."""
MOST_BLOCKS = 256
MOST_KNOWN = 65_536
"""Beginnings that are remembered."""

SLACK = 4
"""Calls that a replica may have beyond twice those of the least busy one before others are preferred to it."""


class Placement:
    """Remembers which replica has seen which beginnings of prompts."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._known: OrderedDict[bytes, Seat] = OrderedDict()

    def choose(self, seats: Sequence[Seat], tokens: Iterable[int]) -> Seat | None:
        """The replica for a context with these tokens; None where none takes any."""
        open_to_more = [seat for seat in seats if not seat.is_leaving]
        if not open_to_more:
            return None
        keys = _keys(tokens)
        chosen = self._of_prefix(open_to_more, keys) or self._of_two(open_to_more)
        for key in keys:
            self._known[key] = chosen
            self._known.move_to_end(key)
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return chosen

    def is_overloaded(self, seat: Seat, seats: Sequence[Seat]) -> bool:
        """Whether what would best stay there should go elsewhere all the same."""
        others = [other.active for other in seats if not other.is_leaving]
        return bool(others) and (seat.is_leaving or seat.active > 2 * min(others) + SLACK)

    def forget(self, seat: Seat) -> None:
        """It is gone."""
        for key in [key for key, known in self._known.items() if known is seat]:
            del self._known[key]

    def _of_prefix(self, seats: Sequence[Seat], keys: Sequence[bytes]) -> Seat | None:
        for key in reversed(keys):
            seat = self._known.get(key)
            if seat is not None and seat in seats:
                return None if self.is_overloaded(seat, seats) else seat
        return None

    def _of_two(self, seats: Sequence[Seat]) -> Seat:
        two = self._random.sample(list(seats), min(2, len(seats)))
        return min(two, key=lambda seat: seat.active)


def _keys(tokens: Iterable[int]) -> list[bytes]:
    """One for each beginning of whole blocks."""
    left, digest, keys = iter(tokens), blake2b(digest_size=16), list[bytes]()
    while len(keys) < MOST_BLOCKS and len(block := list(islice(left, BLOCK))) == BLOCK:
        digest.update(b"".join(token.to_bytes(4, "little") for token in block))
        keys.append(digest.copy().digest())
    return keys

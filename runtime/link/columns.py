"""Columns of whole numbers, a byte or two a number where they are small.

A column is one byte, the width of its numbers in bytes, and then the first bytes of all numbers, the second bytes, and
so on: what differs little lies together, for a compressor to find.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

_WIDTHS = (1, 2, 4, 8)


def packed(*columns: Numbers) -> list[bytes]:
    """Columns of any numbers between -2**62 and 2**62, of one length."""
    if not len(columns[0]):
        return [b"\1"] * len(columns)
    # Together, since they are often short. 0, -1, 1, -2, ... as 0, 1, 2, 3, ...
    numbers = np.stack(columns)
    folded = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    narrow = folded.astype(np.uint8)
    return [
        b"\1" + narrow[row].tobytes() if largest < 256 else _packed_wide(folded[row], largest)
        for row, largest in enumerate(folded.max(axis=1).tolist())
    ]


def _packed_wide(folded: NDArray[np.uint64], largest: int) -> bytes:
    width = next(width for width in _WIDTHS if largest < 1 << 8 * width)
    return bytes([width]) + planes(folded.astype(f"<u{width}"))


def unpacked(column: bytes, count: int) -> Numbers:
    """The numbers of a column. Raises `ValueError` where it has not as many."""
    width = column[0] if column else 0
    if width not in _WIDTHS or len(column) != 1 + width * count:
        raise ValueError(f"a column of {count} numbers has {len(column)} bytes")
    folded = from_planes(column[1:], f"<u{width}").astype(np.uint64)
    numbers: Numbers = (folded >> np.uint64(1)).view(np.int64) ^ -(folded & np.uint64(1)).view(np.int64)
    return numbers


def planes(values: NDArray[np.generic]) -> bytes:
    """The first bytes of all values, the second ones, and so on."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


def from_planes(data: bytes, kind: str) -> NDArray[np.generic]:
    """What `planes` was given. Raises `ValueError` for bytes of no whole values."""
    width = np.dtype(kind).itemsize
    together = np.frombuffer(data, np.uint8).reshape(width, -1).T
    return np.ascontiguousarray(together).view(kind).reshape(-1)


def steps(numbers: Numbers, expected: Numbers | int = 0) -> Numbers:
    """Each number's distance from the one before it, beyond what was expected; of the first one, from 0."""
    distances = numbers.copy()
    distances[1:] -= numbers[:-1]
    distances[1:] -= expected
    return distances


def from_steps(distances: Numbers, expected: Numbers | int = 0) -> Numbers:
    """What `steps` was given."""
    distances = distances.copy()
    distances[1:] += expected
    numbers: Numbers = np.cumsum(distances)
    return numbers

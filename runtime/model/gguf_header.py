"""The header of a GGUF file: its metadata, and which tensors lie where (ggml's docs/gguf.md describes the format).

Nothing in it is trusted: what is read is bounded by the file's size and by the constants here, never by a number in it,
and no tensor is looked at. Libraries that read GGUF check none of this, and get only files that have passed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from runtime.errors import CheckpointError
from runtime.model.published import holds, shown

MAGIC = b"GGUF"
_VERSIONS = (2, 3)

_MOST_BYTES = 2**26
"""Of a header; those of the largest vocabularies have a quarter."""
_MOST_ELEMENTS = 2**22
"""Of all arrays in a header together; a vocabulary of 262,144 tokens has fewer than a third."""
_ALIGNMENTS = [2**power for power in range(17)]
_LONGEST_KEY = 2**16 - 1
_LONGEST_NAME = 64
_MOST_DIMENSIONS = 4
"""As the format defines them."""
_LONGEST_ELEMENT = 1024
"""Bytes of a token or a merge. Deriving merges takes time quadratic in it."""

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Formats of `struct` by the format's numbers of types."""

Scalar = str | int | float | bool
Value = Scalar | list[Scalar]


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies in its file, and how its numbers are written."""

    name: str
    """The file's own, such as blk.0.attn_q.weight."""
    shape: tuple[int, ...]
    """As PyTorch counts: rows first."""
    encoding: int
    """One of `gguf.GGMLQuantizationType`."""
    start: int
    """Bytes from the beginning of the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GgufHeader:
    """What a GGUF file says of itself."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorPlace]
    """By the file's own names, in its order."""

    def text(self, key: str) -> str | None:
        """A string of the metadata; None where there is none. Raises `CheckpointError` for another type."""
        value = self.metadata.get(key)
        if value is None or isinstance(value, str):
            return value
        raise CheckpointError(f"{self.path}: {key} is {shown(value)}; expected a string.")

    def whole(self, key: str) -> int | None:
        """A whole number of the metadata; None where there is none. Raises `CheckpointError` for another type."""
        value = self.metadata.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise CheckpointError(f"{self.path}: {key} is {shown(value)}; expected a whole number.")


def is_gguf(path: Path) -> bool:
    """Whether the file at `path` is meant to be GGUF: by its name or by its first bytes."""
    if not holds(path):
        return False
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Check its permissions and its disk.") from error


def read_header(path: Path, blocks: Mapping[int, tuple[int, int]]) -> GgufHeader:
    """Reads the header of a GGUF file of version 2 or 3.

    `blocks` has, for each encoding, how many numbers a block has and its bytes. Raises `CheckpointError`, naming the
    file, for what is no such file, is truncated, describes tensors that do not lie in it side by side, or is larger
    than any model's header.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _Reader(path, file, size).header(blocks)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Check its permissions and its disk.") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._at = 0
        self._elements = 0

    def header(self, blocks: Mapping[int, tuple[int, int]]) -> GgufHeader:
        self._check_version()
        tensor_count, value_count = self._number("Q"), self._number("Q")
        metadata: dict[str, Value] = {}
        for _ in range(value_count):
            key = self._string(_LONGEST_KEY, "a key")
            if key in metadata:
                raise self._refusal(f"has the key {shown(key)} twice")
            metadata[key] = self._value(key)
        described: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensor_count):
            name = self._string(_LONGEST_NAME, "the name of a tensor")
            if name in described:
                raise self._refusal(f"describes the tensor {shown(name)} twice")
            described[name] = self._shape(name), self._number("I"), self._number("Q")
        alignment = self._alignment(metadata)
        begin = -(-self._at // alignment) * alignment
        places = {
            name: self._place(name, shape, encoding, begin + offset, blocks)
            for name, (shape, encoding, offset) in described.items()
        }
        self._check_apart(places.values())
        return GgufHeader(path=self._path, metadata=metadata, tensors=places)

    def _check_version(self) -> None:
        if (found := self._file.read(len(MAGIC))) != MAGIC:
            raise self._refusal(f"begins with {found!r}; expected {MAGIC!r}, as every GGUF file does")
        self._at = len(MAGIC)
        version = self._number("I")
        if version and version % 2**16 == 0:
            raise self._refusal("is written for machines of the other byte order; convert it with gguf-convert-endian")
        if version not in _VERSIONS:
            raise self._refusal(f"is of GGUF version {version}; supported are {' and '.join(map(str, _VERSIONS))}")

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in _ALIGNMENTS:
            raise self._refusal(f"has general.alignment {shown(alignment)}; expected a power of two up to 65536")
        return int(alignment)

    def _value(self, key: str) -> Value:
        kind = self._number("I")
        if kind == _STRING:
            return self._string(_MOST_BYTES, key)
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._refusal(f"has a value of type {kind} for {shown(key)}, which GGUF does not know")
        inner, count = self._number("I"), self._number("Q")
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            raise self._refusal(f"has more than {_MOST_ELEMENTS} elements in the arrays up to {shown(key)}")
        if inner == _STRING:
            return [self._string(_LONGEST_ELEMENT, f"an element of {key}") for _ in range(count)]
        if inner not in _SCALARS:
            raise self._refusal(f"has an array of type {inner} for {shown(key)}; supported are numbers and strings")
        return list(struct.unpack(f"<{count}{_SCALARS[inner]}", self._take(count * struct.calcsize(_SCALARS[inner]))))

    def _shape(self, name: str) -> tuple[int, ...]:
        dimensions = self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise self._refusal(
                f"gives the tensor {shown(name)} {dimensions} dimensions; the format has up to {_MOST_DIMENSIONS}"
            )
        return tuple(self._number("Q") for _ in range(dimensions))[::-1]

    def _place(
        self, name: str, shape: tuple[int, ...], encoding: int, start: int, blocks: Mapping[int, tuple[int, int]]
    ) -> TensorPlace:
        if encoding not in blocks:
            raise self._refusal(f"writes the tensor {shown(name)} in an encoding, {encoding}, that gguf does not know")
        numbers, size = blocks[encoding]
        if not shape or shape[-1] % numbers:
            raise self._refusal(
                f"gives the tensor {shown(name)} shape {list(shape)}; its rows are in blocks of {numbers} numbers"
            )
        stored = math.prod(shape) // numbers * size
        if start + stored > self._size:
            raise self._refusal(
                f"is truncated: the tensor {shown(name)}, of shape {list(shape)}, ends at byte {start + stored} of "
                f"{self._size}; copy it again and compare its size"
            )
        return TensorPlace(name=name, shape=shape, encoding=encoding, start=start, size=stored)

    def _check_apart(self, places: Iterable[TensorPlace]) -> None:
        """Tensors that share bytes would take more memory than the file's size says."""
        for before, after in pairwise(sorted(places, key=lambda place: (place.start, place.size))):
            if before.start + before.size > after.start:
                raise self._refusal(f"has the tensors {shown(before.name)} and {shown(after.name)} in the same place")

    def _scalar(self, form: str) -> Scalar:
        value: Scalar = struct.unpack(f"<{form}", self._take(struct.calcsize(form)))[0]
        return value

    def _number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self._take(struct.calcsize(form)))[0]
        return value

    def _string(self, longest: int, what: str) -> str:
        length = self._number("Q")
        if length > longest:
            raise self._refusal(f"gives {shown(what)} a length of {length} bytes; expected up to {longest}")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._refusal(f"has {shown(what)} that is no UTF-8 ({error})") from error

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > self._size:
            raise self._refusal(f"is truncated: its header goes on at byte {end} of {self._size}; copy it again")
        if end > _MOST_BYTES:
            raise self._refusal(f"has a header of more than {_MOST_BYTES} bytes; expected that of a language model")
        taken = self._file.read(count)
        if len(taken) != count:
            raise self._refusal("became shorter while it was read; copy it again")
        self._at = end
        return taken

    def _refusal(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {what}.")

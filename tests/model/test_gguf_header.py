"""Headers of GGUF files: read as the gguf package reads them, or refused by name, soon and in little memory."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import CheckpointError
from runtime.model.gguf_header import GgufHeader, is_gguf, read_header
from runtime.model.gguf_tensors import BLOCKS, read_numbers
from tests.damage import bounded, damaged_bytes

U8, U32, STRING, ARRAY, U64 = 0, 4, 8, 9, 10
"""GGUF's numbers of types."""


def text(content: str | bytes) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(content)) + content


def header_bytes(*values: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, counts: Any = None) -> bytes:
    counted = (len(tensors), len(values)) if counts is None else counts
    return b"GGUF" + struct.pack("<IQQ", version, *counted) + b"".join(values) + b"".join(tensors)


def value(key: str, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def tensor(name: str, shape: tuple[int, ...], encoding: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, encoding, offset)


def read(path: Path) -> GgufHeader:
    with bounded(seconds=20, size=2**30):
        return read_header(path, BLOCKS)


def refused(path: Path, content: bytes, part: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        read(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: "), message
    assert part in message, message
    assert message.endswith("."), message
    assert len(message) < 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


scalars = {
    "add_uint8": st.integers(0, 2**8 - 1),
    "add_int16": st.integers(-(2**15), 2**15 - 1),
    "add_uint32": st.integers(0, 2**32 - 1),
    "add_int64": st.integers(-(2**63), 2**63 - 1),
    "add_float32": st.floats(width=32, allow_nan=False),
    "add_float64": st.floats(allow_nan=False),
    "add_bool": st.booleans(),
    "add_string": st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    "add_array": st.lists(st.integers(-100, 100), min_size=1, max_size=5)
    | st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=5),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    values=st.lists(st.sampled_from(list(scalars)).flatmap(lambda kind: st.tuples(st.just(kind), scalars[kind]))),
    shapes=st.lists(st.lists(st.integers(1, 3), max_size=3), max_size=3),
    alignment=st.sampled_from([None, 8, 32, 256]),
    seed=st.integers(0, 2**32 - 1),
)
def test_headers_say_what_the_package_reads(
    path: Path, values: list[tuple[str, Any]], shapes: list[list[int]], alignment: int | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for number, (kind, content) in enumerate(values):
        getattr(writer, kind)(f"key.{number}", content)
    encodings = [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q4_1]
    for number, shape in enumerate(shapes):
        numbers = random.standard_normal((*shape, 64), np.float32)
        encoding = encodings[number % len(encodings)]
        writer.add_tensor(f"tensor.{number}", gguf.quantize(numbers, encoding), raw_dtype=encoding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header, theirs = read(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert dict(header.metadata) == fields
    assert [(place.name, place.shape, place.start) for place in header.tensors.values()] == [
        (each.name, tuple(reversed(each.shape.tolist())), each.data_offset) for each in theirs.tensors
    ]
    for each in theirs.tensors:
        expected = gguf.dequantize(each.data, each.tensor_type)
        assert np.array_equal(read_numbers(header, header.tensors[each.name]), expected)


ONE = value("general.architecture", STRING, text("llama"))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "begins with b''"),
        (b"GGML" + bytes(100), "begins with b'GGML'"),
        (b"GGUF", "is truncated"),
        (header_bytes(version=1), "is of GGUF version 1"),
        (header_bytes(version=99), "is of GGUF version 99"),
        (header_bytes(version=3 << 24), "the other byte order"),
        (header_bytes(counts=(0, 2**63)), "is truncated"),
        (header_bytes(ONE, counts=(2**64 - 1, 1)), "is truncated"),
        (header_bytes(ONE, counts=(2**40, 1)) + bytes(10**6), "twice"),
        (header_bytes(ONE, ONE), "has the key 'general.architecture' twice"),
        (header_bytes(value("key", 99, b"")), "a value of type 99"),
        (header_bytes(value("key", STRING, struct.pack("<Q", 2**63))), "a length of 9223372036854775808 bytes"),
        (header_bytes(value("key", STRING, struct.pack("<Q", 2**20))), "is truncated"),
        (header_bytes(value("key", STRING, text(b"\xff"))), "no UTF-8"),
        (header_bytes(text("x" * 70_000)), "a length of 70000 bytes"),
        (header_bytes(value("key", ARRAY, struct.pack("<IQ", U8, 2**62))), "more than 4194304 elements"),
        (header_bytes(value("key", ARRAY, struct.pack("<IQ", U64, 2**20))), "is truncated"),
        (header_bytes(value("key", ARRAY, struct.pack("<IQ", STRING, 2**20))), "is truncated"),
        (header_bytes(value("key", ARRAY, struct.pack("<IQ", ARRAY, 1))), "an array of type 9"),
        (header_bytes(value("key", ARRAY, struct.pack("<IQ", STRING, 1) + text("x" * 2000))), "a length of 2000"),
        (header_bytes(value("general.alignment", U32, struct.pack("<I", 0))), "general.alignment 0"),
        (header_bytes(value("general.alignment", U32, struct.pack("<I", 33))), "general.alignment 33"),
        (header_bytes(value("general.alignment", STRING, text("32"))), "general.alignment '32'"),
        (header_bytes(tensors=(tensor("x" * 65, (32,)),)), "a length of 65 bytes"),
        (header_bytes(tensors=(text("x") + struct.pack("<I", 2**31),)), "2147483648 dimensions"),
        (header_bytes(tensors=(tensor("x", (2,)), tensor("x", (2,)))), "the tensor 'x' twice"),
        (header_bytes(tensors=(tensor("x", (2,), 77),)), "in an encoding, 77,"),
        (header_bytes(tensors=(tensor("x", (33,), 2),)), "in blocks of 32 numbers"),
        (header_bytes(tensors=(tensor("x", ()),)), "shape []"),
        (header_bytes(tensors=(tensor("x", (2**62, 2**62)),)), "is truncated: the tensor 'x'"),
        (header_bytes(tensors=(tensor("x", (2,), offset=2**63),)), "is truncated: the tensor 'x'"),
        (header_bytes(tensors=(tensor("x", (8,)), tensor("y", (8,), offset=16))) + bytes(200), "in the same place"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_what_no_model_says_is_refused(path: Path, content: bytes, part: str) -> None:
    refused(path, content, part)


def test_headers_larger_than_any_models_are_refused(path: Path) -> None:
    """A sparse file, so that nothing of the size is ever written."""
    path.write_bytes(header_bytes(value("key", STRING, struct.pack("<Q", 2**26 - 8))))
    with path.open("r+b") as file:
        file.truncate(2**28)
    with pytest.raises(CheckpointError, match="has a header of more than 67108864 bytes"):
        read(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    values = [
        ONE,
        value("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("b") + text("ö")),
        value("tokenizer.ggml.token_type", ARRAY, struct.pack("<IQ", U32, 3) + struct.pack("<3I", 1, 1, 1)),
        value("llama.block_count", U32, struct.pack("<I", 1)),
    ]
    content = header_bytes(*values, tensors=(tensor("a", (32, 2)), tensor("b", (32,), 8, 256)))
    return content + bytes(-len(content) % 32 + 256 + 34)


def test_what_is_to_be_damaged_reads(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    assert list(read(path).tensors) == ["a", "b"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_read_or_are_named(path: Path, whole: bytes, seed: int) -> None:
    path.write_bytes(damaged_bytes(whole, Random(seed)))
    try:
        header = read(path)
        for place in header.tensors.values():
            assert read_numbers(header, place).shape == place.shape
    except CheckpointError as error:
        message = str(error)
    else:
        return
    assert message.startswith(f"{path}: "), message


def test_files_are_known_by_name_or_content(tmp_path: Path) -> None:
    for name, content, expected in [
        ("a.gguf", b"", True),
        ("sha256-0", b"GGUF\x03", True),
        ("sha256-1", b"GGU", False),
        ("model.bin", b"\x80\x02", False),
    ]:
        (tmp_path / name).write_bytes(content)
        assert is_gguf(tmp_path / name) == expected
    assert not is_gguf(tmp_path / "nothing.gguf")

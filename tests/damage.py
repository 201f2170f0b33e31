"""Damaging the files of a checkpoint at random, and bounding what reading them may take."""

from __future__ import annotations

import json
import resource
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**6, 10**9, 2**31, 2**63, 2**64, 10**30, -(2**63),
    0.0, -0.5, 1e-300, 1e300, 1.5, "", "x", "\0", "é\u2028\U0001f600", "float32", "../..", "/dev/zero", "x" * 10_000,
    "(a+)+$", "(?P<name>a)\\1", "{message", "{0}", [], [[]], [1, "a", None], {}, {"a": {}}, [0] * 1000,
)  # fmt: skip
"""Values that some key of some file does not expect."""


def damaged_bytes(content: bytes, random: Random) -> bytes:
    """The content with one thing changed that a disk, a transfer or an editor may change."""
    begin = random.randrange(len(content) + 1)
    end = min(len(content), begin + random.choice((1, 2, 8, 100, 10_000)))
    middle = random.choice(
        (
            b"",  # cut out
            content[begin:end] * 2,
            bytes(end - begin),
            random.randbytes(end - begin),
            bytes(byte ^ (1 << random.randrange(8)) for byte in content[begin:end]),
            b"[" * 100_000,
            b"\xff\xfe",
        )
    )
    return content[:begin] if random.random() < 0.2 else content[:begin] + middle + content[end:]


def damaged_value(value: Any, random: Random) -> Any:
    """The JSON value with one value inside it replaced, taken out, or given another name."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(HOSTILE)
    if isinstance(value, list):
        at = random.randrange(len(value))
        kept = [] if random.random() < 0.2 else [damaged_value(value[at], random)]
        return [*value[:at], *kept, *value[at + 1 :]]
    key = random.choice(list(value))
    rest = {other: item for other, item in value.items() if other != key}
    match random.randrange(6):
        case 0:
            return rest
        case 1:
            return {**rest, random.choice(("", "x", "rope_type", "dtype")): value[key]}
    return {**value, key: damaged_value(value[key], random)}


def damaged_json(content: bytes, random: Random) -> bytes:
    """A JSON file, as a text or as a value damaged."""
    if random.random() < 0.3:
        return damaged_bytes(content, random)
    return json.dumps(damaged_value(json.loads(content), random)).encode()


def damaged_tensors(content: bytes, random: Random) -> bytes:
    """A safetensors file, as bytes damaged or with a header that says what is not so."""
    if random.random() < 0.3:
        return damaged_bytes(content, random)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    if random.random() < 0.2:
        size = random.choice((0, 1, size - 1, size + 1, len(content), 2**31, 2**63, 2**64 - 1))
    else:
        header = damaged_json(header, random)
        size = len(header)
    return struct.pack("<Q", size) + header + data


def damaged_gguf(content: bytes, random: Random) -> bytes:
    """A GGUF file, most often before its weights, to which nobody can see damage."""
    end = content.rindex(b".weight") if random.random() < 0.9 else len(content)
    return damaged_bytes(content[:end], random) + content[end:]


def damage(path: Path, random: Random) -> None:
    """Damages a file of a checkpoint in a way that fits its kind."""
    change = {".safetensors": damaged_tensors, ".gguf": damaged_gguf}.get(path.suffix, damaged_json)
    path.write_bytes(change(path.read_bytes(), random))


@contextmanager
def bounded(*, seconds: float, size: int) -> Iterator[None]:
    """For what runs inside, on the main thread: an error if it takes more than `seconds` of this process's computing
    time, or maps more than `size` bytes beyond what is mapped before."""

    def over(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {seconds} seconds of computing time")

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, over)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + size, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGPROF, handler)

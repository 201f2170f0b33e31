"""The machine that figures are of."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instructions that decide how fast products are, as Linux calls them."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures were measured on."""

    python: str
    torch: str
    processor: str
    cores: int
    """That this process may use."""
    torch_threads: int

    @classmethod
    def here(cls) -> Environment:
        return cls(
            python=platform.python_version(),
            torch=str(torch.__version__),
            processor=processor(),
            cores=cores(),
            torch_threads=torch.get_num_threads(),
        )

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, Python {self.python}, PyTorch {self.torch}, "
            f"{self.torch_threads} of its threads"
        )


def processor(information: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, and on Linux its family, model and the instructions that matter here."""
    described = dict(_fields(information))
    if "model name" not in described:
        return platform.processor() or platform.machine()
    flags = described.get("flags", "").split()
    details = [f"{name} {described[name]}" for name in ("cpu family", "model") if name in described]
    details += [feature for feature in _FEATURES if feature in flags]
    return f"{described['model name']} ({', '.join(details)})" if details else described["model name"]


def _fields(information: Path) -> Iterator[tuple[str, str]]:
    """Names and values of the first processor's lines; none where the system has no such file."""
    if not information.is_file():
        return
    for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
        name, found, value = line.partition(":")
        if not found:
            return
        yield name.strip(), value.strip()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

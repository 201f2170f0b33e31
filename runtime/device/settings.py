"""How an engine is set up: numbers that do not change while it is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import msgspec

from policies.conversion import Exact, convert_fields

DEEPEST = 2**16 - 1
"""Most iterations of a token: what a thread remembers of each of its tokens has 16 bits."""
MOST_CPU_THREADS = 1024


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and modes of an engine. Raises `ValueError` at construction for values of another type or out of
    range, and where they contradict each other."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    """A torch device; None is CUDA where there is one, else the CPU."""
    max_in_flight: Exact = 256
    """Most tokens in flight."""
    prefill_chunk: Exact = 128
    """Most received tokens that enter together; longer prompts enter chunk after chunk."""
    page_size: Exact = 16
    """Tokens a page of keys and values holds."""
    num_pages: Exact | None = None
    """Pages in the pool; None is as many as fit into `kv_cache_bytes`."""
    kv_cache_bytes: Exact = 512 * 2**20
    """Bytes for keys and values where `num_pages` is not given."""
    max_context: Exact | None = None
    """Most tokens of a thread's context; None, or more than that, is what the model was made for."""
    most_iterations: Exact | None = None
    """Upper bound on any token's iterations; None is the larger of the model's mean and the default policy's bound."""
    iteration_slots: Exact | None = None
    """Iteration slots each core layer keeps per token; None keeps every iteration, fewer are written over."""
    initial_state: Literal["model", "zero"] = "model"
    """Latent state that a token starts from: as the model's configuration says, or zero."""
    deterministic: bool = False
    """Whether results are bitwise independent of what else is in the batch. Slower in the PyTorch backend; in the
    native one they always are."""
    reuse_prefixes: bool = True
    """Whether threads share the pages of equal leading tokens."""
    backend: Literal["auto", "torch", "native"] = "auto"
    """What computes ticks: plain PyTorch, or native code for whole ticks, on CPUs. "auto" is native where it runs."""
    cpu_threads: Exact | None = None
    """Threads that share a tick on a CPU; None is as many as there are cores, but not more than the model is worth."""
    attention: Literal["auto", "torch"] = "auto"
    """What attends in the PyTorch backend: "auto" is the Triton kernel on CUDA where Triton is installed."""
    cuda_graphs: bool = False
    """Whether ticks are captured in CUDA graphs, for some batch sizes, when the engine opens; needs Triton and a CUDA
    device."""
    queue_size: Exact = 4096
    """Most generates accepted at a time; further callers wait."""

    def context_of(self, model: int) -> int:
        """Most tokens of a context on a model that was made for `model` of them."""
        return model if self.max_context is None else min(self.max_context, model)

    def __post_init__(self) -> None:
        convert_fields(self, "EngineSettings.")
        for name in ("max_in_flight", "prefill_chunk", "page_size", "kv_cache_bytes", "queue_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"EngineSettings.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("num_pages", "max_context", "most_iterations", "iteration_slots", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"EngineSettings.{name} is {value}; it must be at least 1, or None.")
        for name, most in (("most_iterations", DEEPEST), ("cpu_threads", MOST_CPU_THREADS)):
            if (getattr(self, name) or 1) > most:
                raise ValueError(f"EngineSettings.{name} is {getattr(self, name)}; it must be at most {most}.")
        if self.prefill_chunk > self.max_in_flight:
            raise ValueError(
                f"EngineSettings.prefill_chunk ({self.prefill_chunk}) must not exceed max_in_flight "
                f"({self.max_in_flight})."
            )
        if self.cuda_graphs and self.deterministic:
            raise ValueError(
                "EngineSettings.cuda_graphs and deterministic exclude each other: graphs are of several batch sizes, "
                "and results depend on which. Set one of them to False."
            )
        if self.cuda_graphs and self.attention != "auto":
            raise ValueError(
                f"EngineSettings.cuda_graphs needs attention 'auto'; it is {self.attention!r}, which plans every call "
                "on the host and so cannot be captured."
            )


class SettingsOptions(TypedDict, total=False):
    """The fields of `EngineSettings` as keywords of a call, so that editors and type checkers know them."""

    dtype: Literal["float32", "bfloat16"]
    device: str | None
    max_in_flight: int
    prefill_chunk: int
    page_size: int
    num_pages: int | None
    kv_cache_bytes: int
    max_context: int | None
    most_iterations: int | None
    iteration_slots: int | None
    initial_state: Literal["model", "zero"]
    deterministic: bool
    reuse_prefixes: bool
    backend: Literal["auto", "torch", "native"]
    cpu_threads: int | None
    attention: Literal["auto", "torch"]
    cuda_graphs: bool
    queue_size: int


def read_settings(given: Mapping[str, Any]) -> EngineSettings:
    """Settings from keywords. Raises `ValueError` for those that do not exist or fit."""
    unknown = given.keys() - set(EngineSettings.__struct_fields__)
    if unknown:
        raise ValueError(
            f"Engine.open knows no setting {', '.join(sorted(unknown))}; there are "
            f"{', '.join(EngineSettings.__struct_fields__)}."
        )
    return EngineSettings(**given)

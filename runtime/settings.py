"""How an engine is set up: numbers that do not change while it is open."""

from __future__ import annotations

from typing import Literal

import msgspec


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and modes of an engine. Raises `ValueError` at construction where they contradict each other."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    """A torch device; None is CUDA where there is one, else the CPU."""
    lanes: int = 256
    """Most tokens in flight."""
    chunk: int = 128
    """Most received tokens that enter together; longer prompts enter chunk after chunk."""
    page_size: int = 16
    """Tokens a page of keys and values holds."""
    pages: int | None = None
    """Pages in the pool; None is as many as fit into `memory`."""
    memory: int = 512 * 2**20
    """Bytes for keys and values where `pages` is not given."""
    context: int | None = None
    """Most tokens of a thread's context; None, or more than that, is what the model was made for."""
    most_iterations: int | None = None
    """Upper bound on any token's iterations; None is the larger of the model's mean and the default policy's bound."""
    slots: int | None = None
    """Iteration slots each core layer keeps per token; None keeps every iteration, fewer share memory among them."""
    initial_state: Literal["model", "zero"] = "model"
    """Latent state that a token starts from: as the model's configuration says, or zero."""
    lockstep: bool = False
    """Whether tokens enter only when none is in flight, so that all wait for the deepest (for comparison)."""
    deterministic: bool = False
    """Whether results are bitwise independent of what else is in the batch. Slower in the PyTorch backend; in the fused
    one they always are."""
    reuse_prefixes: bool = True
    """Whether threads share the pages of equal leading tokens."""
    backend: Literal["auto", "torch", "fused"] = "auto"
    """What computes ticks: plain PyTorch, or native code for whole ticks, on CPUs. "auto" is native where it runs."""
    threads: int | None = None
    """Threads that share a tick on a CPU; None is as many as there are cores, but not more than the model is worth."""
    attention: Literal["auto", "torch"] = "auto"
    """What attends in the PyTorch backend: "auto" is the Triton kernel on CUDA where Triton is installed."""
    cuda_graphs: bool = False
    """Whether ticks are captured in CUDA graphs, for some batch sizes, when the engine opens; needs Triton and a CUDA
    device."""
    queue_size: int = 4096
    """Most generates accepted at a time; further callers wait."""

    def context_size(self, model: int) -> int:
        """Most tokens of a context on a model that was made for `model` of them."""
        return model if self.context is None else min(self.context, model)

    def __post_init__(self) -> None:
        for name in ("lanes", "chunk", "page_size", "memory", "queue_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"EngineSettings.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("pages", "context", "most_iterations", "slots", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"EngineSettings.{name} is {value}; it must be at least 1, or None.")
        if self.chunk > self.lanes:
            raise ValueError(f"EngineSettings.chunk ({self.chunk}) must not exceed lanes ({self.lanes}).")
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

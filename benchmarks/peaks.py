"""What this processor can do: the bounds that other figures are to be held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import torch

from benchmarks.result import Cell, Result, Spread
from benchmarks.timing import in_turn
from policies import Fixed
from runtime import EngineSettings
from runtime.backend.native.backend import NativeBackend
from runtime.backend.native.compiled import HEAD
from runtime.device.build import build_loop
from runtime.model import Transformer, initialise, parse_config


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 2)
    rows: int = 256
    width: int = 1024
    columns: int = 16_384
    read: int = 2**28
    """Numbers of float32 that are summed."""


def measure(size: Size, rounds: int) -> Result:
    before = torch.get_num_threads()
    try:
        rows = tuple(_peaks(size, threads, rounds) for threads in size.threads)
    finally:
        torch.set_num_threads(before)
    return Result(
        name="peaks",
        title="what the processor can do",
        columns=(
            "threads",
            "engine's product, float32, GFLOP/s",
            "PyTorch's, float32",
            "engine's, bfloat16",
            "PyTorch's, bfloat16",
            "memory read, GB/s",
        ),
        rows=rows,
        notes=(f"Products of {size.rows} x {size.width} with {size.width} x {size.columns}.",),
    )


def _peaks(size: Size, threads: int, rounds: int) -> tuple[Cell, ...]:
    torch.set_num_threads(threads)
    numbers = torch.ones(size.read)
    sides: dict[str, Callable[[], float]] = {"memory": partial(_timed, numbers.sum)}
    backends = []
    for dtype in (torch.float32, torch.bfloat16):
        backend = _backend(size, threads, dtype)
        backends.append(backend)
        acts = torch.randn(size.rows, size.width, dtype=dtype)
        weights = torch.randn(size.columns, size.width, dtype=dtype)
        sides[f"engine {dtype}"] = partial(_timed, partial(backend.repeat, HEAD, size.rows))
        sides[f"torch {dtype}"] = partial(_timed, partial(torch.nn.functional.linear, acts, weights))
    seconds = in_turn(sides, rounds)
    for backend in backends:
        backend.close()
    work = 2 * size.rows * size.width * size.columns
    rates = {name: Spread.of(work / taken / 1e9 for taken in found) for name, found in seconds.items()}
    return (
        threads,
        rates[f"engine {torch.float32}"],
        rates[f"torch {torch.float32}"],
        rates[f"engine {torch.bfloat16}"],
        rates[f"torch {torch.bfloat16}"],
        Spread.of(4 * size.read / taken / 1e9 for taken in seconds["memory"]),
    )


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _backend(size: Size, threads: int, dtype: torch.dtype) -> NativeBackend:
    """A backend of a model of one layer whose head is the product."""
    config = parse_config(
        Path("config.json"),
        {
            "model_type": "llama",
            "hidden_size": size.width,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": size.width // 16,
            "intermediate_size": 64,
            "vocab_size": size.columns,
            "max_position_embeddings": 64,
            "num_hidden_layers": 1,
            "tie_word_embeddings": False,
        },
    )
    model = Transformer(config).eval()
    initialise(model, torch.Generator().manual_seed(0))
    settings = EngineSettings(
        device="cpu", backend="native", cpu_threads=threads, max_in_flight=max(size.rows, 128), num_pages=64
    )
    backend = build_loop(model.to(dtype), settings, Fixed(max_iterations=1)).backend
    assert isinstance(backend, NativeBackend)
    return backend

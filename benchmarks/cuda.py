"""Ticks on a CUDA device: captured in graphs, launched one by one, and with attention that plans on the host."""

from __future__ import annotations

from functools import partial
from typing import Literal

import msgspec
import torch

from benchmarks import driving, models
from benchmarks.result import Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from policies import Fixed
from runtime import EngineSettings, Sampling
from runtime.device.build import build_loop
from runtime.model import Transformer


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 8, 32, 128)
    width: int = 2048
    """Of a model in the layout of the published Huginn."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    prompt: int = 32
    tokens: int = 16
    """Sampled by each thread."""
    depth: int = 8


def measure(size: Size, rounds: int) -> Result:
    model = models.published_layout(size.width).to("cuda", getattr(torch, size.dtype))
    parameters = sum(weight.numel() for weight in model.parameters()) / 1e6
    return Result(
        name=f"cuda, {parameters:.0f}M",
        title=(
            f"ticks on {torch.cuda.get_device_name()}: {parameters:.0f}M parameters in {size.dtype}, "
            f"{size.depth} iterations a token"
        ),
        columns=(
            "threads",
            "graphs / eager, tokens/s",
            "eager / planned on the host, tokens/s",
            "graphs, tokens/s",
            "eager, tokens/s",
            "planned on the host, tokens/s",
        ),
        rows=tuple(_compare(model, size, threads, rounds) for threads in size.threads),
    )


def _compare(model: Transformer, size: Size, threads: int, rounds: int) -> tuple[Cell, ...]:
    depth, given = Fixed(size.depth), driving.prompts(model.specification.vocab_size, threads, size.prompt)
    common = EngineSettings(
        dtype=size.dtype,
        max_in_flight=max(threads, 128),
        num_pages=threads * -(-(size.prompt + size.tokens) // 16),
        max_context=size.prompt + size.tokens,
        reuse_prefixes=False,
    )
    cores = {
        "graphs": build_loop(model, msgspec.structs.replace(common, cuda_graphs=True), depth),
        "eager": build_loop(model, common, depth),
        "planned": build_loop(model, msgspec.structs.replace(common, attention="torch"), depth),
    }
    sides = {
        name: partial(lambda core: driving.answer_all(core, given, depth, size.tokens, Sampling())[0], core)
        for name, core in cores.items()
    }
    seconds = in_turn(sides, rounds)
    for core in cores.values():
        core.close()
    count = threads * size.tokens
    return (
        threads,
        Spread.of(ratios(seconds["eager"], seconds["graphs"])),
        Spread.of(ratios(seconds["planned"], seconds["eager"])),
        *(Spread.of(count / taken for taken in seconds[name]) for name in cores),
    )

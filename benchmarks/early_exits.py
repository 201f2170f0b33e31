"""What stopping early by a model's own exit gate brings, against what the saved arithmetic allows: a looped model of
Ouro's shape, on the native backend."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np

from benchmarks import driving, models
from benchmarks.result import Aim, Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from policies import DepthPolicy, Fixed, GateExit
from runtime import EngineSettings, Sampling
from runtime.device.build import build_loop
from runtime.link import Finished, ThreadPath
from runtime.model import Specification, Transformer

SAMPLING = Sampling(temperature=1.0)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (32, 64)
    """Threads at a time, one token of each in flight."""
    waves: int = 2
    """Times as many threads are answered in all, so that others follow those that end."""
    width: int = 256
    layers: int = 3
    loops: int = 4
    tokens: int = 32
    """Sampled by each thread, after a prompt of one."""


def measure(size: Size, rounds: int) -> Result:
    model = models.looped(size.width, size.layers, size.loops)
    rows, aims, notes = [], [], []
    for threads in size.threads:
        row, share, depths = _compare(model, size, threads, rounds)
        rows.append(row)
        figure = f"adaptive / full depth, tokens/s, of the bound, {threads} threads at a time"
        aims.append(Aim(figure=figure, measured=share.median, bound=0.9))
        counts = np.bincount(depths, minlength=size.loops + 1)[1:]
        notes.append(
            f"Tokens of depth 1, 2, ... {size.loops}, {threads} threads: {' '.join(map(str, counts.tolist()))}."
        )
    return Result(
        name="depthwise",
        title="a looped model that stops by its exit gate against one that does all its loops",
        columns=(
            "threads at a time",
            "mean depth",
            "bound: multiplications at full depth / adaptive",
            "adaptive / full depth, tokens/s",
            "of the bound",
            "adaptive, tokens/s",
            "full depth, tokens/s",
        ),
        rows=tuple(rows),
        aims=tuple(aims),
        notes=tuple(notes),
    )


def _compare(model: Transformer, size: Size, threads: int, rounds: int) -> tuple[tuple[Cell, ...], Spread, list[int]]:
    """The row of a number of threads; the share of the bound; depths of all tokens."""
    sides: dict[str, DepthPolicy] = {"adaptive": GateExit(0.5), "full": Fixed(size.loops)}
    given = driving.prompts(model.specification.vocab_size, size.waves * threads, 1)
    pages = threads * -(-(1 + size.tokens) // 16)
    settings = EngineSettings(
        max_in_flight=threads,
        prefill_chunk=1,
        num_pages=pages,
        reuse_prefixes=False,
        device="cpu",
        backend="native",
        most_iterations=size.loops,
    )
    core = build_loop(model, settings, sides["full"])
    said: dict[str, dict[ThreadPath, Finished]] = {}

    def side(name: str) -> float:
        seconds, said[name] = driving.answer_all(core, given, sides[name], size.tokens, SAMPLING)
        return seconds

    seconds = in_turn({name: partial(side, name) for name in sides}, rounds)
    core.close()
    depths = [depth for answer in said["adaptive"].values() for depth in answer.depths]
    mean = float(np.mean(depths))
    own, context = model.specification, 1 + size.tokens // 2
    bound = multiplications(own, size.loops, context) / multiplications(own, mean, context)
    gains = ratios(seconds["full"], seconds["adaptive"])
    share = Spread.of(gain / bound for gain in gains)
    row: tuple[Cell, ...] = (
        threads,
        mean,
        bound,
        Spread.of(gains),
        share,
        *(Spread.of(len(depths) / taken for taken in seconds[name]) for name in sides),
    )
    return row, share, depths


def multiplications(own: Specification, depth: float, context: int) -> float:
    """Of one token that gets so many iterations, sees `context` positions, and is sampled from."""
    heads = own.heads * own.head_dim
    attention = own.width * own.projection_rows + 2 * heads * context + heads * own.width
    layer = attention + 3 * own.width * own.mlp_width
    adapter = 2 * own.width**2 if own.injection == "adapter" else 0
    once = (own.prelude_layers + own.coda_layers) * layer + own.width * own.vocab_size
    return once + depth * (own.core_layers * layer + adapter)

"""Depth-wise batching against lockstep batching, on a policy whose exit depths spread.

Three sides do the same threads: depth-wise; lockstep, where an exited token waits without being computed; and whole
batches, as the reference generates, where every token is computed until the last of its batch has exited.
"""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import driving, models
from benchmarks.lockstep import LockstepScheduler
from benchmarks.result import Aim, Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from policies import DepthPolicy, DepthView, LatentDiff
from runtime import EngineSettings, Sampling
from runtime.backend.interface import TickResult
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.device.scheduler import Scheduler
from runtime.link import Finished, ThreadPath
from runtime.model import Transformer

SAMPLING = Sampling(temperature=1.0)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (32, 64)
    """Threads at a time, one token of each in flight."""
    waves: int = 4
    """Times as many threads are answered in all, so that others follow those that end."""
    width: int = 128
    most: int = 16
    """Bound on iterations."""
    tokens: int = 32
    """Sampled by each thread, after a prompt of one."""


class WholeBatch(LatentDiff, frozen=True):
    """As `LatentDiff`, but nobody exits before everybody tested with it has fallen below the threshold once."""

    def previous_width(self, width: int, vocab: int) -> int:
        return width + 1

    def begin(self, latent: Tensor, vocab: int) -> Tensor:
        return torch.nn.functional.pad(latent.float(), (0, 1))

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        values, latent = LatentDiff.measure(self, view._replace(previous=view.previous[:, :-1]))
        values = torch.where(view.previous[:, -1] > 0, 0.0, values)
        return values, torch.cat([latent, (values < self.threshold).float()[:, None]], dim=-1)

    def is_done(self, values: Tensor) -> Tensor:
        return (values < self.threshold).all().expand_as(values)


def measure(size: Size, rounds: int) -> Result:
    model = models.uneven(size.width, size.most)
    threshold = choose_threshold(model, size)
    rows: list[tuple[Cell, ...]] = []
    aims, notes = [], [f"Threshold: {threshold:.3g}, which a tenth of the tokens never fall below."]
    for threads in size.threads:
        row, gain, depths = _compare(model, size, threads, threshold, rounds)
        rows.append(row)
        figure = f"lockstep / depth-wise, seconds, {threads} threads at a time"
        aims.append(Aim(figure=figure, measured=gain.median, bound=1.5))
        counts = np.bincount(depths.ravel(), minlength=size.most + 1)[1:]
        notes.append(
            f"Tokens of depth 1, 2, ... {size.most}, {threads} threads: {' '.join(map(str, counts.tolist()))}."
        )
    return Result(
        name="depthwise",
        title="depth-wise against lockstep batching on an adaptive policy",
        columns=(
            "threads at a time",
            "mean depth",
            "bound: mean of batch maximum / mean depth",
            "lockstep / depth-wise, ticks",
            "lockstep / depth-wise, seconds",
            "whole batches / depth-wise, token-iterations",
            "whole batches / depth-wise, seconds",
            "depth-wise, tokens/s",
            "threads with equal tokens",
        ),
        rows=tuple(rows),
        aims=tuple(aims),
        notes=tuple(notes),
    )


def choose_threshold(model: Transformer, size: Size) -> float:
    """The threshold that a tenth of the tokens never fall below, from exit values of tokens that never exit."""
    threads, never = max(size.threads), LatentDiff(0.0, max_iterations=size.most)
    values_in: dict[int, list[float]] = {}
    complete: list[list[float]] = []

    def observe(scheduler: Scheduler, result: TickResult) -> None:
        for lane, value in zip(result.tested.tolist(), result.exit_value.tolist(), strict=True):
            values_in.setdefault(lane, []).append(value)
        complete.extend(values_in.pop(lane) for lane in result.lane.tolist())

    core = build_loop(model, _settings(size, threads), never, observe=observe)
    driving.answer_all(core, driving.prompts(model.specification.vocab_size, threads, 1), never, size.tokens, SAMPLING)
    return float(np.quantile(np.array(complete)[:, :-1].min(axis=1), 0.9))


def _compare(
    model: Transformer, size: Size, threads: int, threshold: float, rounds: int
) -> tuple[tuple[Cell, ...], Spread, NDArray[np.int64]]:
    """The row of a number of threads; lockstep over depth-wise seconds; exit depths [threads in all, tokens]."""
    adaptive = LatentDiff(threshold, max_iterations=size.most)
    whole = WholeBatch(threshold, max_iterations=size.most)
    given = driving.prompts(model.specification.vocab_size, size.waves * threads, 1)
    in_lockstep = partial(build_loop, model, _settings(size, threads), scheduler=LockstepScheduler)
    cores: dict[str, tuple[DeviceLoop, DepthPolicy]] = {
        "depth-wise": (build_loop(model, _settings(size, threads), adaptive), adaptive),
        "lockstep": (in_lockstep(adaptive), adaptive),
        "whole": (in_lockstep(whole), whole),
    }
    said: dict[str, dict[ThreadPath, Finished]] = {}
    ticks: dict[str, int] = {}
    iterations: dict[str, int] = {}

    def side(name: str) -> float:
        core, policy = cores[name]
        before = core.statistics()
        seconds, said[name] = driving.answer_all(core, given, policy, size.tokens, SAMPLING)
        ticks[name] = core.journal.ticks - before.ticks
        iterations[name] = core.journal.work.iterations - before.iterations
        return seconds

    seconds = in_turn({name: partial(side, name) for name in cores}, rounds)
    depths = np.array([said["lockstep"][(number,)].depths for number in range(len(given))])
    # In lockstep, the tokens of a batch are those at one position of the threads of one wave.
    deepest = depths.reshape(size.waves, threads, size.tokens).max(axis=1).mean()
    same = sum(said["lockstep"][path].tokens == answer.tokens for path, answer in said["depth-wise"].items())
    gain = Spread.of(ratios(seconds["lockstep"], seconds["depth-wise"]))
    row: tuple[Cell, ...] = (
        threads,
        float(depths.mean()),
        float(deepest / depths.mean()),
        ticks["lockstep"] / ticks["depth-wise"],
        gain,
        iterations["whole"] / iterations["depth-wise"],
        Spread.of(ratios(seconds["whole"], seconds["depth-wise"])),
        Spread.of(len(given) * size.tokens / taken for taken in seconds["depth-wise"]),
        f"{same} of {len(given)}",
    )
    return row, gain, depths


def _settings(size: Size, threads: int) -> EngineSettings:
    pages = threads * -(-(1 + size.tokens) // 16)
    return EngineSettings(max_in_flight=threads, prefill_chunk=1, num_pages=pages, reuse_prefixes=False, device="cpu")

"""Self-speculation against plain decoding at the same depth, on the embedded model, for which drafts are good."""

from __future__ import annotations

import random
import time
from functools import partial
from itertools import islice

import msgspec

from benchmarks import driving
from benchmarks.continuous import CHECKPOINT, STOPS, prompts_of
from benchmarks.result import Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from examples.countdown.problems import draw_problems
from policies import DepthPolicy, Fixed, Speculative
from runtime import EngineSettings, Sampling
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.link import Generate, ThreadPath
from runtime.model import load_checkpoint, resolve

FIGURES = (
    "drafts accepted, share",
    "tokens a full-depth pass",
    "iterations, of plain ones",
    "tokens/s",
    "tokens/s, of plain ones",
    "equal answers",
)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 8)
    drafts: tuple[int, ...] = (1, 2, 3)
    """Iterations of a draft."""
    look: int = 4
    depth: int = 6
    tokens: int = 128
    """Most that each thread samples."""


class Work(msgspec.Struct, frozen=True):
    """What one way of answering all prompts took and gave."""

    tokens: tuple[tuple[int, ...], ...]
    ticks: int
    iterations: int
    drafted: int
    accepted: int

    @property
    def sampled(self) -> int:
        return sum(map(len, self.tokens))


def measure(size: Size, rounds: int) -> Result:
    """The prompts are drawn like the model's training problems, from a seed of their own."""
    rows = [
        _compare(EngineSettings(device="cpu", backend=backend), size, threads, rounds)
        for backend in ("native", "torch")
        for threads in size.threads
    ]
    return Result(
        name="speculation",
        title=f"drafts of the {CHECKPOINT} checkpoint at depth {size.depth}, {size.look} tokens ahead at most",
        columns=(
            "backend, threads",
            "plain, tokens/s",
            *(f"draft {draft}: {figure}" for draft in size.drafts for figure in FIGURES),
        ),
        rows=tuple(rows),
        notes=(
            "Tokens a full-depth pass: ticks of plain decoding, which gives each thread one, over those it took.",
            "In the native backend, only plain threads go on by themselves; those that draft go tick by tick.",
        ),
    )


def _compare(settings: EngineSettings, size: Size, threads: int, rounds: int) -> tuple[Cell, ...]:
    core = build_loop(load_checkpoint(resolve(CHECKPOINT)).model, settings, Fixed(size.depth))
    prompts = prompts_of(list(islice(draw_problems(random.Random("speculation")), threads)), threads)
    plain = "plain"
    policies: dict[str, DepthPolicy] = {plain: Fixed(size.depth)}
    policies |= {f"{draft}": Speculative(draft, size.look, max_iterations=size.depth) for draft in size.drafts}
    done: dict[str, Work] = {}

    def side(name: str) -> float:
        seconds, done[name] = _answer(core, prompts, policies[name], size.tokens)
        return seconds

    seconds = in_turn({name: partial(side, name) for name in policies}, rounds)
    core.close()
    row: list[Cell] = [
        f"{settings.backend}, {threads}",
        Spread.of(done[plain].sampled / taken for taken in seconds[plain]),
    ]
    for draft in size.drafts:
        name = str(draft)
        equal = sum(one == other for one, other in zip(done[name].tokens, done[plain].tokens, strict=True))
        row += [
            done[name].accepted / max(1, done[name].drafted),
            done[plain].ticks / done[name].ticks,
            done[name].iterations / done[plain].iterations,
            Spread.of(done[name].sampled / taken for taken in seconds[name]),
            Spread.of(ratios(seconds[plain], seconds[name])),
            f"{equal} of {threads}",
        ]
    return tuple(row)


def _answer(core: DeviceLoop, prompts: list[tuple[int, ...]], depth: DepthPolicy, tokens: int) -> tuple[float, Work]:
    """Seconds for all threads side by side, and what they did; they are closed again."""
    paths: list[ThreadPath] = [(number,) for number in range(len(prompts))]
    journal = core.journal
    before = journal.ticks, journal.work.iterations, journal.drafted, journal.accepted
    started = time.perf_counter()
    for path, prompt in zip(paths, prompts, strict=True):
        driving.begin(core, path, prompt, depth)
        core.handle(Generate(thread=path, max_tokens=tokens, sampling=Sampling(), stop_tokens=STOPS))
    finished = driving.step_to_end(core)
    seconds = time.perf_counter() - started
    after = journal.ticks, journal.work.iterations, journal.drafted, journal.accepted
    driving.close(core, paths)
    spent = [now - then for now, then in zip(after, before, strict=True)]
    return seconds, Work(tuple(finished[path].tokens for path in paths), *spent)

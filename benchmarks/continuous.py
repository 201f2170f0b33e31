"""Continuous thought on the embedded model: what starting from the last token's state does to depth and answers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from itertools import islice, takewhile

import anyio
import msgspec

from benchmarks import driving
from benchmarks.countdown.parallel import RootThread
from benchmarks.result import Cell, Result, Spread
from benchmarks.timing import in_turn
from examples.countdown.problems import Problem, draw_problems
from examples.countdown.solve import LIMITS, Evaluation, evaluate
from examples.countdown.vocabulary import END, ID_OF, JOIN
from policies import Carry, DepthPolicy, Fixed, LatentDiff, Policy
from runtime import Engine, EngineSettings, Sampling
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.link import Generate, ThreadPath
from runtime.model import load_checkpoint, resolve

CHECKPOINT = "countdown"
FULL = "full depth"
CARRIES: tuple[Carry, ...] = ("none", "raw", "normed")
FIGURES = (
    "mean depth of sampled tokens, single threads",
    "tokens as at full depth up to the first other one, share",
    "accuracy of trees",
    "iterations a problem, trees",
    "tokens/s, single threads",
)
STOPS = frozenset({ID_OF[END], ID_OF[JOIN]})


class Size(msgspec.Struct, frozen=True, kw_only=True):
    thresholds: tuple[float, ...] = (0.3, 0.1, 0.03)
    problems: int = 24
    """Solved by trees, for the accuracy."""
    threads: int = 48
    """Single threads, half of them at a root's prompt and half at a child's, that are compared with full depth."""
    tokens: int = 400
    """Most that each of these samples."""


class Said(msgspec.Struct, frozen=True):
    """What the single threads said under one policy."""

    tokens: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]
    """Of all sampled tokens."""


def measure(size: Size, rounds: int) -> Result:
    """The prompts are drawn like the model's training problems, from a seed of their own."""
    problems = list(islice(draw_problems(random.Random("continuous thought")), max(size.problems, size.threads)))
    core = build_loop(load_checkpoint(resolve(CHECKPOINT)).model, EngineSettings(device="cpu"), Fixed())
    cases = cases_of(size)
    said: dict[str, Said] = {}

    def side(name: str) -> float:
        seconds, said[name] = say(core, prompts_of(problems, size.threads), cases[name], size.tokens)
        return seconds

    sides: dict[str, Callable[[], float]] = {name: partial(side, name) for name in cases}
    seconds = in_turn(sides, rounds)
    core.close()
    solved = {name: anyio.run(solve_all, depth, problems[: size.problems]) for name, depth in cases.items()}
    full = said[FULL]
    columns = ["carry"]
    rows: list[list[Cell]] = [[name] for name in (FULL, *CARRIES)]
    for threshold in size.thresholds:
        columns += [f"threshold {threshold:g}: {figure}" for figure in FIGURES]
        for row, name in zip(rows, (FULL, *(case_name(threshold, carry) for carry in CARRIES)), strict=True):
            row += [
                sum(said[name].depths) / len(said[name].depths),
                equal_share(said[name], full),
                solved[name].accuracy,
                solved[name].iterations,
                Spread.of(len(said[name].depths) / taken for taken in seconds[name]),
            ]
    return Result(
        name="continuous",
        title=f"the {CHECKPOINT} checkpoint under LatentDiff; tokens start from zero or their predecessor's state",
        columns=tuple(columns),
        rows=tuple(map(tuple, rows)),
        notes=(
            f"{size.threads} single threads; {size.problems} problems solved by trees. The model was trained without "
            "carrying.",
        ),
    )


def case_name(threshold: float, carry: Carry) -> str:
    return f"{threshold:g}, {carry}"


def cases_of(size: Size) -> dict[str, DepthPolicy]:
    """The depth policies compared, by name, full depth first."""
    found: dict[str, DepthPolicy] = {FULL: Fixed()}
    for threshold in size.thresholds:
        found |= {case_name(threshold, carry): LatentDiff(threshold, carry=carry) for carry in CARRIES}
    return found


def prompts_of(problems: list[Problem], count: int) -> list[tuple[int, ...]]:
    """Prompts of roots and of their first children, in turn."""
    found: list[list[str]] = []
    for number in range(count):
        root = RootThread(problems[number])
        found.append(root.children()[0].prompt if number % 2 else root.prompt)
    return [tuple(ID_OF[word] for word in words) for words in found]


def say(core: DeviceLoop, prompts: list[tuple[int, ...]], depth: DepthPolicy, tokens: int) -> tuple[float, Said]:
    """Seconds for all threads side by side, and what they said; they are closed again."""
    paths: list[ThreadPath] = [(number,) for number in range(len(prompts))]
    started = time.perf_counter()
    for path, prompt in zip(paths, prompts, strict=True):
        driving.begin(core, path, prompt, depth)
        core.handle(Generate(thread=path, max_tokens=tokens, sampling=Sampling(), stop_tokens=STOPS))
    finished = driving.step_to_end(core)
    seconds = time.perf_counter() - started
    driving.close(core, paths)
    reports = [finished[path] for path in paths]
    return seconds, Said(
        tuple(report.tokens for report in reports), tuple(depth for report in reports for depth in report.depths)
    )


def equal_share(said: Said, full: Said) -> float:
    """How much of what threads say at full depth is said alike, each up to where they part."""
    alike = 0
    for ours, theirs in zip(said.tokens, full.tokens, strict=True):
        pairs = zip(ours, theirs, strict=False)
        alike += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return alike / sum(map(len, full.tokens))


async def solve_all(depth: DepthPolicy, problems: list[Problem]) -> Evaluation:
    async with Engine.open(CHECKPOINT, policy=Policy(depth=depth), device="cpu", limits=LIMITS[4]) as engine:
        evaluation, _ = await evaluate(engine, problems)
    return evaluation

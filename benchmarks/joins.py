"""A join of forked children: their texts read again, against their keys and values taken over as they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import msgspec

from benchmarks import driving, models
from benchmarks.result import Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from policies import Fixed
from runtime import EngineSettings, Sampling
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.link import Extend, Generate, Merge, OpenThread, ThreadPath
from runtime.model import Transformer

PARENT: ThreadPath = (0,)
CONCLUSION = (7, 8, 9)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    children: int = 8
    tokens: int = 256
    """Of each child."""
    context: int = 128
    """Tokens that all of them begin with."""
    depth: int = 4


class Joined(msgspec.Struct, frozen=True):
    """A join, until the parent has its next token."""

    seconds: float
    computed: int
    """Tokens that it took."""
    pages: int
    """In use then, the children's included."""


def measure(size: Size, rounds: int) -> Result:
    model = models.embedded_shape(size.context + size.children * size.tokens + 64)
    cases: dict[str, Callable[[], Joined]] = {
        "text": lambda: _join(_core(model, size), size, merges=False),
        "merged": lambda: _join(_core(model, size), size, merges=True),
        "merged, fragmented pool": lambda: _join(_core(model, size), size, merges=True, fragments=True),
    }
    joined: dict[str, Joined] = {}

    def side(name: str) -> float:
        joined[name] = cases[name]()
        return joined[name].seconds

    seconds = in_turn({name: partial(side, name) for name in cases}, rounds)
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            Spread.of(taken * 1e3 for taken in seconds[name]),
            Spread.of(ratios(seconds[name], seconds["merged"])),
            joined[name].computed,
            joined[name].pages,
        )
        for name in cases
    ]
    return Result(
        name="joins",
        title=f"A join of {size.children} forks of {size.tokens} tokens each, to the parent's next token",
        columns=("join", "ms", "time / merged", "tokens computed", "pages in use"),
        rows=tuple(rows),
        notes=(
            f"Forks of a context of {size.context} tokens. From the last child's last token until the parent has "
            f"sampled one token after {len(CONCLUSION)} that are appended behind the join.",
            "Fragmented: every other page of the pool is another thread's.",
        ),
    )


def _core(model: Transformer, size: Size) -> DeviceLoop:
    tokens = size.context + 2 * size.children * (size.tokens + 32) + 64
    settings = EngineSettings(num_pages=3 * tokens // 16, device="cpu", reuse_prefixes=False)
    return build_loop(model, settings, Fixed(size.depth))


def _join(core: DeviceLoop, size: Size, *, merges: bool, fragments: bool = False) -> Joined:
    if fragments:
        _fragment(core, size)
    context = driving.prompts(models.VOCABULARY, 1, size.context)[0]
    driving.begin(core, PARENT, context, Fixed(size.depth))
    driving.ask(core, PARENT, 1, Sampling())
    driving.step_to_end(core)
    paths = [(*PARENT, number) for number in range(size.children)]
    for number, path in enumerate(paths):
        core.handle(OpenThread(thread=path, seed=0, depth=Fixed(size.depth), inherits=PARENT))
        core.handle(Extend(path, (10 + number,)))
        driving.ask(core, path, size.tokens - 1, Sampling())
    said = driving.step_to_end(core)
    before, started = core.journal.work.computed, time.perf_counter()
    if merges:
        for path in paths:
            core.handle(Generate(thread=path, max_tokens=0, sampling=Sampling(), fills=True))
        driving.step_to_end(core)
        core.handle(Merge(PARENT, tuple(paths)))
    else:
        for number, path in enumerate(paths):
            core.handle(Extend(PARENT, (10 + number, *said[path].tokens)))
    core.handle(Extend(PARENT, CONCLUSION))
    driving.ask(core, PARENT, 1, Sampling())
    driving.step_to_end(core)
    seconds, pages = time.perf_counter() - started, core.statistics().pages_used
    computed = core.journal.work.computed - before
    core.close()
    return Joined(seconds=seconds, computed=computed, pages=pages)


def _fragment(core: DeviceLoop, size: Size) -> None:
    """Has another thread hold every other page that the join will find free."""
    holders = [(1, number) for number in range(2 * size.children * (size.tokens // 16 + 2))]
    for path in holders:
        driving.begin(core, path, driving.prompts(models.VOCABULARY, 1, 16)[0], Fixed(1))
        core.handle(Generate(thread=path, max_tokens=0, sampling=Sampling(), fills=True))
    driving.step_to_end(core)
    driving.close(core, holders[::2])

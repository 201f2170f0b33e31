"""Children that share their parent's context by reference, against threads given the same tokens as a prompt."""

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
from runtime.link import Interrupt, OpenThread, ThreadPath
from runtime.model import Transformer

PARENT: ThreadPath = (0,)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    children: int = 32
    context: int = 512
    """Tokens that all of them begin with."""
    depth: int = 4


class Asked(msgspec.Struct, frozen=True):
    """Children that have sampled their first token."""

    seconds: float
    """From opening the first to the first token of the last."""
    pages: int
    """In use by then, the parent's included where there is one."""
    computed: int
    first: tuple[int, ...]
    """What they sampled."""


def measure(size: Size, rounds: int) -> Result:
    model = models.embedded_shape(size.context + 16)
    cold, warm = _core(model, size, reuse=False), _core(model, size, reuse=True)
    cases: dict[str, Callable[[], Asked]] = {
        "forks": lambda: _forked(cold, size),
        "fresh prompts, no reuse": lambda: _fresh(cold, size),
        # A core of its own every time, because freed pages can still be found again.
        "fresh prompts, reuse": lambda: _fresh(_core(model, size, reuse=True), size),
        "fresh prompts, prefix known": lambda: _fresh_after_one(warm, size),
    }
    asked: dict[str, Asked] = {}

    def side(name: str) -> float:
        asked[name] = cases[name]()
        return asked[name].seconds

    seconds = in_turn({name: partial(side, name) for name in cases}, rounds)
    forks = asked["forks"]
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            Spread.of(ratios(seconds[name], seconds["forks"])),
            Spread.of(taken * 1e3 for taken in seconds[name]),
            asked[name].pages / forks.pages,
            asked[name].pages,
            asked[name].computed,
            f"{sum(map(int.__eq__, asked[name].first, forks.first))} of {size.children}",
        )
        for name in cases
    ]
    return Result(
        name="fork",
        title=f"{size.children} forks of a context of {size.context} tokens against as many fresh prompts of it",
        columns=(
            "children",
            "time to first token of all / forks'",
            "time to first token of all, ms",
            "pages in use / forks'",
            "pages in use",
            "tokens computed",
            "first tokens as the forks'",
        ),
        rows=tuple(rows),
        notes=("Forks: the parent's context is computed before the clock starts; its pages are counted.",),
    )


def _core(model: Transformer, size: Size, *, reuse: bool) -> DeviceLoop:
    pages = (size.children + 1) * -(-(size.context + 1) // 16)
    return build_loop(model, EngineSettings(num_pages=pages, reuse_prefixes=reuse, device="cpu"), Fixed(size.depth))


def _context(size: Size) -> tuple[int, ...]:
    return driving.prompts(models.VOCABULARY, 1, size.context)[0]


def _children(size: Size) -> list[ThreadPath]:
    return [(*PARENT, number) for number in range(size.children)]


def _forked(core: DeviceLoop, size: Size) -> Asked:
    _compute_parent(core, size)
    # What the parent sampled is no part of what its children inherit.
    core.handle(Interrupt(PARENT))

    def open_one(path: ThreadPath) -> None:
        core.handle(OpenThread(thread=path, seed=0, depth=Fixed(size.depth), inherits=PARENT))

    asked = _until_first_tokens(core, size, open_one)
    driving.close(core, [*_children(size), PARENT])
    return asked


def _fresh(core: DeviceLoop, size: Size) -> Asked:
    prompt, depth = _context(size), Fixed(size.depth)
    asked = _until_first_tokens(core, size, lambda path: driving.begin(core, path, prompt, depth))
    driving.close(core, _children(size))
    return asked


def _fresh_after_one(core: DeviceLoop, size: Size) -> Asked:
    _compute_parent(core, size)
    driving.close(core, [PARENT])
    return _fresh(core, size)


def _compute_parent(core: DeviceLoop, size: Size) -> None:
    driving.begin(core, PARENT, _context(size), Fixed(size.depth))
    driving.ask(core, PARENT, 1, Sampling())
    driving.step_to_end(core)


def _until_first_tokens(core: DeviceLoop, size: Size, open_one: Callable[[ThreadPath], None]) -> Asked:
    computed, started = core.journal.work.computed, time.perf_counter()
    for path in _children(size):
        open_one(path)
        driving.ask(core, path, 1, Sampling())
    finished = driving.step_to_end(core)
    return Asked(
        seconds=time.perf_counter() - started,
        pages=core.statistics().pages_used,
        computed=core.journal.work.computed - computed,
        first=tuple(finished[path].tokens[0] for path in _children(size)),
    )

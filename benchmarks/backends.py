"""The native CPU backend against the plain PyTorch one: the same threads on the same core, with as many threads."""

from __future__ import annotations

from functools import partial

import msgspec

from benchmarks import driving, models
from benchmarks.result import Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from policies import Fixed
from runtime import EngineSettings, Sampling
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.link import Finished, ThreadPath
from runtime.model import Transformer


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 8, 32, 128)
    prompt: int = 32
    tokens: int = 64
    """Sampled by each thread."""
    depth: int = 4
    wide: bool = True
    """Whether a wider model is measured too."""


def measure(size: Size, rounds: int) -> Result:
    shapes = {"countdown": models.embedded_shape(), **({"d 256, 1/2/1": models.wider()} if size.wide else {})}
    return Result(
        name="backends",
        title="native CPU backend against plain PyTorch",
        columns=(
            "model",
            "threads",
            "native / PyTorch, tokens/s",
            "native, tokens/s",
            "PyTorch, tokens/s",
            "equal answers",
        ),
        rows=tuple(
            _compare(name, model, size, threads, rounds) for name, model in shapes.items() for threads in size.threads
        ),
    )


def _compare(name: str, model: Transformer, size: Size, threads: int, rounds: int) -> tuple[Cell, ...]:
    depth, given = (
        Fixed(max_iterations=size.depth),
        driving.prompts(model.specification.vocab_size, threads, size.prompt),
    )
    settings = EngineSettings(device="cpu", backend="native", kv_cache_bytes=2**28)
    cores = {
        "native": build_loop(model, settings, depth),
        "torch": build_loop(model, msgspec.structs.replace(settings, backend="torch"), depth),
    }
    answers: dict[str, dict[ThreadPath, Finished]] = {}

    def side(which: str, core: DeviceLoop) -> float:
        seconds, answers[which] = driving.answer_all(core, given, depth, size.tokens, Sampling())
        return seconds

    seconds = in_turn({which: partial(side, which, core) for which, core in cores.items()}, rounds)
    for core in cores.values():
        core.close()
    equal = sum(answers["native"][path].tokens == answers["torch"][path].tokens for path in answers["torch"])
    count = threads * size.tokens
    return (
        name,
        threads,
        Spread.of(ratios(seconds["torch"], seconds["native"])),
        Spread.of(count / taken for taken in seconds["native"]),
        Spread.of(count / taken for taken in seconds["torch"]),
        f"{equal} of {threads}",
    )

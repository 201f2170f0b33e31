"""What the engine says it is doing, when it does nothing any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from policies import ByLoad, Fixed, Policy
from runtime import Engine, EngineFailed
from runtime.device.scheduler import Scheduler
from runtime.link.commands import Statistics
from traces import read

pytestmark = pytest.mark.anyio

SIZES: dict[str, Any] = {
    "backend": "torch",
    "max_in_flight": 8,
    "prefill_chunk": 8,
    "page_size": 4,
    "num_pages": 64,
    "reuse_prefixes": False,
}
PROMPT = [5, 6, 7, 5, 6, 7, 5, 6]


def doing(load: Statistics) -> tuple[int, int, int]:
    return load.in_flight, load.open_threads, load.waiting


@pytest.mark.parametrize("tokens", [1, 3])
async def test_who_is_alone_is_alone_every_time(tiny_checkpoint: Path, tokens: int) -> None:
    policy = Policy(depth=ByLoad(Fixed(6), calm=0.5, busy=1.0))
    async with Engine.open(tiny_checkpoint, policy=policy, **SIZES) as engine:
        said = []
        for _ in range(2):
            async with engine.thread(PROMPT) as thread:
                said.append((await thread.generate(tokens)).tokens)
                assert thread.usage.iterations == 6 * thread.usage.computed
                assert doing(engine.statistics) == (0, 1, 0)
        assert said[0] == said[1]


async def test_what_was_cancelled_is_no_longer_counted(tiny_checkpoint: Path) -> None:
    async with Engine.open(tiny_checkpoint, **SIZES) as engine:
        async with engine.thread(PROMPT) as root:
            with anyio.CancelScope() as scope:
                async for _ in root.stream():
                    scope.cancel()
            await root._running.context.account.settled()
            assert doing(engine.statistics) == (0, 1, 0)
            child = root.spawn(PROMPT)
            child.cancel()
            await root.join([child])
        await engine.run(PROMPT, max_tokens=2)
        assert engine.statistics.in_flight == 0
    assert doing(engine.statistics) == (0, 0, 0)
    assert engine.statistics.generated == engine.usage.generated


async def test_a_failed_engine_does_nothing(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(scheduler: Scheduler, result: object) -> None:
        raise RuntimeError("broken")

    async with Engine.open(tiny_checkpoint, **SIZES) as engine, engine.thread(PROMPT) as root:
        await root.generate(2)
        before = engine.statistics
        monkeypatch.setattr(Scheduler, "commit", break_down)
        with pytest.raises(EngineFailed):
            await root.generate(2)
        assert (*doing(engine.statistics), engine.statistics.pages_used) == (0, 0, 0, 0)
        assert (engine.statistics.ticks, engine.statistics.generated) == (before.ticks, before.generated)


async def test_what_was_played_back_is_over(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    async with Engine.open(tiny_checkpoint, trace=path, **SIZES) as engine:
        await engine.run(PROMPT, max_tokens=3)
    async with Engine.playback(read(path)) as engine:
        await engine.run(PROMPT, max_tokens=3)
        assert engine.statistics.in_flight == 0

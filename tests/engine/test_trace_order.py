"""What a program has seen is in the trace already, whenever its process may be killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies import Fixed, Policy
from runtime import Engine, PromptError, ReasoningThread
from runtime.link.events import AnyEvent, Joined, RunStarted, Spawned, ThreadEnded, ThreadOpened
from tests.engine.recorded_trees import FEW, POLICY, SIZES, WARM, prompt, work
from traces import read

OPTIONS: dict[str, Any] = {"sampling": WARM, "limits": FEW, "seed": 7, **SIZES}


def paths(events: list[AnyEvent], kind: type[RunStarted | Joined | ThreadEnded]) -> list[tuple[int, ...]]:
    return [event.thread for event in events if isinstance(event, kind)]


async def say(thread: ReasoningThread) -> tuple[int, ...]:
    return (await thread.generate(max_tokens=2)).tokens


@pytest.mark.anyio
async def test_joins_and_ends_are_written_when_they_return(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    async with Engine.open(tiny_checkpoint, trace=path, policy=Policy(depth=Fixed(2)), **OPTIONS) as engine:
        async with engine.thread(prompt(0)) as root:
            await root.join([root.spawn(prompt(1), program=say), root.spawn(prompt(2), program=say)])
            events = read(path).events
            assert paths(events, Joined) == [(0,)]
            assert sorted(paths(events, ThreadEnded)) == [(0, 0), (0, 1)]
            await root.first([root.spawn(prompt(1), program=say)])
            assert paths(read(path).events, Joined) == [(0,)] * 2
            children = [root.spawn(prompt(number), program=say) for number in (1, 2)]
            async for _ in root.as_completed(children):
                pass
            assert paths(read(path).events, Joined) == [(0,)] * 4
        assert paths(read(path).events, ThreadEnded)[-1] == (0,)
        answer = await engine.run(prompt(3), max_tokens=3)
        assert paths(read(path).events, ThreadEnded)[-1] == answer.path


@pytest.mark.anyio
async def test_who_is_asked_for_has_been_opened(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    async with Engine.open(tiny_checkpoint, trace=path, policy=POLICY, **OPTIONS) as engine:
        await work(engine, 0, 1)
        async with engine.thread(prompt(2)) as root:
            with pytest.raises(PromptError):
                root.spawn([1] * 1000)
            await root.join([root.fork(program=say), root.spawn(prompt(1), program=say)])
    opened: set[tuple[int, ...]] = set()
    asked = []
    for event in read(path).events:
        if isinstance(event, ThreadOpened):
            opened.add(event.thread)
        elif isinstance(event, RunStarted):
            asked.append(event.thread)
        elif isinstance(event, Spawned) and event.child is not None:
            asked.append(event.child)
        else:
            continue
        assert set(asked) <= opened
    assert sorted(asked) == sorted(opened)
    assert len(asked) >= 6

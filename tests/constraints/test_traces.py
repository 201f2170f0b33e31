"""Constraints in traces: recorded, played back, executed again, and asked again under other choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import pytest

from policies import Fixed, Policy
from policies.training.thread_tokens import check_replayable, threads_in
from runtime import Engine, EngineSettings, Sampling, TraceError, open_device
from runtime.link import GenerateStarted
from traces import Verification, read, verify, what_if
from traces.__main__ import main as traces_command

pytestmark = pytest.mark.anyio

SIZES: dict[str, Any] = {"page_size": 8, "num_pages": 128, "max_in_flight": 32, "prefill_chunk": 16}
POLICY = Policy(depth=Fixed(3))
HOT = Sampling(temperature=1.5)
REGEX = "[0-9]{3}|the cat"


async def program(engine: Engine, *, regex: str = REGEX) -> list[str]:
    async with engine, engine.thread("the cat: ", sampling=HOT) as root:
        first = await root.generate(1, regex=regex)
        rest = await root.generate(regex=regex, resume=True)
        choice = await root.generate(choices=["a", "b"])
    return [first.text + rest.text, choice.text]


async def verified(trace: Path, checkpoint: Path) -> Verification:
    def run() -> Verification:
        settings = EngineSettings(**SIZES)
        return verify(read(trace), open_device(checkpoint, settings, policy=POLICY, trace=None, seed=0).device)

    return await anyio.to_thread.run_sync(run)


async def test_a_trace_has_constraints_plays_back_and_verifies(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    texts = await program(Engine.open(checkpoint, policy=POLICY, trace=path, **SIZES))
    asked = [event.constraint for event in read(path).events if isinstance(event, GenerateStarted)]
    assert [(each.kind, each.begun) for each in asked if each] == [("regex", 0), ("regex", 1), ("choices", 0)]
    assert asked[0] is not None
    assert asked[0].form == REGEX
    assert await program(Engine.playback(read(path))) == texts
    with pytest.raises(TraceError, match="what the tokens are constrained to"):
        await program(Engine.playback(read(path)), regex="[0-9]{2}")
    found = await verified(path, checkpoint)
    assert found.equal, found
    assert found.calls == 3
    assert traces_command(["export", str(path), "--jsonl", "-o", str(tmp_path / "lines")]) == 0
    line = json.loads((tmp_path / "lines").read_bytes())
    assert line["generates"][2]["constraint"] == {"kind": "choices", "form": '["a","b"]'}


async def test_a_trace_whose_constraint_was_changed_goes_another_way(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    await program(Engine.open(checkpoint, policy=POLICY, trace=path, **SIZES))
    trace = read(path)
    for index, event in enumerate(trace.events):
        if isinstance(event, GenerateStarted) and event.constraint is not None and event.constraint.kind == "choices":
            other = msgspec.structs.replace(event.constraint, form='["d"]')
            trace.events[index] = msgspec.structs.replace(event, constraint=other)

    def run() -> Verification:
        return verify(trace, open_device(checkpoint, EngineSettings(**SIZES), policy=POLICY, trace=None, seed=0).device)

    found = await anyio.to_thread.run_sync(run)
    assert found.divergence is not None
    assert found.divergence.kind == "token"


async def test_constrained_questions_are_asked_again(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    async with Engine.open(checkpoint, policy=POLICY, trace=path, **SIZES) as engine:
        async with engine.thread("the cat: ", sampling=HOT) as root:
            await root.generate(json_schema={"enum": ["a", "b", 12]})
        async with engine.thread("the cat: ", sampling=HOT) as root:
            await root.generate(1, regex="[a-z]")
            await root.generate(1, regex="[a-z]")
    again = await what_if(read(path), checkpoint=checkpoint)
    assert [comparison.partings for comparison in again.comparisons] == [()]
    assert again.refused == ("A program constrained some of the texts of tree 1.",)
    trace = read(path)
    with pytest.raises(ValueError, match="Thread 0 has constrained tokens"):
        check_replayable(trace, threads_in(trace))
    deeper = await what_if(read(path), checkpoint=checkpoint, policy=Policy(depth=Fixed(1)))
    assert deeper.comparisons[0].now.iterations < deeper.comparisons[0].recorded.iterations

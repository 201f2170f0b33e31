"""Recorded questions asked again: the same where nothing is changed, compared where something is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from examples.countdown.solve import is_right
from policies import Fixed, LatentDiff, MaxChildren, Policy
from runtime import Engine, ReasoningThread, Sampling, TraceError
from traces import read, what_if
from traces.__main__ import main
from traces.counterfactual.sweeping import Point, is_best

PROMPTS = ("22 26 31 53 -> 27", "5 42 67 71 -> 62", "3 8 20 31 -> 40")
POLICY = Policy(depth=Fixed(3), spawn=MaxChildren(3))


async def record(path: Path) -> None:
    async with Engine.open("countdown", policy=POLICY, trace=path, seed=5, num_pages=400) as engine:
        for prompt in PROMPTS:
            await engine.run(prompt)
        async with engine.thread(PROMPTS[0]) as root:
            await root.join([root.spawn(PROMPTS[1], program=_say)])


async def _say(thread: ReasoningThread) -> None:
    await thread.generate(max_tokens=2)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("what_if") / "run.trace"
    anyio.run(record, path)
    return path


@pytest.mark.anyio
async def test_nothing_changes_where_nothing_is_changed(path: Path) -> None:
    asked = list[object]()
    result = await what_if(read(path), progress=lambda: asked.append(None))
    assert [comparison.prompt for comparison in result.comparisons] == list(PROMPTS)
    assert len(asked) == 3
    for comparison in result.comparisons:
        assert not comparison.partings
        assert not [*comparison.only_recorded, *comparison.only_now]
        assert not comparison.is_changed
        for name in ("answer", "outcome", "threads", "tokens", "iterations", "critical_path"):
            assert getattr(comparison.recorded, name) == getattr(comparison.now, name)
        assert comparison.now.threads == 4
    assert result.refused == ("Tree 3 has children that a program spawned.",)


@pytest.mark.anyio
async def test_another_policy_is_compared_thread_by_thread(path: Path) -> None:
    policy = Policy(depth=Fixed(1), spawn=MaxChildren(1))
    result = await what_if(read(path), policy=policy, limit=2, verify=is_right)
    assert len(result.comparisons) == 2
    for comparison in result.comparisons:
        assert comparison.now.iterations < comparison.recorded.iterations
        assert comparison.now.is_right is False
        parting = comparison.partings[0]
        assert parting.thread == comparison.tree
        assert parting.recorded is not None
        assert parting.now is not None
        assert (parting.recorded.depth, parting.now.depth) == (3, 1)
        assert parting.recorded.token != parting.now.token
        assert len(comparison.only_recorded) == 4 - comparison.now.threads + len(comparison.only_now)


@pytest.mark.anyio
async def test_drawn_answers_are_drawn_again_alike(tmp_path: Path) -> None:
    path, sampling = tmp_path / "drawn.trace", Sampling(temperature=5.0)
    async with Engine.open("countdown", policy=POLICY, trace=path, seed=5) as engine:
        said = [(await engine.run(prompt, sampling=sampling, max_tokens=60)).text for prompt in PROMPTS]
    result = await what_if(read(path))
    assert [comparison.now.answer for comparison in result.comparisons] == said
    assert not any(comparison.partings for comparison in result.comparisons)
    greedy = await what_if(read(path), sampling=Sampling(temperature=0.0), limit=1)
    assert greedy.comparisons[0].partings


@pytest.mark.anyio
async def test_what_a_program_drove_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "driven.trace"
    async with Engine.open("countdown", trace=path) as engine, engine.thread(PROMPTS[0]) as root:
        await root.generate(max_tokens=3)
        root.append("5 42")
        await root.generate(max_tokens=3)
    with pytest.raises(TraceError, match=r"no question that can be asked again\. A program appended"):
        await what_if(read(path))


def test_the_command_prints_and_writes(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, figure = tmp_path / "found.json", tmp_path / "sweep.svg"
    options = ["--limit", "2", "--verifier", "examples.countdown.solve:is_right", "--json", str(found)]
    assert main(["what-if", str(path), "--depth", "LatentDiff(0.3, max_iterations=2)", *options]) == 0
    printed = capsys.readouterr()
    assert "2 questions" in printed.out
    assert "answers changed" in printed.out
    assert "Tree 3 has children that a program spawned." in printed.err
    written = json.loads(found.read_bytes())
    assert [comparison["prompt"] for comparison in written["comparisons"]] == list(PROMPTS[:2])
    assert repr(LatentDiff(0.3, max_iterations=2)) in written["policy"]
    sweep = ["--depth", "Fixed(d)", "--sweep", "d=1:3:2", "--figure", str(figure)]
    assert main(["what-if", str(path), *sweep, *options]) == 0
    table = capsys.readouterr().out
    assert "critical path" in table
    assert [len(result["comparisons"]) for result in json.loads(found.read_bytes())] == [2, 2]
    assert figure.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(0.5, 10), (0.9, 20), (0.8, 30)], [True, True, False]),
        ([(0.5, 10), (0.5, 10)], [True, True]),
        ([(0.5, 10), (0.5, 11), (0.6, 10)], [False, False, True]),
    ],
)
def test_the_best_are_those_that_none_beats(points: Sequence[tuple[float, float]], best: list[bool]) -> None:
    made = [
        Point(value=0, quality=quality, is_verified=True, iterations=iterations, tokens=1, critical_path=1)
        for quality, iterations in points
    ]
    assert [is_best(point, made) for point in made] == best

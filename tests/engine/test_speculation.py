"""Threads that speculate draft as the reference does, look as far as pays, and are recorded as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from safetensors.torch import load_file

from policies import ByLoad, DepthPolicy, EvenBudget, Policy, Speculative
from runtime import Engine
from runtime.device.settings import EngineSettings
from runtime.device.speculation import reach
from runtime.errors import PolicyError
from runtime.link.commands import (
    Failed,
)
from runtime.link.events import GenerateFinished, Sampled
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import load_checkpoint
from tests.engine.solo import Solo
from tests.engine.speculating import (
    Drafts,
    ask,
    only,
    solo_over,
)
from tests.engine.test_goldens import GOLDEN, NEW_TOKENS
from tests.engine.test_goldens import settings as golden_settings
from traces import imbalances, read
from traces.__main__ import main as traces_command

SPECULATIONS = [(prompt, *lengths) for lengths in ((2, 4), (4, 4), (3, 8)) for prompt in ("p0", "p2")]


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize(("prompt", "draft", "look"), SPECULATIONS)
def test_reference_speculation(prompt: str, draft: int, look: int, backend: str) -> None:
    golden, tag = load_file(GOLDEN / "golden.safetensors"), f"spec.{prompt}.draft{draft}.look{look}.n8"
    expected, given = golden[f"{tag}.tokens"].tolist(), golden[f"prompt.{prompt}"].tolist()
    policy = Speculative(draft, look, max_iterations=8, adaptive=False)
    solo, drafts = Solo.over(load_checkpoint(GOLDEN).model, golden_settings(backend), policy), Drafts()
    drafts.watch(solo)
    # One more, because the last token of all drafts nothing.
    finished = solo.generate(given, policy, len(expected) - len(given) + 1)
    assert [*given, *finished.tokens[:-1]] == expected
    assert set(finished.depths) == {8}
    assert len(finished.tokens) > NEW_TOKENS
    assert drafts.rounds(expected, len(given) + 1, look) == golden[f"{tag}.accepted_per_round"].tolist()


@pytest.mark.anyio
async def test_a_recorded_run_adds_up_and_verifies(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, policy = tmp_path / "run.trace", Policy(depth=Speculative(2, 3, max_iterations=4))
    sizes: dict[str, Any] = {"num_pages": 30, "page_size": 4, "max_in_flight": 16, "prefill_chunk": 8}
    answers: list[tuple[int, ...]] = []
    async with Engine.open(
        tiny_checkpoint, policy=policy, trace=path, seed=7, sampling=Sampling(temperature=0.7), **sizes
    ) as engine:

        async def ask_one(number: int) -> None:
            async with engine.thread(f"w{number} w{number + 3} w5") as thread:
                answers.append((await thread.generate(max_tokens=24)).tokens)

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(ask_one, number)
    events = read(path).events
    assert imbalances(events) == []
    ends = [event for event in events if isinstance(event, GenerateFinished)]
    assert sum(end.drafted for end in ends) > sum(end.accepted for end in ends) > 0
    said = [event.token for event in events if isinstance(event, Sampled)]
    assert sorted(said) == sorted(token for answer in answers for token in answer)
    assert await anyio.to_thread.run_sync(traces_command, ["replay", str(path), "--verify"]) == 0


def test_adaptive_threads_look_as_far_as_their_drafts_are_good() -> None:
    policy = Speculative(2, 4)
    assert [reach(policy, share) for share in (1.0, 0.8, 0.7, 0.6, 0.5, 0.0)] == [4, 4, 3, 2, 1, 1]
    assert reach(Speculative(2, 4, adaptive=False), 0.0) == 4


def test_adaptive_threads_waste_less_where_drafts_are_bad() -> None:
    wasted = []
    for adaptive in (False, True):
        solo = solo_over(1)
        ask(solo, Speculative(1, 5, max_iterations=6, adaptive=adaptive), 50, sampling=Sampling(temperature=3.0))
        only(solo)
        wasted.append(solo.core.journal.drafted - solo.core.journal.accepted)
    assert wasted[1] < wasted[0]


@pytest.mark.parametrize(
    ("policy", "slots", "said"),
    [
        (Speculative(2, 4, max_iterations=6), 3, "keeps 3 of them"),
        (Speculative(3), None, "less than the 3 iterations"),
        (ByLoad(EvenBudget(Speculative(2, max_iterations=6))), None, "not for Speculative"),
    ],
)
def test_what_cannot_be_followed_is_refused(policy: DepthPolicy, slots: int | None, said: str) -> None:
    solo = solo_over(
        engine=EngineSettings(
            num_pages=64, page_size=4, max_in_flight=16, prefill_chunk=8, most_iterations=6, iteration_slots=slots
        )
    )
    ask(solo, policy, 5)
    (failed,) = solo.run()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, PolicyError)
    assert said in str(failed.error)

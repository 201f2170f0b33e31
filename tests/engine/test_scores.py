"""Scores of given tokens: what the model gives them, batched with all else, and a context that stays as it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
import torch

from policies import KL, DepthPolicy, Fixed, LatentDiff, Limits, Policy, Speculative
from runtime import (
    Engine,
    EngineSettings,
    LimitExceeded,
    PromptError,
    ReasoningThread,
    Sampling,
    Score,
    ThreadStateError,
    open_device,
)
from tests.llamas import VARIANTS, make_llama, save_llama
from tests.loops import both_loops
from traces import Scored, Verification, imbalances, read, totals_of, verify
from traces.__main__ import main as traces_command

pytestmark = pytest.mark.anyio

BACKENDS = ("torch", "native")
SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 128, "max_in_flight": 48, "prefill_chunk": 8}
COUNTED = ("generated", "computed", "iterations", "recomputed", "cached_tokens", "prompt_tokens")


@pytest.fixture
def anyio_backend() -> str:
    """Scores are computed on the device."""
    return "asyncio"


def opened(checkpoint: Path, backend: str = "torch", depth: DepthPolicy | None = None, **options: Any) -> Engine:
    policy = Policy(depth=depth or Fixed(3))
    return Engine.open(checkpoint, policy=policy, **{**SIZES, "backend": backend, **options})


def some_tokens(seed: int, count: int) -> list[int]:
    return [random.Random(seed + step).randrange(32) for step in range(count)]


async def scored(engine: Engine, context: list[int], tokens: list[int], **options: Any) -> Score:
    async with engine.thread(context) as thread:
        score = await thread.score(tokens, **options)
    return score


def reference(model: Any, context: list[int], tokens: list[int]) -> torch.Tensor:
    """[n, vocab]: log-probabilities in the place of each token, by transformers."""
    with torch.inference_mode():
        logits = model(torch.tensor([context + tokens])).logits[0, len(context) - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["plain", "llama3", "all-at-once"])
async def test_scores_are_those_of_transformers(tmp_path: Path, variant: str, backend: str) -> None:
    model = make_llama(**VARIANTS[variant])
    save_llama(tmp_path, model)
    # Shorter than a chunk, whole chunks, and several with a rest; all at once.
    shapes = [(1, 1), (1, 20), (7, 2), (8, 8), (9, 16), (21, 33), (50, 46)]
    pairs = [(some_tokens(a, a), some_tokens(100 + b, b)) for a, b in shapes]
    found: dict[int, Score] = {}
    async with opened(tmp_path, backend) as engine, anyio.create_task_group() as group:

        async def score_one(number: int) -> None:
            found[number] = await scored(engine, *pairs[number], top=3)

        for number in range(len(pairs)):
            group.start_soon(score_one, number)
    for number, (context, tokens) in enumerate(pairs):
        expected, score = reference(model, context, tokens), found[number]
        assert score.tokens == tuple(tokens)
        logprobs = expected[range(len(tokens)), tokens]
        torch.testing.assert_close(torch.tensor(score.logprobs), logprobs, atol=2e-4, rtol=0)
        assert score.logprob == pytest.approx(float(logprobs.sum()), abs=2e-4 * len(tokens))
        for row, top in zip(expected, score.top_logprobs, strict=True):
            values, ids = row.topk(3)
            assert list(top) == ids.tolist()
            assert list(top.values()) == pytest.approx(values.tolist(), abs=2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth", [Fixed(3), LatentDiff(0.7, max_iterations=4), KL(0.05, max_iterations=4)], ids=repr)
async def test_a_score_is_what_generating_says_and_changes_nothing(
    tiny_checkpoint: Path, depth: DepthPolicy, backend: str
) -> None:
    async with opened(tiny_checkpoint, backend, depth, deterministic=True) as engine:
        async with engine.thread([1, 2, 4]) as root:
            said = await root.generate(14)
            after = await root.generate(6)
        async with engine.thread([1, 2, 4]) as root:
            # Token by token each is computed alone, as a sampled one is.
            logprobs: list[float] = []
            depths: list[int] = []
            for token in said.tokens:
                score = await root.score([token])
                logprobs.append(score.logprobs[0])
                depths += score.depths
                root.append([token])
        if isinstance(depth, Fixed):
            assert logprobs == pytest.approx(said.logprobs, abs=1e-5)
            assert tuple(depths) == said.depths
            whole = await scored(engine, [1, 2, 4], list(said.tokens))
            assert whole.logprobs == pytest.approx(said.logprobs, abs=1e-5)
        async with engine.thread([1, 2, 4]) as root:
            first = await root.score(some_tokens(1, 30), top=2)
            assert root.tokens == (1, 2, 4)
            assert all(1 <= each <= 4 for each in first.depths)
            again = await root.generate(14)
            assert (again.tokens, again.depths) == (said.tokens, said.depths)
            await root.score(some_tokens(2, 5))
            assert (await root.generate(6)).tokens == after.tokens


@pytest.mark.parametrize(
    ("depth", "slots"),
    [
        (Fixed(3), None),
        (LatentDiff(0.7, max_iterations=4), None),
        (LatentDiff(0.7, max_iterations=4), 2),
        (KL(0.05, max_iterations=4), None),
        (Speculative(draft_iterations=1), None),
    ],
    ids=repr,
)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_company_and_want_of_memory_change_no_score(
    tiny_checkpoint: Path, depth: DepthPolicy, slots: int | None, backend: str
) -> None:
    options = {"deterministic": True, "reuse_prefixes": False, "iteration_slots": slots}
    jobs = [
        (some_tokens(number, 3 + number % 9), some_tokens(50 + number, 5 + 3 * number % 28)) for number in range(12)
    ]
    alone: list[Score] = []
    async with opened(tiny_checkpoint, backend, depth, **options) as engine:
        for context, tokens in jobs:
            alone.append(await scored(engine, context, tokens, top=2))
    found: dict[int, Score] = {}
    # So few pages that threads take them from each other.
    few = {**options, "num_pages": 24, "max_in_flight": 24}
    async with opened(tiny_checkpoint, backend, depth, **few) as engine, anyio.create_task_group() as group:

        async def score_one(number: int) -> None:
            async with engine.thread(jobs[number][0]) as thread:
                found[number] = await thread.score(jobs[number][1], top=2)

        async def speak(number: int) -> None:
            async with engine.thread(some_tokens(number, 4)) as thread:
                await thread.generate(20, sampling=Sampling(temperature=1.0))

        for number in range(len(jobs)):
            group.start_soon(score_one, number)
            group.start_soon(speak, number)
    assert [found[number] for number in range(len(jobs))] == alone


@both_loops
async def test_a_score_that_is_cancelled_leaves_the_thread_as_it_was(tiny_checkpoint: Path) -> None:
    async with opened(tiny_checkpoint) as engine:
        async with engine.thread([1, 2, 4]) as root:
            expected = (await root.generate(8)).tokens
        async with engine.thread([1, 2, 4]) as root:

            async def score() -> None:
                await root.score(some_tokens(3, 50))

            async with anyio.create_task_group() as group:
                group.start_soon(score)
                while not engine.statistics.in_flight:
                    await anyio.lowlevel.checkpoint()
                with pytest.raises(ThreadStateError, match="cannot"):
                    root.append([1])
                group.cancel_scope.cancel()
            assert root.tokens == (1, 2, 4)
            assert (await root.generate(8)).tokens == expected


async def test_limits_on_iterations_hold_and_those_on_tokens_are_for_samples(tiny_checkpoint: Path) -> None:
    async with opened(tiny_checkpoint) as engine:
        async with engine.thread([1, 2, 4], limits=Limits(tokens=2)) as root:
            await root.generate(2)
            assert len((await root.score([1, 2, 3])).logprobs) == 3
        async with engine.thread([1, 2, 4], limits=Limits(iterations=40)) as root:
            with pytest.raises(LimitExceeded, match=r"iterations left for \d+ of 50 tokens to score"):
                await root.score(some_tokens(3, 50))
            assert root.tokens == (1, 2, 4)
            assert root.usage.iterations <= 40


@both_loops
async def test_a_recorded_score_replays_and_is_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    async def work(engine: Engine) -> list[Score]:
        async def judge(thread: ReasoningThread) -> str:
            found.append(await thread.score("w3 w4 w5", top=2))
            await thread.generate(3)
            return "w1"

        found: list[Score] = []
        async with engine.thread("w1 w2 w3") as root:
            await root.generate(4)
            found.append(await root.score(some_tokens(1, 20), top=1))
            await root.join([root.fork("w7", program=judge)])
            found.append(await root.score([5]))
            await root.generate(2)
        return found

    path = tmp_path / "run.trace"
    async with opened(tiny_checkpoint, depth=LatentDiff(0.7, max_iterations=4), trace=path) as engine:
        said = await work(engine)
        usage = engine.usage
    trace = read(path)
    assert imbalances(trace.events) == []
    totals = totals_of(trace.events)
    assert [getattr(totals, name) for name in COUNTED] == [getattr(usage, name) for name in COUNTED]
    assert await anyio.to_thread.run_sync(traces_command, ["replay", str(path), "--verify"]) == 0
    async with Engine.playback(trace) as engine:
        assert await work(engine) == said


async def test_another_score_is_another_program(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    async with opened(tiny_checkpoint, trace=path) as engine:
        await scored(engine, [1, 2], [3, 4])
    async with Engine.playback(read(path)) as engine:
        with pytest.raises(Exception, match="tokens to score"):
            await scored(engine, [1, 2], [3, 5])


@both_loops
async def test_what_cannot_be_scored_is_refused_before_anything_is_computed(tiny_checkpoint: Path) -> None:
    async with opened(tiny_checkpoint) as engine:
        async with engine.thread() as root:
            with pytest.raises(ThreadStateError, match="empty context"):
                await root.score([1])
        async with engine.thread([1, 2]) as root:
            for tokens, said in (([], "nothing to score"), ([40], "text"), ([1] * 63, "would have 65 tokens")):
                with pytest.raises(PromptError, match=said):
                    await root.score(tokens)
            for top in (-1, 1.5, "2"):
                wrong: Any = top
                with pytest.raises(ValueError, match=r"^top is"):
                    await root.score([1], top=wrong)
            assert engine.usage.computed == 0
            assert len((await root.score([1] * 62)).logprobs) == 62


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [4, 8, 10])
async def test_what_others_computed_of_a_context_changes_no_score(
    tiny_checkpoint: Path, backend: str, length: int
) -> None:
    """Its last token's logits are what the first score comes from, so that it is computed whatever is stored."""
    context, tokens = some_tokens(1, length), some_tokens(5, 9)
    async with opened(tiny_checkpoint, backend, reuse_prefixes=False) as engine:
        expected = await scored(engine, context, tokens)
    async with opened(tiny_checkpoint, backend) as engine:
        async with engine.thread([*context, 3]) as other:
            await other.generate(2)
        again = await scored(engine, context, tokens)
        assert (engine.usage.cached_tokens > 0) == (length > 4)
        both: list[Score] = []
        async with anyio.create_task_group() as group:
            for _ in range(2):

                async def score() -> None:
                    both.append(await scored(engine, [*context[::-1]], tokens))

                group.start_soon(score)
    assert again.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert both[0].logprobs == pytest.approx(both[1].logprobs, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "kind"),
    [({}, None), ({"logprob": -9.0}, "score"), ({"depth": 1}, "depth")],
)
async def test_verifying_compares_what_was_scored(
    tiny_checkpoint: Path, tmp_path: Path, change: dict[str, Any], kind: str | None
) -> None:
    path = tmp_path / "run.trace"
    async with opened(tiny_checkpoint, trace=path) as engine:
        await scored(engine, [1, 2, 3], some_tokens(1, 20))
    trace = read(path)
    place = [index for index, event in enumerate(trace.events) if isinstance(event, Scored)][7]
    trace.events[place] = msgspec.structs.replace(trace.events[place], **change)
    settings = EngineSettings(**SIZES, backend="torch")

    def execute() -> Verification:
        return verify(
            trace, open_device(tiny_checkpoint, settings, policy=Policy(depth=Fixed(3)), trace=None, seed=0).device
        )

    found = await anyio.to_thread.run_sync(execute)
    assert found.calls == 1
    if kind is None:
        assert found.equal
        assert found.tokens == 20
    else:
        assert found.divergence is not None
        assert (found.divergence.kind, found.divergence.position) == (kind, 10)
        assert found.tokens == 7

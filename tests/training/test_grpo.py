"""Reinforcement learning: rollouts are replayed as they were sampled, rewards become advantages, and runs go on."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import torch

from policies import (
    KL,
    ArgmaxStability,
    ByRole,
    DepthPolicy,
    EntropyDiff,
    EvenBudget,
    Fixed,
    LatentDiff,
    Policy,
    Speculative,
)
from policies.training.grpo import GrpoConfig, Learner, objective, train_grpo
from policies.training.metrics import read_metrics
from policies.training.questions import Prices, Question, Rollout, advantages, roll_out, score_of
from policies.training.replay import Replay, ReplayBatch, replay_batches
from policies.training.thread_tokens import ThreadTokens, check_replayable, threads_in
from runtime import Answer, Engine, Limits, Sampling, Usage
from runtime.model.checkpoint import load_checkpoint
from runtime.model.parameters import published_weights
from runtime.model.transformer import Transformer
from tests.engine.conftest import tiny_checkpoint as tiny_checkpoint
from tests.engine.tiny import tiny_model
from traces import read

POLICIES: list[DepthPolicy] = [
    Fixed(3),
    Fixed(1),
    LatentDiff(0.7, max_iterations=4),
    LatentDiff(0.7, max_iterations=5, min_iterations=1, check_every=2, exit_received=False),
    KL(0.05, max_iterations=4),
    EntropyDiff(0.05, max_iterations=4),
    ArgmaxStability(1, max_iterations=5),
    ByRole(root=LatentDiff(0.5, max_iterations=5), otherwise=Fixed(2)),
    EvenBudget(LatentDiff(0.6, max_iterations=4)),
    Speculative(1, 2, max_iterations=3),
]


async def rollouts_of(
    checkpoint: Path, policy: DepthPolicy, trace: Path, backend: Any, temperature: float = 1.0
) -> list[ThreadTokens]:
    async with (
        Engine.open(checkpoint, policy=Policy(depth=policy), backend=backend, most_iterations=6, seed=3) as engine,
        engine.recording(trace),
        anyio.create_task_group() as group,
    ):
        for number in range(12):
            prompt = [number % 5, *range(number % 3, 20 + number % 3)]
            sampling, limits = Sampling(temperature=temperature), Limits(iterations=100_000)
            group.start_soon(lambda: engine.run(prompt, sampling=sampling, limits=limits, max_tokens=24))  # noqa: B023
            await anyio.lowlevel.checkpoint()
    return replayable(trace)


def replayable(trace: Path) -> list[ThreadTokens]:
    recorded = read(trace)
    threads = threads_in(recorded)
    check_replayable(recorded, threads)
    return threads


def root(tokens: tuple[int, ...], logprobs: tuple[float, ...], depths: tuple[int, ...]) -> ThreadTokens:
    """A thread that sampled all but its first token."""
    return ThreadTokens(
        path=(0,),
        tokens=tokens,
        is_sampled=(False, *[True] * (len(tokens) - 1)),
        counted_from=0,
        logprobs=logprobs,
        depths=depths,
        groups=(),
        role="root",
    )


def largest_gap(checkpoint: Path, rollouts: list[ThreadTokens], temperature: float = 1.0) -> float:
    model = load_checkpoint(checkpoint).model
    assert isinstance(model, Transformer)
    replay, gap = Replay(model, temperature=temperature), 0.0
    with torch.no_grad():
        for batch in replay_batches([(thread, 0.0) for thread in rollouts], 400, torch.device("cpu")):
            difference = (replay.logprobs(batch) - batch.logprobs).abs() * batch.is_sampled
            gap = max(gap, float(difference.max()))
    return gap


# On the slow backend, one of each kind: no exits, groups that exit together or not, and guesses.
REPLAYED = [("native", policy) for policy in POLICIES] + [("torch", POLICIES[index]) for index in (0, 2, 3, 8, 9)]


@pytest.mark.parametrize(("backend", "policy"), REPLAYED, ids=repr)
def test_a_replay_computes_what_the_engine_sampled_with(
    tiny_checkpoint: Path, tmp_path: Path, policy: DepthPolicy, backend: Any
) -> None:
    rollouts = anyio.run(rollouts_of, tiny_checkpoint, policy, tmp_path / "rollouts.trace", backend)
    sampled = sum(sum(thread.is_sampled) for thread in rollouts)
    assert len(rollouts) >= 12
    assert sampled > 100
    assert any(not sampled for thread in rollouts for sampled in thread.is_sampled[10:])
    assert largest_gap(tiny_checkpoint, rollouts) < 1e-3


def test_a_replay_at_another_depth_is_another_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rollouts = anyio.run(rollouts_of, tiny_checkpoint, LatentDiff(0.7, max_iterations=4), tmp_path / "r.trace", "torch")
    assert len({depth for thread in rollouts for depth in thread.depths}) > 1
    wrong = [msgspec.structs.replace(thread, depths=tuple(4 for _ in thread.depths)) for thread in rollouts]
    assert largest_gap(tiny_checkpoint, wrong) > 1e-2


def test_a_replay_knows_the_temperature(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rollouts = anyio.run(rollouts_of, tiny_checkpoint, Fixed(2), tmp_path / "r.trace", "torch", 0.7)
    assert largest_gap(tiny_checkpoint, rollouts, 0.7) < 1e-3
    assert largest_gap(tiny_checkpoint, rollouts, 1.0) > 1e-2


def test_every_weight_gets_a_gradient() -> None:
    thread = root((1, 2, 3, 4), (0, -1, -1, -1), (3, 2, 3))
    (batch,) = replay_batches([(thread, 1.0)], 100, torch.device("cpu"))
    model = tiny_model(3)
    Replay(model).logprobs(batch)[:, :3].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_models_that_start_from_noise_are_refused() -> None:
    with pytest.raises(ValueError, match="start from noise"):
        Replay(tiny_model(state_init="like-init"))


def test_rollouts_that_shared_slots_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    async def record() -> None:
        async with (
            Engine.open(tiny_checkpoint, policy=Policy(depth=Fixed(3)), iteration_slots=1) as engine,
            engine.recording(tmp_path / "r.trace"),
        ):
            await engine.run([1, 2], max_tokens=4)

    anyio.run(record)
    with pytest.raises(ValueError, match="slots=None"):
        replayable(tmp_path / "r.trace")


def rollout(reward: float) -> Rollout:
    answer = Answer(text="", tokens=(), path=(0,), usage=Usage(), reason="nothing")
    return Rollout(answer=answer, score=reward, reward=reward, critical_path=1, threads=())


def test_advantages_compare_within_a_group() -> None:
    found = advantages([rollout(1.0), rollout(0.0), rollout(0.0), rollout(1.0)])
    assert found == pytest.approx([1.0, -1.0, -1.0, 1.0])
    assert advantages([rollout(0.5)] * 3) == [0.0, 0.0, 0.0]


def test_prices_are_paid_for_right_answers_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    async def roll(prices: Prices, score: float) -> Rollout:
        async with Engine.open(tiny_checkpoint) as engine:
            groups = await roll_out(
                engine,
                [Question("w1 w2", lambda answer: score, max_tokens=8)],
                2,
                sampling=Sampling(temperature=1.0),
                prices=prices,
                trace=tmp_path / "r.trace",
            )
        return groups[0][1]

    dear = anyio.run(roll, Prices(iterations=2.0, critical_path=3.0), 1.0)
    usage = dear.answer.usage
    assert dear.reward == pytest.approx(1.0 - 2.0 * usage.iterations / 1000 - 3.0 * dear.critical_path / 1000)
    assert 0 < dear.critical_path <= usage.generated
    wrong = anyio.run(roll, Prices(iterations=2.0, critical_path=3.0), 0.0)
    assert wrong.reward == 0.0


def test_limits_hold_for_every_tree(tmp_path: Path) -> None:
    async def threads(limits: Limits | None) -> list[int]:
        async with Engine.open("countdown") as engine:
            groups = await roll_out(
                engine,
                [Question("22 26 31 53 -> 27", lambda answer: 0.0, limits=limits)],
                2,
                sampling=Sampling(),
                prices=Prices(),
                trace=tmp_path / "r.trace",
            )
        return [rollout.answer.usage.threads for rollout in groups[0]]

    assert anyio.run(threads, Limits(threads=4)) == [4, 4]
    assert min(anyio.run(threads, None)) > 4


def test_the_objective_clips_what_moved_far() -> None:
    config = GrpoConfig(steps=1, clip_low=0.2, clip_high=0.3, kl=0.5)
    old = torch.log(torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    new = torch.log(torch.tensor([[0.9, 0.9, 0.1, 0.5]])).requires_grad_()
    start = torch.log(torch.tensor([[0.9, 0.9, 0.1, 0.25]]))
    batch = ReplayBatch(
        inputs=torch.zeros(1, 4, dtype=torch.int64),
        depths=torch.ones(1, 4, dtype=torch.int64),
        targets=torch.zeros(1, 4, dtype=torch.int64),
        is_sampled=torch.ones(1, 4),
        logprobs=old,
        advantages=torch.tensor([[1.0, -1.0, -1.0, 0.0]]),
    )
    loss, divergence, clipped = objective(new, start, batch, config)
    away = math.log(0.5)
    expected = math.exp(away) - away - 1
    assert float(divergence) == pytest.approx(expected, abs=1e-6)
    # Gains: 1.3 (1.8 clipped), -1.8 (never clipped on this side), -0.8 (0.2 clipped), 0.
    assert float(loss.detach()) == pytest.approx(-(1.3 - 1.8 - 0.8) + 0.5 * expected, abs=1e-5)
    assert float(clipped) == 2
    loss.backward()
    assert new.grad is not None
    assert new.grad[0, 0] == 0
    assert new.grad[0, 1] > 0
    assert new.grad[0, 2] == 0


CONFIG = GrpoConfig(steps=6, questions=2, samples=8, updates=2, rate=5e-3, kl=0.0, compile=False, evaluate_every=6)


def draw(chance: random.Random) -> Question:
    return Question(f"w{chance.randrange(8)} w{chance.randrange(8)}", even_tokens, max_tokens=6)


def even_tokens(answer: Answer) -> float:
    """Something that sampling can be drawn towards: few threads, that is, few spawns."""
    return 1.0 if answer.usage.generated < 6 else 0.0


async def train(checkpoint: Path, directory: Path, *steps: int) -> None:
    for count in steps:
        config = GrpoConfig(**{name: getattr(CONFIG, name) for name in CONFIG.__struct_fields__} | {"steps": count})
        held_out = [draw(random.Random(seed)) for seed in range(8)]
        await train_grpo(checkpoint, draw, config, directory, held_out)


def test_rewarded_behaviour_grows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    anyio.run(train, tiny_checkpoint, tmp_path, 12)
    assert (tmp_path / "metrics.svg").is_file()
    lines = read_metrics(tmp_path)
    scores = [line["score"] for line in lines if "score" in line]
    assert len(scores) == 12
    assert sum(scores[-4:]) > sum(scores[:4])
    assert all(line["logprob_gap"] < 1e-3 for line in lines if "logprob_gap" in line)
    assert "held_out_score" in lines[0]
    assert "held_out_score" in lines[-1]
    assert len(list((tmp_path / "rollouts").iterdir())) == CONFIG.keep_traces


def test_a_run_goes_on_after_its_last_step(tiny_checkpoint: Path, tmp_path: Path) -> None:
    anyio.run(train, tiny_checkpoint, tmp_path, 2, 4)
    steps = [line["step"] for line in read_metrics(tmp_path) if "score" in line]
    assert steps == [1, 2, 3, 4]
    learner = Learner(tiny_checkpoint, CONFIG, tmp_path, 1)
    assert learner.step == 4
    start = published_weights(load_checkpoint(tiny_checkpoint).model)
    assert any(not torch.equal(weight, start[name]) for name, weight in learner.weights().items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("steps", "questions", "updates", "tokens_per_batch", "evaluate_every")),
        *((name, 1.5) for name in ("steps", "samples", "seed", "keep_traces")),
        *(("samples", value) for value in (0, 1, -8)),
        *((name, value) for name in ("temperature", "rate", "clip_norm") for value in (0.0, -1.0, math.nan, math.inf)),
        ("rate", 1e39),
        *((name, value) for name in ("kl", "clip_high", "iteration_price", "path_price") for value in (-0.1, math.nan)),
        *(("clip_low", value) for value in (-0.1, 1.1, math.nan)),
    ],
)
def test_configurations_that_teach_nothing_are_refused(field: str, value: float) -> None:
    changes: dict[str, Any] = {"steps": 1, field: value}
    with pytest.raises(ValueError, match=f"GrpoConfig: {field} is "):
        GrpoConfig(**changes)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None, "right"])
def test_scores_that_are_no_finite_numbers_are_refused(score: Any) -> None:
    with pytest.raises(ValueError, match=rf"The score of an answer to 'w1' is {score!r}"):
        score_of(Question("w1", lambda answer: score), rollout(0.0).answer)


def test_a_wrong_score_stops_the_run_before_anything_is_learnt(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def draw_worthless(chance: random.Random) -> Question:
        return Question("w1 w2", lambda answer: math.nan, max_tokens=4)

    with pytest.raises(ValueError, match="score"):
        anyio.run(train_grpo, tiny_checkpoint, draw_worthless, CONFIG, tmp_path)
    assert not (tmp_path / "training.safetensors").exists()
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("limits", [Limits(tokens=3), Limits(tokens=0), Limits(iterations=2)])
def test_a_tree_over_its_limits_is_worth_nothing(tiny_checkpoint: Path, tmp_path: Path, limits: Limits) -> None:
    async def roll() -> list[list[Rollout]]:
        bounded, free = (Question("w1 w2", lambda answer: 1.0, max_tokens=9, limits=each) for each in (limits, None))
        async with Engine.open(tiny_checkpoint, seed=1) as engine:
            return await roll_out(
                engine,
                [bounded, free],
                4,
                sampling=Sampling(temperature=1.0),
                prices=Prices(),
                trace=tmp_path / "r.trace",
            )

    bounded, free = anyio.run(roll)
    assert {found.score for found in free} == {1.0}
    cut = [found for found in bounded if found.answer.reason == "limit"]
    assert cut
    for found in cut:
        assert (found.score, found.reward) == (0.0, 0.0)
        assert found.answer.usage.generated == sum(sum(thread.is_sampled) for thread in found.threads)


def wrong_groups(**changes: float) -> list[list[Rollout]]:
    """Two trees of one thread each, of which one was better; the log-probabilities or the reward may be wrong."""
    thread = root((1, 2, 3), (0.0, -3.0, changes.get("logprob", -3.0)), (2, 2))
    return [[dataclasses.replace(rollout(reward), threads=(thread,)) for reward in (0.0, 1.0)]]


@pytest.mark.parametrize(
    ("logprob", "named"),
    [(math.nan, "loss"), (-1e30, "loss"), (-math.inf, "loss")],
)
def test_a_step_that_would_not_be_finite_changes_nothing(
    tiny_checkpoint: Path, tmp_path: Path, logprob: float, named: str
) -> None:
    learner = Learner(tiny_checkpoint, CONFIG, tmp_path, 1)
    learner.learn(wrong_groups())
    before = {name: weight.clone() for name, weight in learner.weights().items()}
    states = copy.deepcopy(learner.optimizer.state_dict())
    step = learner.step
    with pytest.raises(ValueError, match=f"The {named} is "):
        learner.learn(wrong_groups(logprob=logprob))
    assert learner.step == step
    assert all(torch.equal(weight, before[name]) for name, weight in learner.weights().items())
    torch.testing.assert_close(learner.optimizer.state_dict(), states, rtol=0, atol=0)

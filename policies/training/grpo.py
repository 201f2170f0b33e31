"""Reinforcement learning over whole thread trees: GRPO with the engine as the only place where tokens are sampled.

    questions -> engine: G trees each, recorded -> one reward a tree -> advantage within the group, on every sampled
    token of every thread of the tree -> replay with gradients -> clipped policy gradient, KL to the start -> Adam
    -> weights into the engine, in place

APR (arXiv 2504.15466, section 3.3) trains parent and child threads together in this way, so a model learns when to
spawn, what to tell its children, and when a thread has done enough.
"""

from __future__ import annotations

import copy
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import anyio.to_thread
import msgspec
import torch
from torch import Tensor

from policies.training.finite import check_finite, whole_or_nothing
from policies.training.gradients import average_gradients
from policies.training.metrics import drop_metrics_after, write_metrics
from policies.training.plot import plot_where_possible
from policies.training.progress import progress_bar
from policies.training.questions import Prices, Question, Rollout, advantages, ask_all, roll_out, score_of
from policies.training.replay import Replay, ReplayBatch, replay_batches
from policies.training.resume import restore, save
from policies.training.thread_tokens import ThreadTokens
from policies.validation import check_count, check_number
from runtime import Engine, Sampling
from runtime.model import load_checkpoint, published_weights

DrawQuestions = Callable[[random.Random], Question]
"""A question from a source of randomness."""


class GrpoConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Counts are one process's share. Raises `ValueError`, naming the field, for what nothing can be learnt with."""

    steps: int
    seed: int = 0
    questions: int = 16
    """Questions a step."""
    samples: int = 8
    """Trees a question: the group within which rewards are compared."""
    updates: int = 2
    """Optimizer steps that the trees of one step are dealt out to; all but the first are off-policy by a little."""
    temperature: float = 1.0
    rate: float = 3e-4
    """Learning rate of the first step. It falls to 0 over the run in a straight line, so that the last steps settle."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    """How far the ratio of probabilities counts below and above 1; more room above keeps exploration (DAPO)."""
    kl: float = 0.01
    """Weight of the divergence from the start, per token."""
    clip_norm: float = 1.0
    iteration_price: float = 0.0
    """Reward that a right answer loses per thousand token-iterations of its tree."""
    path_price: float = 0.0
    """Reward that a right answer loses per thousand tokens of its critical path."""
    tokens_per_batch: int = 2176
    compile: bool = True
    """Whether torch.compile is used for threads whose tokens are all of one depth."""
    evaluate_every: int = 10
    keep_traces: int = 2
    """How many steps' rollouts stay on disk."""

    def __post_init__(self) -> None:
        for name in ("steps", "questions", "updates", "tokens_per_batch", "evaluate_every"):
            check_count(self, name, getattr(self, name), 1)
        # Rewards are compared within a group, so that one of one tree, or of equal ones, teaches nothing.
        check_count(self, "samples", self.samples, 2)
        for name in ("seed", "keep_traces"):
            check_count(self, name, getattr(self, name), 0)
        for name in ("temperature", "clip_norm"):
            check_number(self, name, getattr(self, name), 0, above=True)
        check_number(self, "rate", self.rate, 0, 1, above=True)
        for name in ("clip_high", "kl", "iteration_price", "path_price"):
            check_number(self, name, getattr(self, name), 0)
        check_number(self, "clip_low", self.clip_low, 0, 1)


class Learner:
    """One process's part of a run: owns the model that learns, its start, the optimizer and the step counter."""

    def __init__(self, checkpoint: str | Path, config: GrpoConfig, directory: Path, world: int) -> None:
        model = load_checkpoint(checkpoint).model
        self.config, self.world = config, world
        self.model = model.train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.rate, betas=(0.9, 0.98))
        temperature = config.temperature
        start = copy.deepcopy(model).requires_grad_(False)
        self._replay = Replay(model, temperature=temperature, compile_model=config.compile)
        self._start = Replay(start, temperature=temperature, compile_model=config.compile)
        self.step = restore(directory, model, [self.optimizer])

    def weights(self) -> dict[str, Tensor]:
        return published_weights(self.model)

    def learn(self, groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
        """The optimizer steps of one batch of groups; returns what was measured on the way.

        `logprob_gap` is the largest difference, in nats, between a token's log-probability in the engine and in this
        replay of it, before the first update: 0 but for rounding, if both compute the same. Raises `ValueError`,
        naming it, where the loss, the norm of the gradient or a weight is not finite: everything is then as before.
        """
        config = self.config
        trees = [
            [(thread, advantage) for thread in rollout.threads]
            for group in groups
            for rollout, advantage in zip(group, advantages(group), strict=True)
            if advantage != 0.0
        ]
        random.Random(f"{config.seed}/{self.step}").shuffle(trees)
        measured: dict[str, float] = {}
        with whole_or_nothing(self.model, [self.optimizer]):
            for update in range(config.updates):
                dealt = [rollout for tree in trees[update :: config.updates] for rollout in tree]
                found = self._update(dealt)
                measured |= {"logprob_gap": found.pop("gap")} if update == 0 else {}
                measured |= {name: value for name, value in found.items() if name != "gap"}
        self.step += 1
        return measured | {"learnt_trees": float(len(trees))}

    def _update(self, rollouts: Sequence[tuple[ThreadTokens, float]]) -> dict[str, float]:
        config, device = self.config, self.model.device
        sums = torch.zeros(4, device=device)
        gap = 0.0
        for batch in replay_batches(rollouts, config.tokens_per_batch, device):
            logprobs = self._replay.logprobs(batch)
            with torch.no_grad():
                start = self._start.logprobs(batch)
            loss, divergence, clipped = objective(logprobs, start, batch, config)
            loss.backward()
            sums += torch.stack([loss.detach(), divergence, clipped, batch.is_sampled.sum()])
            gap = max(gap, float(((logprobs.detach() - batch.logprobs).abs() * batch.is_sampled).max()))
        sums = average_gradients(self.model, sums, self.world)
        check_finite("loss", float(sums[0]), "lower the rate, or look for what the engine computes otherwise")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        check_finite("gradient norm", float(norm), "lower the rate")
        if float(sums[3]) > 0:
            self.optimizer.param_groups[0]["lr"] = config.rate * (1 - self.step / config.steps)
            self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = max(float(sums[3]), 1.0)
        return {
            "loss": float(sums[0]) / tokens,
            "kl": float(sums[1]) / tokens,
            "clipped": float(sums[2]) / tokens,
            "gradient_norm": float(norm),
            "gap": gap,
        }


def objective(logprobs: Tensor, start: Tensor, batch: ReplayBatch, config: GrpoConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Summed over sampled tokens: the loss, the divergence from the start in nats, how many were clipped.

    All arguments [batch, length] float32. PPO's clipped ratio (arXiv 1707.06347, equation 7) and the estimate of the
    divergence that is never negative (arXiv 2402.03300, equation 4).
    """
    ratio = torch.exp(logprobs - batch.logprobs)
    kept = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    gain = torch.minimum(ratio * batch.advantages, kept * batch.advantages)
    away = start - logprobs
    divergence = torch.exp(away) - away - 1
    loss = ((config.kl * divergence - gain) * batch.is_sampled).sum()
    is_clipped = (kept * batch.advantages < ratio * batch.advantages).float()
    return loss, (divergence.detach() * batch.is_sampled).sum(), (is_clipped * batch.is_sampled).sum()


async def train_grpo(
    checkpoint: str | Path,
    draw: DrawQuestions,
    config: GrpoConfig,
    directory: Path,
    held_out: Sequence[Question] = (),
    rank: int = 0,
    world: int = 1,
) -> None:
    """Trains a checkpoint's model until `config.steps`, sampling under the checkpoint's own policy.

    A run found in `directory` goes on after its last step. Process 0 writes `training.safetensors` after every step,
    `metrics.jsonl`, at the end `metrics.svg`, and for the last `keep_traces` steps the rollouts of all processes under
    `rollouts/`. Metrics are means over the trees of process 0; every `evaluate_every` steps, `held_out` is asked
    greedily. With `world` > 1 the default process group must be initialised: `run_processes` does that; every process
    has an engine of its own.

    A tree that runs into its limits scores 0. Raises `ValueError` for a score, a loss, a norm of the gradient or a
    weight that is not finite, naming it; `CheckpointError` for a checkpoint that cannot be loaded or a directory
    with a run of another model; and whatever the engine raises. Failed or cancelled, the run is as after its last whole
    step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    learner = Learner(checkpoint, config, directory, world)
    if rank == 0:
        drop_metrics_after(directory, learner.step)
    if learner.step >= config.steps:
        return
    threads = 1 if world > 1 else None
    # Another seed after a resumption, so that the numbers of trees, which begin anew, do not repeat old draws.
    seed = config.seed + 1_000_003 * (learner.step * world + rank)
    async with Engine.open(checkpoint, seed=seed, cpu_threads=threads) as engine:
        with progress_bar(config.steps, shown=rank == 0) as advance:
            while True:
                if learner.step > 0:
                    await engine.load_weights(learner.weights())
                is_over = learner.step >= config.steps
                measured: dict[str, float] = {}
                if rank == 0 and held_out and (learner.step % config.evaluate_every == 0 or is_over):
                    measured |= await _evaluate(engine, held_out)
                if is_over:
                    if rank == 0:
                        write_metrics(directory, {"step": learner.step, **measured})
                    break
                measured |= await _step(engine, learner, draw, directory, rank)
                if rank == 0:
                    # In this order: a kill in between leaves a line too many, which resuming drops.
                    write_metrics(directory, {"step": learner.step, **measured})
                    save(directory, learner.step, learner.model, [learner.optimizer])
                    advance(learner.step, f"score {measured['score']:.3f}, {measured['iterations']:,.0f} iterations")
    if rank == 0:
        await anyio.to_thread.run_sync(plot_where_possible, directory)


async def _step(engine: Engine, learner: Learner, draw: DrawQuestions, directory: Path, rank: int) -> dict[str, float]:
    config = learner.config
    chance = random.Random(f"{config.seed}/{rank}/{learner.step}")
    questions = [draw(chance) for _ in range(config.questions)]
    traces = directory / "rollouts"
    traces.mkdir(exist_ok=True)
    started = time.monotonic()
    groups = await roll_out(
        engine,
        questions,
        config.samples,
        sampling=Sampling.plain(config.temperature),
        prices=Prices(iterations=config.iteration_price, critical_path=config.path_price),
        trace=traces / f"{learner.step:06}-{rank}.trace",
    )
    (traces / f"{learner.step - config.keep_traces:06}-{rank}.trace").unlink(missing_ok=True)
    rolled = time.monotonic()
    measured = await anyio.to_thread.run_sync(learner.learn, groups)
    return {
        **summary([rollout for group in groups for rollout in group]),
        **measured,
        "rollout_seconds": rolled - started,
        "learning_seconds": time.monotonic() - rolled,
    }


def summary(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over trees."""

    def mean(values: Iterable[float]) -> float:
        return statistics.fmean(values) if rollouts else math.nan

    return {
        "reward": mean(rollout.reward for rollout in rollouts),
        "score": mean(rollout.score for rollout in rollouts),
        "tokens": mean(rollout.answer.usage.generated for rollout in rollouts),
        "iterations": mean(rollout.answer.usage.iterations for rollout in rollouts),
        "children": mean(rollout.answer.usage.threads - 1 for rollout in rollouts),
        "critical_path": mean(rollout.critical_path for rollout in rollouts),
    }


async def _evaluate(engine: Engine, questions: Sequence[Question]) -> dict[str, float]:
    answers = await ask_all(engine, questions, Sampling.plain(0))
    scores = [score_of(question, answer) for question, answer in zip(questions, answers, strict=True)]
    return {
        "held_out_score": statistics.fmean(scores),
        "held_out_iterations": statistics.fmean(answer.usage.iterations for answer in answers),
        "held_out_tokens": statistics.fmean(answer.usage.generated for answer in answers),
    }

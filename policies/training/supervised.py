"""Teacher-forced training of a depth-recurrent model on threads (arXiv 2502.05171, section 3).

    examples(random, step) -> pack -> for each batch: r no-grad iterations, k with gradient, weighted cross-entropy
    -> gradients summed over processes -> Muon for matrices, Adam for the rest -> metrics, checkpoint

Everything random is keyed by (seed, rank, step), so a resumed run continues exactly as if it had not been stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from policies.training.examples import Example, pack
from policies.training.finite import check_finite, whole_or_nothing
from policies.training.gradients import average_gradients
from policies.training.metrics import drop_metrics_after, write_metrics
from policies.training.optimizers import optimizers_for
from policies.training.plot import plot_where_possible
from policies.training.progress import progress_bar
from policies.training.resume import restore, save
from policies.training.schedule import SupervisedConfig, learning_rate, sample_iterations
from policies.training.teacher_forcing import TeacherForced, exactness
from runtime.model import Specification, Transformer

__all__ = [
    "DrawExamples",
    "SupervisedConfig",
    "TrainingRun",
    "exactness",
    "learning_rate",
    "optimizers_for",
    "sample_iterations",
    "train",
]

DrawExamples = Callable[[random.Random], Iterable[Example]]
"""Endless examples from a source of randomness; called once per step and process."""


class TrainingRun:
    """One process's part of a run: owns the model, the optimizers and the step counter."""

    def __init__(self, model: Transformer, config: SupervisedConfig, directory: Path, rank: int, world: int) -> None:
        self.model, self.config, self.directory, self.rank, self.world = model, config, directory, rank, world
        self.optimizers = optimizers_for(model, config)
        self.loss = TeacherForced(model, compile_model=config.compile, bfloat16=config.bfloat16)
        self.step = restore(directory, model, self.optimizers)

    def train_step(self, draw: DrawExamples) -> float:
        """One optimizer step over all processes; returns the mean loss a unit of weight, in nats.

        Raises `ValueError` for examples that the model cannot read or that have no weight at all, and, naming it, for
        a loss, a norm of the gradient or a weight that is not finite: everything is then as before.
        """
        config = self.config
        shared = random.Random(f"{config.seed}/{self.step}")
        own = random.Random(f"{config.seed}/{self.rank}/{self.step}")
        depth = sample_iterations(shared, config)
        examples = _share(draw(own), config.tokens_per_step, self.model.specification)
        noise = torch.Generator(self.model.device).manual_seed(own.getrandbits(63))
        loss_sum, weight = 0.0, 0.0
        for batch in pack(examples, config.tokens_per_batch):
            loss = self.loss.loss_sum(batch, *depth, noise)
            loss.backward()
            loss_sum += float(loss.detach())
            weight += float(batch.weights.sum())
        sums = average_gradients(self.model, torch.tensor([loss_sum, weight], device=self.model.device), self.world)
        if float(sums[1]) == 0.0:
            raise ValueError("No example of this step has a loss weight; give what a thread writes weights above 0.")
        mean_loss = float(sums[0] / sums[1])
        with whole_or_nothing(self.model, self.optimizers):
            check_finite("loss", mean_loss, "lower the learning rates, or look at the weights that training began with")
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
            check_finite("gradient norm", float(norm), "lower the learning rates")
            factor = learning_rate(self.step, config)
            for optimizer, rate in zip(self.optimizers, (config.muon_rate, config.adam_rate), strict=True):
                optimizer.param_groups[0]["lr"] = rate * factor
                optimizer.step()
                optimizer.zero_grad()
        self.step += 1
        return mean_loss


def train(
    model: Transformer,
    draw: DrawExamples,
    config: SupervisedConfig,
    directory: Path,
    held_out: Mapping[str, list[Example]],
    rank: int = 0,
    world: int = 1,
) -> None:
    """Trains `model`, initialised by the caller and on whatever device, until `config.steps`.

    A run found in `directory` goes on where it was, whatever the weights given. Process 0 writes
    `training.safetensors` (weights and optimizer state) at intervals, `metrics.jsonl` and at the end `metrics.svg`;
    a killed run loses at most `checkpoint_seconds` of work. Metrics are the loss (mean since the line before, in
    nats), seconds and tokens per second of this process's life, and for every set in `held_out` the share of threads
    that the model writes exactly (`exactness`, at its mean recurrence). With `world` > 1 the default process group
    must be initialised: `run_processes` does that.

    Raises `CheckpointError` if `directory` has a run of another model, and `ValueError` for unusable examples and for a
    step that would not be finite; the run is then as it was last saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(model, config, directory, rank, world)
    if rank > 0:
        while run.step < config.steps:
            run.train_step(draw)
        return
    drop_metrics_after(directory, run.step)
    started = saved = time.monotonic()
    first_step = logged = run.step
    loss_since = 0.0
    with progress_bar(config.steps) as advance:
        while run.step < config.steps:
            loss = run.train_step(draw)
            loss_since += loss
            is_last = run.step == config.steps
            seconds = time.monotonic() - started
            speed = (run.step - first_step) * config.tokens_per_step * world / seconds
            advance(run.step, f"loss {loss:.4f}, {speed:,.0f} tokens/s")
            if run.step % config.log_every == 0 or is_last:
                metrics: dict[str, float] = {
                    "step": run.step,
                    "loss": loss_since / (run.step - logged),
                    "seconds": seconds,
                    "tokens_per_second": speed,
                }
                if run.step % (config.log_every * 10) == 0 or is_last:
                    depth = model.specification.mean_recurrence
                    metrics |= {name: exactness(model, examples, depth) for name, examples in held_out.items()}
                write_metrics(directory, metrics)
                logged, loss_since = run.step, 0.0
            if time.monotonic() - saved > config.checkpoint_seconds or is_last:
                save(directory, run.step, model, run.optimizers)
                saved = time.monotonic()
    if run.step > first_step:
        plot_where_possible(directory)


def _share(examples: Iterable[Example], tokens: int, model: Specification) -> list[Example]:
    """The first examples, up to so many tokens. Raises `ValueError` for one that the model cannot read."""
    chosen, total = [], 0
    for example in examples:
        most = model.short_context or model.max_context
        if len(example.tokens) > most:
            raise ValueError(f"An example has {len(example.tokens)} tokens; the model's context has {most}.")
        if not (min(example.tokens, default=0) >= 0 and max(example.tokens, default=0) < model.vocab_size):
            raise ValueError(f"An example has a token outside the model's vocabulary of {model.vocab_size}.")
        chosen.append(example)
        total += len(example.tokens)
        if total >= tokens:
            break
    if not chosen:
        raise ValueError("There was no example to draw; examples must not run out.")
    return chosen

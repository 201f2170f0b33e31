"""Teacher-forced training of a depth-recurrent model on threads (arXiv 2502.05171, section 3).

    examples(random, step) -> pack -> for each batch: r no-grad iterations, k with gradient, weighted cross-entropy
    -> gradients summed over processes -> Muon for matrices, Adam for the rest -> metrics, checkpoint

One process per core, each with one thread, drawing its own examples and summing gradients: on small models that
is faster than one process with many threads. Everything random is keyed by (seed, rank, step), so a resumed run
continues exactly as if it had not been stopped.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn import functional as F

from policies.training.examples import Example, PackedBatch, pack
from policies.training.resume import restore, save
from runtime.model.raven import Raven, attend_causally

DrawExamples = Callable[[random.Random], Iterable[Example]]
"""Endless examples from a source of randomness; called once per step and process."""


class SupervisedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`tokens_per_step` counts one process's share; learning rates hold for `steps * hold`, then decay to zero."""

    steps: int
    seed: int = 0
    tokens_per_step: int = 4352
    tokens_per_batch: int = 4352
    mean_iterations: float = 4.0
    most_iterations: int = 8
    most_backprop: int = 6
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    weight_decay: float = 0.0
    warmup: int = 50
    hold: float = 0.3
    clip: float = 1.0
    log_every: int = 50
    compile: bool = True
    """Whether torch.compile is used: twice as fast, after a minute of compiling."""
    bfloat16: bool = True
    """Whether matrix products run in bfloat16; weights, attention and optimizers stay float32."""
    checkpoint_seconds: float = 120.0


def sample_iterations(random_source: random.Random, config: SupervisedConfig) -> tuple[int, int]:
    """Iterations without and with gradient: log-normal Poisson around the mean (section 3.3), clipped."""
    sigma = 0.5
    mu = math.log(max(config.mean_iterations - 1, 1e-3)) - sigma**2 / 2
    rate = random_source.lognormvariate(mu, sigma)
    count, product, threshold = 0, random_source.random(), math.exp(-rate)
    while product > threshold:
        count += 1
        product *= random_source.random()
    total = min(count + 1, config.most_iterations)
    with_gradient = min(total, config.most_backprop)
    return total - with_gradient, with_gradient


class TeacherForced:
    """The loss of one batch; `iterate` may be a compiled version of the model's own."""

    def __init__(self, model: Raven, compile_model: bool, bfloat16: bool) -> None:
        self.model = model
        self.bfloat16 = bfloat16
        self.embed: Callable[[Tensor, Tensor], Tensor] = self._embed
        self.iterate: Callable[[Tensor, Tensor, Tensor], Tensor] = self._iterate
        self.score: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = self._score
        if compile_model:
            self.iterate = torch.compile(self._iterate, dynamic=True)
            self.score = torch.compile(self._score, dynamic=True)

    def loss_sum(self, batch: PackedBatch, without_gradient: int, with_gradient: int) -> Tensor:
        """Sum of weight * cross-entropy over the batch's tokens, in nats."""
        rotation = self.model.rotation(torch.arange(batch.inputs.shape[1]))[None]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            embedded = self.embed(batch.inputs, rotation)
            state = torch.zeros_like(embedded)
            with torch.no_grad():
                for _ in range(without_gradient):
                    state = self.iterate(state, embedded, rotation)
            for _ in range(with_gradient):
                state = self.iterate(state, embedded, rotation)
            return self.score(state, rotation, batch.targets, batch.weights)

    def _embed(self, tokens: Tensor, rotation: Tensor) -> Tensor:
        return self.model.prelude(tokens, rotation, attend_in_float32)

    def _iterate(self, state: Tensor, embedded: Tensor, rotation: Tensor) -> Tensor:
        return self.model.iterate(state, embedded, rotation, attend_in_float32)

    def _score(self, state: Tensor, rotation: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        logits = self.model.coda(state, rotation, attend_in_float32)
        return (F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none") * weights.flatten()).sum()


def attend_in_float32(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention outside autocast: its bfloat16 backward pass is several times slower than float32 on CPUs."""
    with torch.autocast("cpu", enabled=False):
        return attend_causally(layer, query.float(), key.float(), value.float())


def learning_rate(step: int, config: SupervisedConfig) -> float:
    """Factor on both rates at `step`: linear warm-up, constant, linear to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    held = config.steps * config.hold
    return 1.0 if step < held else max(0.0, (config.steps - step) / (config.steps - held))


def optimizers_for(model: Raven, config: SupervisedConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks and adapter; Adam for embedding, head, norms and biases."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_table = "wte" in name or "lm_head" in name
        (matrices if parameter.ndim == 2 and not is_table else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=config.muon_rate, weight_decay=config.weight_decay),
        torch.optim.Adam(others, lr=config.adam_rate, betas=(0.9, 0.98)),
    ]


@torch.no_grad()
def exactness(model: Raven, examples: list[Example], iterations: int) -> float:
    """Share of threads whose every weighted token is the model's first choice, teacher-forced."""
    right, threads = 0, 0
    for batch in pack(examples, 8192):
        rotation = model.rotation(torch.arange(batch.inputs.shape[1]))[None]
        embedded = model.prelude(batch.inputs, rotation, attend_causally)
        state = torch.zeros_like(embedded)
        for _ in range(iterations):
            state = model.iterate(state, embedded, rotation, attend_causally)
        choices = model.coda(state, rotation, attend_causally).argmax(-1)
        right += int(((choices == batch.targets) | (batch.weights == 0)).all(1).sum())
        threads += len(choices)
    return right / threads


class TrainingRun:
    """One process's part of a run: owns the model, the optimizers and the step counter."""

    def __init__(self, model: Raven, config: SupervisedConfig, directory: Path, rank: int, world: int) -> None:
        self.model, self.config, self.directory, self.rank, self.world = model, config, directory, rank, world
        self.optimizers = optimizers_for(model, config)
        self.loss = TeacherForced(model, compile_model=config.compile, bfloat16=config.bfloat16)
        self.step = restore(directory, model, self.optimizers)

    def train_step(self, draw: DrawExamples) -> float:
        """One optimizer step over all processes; returns the mean loss a weighted token."""
        config = self.config
        shared = random.Random(f"{config.seed}/{self.step}")
        own = random.Random(f"{config.seed}/{self.rank}/{self.step}")
        depth = sample_iterations(shared, config)
        examples, tokens = [], 0
        for example in draw(own):
            examples.append(example)
            tokens += len(example.tokens)
            if tokens >= config.tokens_per_step:
                break
        loss_sum, weight = 0.0, 0.0
        for batch in pack(examples, config.tokens_per_batch):
            loss = self.loss.loss_sum(batch, *depth)
            loss.backward()
            loss_sum += float(loss.detach())
            weight += float(batch.weights.sum())
        loss_sum = self._average_gradients(loss_sum, weight)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        factor = learning_rate(self.step, config)
        for optimizer, rate in zip(self.optimizers, (config.muon_rate, config.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss_sum

    def _average_gradients(self, loss_sum: float, weight: float) -> float:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([loss_sum, weight])])
        if self.world > 1:
            distributed.all_reduce(flat)
        flat /= flat[-1].clone()
        for gradient, part in zip(gradients, flat[:-2].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        return float(flat[-2])


def train(
    model: Raven,
    draw: DrawExamples,
    config: SupervisedConfig,
    directory: Path,
    held_out: dict[str, list[Example]],
    rank: int = 0,
    world: int = 1,
) -> None:
    """Trains until `config.steps`, continuing from `directory` if a checkpoint is there.

    Writes `training.safetensors` (weights and optimizer state) at intervals and `metrics.jsonl`. With `world` > 1
    the default process group must be initialised. A killed run loses at most `checkpoint_seconds` of work.
    """
    torch.set_num_threads(1)
    run = TrainingRun(model, config, directory, rank, world)
    started = saved = time.monotonic()
    first_step, recent = run.step, 0.0
    while run.step < config.steps:
        recent += run.train_step(draw)
        if rank == 0 and run.step % config.log_every == 0:
            seconds = time.monotonic() - started
            metrics: dict[str, float] = {
                "step": run.step,
                "loss": recent / config.log_every,
                "seconds": seconds,
                "tokens_per_second": (run.step - first_step) * config.tokens_per_step * world / seconds,
            }
            if run.step % (config.log_every * 10) == 0:
                metrics |= {name: exactness(model, examples, 6) for name, examples in held_out.items()}
            with (directory / "metrics.jsonl").open("ab") as file:
                file.write(msgspec.json.encode(metrics) + b"\n")
            recent = 0.0
        if rank == 0 and (time.monotonic() - saved > config.checkpoint_seconds or run.step == config.steps):
            save(directory, run.step, model, run.optimizers)
            saved = time.monotonic()

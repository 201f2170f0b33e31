"""What a supervised run is told, and what varies from step to step: learning rates and iterations."""

from __future__ import annotations

import math
import random

import msgspec

from policies.validation import check_count, check_number


class SupervisedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`tokens_per_step` counts one process's share; learning rates hold for `steps * hold`, then decay to zero.

    Raises `ValueError`, naming the field, for what nothing can be learnt with.
    """

    steps: int
    seed: int = 0
    tokens_per_step: int = 4352
    tokens_per_batch: int = 4352
    mean_iterations: float = 4.0
    most_iterations: int = 8
    most_backprop: int = 6
    """The last iterations of a step that gradients pass through."""
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    weight_decay: float = 0.0
    warmup: int = 50
    hold: float = 0.3
    clip: float = 1.0
    log_every: int = 50
    """Steps from one line of metrics to the next; every tenth line, and the last, has the held-out examples."""
    compile: bool = True
    """Whether torch.compile is used: twice as fast, after a minute of compiling."""
    bfloat16: bool = True
    """Whether matrix products run in bfloat16; weights and optimizers stay float32, and attention on CPUs."""
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        counts = ("steps", "tokens_per_step", "tokens_per_batch", "most_iterations", "most_backprop", "log_every")
        for name in counts:
            check_count(self, name, getattr(self, name), 1)
        for name in ("seed", "warmup"):
            check_count(self, name, getattr(self, name), 0)
        check_number(self, "mean_iterations", self.mean_iterations, 1)
        for name in ("weight_decay", "checkpoint_seconds"):
            check_number(self, name, getattr(self, name), 0)
        for name in ("muon_rate", "adam_rate", "hold"):
            check_number(self, name, getattr(self, name), 0, 1)
        check_number(self, "clip", self.clip, 0, above=True)


def sample_iterations(random_source: random.Random, config: SupervisedConfig) -> tuple[int, int]:
    """Iterations of a step without and with gradient, at least 1 in all: log-normal Poisson (section 3.3).

    tau ~ Normal(log(mean - 1) - sigma^2 / 2, sigma), iterations ~ Poisson(e^tau) + 1, sigma 1/2; gradients pass
    through the last `most_backprop` of them. Two things differ from the paper and its code, because the models
    trained here iterate few times. There tau is centred on log(mean), so that a step takes mean + 1 iterations on
    average; here it takes the mean. And draws are cut at `most_iterations`, which bounds a step's time; the mean
    after the cut is a little lower. All processes draw the same number (the reference's `lockstep_n`), since every
    step waits for the deepest.
    """
    sigma = 0.5
    mu = math.log(max(config.mean_iterations - 1, 1e-3)) - sigma**2 / 2
    rate = random_source.lognormvariate(mu, sigma)
    # Knuth's way of drawing from Poisson(rate): one uniform factor per unit.
    count, product, threshold = 0, random_source.random(), math.exp(-rate)
    while product > threshold and count < config.most_iterations:
        count += 1
        product *= random_source.random()
    total = min(count + 1, config.most_iterations)
    with_gradient = min(total, config.most_backprop)
    return total - with_gradient, with_gradient


def learning_rate(step: int, config: SupervisedConfig) -> float:
    """Factor on both rates at `step`: linear warm-up, constant, linear to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    held = config.steps * config.hold
    return 1.0 if step < held else max(0.0, (config.steps - step) / (config.steps - held))

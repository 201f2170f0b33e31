"""A task that a tiny model begins to learn at once, and what a run of it leaves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch

from policies.training import (
    Example,
    SupervisedConfig,
)
from policies.training.metrics import read_metrics
from runtime.model.transformer import Transformer

CONFIG = SupervisedConfig(
    steps=6,
    tokens_per_step=200,
    tokens_per_batch=120,
    warmup=2,
    log_every=1,
    checkpoint_seconds=0.0,
    compile=False,
    bfloat16=False,
)


def successors(random_source: random.Random) -> Iterator[Example]:
    """After a prompt token, count upwards: a task that a tiny model begins to learn at once."""
    while True:
        start = random_source.randrange(30)
        tokens = [start + step for step in range(8)]
        yield Example(tokens, [0.0] + [1.0] * 7)


def of_length(lengths: list[int], chance: random.Random) -> list[Example]:
    return [Example([chance.randrange(40) for _ in range(length)], [0.0] + [1.0] * (length - 1)) for length in lengths]


def steps_logged(directory: Path) -> list[float]:
    return [metrics["step"] for metrics in read_metrics(directory)]


def differences(model: Transformer, other: Transformer) -> list[str]:
    others = dict(other.named_parameters())
    return [name for name, parameter in model.named_parameters() if not torch.equal(parameter, others[name])]

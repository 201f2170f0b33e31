"""Supervised training: packing, the depth it trains at, and going on after a kill as if nothing had happened."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from policies.training.examples import Example, pack
from policies.training.supervised import SupervisedConfig, exactness, learning_rate, sample_iterations, train
from runtime.model.raven import Raven
from tests.engine.tiny import tiny_model

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


def test_packing_keeps_every_weighted_token_and_pads_the_rest() -> None:
    chance = random.Random(0)
    examples = [
        Example([chance.randrange(40) for _ in range(length)], [0.0] + [1.0] * (length - 1))
        for length in (3, 40, 17, 5, 33, 16, 9)
    ]
    batches = list(pack(examples, tokens_per_batch=96))
    assert all(batch.inputs.numel() <= 96 for batch in batches)
    assert sum(float(batch.weights.sum()) for batch in batches) == sum(sum(example.weights) for example in examples)
    pairs = Counter(
        (int(a), int(b))
        for batch in batches
        for a, b, weight in zip(batch.inputs.flatten(), batch.targets.flatten(), batch.weights.flatten(), strict=True)
        if weight
    )
    assert pairs == Counter(pair for e in examples for pair in zip(e.tokens, e.tokens[1:], strict=False))


def test_iterations_spread_around_their_mean() -> None:
    chance = random.Random(1)
    drawn = [sample_iterations(chance, CONFIG) for _ in range(4000)]
    totals = [without + with_gradient for without, with_gradient in drawn]
    assert min(totals) == 1
    assert max(totals) == CONFIG.most_iterations
    assert max(with_gradient for _, with_gradient in drawn) == CONFIG.most_backprop
    assert sum(totals) / len(totals) == pytest.approx(CONFIG.mean_iterations, abs=0.3)


def test_the_rate_warms_up_holds_and_decays_to_zero() -> None:
    config = SupervisedConfig(steps=100, warmup=10, hold=0.5)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:51]) == {1.0}
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    def run(directory: Path, *stops: int) -> Raven:
        directory.mkdir()
        for steps in stops:
            model = tiny_model(5)
            # The schedule is the whole run's; a kill is a config that ends early but decays alike.
            train(model, successors, msgspec.structs.replace(CONFIG, steps=steps, hold=6.0), directory, {})
        return model

    whole, resumed = run(tmp_path / "whole", 6), run(tmp_path / "resumed", 3, 6)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name
    steps = [msgspec.json.decode(line)["step"] for line in (tmp_path / "resumed" / "metrics.jsonl").open("rb")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_training_teaches(tmp_path: Path) -> None:
    held_out = [example for example, _ in zip(successors(random.Random("held out")), range(20), strict=False)]
    model = tiny_model(5)
    before = exactness(model, held_out, 3)
    train(model, successors, msgspec.structs.replace(CONFIG, steps=150, log_every=50), tmp_path, {"all": held_out})
    losses = [msgspec.json.decode(line)["loss"] for line in (tmp_path / "metrics.jsonl").open("rb")]
    assert losses[-1] < losses[0] / 2
    assert exactness(model, held_out, 3) > before

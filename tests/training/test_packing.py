"""Examples packed into batches: no weighted token lost, no thread sees another, and what cannot be learned from."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.training import (
    Example,
    train,
)
from policies.training.examples import PackedBatch, pack
from policies.training.teacher_forcing import TeacherForced
from tests.engine.tiny import tiny_model
from tests.training.counting import CONFIG, of_length


@given(st.lists(st.integers(2, 60), min_size=1, max_size=12), st.integers(64, 200))
def test_packing_keeps_every_weighted_token_and_pads_the_rest(lengths: list[int], most: int) -> None:
    examples = of_length(lengths, random.Random(0))
    batches = list(pack(examples, tokens_per_batch=most))
    assert all(batch.inputs.numel() <= most for batch in batches)
    assert sum(len(batch.inputs) for batch in batches) == len(examples)
    pairs = Counter(
        (int(a), int(b))
        for batch in batches
        for a, b, weight in zip(batch.inputs.flatten(), batch.targets.flatten(), batch.weights.flatten(), strict=True)
        if weight
    )
    assert pairs == Counter(pair for e in examples for pair in zip(e.tokens, e.tokens[1:], strict=False))


@pytest.mark.parametrize("bad", [Example([1], [1.0]), Example([1, 2, 3], [1.0])])
def test_packing_names_what_is_wrong_with_an_example(bad: Example) -> None:
    with pytest.raises(ValueError, match="a weight for each"):
        list(pack([bad], 100))


@pytest.mark.parametrize("shape", [(0, 1, 0), (1, 2, 1), (2, 1, 3)])
@pytest.mark.parametrize("state_init", ["zero", "like-init"])
def test_threads_do_not_see_each_other_in_models_of_any_shape(shape: tuple[int, int, int], state_init: str) -> None:
    """The loss of a batch is that of its threads alone, whatever else is packed with them."""
    prelude, core, coda = shape
    model = tiny_model(2, prelude=prelude, core=core, coda=coda, state_init=state_init)
    forced = TeacherForced(model, compile_model=False, bfloat16=False)
    first, second = of_length([9, 14], random.Random(4))

    def loss(batch: PackedBatch) -> float:
        return float(forced.loss_sum(batch, 1, 2, torch.Generator().manual_seed(3)).detach())

    def with_second_as(example: Example) -> PackedBatch:
        return next(pack([first, example], 1000))

    together = with_second_as(second)
    silent = with_second_as(Example(second.tokens, [0.0] * 14))
    other = with_second_as(Example(second.tokens[::-1], [0.0] * 14))
    assert loss(silent) == pytest.approx(loss(other), rel=1e-5)
    assert loss(together) > loss(silent)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example([1] * 65, [1.0] * 65), "65 tokens; the model's context has 64"),
        (Example([1, 40], [0.0, 1.0]), "vocabulary of 40"),
        (Example([1, 2], [1.0, 0.0]), "No example of this step has a loss weight"),
        (None, "must not run out"),
    ],
)
def test_unusable_examples_are_explained(tmp_path: Path, example: Example | None, message: str) -> None:
    examples = [] if example is None else [example]
    with pytest.raises(ValueError, match=message):
        train(tiny_model(), lambda _: examples, CONFIG, tmp_path, {})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_loss_weights_that_mean_nothing_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="loss weight that is not finite or below 0"):
        list(pack([Example([1, 2, 3], [0.0, 1.0, weight])], 100))

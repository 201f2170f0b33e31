"""Nothing is learnt from what is not finite: a step ends in finite weights, or leaves everything as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def check_finite(name: str, value: float, advice: str) -> None:
    """Raises `ValueError`, naming the value and what to do, for NaN and the infinities."""
    if not math.isfinite(value):
        raise ValueError(f"The {name} is {value}; {advice}.")


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor with a number that is not finite; None where all are."""
    listed = list(named)
    if not listed or bool(torch.stack([tensor.isfinite().all() for _, tensor in listed]).all()):
        return None
    return next(name for name, tensor in listed if not bool(tensor.isfinite().all()))


@contextmanager
def whole_or_nothing(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Around a step: where it raises, or leaves a weight that is not finite, weights and optimizers are as before it.

    Raises `ValueError`, naming the weight, for one that is not finite.
    """
    before = [parameter.detach().clone() for parameter in model.parameters()]
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
    try:
        yield
        name = first_not_finite(model.named_parameters())
        if name is not None:
            raise ValueError(f"The step makes the weights {name} not finite; lower the learning rate.")
    except BaseException:
        with torch.no_grad():
            for parameter, old in zip(model.parameters(), before, strict=True):
                parameter.copy_(old)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)
            optimizer.zero_grad()
        raise

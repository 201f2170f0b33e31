"""Other weights for a model that is loaded: every tensor is looked at before the first is copied, in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.model.parameters import published_weights
from runtime.model.served import ServedModel
from runtime.model.weights import count_not_finite, listed


@torch.no_grad()
def replace_weights(model: ServedModel, weights: Mapping[str, Tensor]) -> None:
    """Copies tensors into a model's parameters, whose storage stays where it is.

    `weights` has a floating-point tensor for every parameter, by its published name and of its published shape, of any
    dtype and on any device. Of embedding and head one is enough where they are one. What follows from the
    configuration and is in checkpoints, such as Huginn's rotary table, may be there too. Raises `ValueError`, naming
    the tensor, for anything else and for numbers that are not finite in the model's dtype; that, or want of memory,
    comes before anything has changed.
    """
    chosen = [(own, _converted(name, given, own)) for name, given, own in _matched(model, weights)]
    for own, converted in chosen:
        own.copy_(converted)


def _matched(model: ServedModel, weights: Mapping[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    """(name, given tensor, the model's own) for each of the model's tensors that is given."""
    own, tensors = published_weights(model), model.config.published_tensors()
    head = model.config.head_name
    table = next(tensor.name for tensor in tensors if tensor.own == "embedding.weight")
    needed = {tensor.name for tensor in tensors if not tensor.is_optional}
    if head not in own:
        own[head] = own[table]
        needed -= {table} if head in weights else set()
    if unknown := [name for name in weights if name not in own]:
        raise ValueError(f"The weights have a tensor {listed(map(str, unknown))}, of which the model knows nothing.")
    if missing := [name for name in own if name in needed and name not in weights]:
        raise ValueError(
            f"The weights lack {listed(missing)}; expected a tensor of shape {list(own[missing[0]].shape)} for "
            f"{missing[0]}."
        )
    for name, given in weights.items():
        _check(name, given, own[name])
    both = [name for name in (table, head) if name in weights]
    if own[head] is own[table] and len(both) > 1 and not torch.equal(weights[table], weights[head]):
        raise ValueError(f"The weights have other numbers for {head} than for {table}; the model ties them.")
    return [(name, given, own[name]) for name, given in weights.items()]


def _check(name: str, given: Tensor, own: Tensor) -> None:
    if not isinstance(given, Tensor) or not given.is_floating_point():
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"{name} is {kind} in the weights; expected a floating-point tensor.")
    if given.shape != own.shape:
        raise ValueError(f"{name} has shape {list(given.shape)} in the weights; expected {list(own.shape)}.")


def _converted(name: str, given: Tensor, own: Tensor) -> Tensor:
    converted = given.to(own.device, own.dtype)
    if wrong := count_not_finite(converted):
        raise ValueError(f"{name} has {wrong} numbers in the weights that are not finite in {own.dtype}.")
    return converted

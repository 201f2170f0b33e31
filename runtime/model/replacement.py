"""Other weights for a model that is loaded: every tensor is looked at before the first is copied, in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.model.architecture import Model
from runtime.model.weights import count_not_finite, listed


@torch.no_grad()
def replace_weights(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Copies tensors into a model's parameters, whose storage stays where it is.

    `weights` has a floating-point tensor for every parameter, by its published name and of its shape [...], of any
    dtype and on any device. One name of a tied parameter is enough. Buffers that checkpoints hold, such as Raven's
    rotary table, may be there too. Raises `ValueError`, naming the tensor, for anything else and for numbers that are
    not finite in the model's dtype; that, or want of memory, comes before anything has changed.
    """
    chosen = [(own, _converted(name, given, own)) for name, given, own in _matched(model, weights)]
    for own, converted in chosen:
        own.copy_(converted)


def _matched(model: Model, weights: Mapping[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    """(name, given tensor, the model's own) for each of the model's tensors that is given."""
    stored = model.state_dict().keys()
    known = dict(model.named_parameters(remove_duplicate=False))
    names_of: dict[int, list[str]] = {}
    for name, parameter in known.items():
        names_of.setdefault(id(parameter), []).append(name)
    own: dict[str, Tensor] = {**known, **{name: held for name, held in model.named_buffers() if name in stored}}
    if unknown := [name for name in weights if name not in own]:
        raise ValueError(f"The weights have a tensor {listed(map(str, unknown))}, of which the model knows nothing.")
    if missing := [names[0] for names in names_of.values() if not any(name in weights for name in names)]:
        raise ValueError(
            f"The weights lack {listed(missing)}; expected a tensor of shape {list(own[missing[0]].shape)} for "
            f"{missing[0]}."
        )
    for name, given in weights.items():
        _check(name, given, own[name])
    for names in names_of.values():
        first, *others = (name for name in names if name in weights)
        for other in others:
            if not torch.equal(weights[other], weights[first]):
                raise ValueError(f"The weights have other numbers for {other} than for {first}; the model ties them.")
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

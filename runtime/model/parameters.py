"""A model's parameters under the names and shapes that checkpoints give them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime.model.served import ServedModel
from runtime.model.transformer import Transformer


def published_weights(model: ServedModel) -> dict[str, Tensor]:
    """Views of a model's own tensors by published name, without gradients; what is written to them is the model's.

    A head that is the embedding table is no tensor of its own.
    """
    views = {}
    for tensor in model.config.published_tensors():
        own = own_tensor(model, tensor.own).detach()
        if own.shape == tensor.shape:
            views[tensor.name] = own
            continue
        rows = math.prod(tensor.shape) // math.prod(own.shape[1:])
        views[tensor.name] = own[tensor.start : tensor.start + rows].view(tensor.shape)
    return views


def own_tensor(model: ServedModel, name: str) -> Tensor:
    """A parameter or buffer of a model by its own name."""
    module, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(module), attribute)
    return tensor


def initialise(model: Transformer, generator: torch.Generator) -> None:
    """Draws fresh weights as the reference implementation of the model's family does."""
    derived = derived_names(model)
    for name, tensor in published_weights(model).items():
        if name not in derived:
            model.config.draw(name, tensor, generator)


def derived_names(model: Transformer) -> frozenset[str]:
    """Published tensors that follow from the configuration: they are computed, and stay float32."""
    return frozenset(tensor.name for tensor in model.config.published_tensors() if tensor.is_optional)

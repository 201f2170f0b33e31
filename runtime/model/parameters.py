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
    for name, tensor in published_weights(model).items():
        if not is_derived(model, name):
            model.config.draw(name, tensor, generator)


def is_derived(model: Transformer, name: str) -> bool:
    """Whether a published tensor follows from the configuration: it is computed, and stays float32."""
    return any(tensor.name == name and tensor.is_optional for tensor in model.config.published_tensors())

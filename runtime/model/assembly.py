"""From the tensors of a checkpoint to a model; every name and size is looked at before memory is spent on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from runtime.errors import CheckpointError
from runtime.model.configuration import ModelConfig, PublishedTensor
from runtime.model.fitting import check_sizes
from runtime.model.parameters import published_weights
from runtime.model.transformer import Transformer
from runtime.model.weights import StoredTensor, StoredWeights, count_not_finite, listed

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What weights may be converted to."""

_IGNORED = "rotary_emb.inv_freq"
"""Older versions of transformers stored it for every layer; it follows from the configuration."""


def assemble(config: ModelConfig, weights: StoredWeights, dtype: torch.dtype, device: torch.device) -> Transformer:
    """The model of a configuration with the tensors that are stored for it, in evaluation mode.

    Parameters are of `dtype` on `device`; tables of rotations stay float32 and are computed where no file has them.
    Raises `CheckpointError`, naming file and tensor, for tensors that are not those of the configuration, and for
    numbers that are not finite in `dtype`.
    """
    stored = {name: tensor for name, tensor in weights.tensors.items() if not name.endswith(_IGNORED)}
    check_sizes(weights.config, config, stored)
    expected = {tensor.name: tensor for tensor in config.published_tensors()}
    _check_names_and_shapes(weights, config, stored, expected)
    with _Unallocated():
        model = Transformer(config)
    empty = {name: torch.empty(own.shape, dtype=dtype, device=device) for name, own in model.state_dict().items()}
    model.load_state_dict(empty, assign=True)
    if config.specification.tied:
        model.head.weight = model.embedding.weight
    model.rotaries.to(device)
    own = published_weights(model)
    head: Tensor | None = None
    for name, tensor in weights.read(stored):
        if name not in own:
            head = tensor
            continue
        own[name].copy_(tensor)
        if wrong := count_not_finite(own[name]):
            raise CheckpointError(
                f"{stored[name].file}: {name} has {wrong} numbers that are not finite in {own[name].dtype}; expected "
                "finite ones."
            )
    if head is not None:
        _check_tied(weights, config, head, own)
    return model.eval().requires_grad_(True)


class _Unallocated(TorchFunctionMode):
    """Makes parameters without memory or values, so that nothing is spent before the files are known to fit.

    Unlike `torch.device("meta")` it leaves computed buffers alone and draws nothing: computing without memory
    imports torch's compiler and sympy, which takes 1.5 s.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.ones, torch.zeros):
            kwargs = {**kwargs, "device": "meta"}
        return None if func is nn.init.normal_ else func(*args, **kwargs)


def _check_tied(weights: StoredWeights, config: ModelConfig, head: Tensor, own: Mapping[str, Tensor]) -> None:
    """Raises `CheckpointError` where a head is stored that should be the embedding table, and is not."""
    table = next(tensor.name for tensor in config.published_tensors() if tensor.own == "embedding.weight")
    if not torch.equal(head.to(own[table].device, own[table].dtype), own[table]):
        raise CheckpointError(
            f"{weights.tensors[config.head_name].file}: {config.head_name} differs from {table}; expected equal "
            f"tensors, or no {config.head_name}, because {config.keys['tied']} is true in {weights.config}."
        )


def _check_names_and_shapes(
    weights: StoredWeights,
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, PublishedTensor],
) -> None:
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    if config.specification.tied:
        shapes[config.head_name] = (config.specification.table_rows, config.specification.width)
    said = weights.config.name
    if missing := [name for name, tensor in expected.items() if name not in stored and not tensor.is_optional]:
        raise CheckpointError(
            f"{weights.file}: no tensor {listed(missing)}; expected shape {list(shapes[missing[0]])} for {missing[0]}, "
            f"from {said}."
        )
    if unexpected := [name for name in stored if name not in shapes]:
        raise CheckpointError(
            f"{stored[unexpected[0]].file}: unexpected tensor {listed(unexpected)}; {said} describes a model "
            "without it."
        )
    for name, tensor in stored.items():
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}; expected {list(shapes[name])}, from {said}."
            )

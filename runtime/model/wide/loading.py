"""From the tensors of a checkpoint to a model of transformers, by transformers' own conversion of names.

Its `from_pretrained` replaces functions of torch and of its own classes while it works, for the whole process; the
parts of it that are used here do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from runtime.errors import CheckpointError, described
from runtime.model.weights import StoredTensor, StoredWeights, count_not_finite, listed
from runtime.model.wide.configuration import WideConfig
from runtime.model.wide.interface import RUNNING
from runtime.model.wide.model import WideModel
from runtime.model.wide.probing import NotServable


def load_wide(config: WideConfig, weights: StoredWeights, dtype: torch.dtype, device: torch.device) -> WideModel:
    """The model of a configuration with the tensors that are stored for it, tried out over a few tokens.

    Raises `CheckpointError`, naming file and reason, for tensors that are not those of the configuration, for numbers
    that are not finite in `dtype`, and for a model that cannot be run over the paged cache.
    """
    where = weights.config
    _check_layers(where, config, weights.tensors)
    with _Unallocated():
        causal = _made(where, config)
    _check_numbers(where, causal, weights.tensors)
    for tensor in causal.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    _load(causal, weights, dtype, device)
    causal.to(device).eval()
    try:
        return WideModel(config, causal)
    except NotServable as error:
        reason = str(error)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        reason = f"it fails over a few tokens ({described(error)})"
    raise CheckpointError(f"{where}: model_type {config.family!r} cannot be run: {reason}.")


def _made(where: Path, config: WideConfig) -> Any:
    published = type(config.published).from_dict(config.published.to_dict())
    published._attn_implementation = RUNNING
    published.use_cache = False
    try:
        return config.model_class(published)
    except Exception as error:
        raise CheckpointError(f"{where}: transformers makes no model of it ({described(error)}).") from error


class _Unallocated(TorchFunctionMode):
    """Makes parameters without memory, so that nothing is spent before the files are known to fit. Holds for this
    thread alone, and unlike `torch.device("meta")` leaves what is computed alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **{**kwargs, "device": "meta"}) if func is torch.empty else func(*args, **kwargs)


def _check_layers(where: Path, config: WideConfig, stored: Mapping[str, StoredTensor]) -> None:
    layers = getattr(config.published.get_text_config(decoder=True), "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > len(stored):
        raise CheckpointError(
            f"{where}: num_hidden_layers is {layers}, but the weights are {len(stored)} tensors; expected the "
            "configuration of the weights beside it."
        )


def _check_numbers(where: Path, causal: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Raises `CheckpointError` for a model that is larger than its files, before memory is spent on it."""
    given = sum(math.prod(tensor.shape) for tensor in stored.values())
    needed = sum(parameter.numel() for parameter in causal.parameters())
    # Tensors that are missing are named later; what counts here is proportion.
    if needed > 2 * given:
        raise CheckpointError(
            f"{where}: describes a model of {needed} numbers, but the weights are {given}; expected the configuration "
            "of the weights beside it."
        )


def _load(causal: Any, weights: StoredWeights, dtype: torch.dtype, device: torch.device) -> None:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.read(weights.tensors):
        if wrong := count_not_finite(tensor.to(dtype)):
            raise CheckpointError(
                f"{weights.tensors[name].file}: {name} has {wrong} numbers that are not finite in {dtype}; expected "
                "finite ones."
            )
        tensors[name] = tensor
    conversions: Any = get_model_conversion_mapping(causal)
    options = LoadStateDictConfig(
        dtype=dtype, dtype_plan=causal._get_dtype_plan(dtype), device_map={"": device}, weight_mapping=conversions
    )
    info, _ = convert_and_load_state_dict_in_model(causal, tensors, options, None)
    causal.mark_tied_weights_as_initialized(info)
    causal.tie_weights(missing_keys=info.missing_keys)
    causal._adjust_missing_and_unexpected_keys(info)
    for problem, names in {
        "no tensor": info.missing_keys,
        "unexpected tensor": info.unexpected_keys,
        "another shape than expected of": [name for name, *_ in info.mismatched_keys],
    }.items():
        if names:
            raise CheckpointError(
                f"{weights.file}: {problem} {listed(sorted(names))}, by transformers' name; expected the tensors that "
                f"{weights.config.name} describes."
            )
    if info.conversion_errors or info.error_msgs:
        errors = [*info.conversion_errors.values(), *info.error_msgs]
        raise CheckpointError(f"{weights.file}: transformers cannot convert its tensors ({str(errors[0]).strip()}).")
    mapped = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    for parameter in (*causal.parameters(), *causal.buffers()):
        # A view of a file would change with it.
        if parameter.untyped_storage().data_ptr() in mapped:
            parameter.data = parameter.data.clone()

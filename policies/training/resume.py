"""Saving and restoring a training run as one safetensors file: weights, optimizer state and step."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from policies.training.finite import first_not_finite
from runtime import CheckpointError
from runtime.model import replacing

FILE = "training.safetensors"


def save(directory: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Writes the run's state; the file is replaced in one move, so a kill leaves the old or the new one.

    Raises `ValueError` for weights that are not finite; the file is then as it was.
    """
    name = first_not_finite(model.named_parameters())
    if name is not None:
        raise ValueError(f"The weights {name} are not finite and not saved.")
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, parameter in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state[parameter].items():
                tensors[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value).detach()
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / FILE) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {"step": str(step)})


def restore(directory: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer] | None = None) -> int:
    """Loads what `save` wrote into the model and, if given, the optimizers; returns its step, 0 without a file.

    Raises `CheckpointError`, naming the file, if it is not such a file, is a run of another model or has weights that
    are not finite; the model and the optimizers are then as they were.
    """
    path = directory / FILE
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step = int((file.metadata() or {})["step"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a training run ({error}). Move it away to start anew.") from error
    _check(path, tensors, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for number, optimizer in enumerate(optimizers or ()):
        parameters = _parameters(optimizer)
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                _, _, index, key = name.split(".")
                owner = parameters[int(index)]
                # PyTorch's optimizers keep their step counts, which are scalars, on the CPU.
                optimizer.state[owner][key] = tensor.to(owner.device) if tensor.ndim else tensor
    return step


def _check(path: Path, tensors: dict[str, Tensor], model: nn.Module) -> None:
    ours = {f"model.{name}": tuple(parameter.shape) for name, parameter in model.named_parameters()}
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("model.")}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise CheckpointError(
                f"{path}: a run of another model: {name.removeprefix('model.')} is {_shown(theirs.get(name))} there "
                f"and {_shown(ours.get(name))} here. Choose another directory, or the model that was trained there."
            )
    wrong = first_not_finite(tensors.items())
    if wrong is not None:
        raise CheckpointError(f"{path}: {wrong} is not finite. Move it away to start anew.")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

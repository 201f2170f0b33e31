"""Gradients of all processes of a run, made into one."""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor, nn


def average_gradients(model: nn.Module, sums: Tensor, world: int) -> Tensor:
    """Makes gradients of summed losses those of the mean, and returns `sums` [k] float32 summed over all processes.

    The last of `sums` is what losses are summed over, in this process; where it is 0 in all of them, gradients stay
    sums. Parameters without a gradient get one of zeros. With `world` > 1 the default process group is used.
    """
    parameters = list(model.parameters())
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), sums])
    if world > 1:
        distributed.all_reduce(flat)
    sums = flat[-len(sums) :].clone()
    if float(sums[-1]) > 0:
        flat /= sums[-1]
    parts = flat[: -len(sums)].split([each.numel() for each in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()
    return sums

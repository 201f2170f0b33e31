"""What a model is taught from: threads as token sequences, and how they are packed into batches."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import torch
from torch import Tensor


class Example(msgspec.Struct, frozen=True):
    """One thread. `weights[i]` is the loss weight of predicting `tokens[i]`: 0 for prompts and messages received."""

    tokens: list[int]
    weights: list[float]


class PackedBatch(msgspec.Struct, frozen=True):
    """Threads padded at the end to one length; causal attention never sees the padding.

    inputs [batch, length] int64; targets [batch, length] int64 (the next token); weights [batch, length] float32.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor


def pack(examples: list[Example], tokens_per_batch: int, length_step: int = 16) -> Iterator[PackedBatch]:
    """Groups examples of like length into batches of at most `tokens_per_batch` tokens, padding included.

    Lengths are rounded up to a multiple of `length_step`, so that few shapes occur.
    """
    ordered = sorted(examples, key=lambda example: len(example.tokens))
    group: list[Example] = []
    for example in ordered:
        length = _rounded(len(example.tokens) - 1, length_step)
        if group and length * (len(group) + 1) > tokens_per_batch:
            yield _padded(group, length_step)
            group = []
        group.append(example)
    if group:
        yield _padded(group, length_step)


def _rounded(length: int, step: int) -> int:
    return -(-length // step) * step


def _padded(group: list[Example], length_step: int) -> PackedBatch:
    length = _rounded(len(group[-1].tokens) - 1, length_step)
    inputs = torch.zeros(len(group), length, dtype=torch.int64)
    targets = torch.zeros(len(group), length, dtype=torch.int64)
    weights = torch.zeros(len(group), length)
    for row, example in enumerate(group):
        tokens = torch.tensor(example.tokens)
        inputs[row, : len(tokens) - 1] = tokens[:-1]
        targets[row, : len(tokens) - 1] = tokens[1:]
        weights[row, : len(tokens) - 1] = torch.tensor(example.weights[1:])
    return PackedBatch(inputs, targets, weights)

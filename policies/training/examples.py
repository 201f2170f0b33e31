"""What a model is taught from: threads as token sequences, and how they are packed into batches."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import torch
from torch import Tensor

from policies.training.batching import LENGTH_STEP, by_length, rounded


class Example(msgspec.Struct, frozen=True):
    """One thread. `weights[i]` is the loss weight of predicting `tokens[i]`: 0 for prompts and messages received.

    Nothing predicts `tokens[0]`, so that `weights[0]` is never used.
    """

    tokens: list[int]
    weights: list[float]


class PackedBatch(msgspec.Struct, frozen=True):
    """Threads, one a row, padded at the end to one length; causal attention never sees the padding.

    inputs [batch, length] int64; targets [batch, length] int64 (the next token); weights [batch, length] float32, 0
    on padding.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor


def pack(examples: list[Example], tokens_per_batch: int, length_step: int = LENGTH_STEP) -> Iterator[PackedBatch]:
    """Groups examples of like length into batches of at most `tokens_per_batch` tokens, padding included.

    An example that is longer by itself makes a batch of its own. A row is one thread, so that none attends to
    another. Lengths are rounded up to a multiple of `length_step`, so that few shapes occur. Raises `ValueError` for
    an example with fewer than two tokens, or without a weight for each that is finite and at least 0.
    """
    for example in examples:
        if len(example.tokens) < 2 or len(example.tokens) != len(example.weights):
            raise ValueError(
                f"An example has {len(example.tokens)} tokens and {len(example.weights)} weights; it needs at least "
                "two tokens, and a weight for each."
            )
        if not all(0 <= weight < math.inf for weight in example.weights):
            raise ValueError("An example has a loss weight that is not finite or below 0; 0 is for what is not learnt.")
    for group in by_length(examples, lambda example: len(example.tokens) - 1, tokens_per_batch, length_step):
        yield _padded(group, length_step)


def on_device(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """The batch with its tensors on `device`; the batch itself where they are there already."""
    if batch.inputs.device == device:
        return batch
    return PackedBatch(batch.inputs.to(device), batch.targets.to(device), batch.weights.to(device))


def _padded(group: list[Example], length_step: int) -> PackedBatch:
    length = rounded(len(group[-1].tokens) - 1, length_step)
    inputs = torch.zeros(len(group), length, dtype=torch.int64)
    targets = torch.zeros(len(group), length, dtype=torch.int64)
    weights = torch.zeros(len(group), length)
    for row, example in enumerate(group):
        tokens = torch.tensor(example.tokens)
        inputs[row, : len(tokens) - 1] = tokens[:-1]
        targets[row, : len(tokens) - 1] = tokens[1:]
        weights[row, : len(tokens) - 1] = torch.tensor(example.weights[1:])
    return PackedBatch(inputs, targets, weights)

"""Attention as tokens of several depths see each other: whoever has exited shows what it wrote last."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.model import Attend, Transformer


class LastWritten:
    """Keys and values of every token's last iteration, by core layer; one for each pass over a batch."""

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._written: dict[int, tuple[Tensor, Tensor]] = {}

    def attending(self, goes_on: Tensor) -> Attend:
        """Dense causal attention for one iteration, which only tokens of the mask [batch, length] still do.

        The others' keys and values are as they were before it. In a first iteration the mask does not matter.
        """
        fresh = goes_on[..., None, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if layer in self._written:
                old_key, old_value = self._written[layer]
                key, value = torch.where(fresh, key, old_key), torch.where(fresh, value, old_value)
            self._written[layer] = key, value
            return self._model.attend_causally(layer, query, key, value)

        return attend

"""Depth-recurrent models that programs make, with the head under its published name."""

from __future__ import annotations

import torch
from torch import nn

from runtime.model.families.raven import RavenConfig
from runtime.model.parameters import initialise
from runtime.model.transformer import Transformer


class Raven(Transformer):
    """A model of the Huginn family (arXiv 2502.05171); `initialise` draws its weights."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__(config)

    def initialise(self, generator: torch.Generator) -> None:
        """Draws fresh weights as the reference implementation does."""
        initialise(self, generator)

    @property
    def lm_head(self) -> nn.Linear:
        """From the width to logits."""
        return self.head

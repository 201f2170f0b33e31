"""Models with random weights to measure on; their sizes are what counts."""

from __future__ import annotations

import math

import torch

from runtime.model.config import RavenConfig
from runtime.model.raven import Raven

VOCABULARY = 215
"""Tokens of the Countdown model."""


def embedded_shape(context: int = 512) -> Raven:
    """The shape of the Countdown model that comes with the package; `context` is the longest one in tokens."""
    return _drawn(
        RavenConfig(
            n_embd=128,
            n_heads=4,
            intermediate_size=512,
            vocab_size=VOCABULARY,
            block_size=context,
            n_layers_in_prelude=0,
            n_layers_in_recurrent_block=1,
            n_layers_in_coda=0,
            mean_recurrence=6,
            qk_bias=False,
            tie_embeddings=False,
            state_init="zero",
        )
    )


def smallest(context: int = 128) -> Raven:
    """So small that everything but arithmetic shows."""
    return _drawn(
        RavenConfig(
            n_embd=16,
            n_heads=2,
            intermediate_size=24,
            vocab_size=64,
            block_size=context,
            n_layers_in_prelude=0,
            n_layers_in_recurrent_block=1,
            n_layers_in_coda=0,
            mean_recurrence=1,
            state_init="zero",
        )
    )


def uneven(width: int, most: int, context: int = 512) -> Raven:
    """A model whose latent state settles at very different speeds, by token.

    The input of a token is up to a hundred times stronger than another's, and a state that its input dominates
    settles sooner. (A prelude would norm that away, so there is none.)
    """
    model = _drawn(
        RavenConfig(
            n_embd=width,
            n_heads=4,
            intermediate_size=4 * width,
            vocab_size=VOCABULARY,
            block_size=context,
            n_layers_in_prelude=0,
            n_layers_in_recurrent_block=2,
            n_layers_in_coda=1,
            mean_recurrence=most,
            tie_embeddings=False,
            state_init="zero",
        )
    )
    with torch.no_grad():
        rows = torch.rand(model.config.vocab_size, 1, generator=torch.Generator().manual_seed(1))
        model.transformer.wte.weight.mul_(0.3 * torch.exp(rows * math.log(100)))
        model.transformer.adapter.weight[:, :width].mul_(0.5)
    return model


def _drawn(config: RavenConfig) -> Raven:
    model = Raven(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval()

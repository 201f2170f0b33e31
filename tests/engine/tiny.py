"""A model small enough for hundreds of random programs."""

from __future__ import annotations

import torch

from runtime.model.families.raven import RavenConfig
from runtime.model.parameters import initialise, published_weights
from runtime.model.transformer import Transformer


def tiny_model(
    seed: int = 0, *, prelude: int = 1, core: int = 1, coda: int = 1, state_init: str = "zero"
) -> Transformer:
    """Random weights, sharpened so that greedy tokens vary."""
    config = RavenConfig(
        n_embd=16,
        n_heads=2,
        intermediate_size=24,
        vocab_size=40,
        block_size=64,
        n_layers_in_prelude=prelude,
        n_layers_in_recurrent_block=core,
        n_layers_in_coda=coda,
        mean_recurrence=3,
        state_init=state_init,
        tie_embeddings=False,
    )
    model = Transformer(config)
    initialise(model, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.head.weight.mul_(4.0)
        for name, parameter in published_weights(model).items():
            if name.endswith("proj.weight"):
                parameter.mul_(6.0)
    return model.eval()

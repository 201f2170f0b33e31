"""A depth-recurrent model that a program makes is one that checkpoints can hold."""

from __future__ import annotations

from pathlib import Path

import torch

from runtime.model.checkpoint import load_checkpoint, save_checkpoint
from runtime.model.config import RavenConfig
from runtime.model.parameters import published_weights
from runtime.model.raven import Raven


def test_a_raven_is_drawn_saved_and_loaded(tmp_path: Path) -> None:
    config = RavenConfig(
        n_embd=16,
        n_heads=2,
        intermediate_size=24,
        vocab_size=40,
        block_size=64,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=1,
        n_layers_in_coda=1,
        mean_recurrence=3,
        state_init="zero",
        tie_embeddings=False,
    )
    model = Raven(config)
    model.initialise(torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.lm_head.weight.mul_(4.0)
    save_checkpoint(tmp_path, model)
    loaded = load_checkpoint(tmp_path).model
    assert loaded.config == config
    for name, tensor in published_weights(model).items():
        assert torch.equal(published_weights(loaded)[name], tensor), name

"""Small random models, saved ones, and how to run one densely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.model.checkpoint import save_checkpoint
from runtime.model.families.raven import RavenConfig
from runtime.model.transformer import Transformer

MakeModel = Callable[..., Transformer]
RunDense = Callable[[Transformer, Tensor, int], Tensor]


@pytest.fixture
def make_model() -> MakeModel:
    """`make_model(**changes)`: a random model of a few thousand parameters; changes are fields of its configuration."""

    def make(**changes: Any) -> Transformer:
        fields = {
            "n_embd": 16,
            "n_heads": 2,
            "intermediate_size": 24,
            "vocab_size": 40,
            "block_size": 32,
            "n_layers_in_prelude": 1,
            "n_layers_in_recurrent_block": 2,
            "n_layers_in_coda": 1,
            "mean_recurrence": 4,
        }
        model = Transformer(RavenConfig(**{**fields, **changes}))
        generator = torch.Generator().manual_seed(len(changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.5, 0.5, generator=generator)
        return model.eval()

    return make


@pytest.fixture
def saved(tmp_path: Path, make_model: MakeModel) -> Path:
    """A complete checkpoint of a small tied model, to be damaged."""
    directory = tmp_path / "model"
    save_checkpoint(directory, make_model())
    return directory


@pytest.fixture
def run_dense() -> RunDense:
    """`run_dense(model, tokens, iterations)`: logits [batch, length, vocab] from a zero initial state."""

    @torch.no_grad()
    def run(model: Transformer, tokens: Tensor, iterations: int) -> Tensor:
        rotation = model.rotation(torch.arange(tokens.shape[-1]))
        embedded = model.prelude(tokens, rotation, model.attend_causally)
        state = torch.zeros_like(embedded)
        for _ in range(iterations):
            state = model.iterate(state, embedded, rotation, model.attend_causally)
        return model.coda(state, rotation, model.attend_causally)

    return run

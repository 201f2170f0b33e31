"""Which optimizer updates which parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.training.schedule import SupervisedConfig
from runtime.model import Transformer


def optimizers_for(model: Transformer, config: SupervisedConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks and adapter; Adam for embedding, head, norms and biases."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    tables = model.embedding.weight, model.head.weight
    for parameter in model.parameters():
        is_table = any(parameter is table for table in tables)
        (matrices if parameter.ndim == 2 and not is_table else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=config.muon_rate, weight_decay=config.weight_decay),
        torch.optim.Adam(others, lr=config.adam_rate, betas=(0.9, 0.98)),
    ]

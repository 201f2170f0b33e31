"""From a model's parameters to the arrays that the native functions read."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.backend.native.products import PANEL
from runtime.backend.native.tick_buffers import PackedWeights, Stored
from runtime.model.transformer import Layer, Transformer


@torch.no_grad()
def pack(model: Transformer) -> PackedWeights:
    """Copies a model's parameters, on the CPU in float32 or bfloat16."""
    own = model.specification
    layers: list[Layer] = [layer for layer in model.layers if isinstance(layer, Layer)]
    width = own.width
    matrices = [matrix for layer in layers for matrix in _matrices(model, layer)]
    matrices.append(torch.zeros(0, 2 * width, dtype=model.dtype) if model.adapter is None else model.adapter.weight)
    matrices.append(model.head.weight[: own.vocab_size])
    panels = [_panels(matrix) for matrix in matrices]
    starts = np.cumsum([0, *(len(panel) for panel in panels)])[:-1]
    described = [
        (start, matrix.shape[1], -(-matrix.shape[0] // PANEL)) for start, matrix in zip(starts, matrices, strict=True)
    ]
    norms = torch.ones(4 * len(layers) + 1, width)
    biases = torch.zeros(len(layers), (own.heads + own.kv_heads) * own.head_dim)
    for number, layer in enumerate(layers):
        places = [layer.attention_norms.before, layer.attention_norms.total]
        places += [layer.mlp_norms.before, layer.mlp_norms.total]
        if not own.norms.total:
            places = [layer.attention_norms.before, layer.mlp_norms.before]
        for place, norm in enumerate(places):
            norms[4 * number + place] = norm.get_parameter("weight").float()
        if layer.attention.bias is not None:
            biases[number] = layer.attention.bias.float()
    norms[-1] = model.final_norm.weight.float()
    bias = None if model.adapter is None else model.adapter.bias
    return PackedWeights(
        weights=np.concatenate([as_stored(panel) for panel in panels]),
        matrices=np.array(described, np.int64),
        table=as_stored(model.embedding.weight.flatten()).copy(),
        norms=norms.numpy(),
        query_key_bias=biases.numpy(),
        adapter_bias=(torch.zeros(width) if bias is None else bias.detach().float()).numpy().copy(),
        rotation=_rotation(model),
    )


def as_stored(tensor: Tensor) -> Stored:
    """A view of a tensor; NumPy has no bfloat16, so that is viewed as uint16."""
    tensor = tensor.detach()
    view: Stored = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return view


def _matrices(model: Transformer, layer: Layer) -> tuple[Tensor, ...]:
    """A layer's, [out, in]: queries, keys and values; output; gate and up; down."""
    own, attention, mlp = model.specification, layer.attention, layer.mlp
    projected = attention.query_key_value.weight
    if own.rotaries[0].pairs == "halves":
        turned = (own.heads + own.kv_heads) * own.head_dim
        projected = torch.cat([_paired(projected[:turned], own.head_dim), projected[turned:]])
    return projected, attention.output.weight, _interleaved(mlp.gate_up.weight), mlp.down.weight


def _paired(weight: Tensor, head_dim: int) -> Tensor:
    """Query or key rows whose rotated pairs are (i, i + head_dim / 2) in an order in which pairs are neighbours.

    Products of queries and keys are the same in any order that both have.
    """
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _rotation(model: Transformer) -> NDArray[np.float32]:
    rotation = model.rotation(torch.arange(model.specification.max_context))[0]
    array: NDArray[np.float32] = rotation.float().contiguous().numpy()
    return array


def _interleaved(gate_up: Tensor) -> Tensor:
    """Gate rows and up rows, [2 m, in], in turns of half a panel, so that a panel holds both of each output."""
    half = PANEL // 2
    gate, up = gate_up.detach().chunk(2)
    groups = -(-len(gate) // half)
    padded = [torch.nn.functional.pad(part, (0, 0, 0, groups * half - len(part))) for part in (gate, up)]
    return torch.stack([part.view(groups, half, -1) for part in padded], dim=1).flatten(0, 2)


def _panels(matrix: Tensor) -> Tensor:
    """A matrix [out, in] as panels of 64 outputs, flat: [panels, in, 64], and for bfloat16 [panels, in / 2, 64, 2]."""
    matrix = matrix.detach()
    outputs, inputs = matrix.shape
    step = 2 if matrix.dtype is torch.bfloat16 else 1
    padded = torch.nn.functional.pad(matrix, (0, -inputs % step, 0, -outputs % PANEL))
    return padded.view(-1, PANEL, padded.shape[1] // step, step).transpose(1, 2).flatten()

"""From a model's parameters to the arrays that the native functions read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from runtime.backend.native.products import PANEL
from runtime.backend.native.tick_buffers import Float32, Int64, PackedWeights, Stored
from runtime.model.rotary import Rotary
from runtime.model.specification import Specification
from runtime.model.transformer import Layer, RMSNorm, Transformer


@torch.no_grad()
def pack(model: Transformer) -> PackedWeights:
    """Copies a model's parameters, on the CPU in float32 or bfloat16."""
    own = model.specification
    layers: list[Layer] = [layer for layer in model.layers if isinstance(layer, Layer)]
    width = own.width
    matrices = [matrix for number, layer in enumerate(layers) for matrix in _matrices(own, layer, number)]
    matrices.append(torch.zeros(0, 2 * width, dtype=model.dtype) if model.adapter is None else model.adapter.weight)
    matrices.append(model.head.weight[: own.vocab_size])
    panels = [_panels(matrix) for matrix in matrices]
    starts = np.cumsum([0, *(len(panel) for panel in panels)])[:-1]
    described = [
        (start, matrix.shape[1], -(-matrix.shape[0] // PANEL)) for start, matrix in zip(starts, matrices, strict=True)
    ]
    adapter_bias = None if model.adapter is None else model.adapter.bias
    gate = model.exit_gate
    rotation, layer_table = _rotations(model)
    return PackedWeights(
        weights=np.concatenate([as_stored(panel) for panel in panels]),
        matrices=np.array(described, np.int64),
        table=as_stored(model.embedding.weight.flatten()).copy(),
        norms=_floats([norm for layer in layers for norm in _norms(own, layer)] + [_norm(model.final_norm, width)]),
        query_key_norms=_floats([_query_key_norms(own, layer, number) for number, layer in enumerate(layers)]),
        projection_bias=_floats([_projection_bias(own, layer, number) for number, layer in enumerate(layers)]),
        half_bias=_floats(
            [_or_zeros(linear.bias, width) for layer in layers for linear in (layer.attention.output, layer.mlp.down)]
        ),
        gate_bias=_floats([_interleaved(_or_zeros(layer.mlp.gate_up.bias, 2 * own.mlp_width)) for layer in layers]),
        adapter_bias=_floats([_or_zeros(adapter_bias, width)])[0],
        exit_gate=_floats([torch.zeros(width + 1) if gate is None else torch.cat([gate.weight[0], gate.bias])])[0],
        rotation=rotation,
        layer_table=layer_table,
    )


def as_stored(tensor: Tensor) -> Stored:
    """A view of a tensor; NumPy has no bfloat16, so that is viewed as uint16."""
    tensor = tensor.detach()
    view: Stored = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return view


def _floats(rows: list[Tensor]) -> Float32:
    """Rows of the same length, copied."""
    array: Float32 = torch.stack([row.float() for row in rows]).numpy()
    return array


def _or_zeros(vector: Tensor | None, length: int) -> Tensor:
    return torch.zeros(length) if vector is None else vector


# ---- single layers --------------------------------------------------------------------------------------------------


def _matrices(own: Specification, layer: Layer, number: int) -> tuple[Tensor, ...]:
    """A layer's, [out, in]: queries, keys and values; output; gate and up; down."""
    attention, mlp = layer.attention, layer.mlp
    projected = _in_pairs(own, number, attention.query_key_value.weight)
    return projected, attention.output.weight, _interleaved(mlp.gate_up.weight), mlp.down.weight


def _norms(own: Specification, layer: Layer) -> list[Tensor]:
    """[width] each: of attention and MLP, before, of the branch, of the total."""
    halves = (layer.attention_norms, layer.mlp_norms)
    return [_norm(norm, own.width) for half in halves for norm in (half.before, half.branch, half.total)]


def _norm(norm: nn.Module, width: int) -> Tensor:
    """What is multiplied with; ones where there is no norm."""
    if not isinstance(norm, RMSNorm):
        return torch.ones(width)
    return norm.weight.float() + norm.offset if norm.offset else norm.weight.float()


def _query_key_norms(own: Specification, layer: Layer, number: int) -> Tensor:
    attention, heads = layer.attention, (own.heads, own.kv_heads)
    if own.query_key_norm == "none":
        return torch.ones(sum(heads) * own.head_dim)
    norms = zip((attention.query_norm, attention.key_norm), heads, strict=True)
    if own.query_key_norm == "heads":
        weights = [_norm(norm, own.head_dim).repeat(count) for norm, count in norms]
    else:
        weights = [_norm(norm, count * own.head_dim) for norm, count in norms]
    return _in_pairs(own, number, torch.cat(weights))


def _projection_bias(own: Specification, layer: Layer, number: int) -> Tensor:
    bias = _or_zeros(layer.attention.bias, own.biased_rows)
    return _in_pairs(own, number, nn.functional.pad(bias, (0, own.projection_rows - own.biased_rows)))


# ---- rotary embeddings ----------------------------------------------------------------------------------------------


def _rotary(own: Specification, number: int) -> Rotary | None:
    rotary = own.layers[number].rotary
    return None if rotary is None else own.rotaries[rotary]


def _in_pairs(own: Specification, number: int, rows: Tensor) -> Tensor:
    """Rows of queries and keys, and what may follow them, [rows, ...], so that dimensions that turn together are
    neighbours.

    Products of queries and keys are the same in any order that both have.
    """
    rotary = _rotary(own, number)
    if rotary is None or rotary.pairs == "neighbours":
        return rows
    turned = (own.heads + own.kv_heads) * own.head_dim
    heads = rows[:turned].unflatten(0, (-1, own.head_dim))
    pairs = heads[:, : rotary.width].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat([torch.cat([pairs, heads[:, rotary.width :]], dim=1).flatten(0, 1), rows[turned:]])


def _rotations(model: Transformer) -> tuple[Float32, Int64]:
    """`rotation` and `layer_table`."""
    own, half = model.specification, model.specification.head_dim // 2
    identity = torch.tensor([1.0, 0.0]).expand(half, 2)
    short = own.short_context or 0
    positions = torch.cat([torch.arange(short), torch.arange(own.max_context)])
    is_long = torch.arange(len(positions)) >= short if short else torch.zeros(len(positions), dtype=torch.bool)
    tables = [
        torch.cat([table.float(), identity[table.shape[1] :].expand(len(positions), -1, -1)], dim=1)
        for table in model.rotation(positions, is_long)
    ]
    rotation = torch.cat([table.flatten() for table in (*tables, identity)])
    size = len(positions) * own.head_dim
    described = [
        (len(tables) * size, 0, layer.window or own.max_context)
        if layer.rotary is None
        else (layer.rotary * size, own.head_dim, layer.window or own.max_context)
        for layer in own.layers
    ]
    return rotation.numpy(), np.array(described, np.int64)


# ---- panels ---------------------------------------------------------------------------------------------------------


def _interleaved(gate_up: Tensor) -> Tensor:
    """Gate rows and up rows, [2 m, ...], in turns of half a panel, so that a panel holds both of each output."""
    half = PANEL // 2
    gate, up = gate_up.detach().chunk(2)
    groups = -(-len(gate) // half)
    padding = [0, 0] * (gate.dim() - 1) + [0, groups * half - len(gate)]
    padded = [nn.functional.pad(part, padding) for part in (gate, up)]
    return torch.stack([part.unflatten(0, (groups, half)) for part in padded], dim=1).flatten(0, 2)


def _panels(matrix: Tensor) -> Tensor:
    """A matrix [out, in] as panels of 64 outputs, flat: [panels, in, 64], and for bfloat16 [panels, in / 2, 64, 2]."""
    matrix = matrix.detach()
    outputs, inputs = matrix.shape
    step = 2 if matrix.dtype is torch.bfloat16 else 1
    padded = nn.functional.pad(matrix, (0, -inputs % step, 0, -outputs % PANEL))
    return padded.view(-1, PANEL, padded.shape[1] // step, step).transpose(1, 2).flatten()

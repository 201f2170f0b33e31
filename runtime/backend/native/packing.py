"""From a model's parameters to the arrays that the native functions read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.backend.native.products import PANEL
from runtime.backend.native.tick_buffers import PackedWeights, Stored
from runtime.model.architecture import Model
from runtime.model.llama import Llama
from runtime.model.raven import Raven


class _Layer(NamedTuple):
    """A block's parameters, whatever the family: matrices are [out, in]; gate and up are stacked."""

    query_key_value: Tensor
    output: Tensor
    gate_up: Tensor
    down: Tensor
    norms: tuple[Tensor, ...]
    query_key_bias: Tensor | None


@torch.no_grad()
def pack(model: Model) -> PackedWeights:
    """Copies a model's parameters, on the CPU in float32 or bfloat16."""
    config = model.config
    layers = _layers(model)
    adapter: Any = model.transformer.adapter if isinstance(model, Raven) else None
    width = config.n_embd
    per_layer = [(layer.query_key_value, layer.output, _interleaved(layer.gate_up), layer.down) for layer in layers]
    matrices = [matrix for four in per_layer for matrix in four]
    matrices.append(torch.zeros(0, 2 * width, dtype=model.lm_head.weight.dtype) if adapter is None else adapter.weight)
    matrices.append(model.lm_head.weight[: config.vocab_size])
    panels = [_panels(matrix) for matrix in matrices]
    starts = np.cumsum([0, *(len(panel) for panel in panels)])[:-1]
    described = [
        (start, matrix.shape[1], -(-matrix.shape[0] // PANEL)) for start, matrix in zip(starts, matrices, strict=True)
    ]
    norms = torch.ones(4 * len(layers) + 1, width)
    biases = torch.zeros(len(layers), (config.n_heads + config.n_kv_heads) * config.head_dim)
    for number, layer in enumerate(layers):
        for place, weight in enumerate(layer.norms):
            norms[4 * number + place] = weight.float()
        if layer.query_key_bias is not None:
            biases[number] = layer.query_key_bias.float().flatten()
    norms[-1] = _final_norm(model).float()
    bias = None if adapter is None else adapter.bias
    return PackedWeights(
        weights=np.concatenate([as_stored(panel) for panel in panels]),
        matrices=np.array(described, np.int64),
        table=as_stored(_table(model).flatten()).copy(),
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


def _layers(model: Model) -> list[_Layer]:
    if isinstance(model, Llama):
        return [_llama_layer(block) for block in model.model.layers]
    parts = model.transformer
    return [_sandwich(block) for part in (parts.prelude, parts.core_block, parts.coda) for block in part]


def _sandwich(block: Any) -> _Layer:
    attention, mlp = block.attn, block.mlp
    norms = tuple(norm.weight for norm in (block.norm_1, block.norm_2, block.norm_3, block.norm_4))
    return _Layer(
        attention.Wqkv.weight, attention.proj.weight, mlp.fc.weight, mlp.proj.weight, norms, attention.qk_bias
    )


def _llama_layer(block: Any) -> _Layer:
    attention, mlp = block.self_attn, block.mlp
    query, key = (_paired(weight, attention.head_dim) for weight in (attention.q_proj.weight, attention.k_proj.weight))
    return _Layer(
        torch.cat([query, key, attention.v_proj.weight]),
        attention.o_proj.weight,
        torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        mlp.down_proj.weight,
        (block.input_layernorm.weight, block.post_attention_layernorm.weight),
        None,
    )


def _paired(weight: Tensor, head_dim: int) -> Tensor:
    """Query or key rows whose rotated pairs are (i, i + head_dim / 2) in an order in which pairs are neighbours.

    Products of queries and keys are the same in any order that both have.
    """
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _final_norm(model: Model) -> Tensor:
    return model.model.norm.weight if isinstance(model, Llama) else model.transformer.ln_f.weight


def _table(model: Model) -> Tensor:
    return model.model.embed_tokens.weight if isinstance(model, Llama) else model.transformer.wte.weight


def _rotation(model: Model) -> NDArray[np.float32]:
    rotation = model.rotation(torch.arange(model.config.block_size))
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

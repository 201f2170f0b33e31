"""Paged attention on the CPU: one Numba call a layer that writes and reads the paged memory in place."""

from __future__ import annotations

import importlib.util
import operator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.backend.attention import PagedAttention, PagedMemory, Queries


class _Bound(NamedTuple):
    """A memory with what never changes about it, so that a call need not make it again."""

    memory: PagedMemory
    kernel: Any
    arrays: tuple[NDArray[Any], ...]


class NumbaAttention:
    """`PagedAttention` over float32 or bfloat16 memory on the CPU; a query's result is bitwise the same in any batch.

    Runs on the calling thread, without the GIL. The first call for a head width compiles for some seconds unless an
    earlier process has left its result on disk; a call with no queries compiles too.
    """

    def __init__(self) -> None:
        self._bound: _Bound | None = None

    def __call__(
        self,
        memory: PagedMemory,
        queries: Queries,
        column: int,
        slots: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        """See `PagedAttention`.

        Raises `TypeError` for arrays of another dtype, device or layout, `ValueError` for shapes that do not fit each
        other, and `IndexError` for a row, position, slot, column or page that does not exist.
        """
        bound = self._bound
        if bound is None or not all(map(operator.is_, bound.memory, memory)):
            bound = self._bound = _bind(memory)
        if not query.shape == key.shape == value.shape == (len(queries.row), *memory.keys.shape[3:]):
            raise ValueError(
                f"query, key and value are {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}; expected "
                f"{(len(queries.row), *memory.keys.shape[3:])} for the given queries and memory."
            )
        out = torch.empty(query.shape, dtype=torch.float32)
        in_range = bound.kernel(
            *bound.arrays,
            *(_indices(tensor) for tensor in queries),
            column,
            slots,
            query.float().contiguous().numpy(),
            _numbers(key.to(memory.keys.dtype).contiguous()),
            _numbers(value.to(memory.values.dtype).contiguous()),
            out.numpy(),
        )
        if not in_range:
            raise IndexError(
                f"A row, position, slot or page of the queries, or column {column} with {slots} slots, does not exist "
                f"in a memory of {tuple(memory.keys.shape)} with a page table of {tuple(memory.page_table.shape)}."
            )
        return out.to(query.dtype)


def numba_attention() -> PagedAttention | None:
    """A `NumbaAttention`, or None where Numba is not installed."""
    return NumbaAttention() if importlib.util.find_spec("numba") else None


def _bind(memory: PagedMemory) -> _Bound:
    from runtime.backend.numba_kernel import attention_kernel

    for name in ("keys", "values"):
        tensor = getattr(memory, name)
        if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(
                f"memory.{name} is {tensor.dtype} on {tensor.device}; this kernel needs float32 or bfloat16 on the "
                "CPU. Use TorchAttention for anything else."
            )
        if not tensor.is_contiguous():
            raise TypeError(f"memory.{name} is not contiguous; its pages must follow each other in memory.")
    arrays = (
        _numbers(memory.keys.view(-1)),
        _numbers(memory.values.view(-1)),
        _indices(memory.depths),
        _indices(memory.page_table),
    )
    return _Bound(memory, attention_kernel(memory.keys.shape[-1]), arrays)


def _numbers(tensor: Tensor) -> NDArray[Any]:
    """A view of a tensor; NumPy has no bfloat16, so that is viewed as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _indices(tensor: Tensor) -> NDArray[np.int32]:
    if tensor.dtype is not torch.int32 or not tensor.is_contiguous():
        layout = "contiguous" if tensor.is_contiguous() else "not contiguous"
        raise TypeError(f"An index tensor is {tensor.dtype} and {layout}; expected torch.int32 and contiguous.")
    return tensor.numpy()

"""What serving needs of a model, whoever wrote it: of `Transformer`, and of what transformers itself runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from runtime.link.sampling import FilterRule
from runtime.model.configuration import PublishedTensor
from runtime.model.specification import AttentionRule, Injection
from runtime.model.transformer import Attend, Rotation


class Described(Protocol):
    """What is known of a model before its weights are read."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_context(self) -> int: ...

    @property
    def exit_gate(self) -> bool: ...

    @property
    def exit_threshold(self) -> float: ...


class Served(Described, Protocol):
    """The sizes of a model that runs; each is what `Specification` says of the field of its name."""

    @property
    def width(self) -> int: ...

    @property
    def mlp_width(self) -> int: ...

    @property
    def kv_heads(self) -> int: ...

    @property
    def short_context(self) -> int | None: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def prelude_layers(self) -> int: ...

    @property
    def core_layers(self) -> int: ...

    @property
    def coda_layers(self) -> int: ...

    @property
    def layers(self) -> Sequence[object]: ...

    @property
    def core_start(self) -> int: ...

    @property
    def coda_start(self) -> int: ...

    @property
    def injection(self) -> Injection: ...

    @property
    def embedding_scale(self) -> float: ...

    @property
    def state_std(self) -> float: ...

    @property
    def mean_recurrence(self) -> int: ...

    @property
    def filter_rule(self) -> FilterRule: ...

    def attention(self, layer: int) -> AttentionRule: ...


class TensorNames(Protocol):
    """How a model's tensors are called, and what tells it from others of the same weights; see `ModelConfig`."""

    @property
    def identity(self) -> object: ...

    @property
    def head_name(self) -> str: ...

    def published_tensors(self) -> tuple[PublishedTensor, ...]: ...


class ServedModel(Protocol):
    """A module that backends run; each method is as in `Transformer`."""

    @property
    def config(self) -> TensorNames: ...

    @property
    def specification(self) -> Served: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def tile_rows(self) -> int:
        """Tokens that go through the model at a time in deterministic mode: so many that what is computed of one
        depends on nothing of the others."""
        ...

    def get_submodule(self, target: str) -> nn.Module: ...

    def parameters(self) -> Iterator[Any]: ...

    def rotation(self, positions: Tensor, is_long: Tensor | None = None) -> Rotation: ...

    def prelude(self, tokens: Tensor, rotation: Rotation, attend: Attend) -> Tensor: ...

    def first_state(self, embedded: Tensor) -> Tensor: ...

    def iterate(self, state: Tensor, embedded: Tensor, rotation: Rotation, attend: Attend) -> Tensor: ...

    def gate(self, state: Tensor) -> Tensor: ...

    @property
    def final_norm(self) -> Callable[[Tensor], Tensor]: ...

    def coda(self, state: Tensor, rotation: Rotation, attend: Attend, rows: Tensor | None = None) -> Tensor: ...

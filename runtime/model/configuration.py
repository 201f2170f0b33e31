"""What a family of models says about one of its models: what it is, and what its files call what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor

from runtime.model.specification import Specification


class PublishedTensor(msgspec.Struct, frozen=True):
    """A tensor as checkpoints have it: rows of one of the model's own tensors, under another name or shape."""

    name: str
    shape: tuple[int, ...]
    own: str
    """The parameter of `Transformer`, or the buffer."""
    start: int = 0
    """The first row, along the first axis, that it fills there."""
    is_optional: bool = False
    """Whether it follows from the configuration where a file has none."""


class ModelConfig(Protocol):
    """One model's `config.json`, read."""

    @property
    def family(self) -> str:
        """Name of the family."""
        ...

    @property
    def identity(self) -> object:
        """What tells the model's structure from others', for `fingerprint`."""
        ...

    @property
    def specification(self) -> Specification: ...

    @property
    def keys(self) -> Mapping[str, str]:
        """What `config.json` calls the sizes of the specification, for error messages."""
        ...

    def published_tensors(self) -> tuple[PublishedTensor, ...]:
        """Every tensor of a checkpoint, once; the head only where it is not the embedding table."""
        ...

    @property
    def head_name(self) -> str:
        """What checkpoints call the head, which may be there though it is the embedding table."""
        ...

    def as_published(self, dtype: str) -> dict[str, Any]:
        """The `config.json` object that the reference implementation of the model reads back as the same."""
        ...

    def draw(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        """Draws the published tensor of that name afresh, in place, as the reference does."""
        ...

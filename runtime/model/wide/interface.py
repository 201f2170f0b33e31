"""The attention function that transformers' models are given: it hands each call to whoever runs the model.

Transformers looks attention functions up by name, for the whole process, so two names are added to its tables and
nothing in them is changed. What a call is to do travels in a context variable of the thread that runs the model: models
that others run beside it, under other names, see none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec
from torch import Tensor, nn

RUNNING, PROBING = "braid_paged", "braid_probe"
"""Names of attention: without masks, which attention over a paged cache makes by itself; and with masks, to be seen."""


class AttentionCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a model asks of its attention function."""

    module: nn.Module
    query: Tensor
    """[1, heads, n, query_dim], rotated, as `key` is."""
    key: Tensor
    """[1, kv_heads, n, query_dim]."""
    value: Tensor
    """[1, kv_heads, n, value_dim]."""
    mask: Any
    options: dict[str, Any]
    """Keywords: scaling, soft cap, sinks, window and whatever else the model hands on."""


Answer = Callable[[AttentionCall], Tensor]
"""Attended values [1, n, heads, value_dim]."""

_answer: ContextVar[Answer] = ContextVar("attention of the model that runs")
_mask: ContextVar[Callable[..., Tensor]] = ContextVar("masks of the model that is probed")


def register() -> None:
    """Adds the names to transformers' tables; once or again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for name in (RUNNING, PROBING):
        AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(PROBING, _make_mask)


@contextmanager
def answering(answer: Answer, mask: Callable[..., Tensor] | None = None) -> Iterator[None]:
    """Inside, models that this thread runs under either name have their attention, and their masks, made by these."""
    token, mask_token = _answer.set(answer), None if mask is None else _mask.set(mask)
    try:
        yield
    finally:
        _answer.reset(token)
        if mask_token is not None:
            _mask.reset(mask_token)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
) -> tuple[Tensor, None]:
    answer = _answer.get(None)
    if answer is None:
        raise RuntimeError(f"Attention {RUNNING!r} is for models that an engine runs. Give your model another one.")
    call = AttentionCall(module=module, query=query, key=key, value=value, mask=attention_mask, options=options)
    return answer(call), None


def _make_mask(**options: Any) -> Tensor:
    return _mask.get()(**options)

"""Engines on devices that tests script."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

from runtime import Engine, Opened
from runtime.link import Device
from runtime.model import Tokenizer
from runtime.protocol import BoundProtocol
from runtime.threads.arguments import EngineOptions
from tests.runtime_loop.words import word_tokenizer


def engine_on(
    device: Device,
    *,
    tokenizer: Tokenizer | None = None,
    protocol: BoundProtocol | None = None,
    stop_tokens: Iterable[int] = (),
    max_context: int | None = None,
    vocab_size: int | None = None,
    **options: Unpack[EngineOptions],
) -> Engine:
    """An engine on a device, with the tokenizer of words where no other is given."""
    opened = Opened(
        device=device,
        tokenizer=tokenizer or word_tokenizer(),
        protocol=protocol,
        stop_tokens=frozenset(stop_tokens),
        max_context=max_context,
        vocab_size=vocab_size,
    )
    return Engine.from_device(opened, **options)

"""Engines on devices that tests script, and a tree for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

from runtime import Engine, Opened
from runtime.link import Device
from runtime.model import Tokenizer
from runtime.protocol import AnyProtocol, BoundProtocol
from runtime.threads.arguments import EngineOptions
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.words import bound_protocol, word_tokenizer

TREE = {
    "1": "a <spawn> 2 </spawn> b <spawn> 3 </spawn> <join> c <spawn> 2 </spawn> <join> <return> 9 9 <end>",
    "2": "x <return> 7 <end>",
    "3": "<spawn> 2 </spawn> <join> <return> 8 <end>",
}
"""Threads that a model orchestrates, by what their contexts begin with; the first is answered 9 9 by five of them."""


def engine_on(
    device: Device,
    *,
    tokenizer: Tokenizer | None = None,
    protocol: AnyProtocol | None = None,
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


def engine_under(
    device: ScriptedDevice | SteppedDevice, protocol: BoundProtocol | None = None, **options: Any
) -> Engine:
    """An engine that records what happens, under the protocol of words where no other is given."""
    return engine_on(device, protocol=protocol or bound_protocol(), records=True, **options)

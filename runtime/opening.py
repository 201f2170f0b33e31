"""From a checkpoint on disk to a device that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from policies import Policy
from runtime.commands import Device
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import BoundProtocol
from runtime.settings import EngineSettings


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A device that has not been started, and what comes with it."""

    device: Device
    tokenizer: Tokenizer | None = None
    """None: prompts are token ids, and texts are empty."""
    protocol: BoundProtocol | None = None
    """None: threads that the model drives generate to a stop token."""
    policy: Policy | None = None
    """The checkpoint's own."""
    stop_tokens: frozenset[int] = frozenset()
    context_size: int | None = None
    """Most tokens of a context."""
    vocab_size: int | None = None
    """Token ids are below it."""

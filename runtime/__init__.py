"""Braid's runtime: reasoning threads whose tokens come from a batched depth-recurrent model.

`from runtime import Engine` is where to begin; names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policies import Limits
    from runtime.chat import Message
    from runtime.engine import Engine
    from runtime.errors import (
        BraidError,
        CapacityError,
        CheckpointError,
        EngineClosed,
        EngineFailed,
        LimitExceeded,
        NumericalError,
        PolicyError,
        PromptError,
        ProtocolError,
        QueueFull,
        ThreadStateError,
        TraceError,
    )
    from runtime.link.commands import Statistics
    from runtime.loading import open_device
    from runtime.opened import Opened
    from runtime.protocol import APR, BoundProtocol, TagProtocol, apr_protocol
    from runtime.results import Answer, Chunk, Generation, Usage
    from runtime.sampling import Sampling
    from runtime.settings import EngineSettings
    from runtime.threads.child import Child, ChildStatus
    from runtime.threads.stream import Stream
    from runtime.threads.thread import ReasoningThread

_HOMES = {
    "policies": ("Limits",),
    "runtime.chat": ("Message",),
    "runtime.results": ("Answer", "Chunk", "Generation", "Usage"),
    "runtime.threads.child": ("Child", "ChildStatus"),
    "runtime.link.commands": ("Statistics",),
    "runtime.loading": ("open_device",),
    "runtime.opened": ("Opened",),
    "runtime.engine": ("Engine",),
    "runtime.errors": (
        "BraidError",
        "CapacityError",
        "CheckpointError",
        "EngineClosed",
        "EngineFailed",
        "LimitExceeded",
        "NumericalError",
        "PolicyError",
        "PromptError",
        "ProtocolError",
        "QueueFull",
        "ThreadStateError",
        "TraceError",
    ),
    "runtime.protocol": ("APR", "BoundProtocol", "TagProtocol", "apr_protocol"),
    "runtime.sampling": ("Sampling",),
    "runtime.settings": ("EngineSettings",),
    "runtime.threads.stream": ("Stream",),
    "runtime.threads.thread": ("ReasoningThread",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "APR",
    "Answer",
    "BoundProtocol",
    "BraidError",
    "CapacityError",
    "CheckpointError",
    "Child",
    "ChildStatus",
    "Chunk",
    "Engine",
    "EngineClosed",
    "EngineFailed",
    "EngineSettings",
    "Generation",
    "LimitExceeded",
    "Limits",
    "Message",
    "NumericalError",
    "Opened",
    "PolicyError",
    "PromptError",
    "ProtocolError",
    "QueueFull",
    "ReasoningThread",
    "Sampling",
    "Statistics",
    "Stream",
    "TagProtocol",
    "ThreadStateError",
    "TraceError",
    "Usage",
    "apr_protocol",
    "open_device",
]


def __getattr__(name: str) -> object:
    """Imports a public name's module: PyTorch, which some of them need, takes seconds."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

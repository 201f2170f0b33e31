"""The backends that run a model natively here, for tests that are about models."""

from __future__ import annotations

from pathlib import Path

from runtime.backend.native.support import unsupported
from runtime.model.checkpoint import describe


def backends_of(checkpoint: Path) -> list[str]:
    """PyTorch's, and native code if it has what the model needs."""
    lacking = unsupported(describe(checkpoint).config.specification)
    return ["torch"] if lacking else ["torch", "native"]

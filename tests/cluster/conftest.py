"""The checkpoint of the tests of engines."""

from __future__ import annotations

from tests.engine.conftest import tiny_checkpoint

__all__ = ["tiny_checkpoint"]

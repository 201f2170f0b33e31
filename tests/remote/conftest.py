"""Servers run on asyncio, and so do the programs that ask them in the same loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from .asking import words_checkpoint


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a model whose tokens are words, without weights."""
    return words_checkpoint(tmp_path_factory.mktemp("words"))

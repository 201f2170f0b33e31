"""What tests of constrained tokens share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import vocabularies
from tests.constraints.checkpoints import save_random


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("random") / "0", vocabularies.byte_level(), 0)

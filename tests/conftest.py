"""Settings shared by all tests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "braid",
    deadline=None,  # machines that run tests are often busy
    print_blob=True,
    derandomize=bool(os.environ.get("CI")),  # a build fails for what it changed, not by chance
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("braid")

# The models of the tests are so small that handing work to other threads costs more than the work.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What the tests have imported is never garbage: looking through it would take a collector tenths of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The global generator starts alike in every test, whichever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden_a() -> Path:
    """A published-format checkpoint, with the reference implementation's outputs in golden.safetensors."""
    return Path(__file__).parent / "golden" / "golden_a"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Tests marked `anyio` run under both event loops, but in files about what happens elsewhere, which say so."""
    return str(request.param)

"""Settings shared by all tests."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "braid",
    deadline=None,  # machines that run tests are often busy
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("braid")

# The models of the tests are so small that handing work to other threads costs more than the work.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_a() -> Path:
    """A published-format checkpoint, with the reference implementation's outputs in golden.safetensors."""
    return Path(__file__).parent / "golden" / "golden_a"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Tests marked `anyio` run under both event loops."""
    return str(request.param)

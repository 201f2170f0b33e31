"""Clusters on a real Ray: actors in processes of their own, ended by `kill -9`, replaced, added and taken away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import BraidError, Cluster, Engine
from runtime.model.parameters import published_weights
from tests.cluster.kills import rounds
from tests.engine.recorded_trees import prompt
from tests.engine.tiny import tiny_model

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install 'braid-runtime[ray]'")

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("ray")]

SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 128, "cpu_threads": 1, "seed": 3}


@pytest.fixture(scope="module", autouse=True)
def connection() -> Iterator[None]:
    """One Ray for all tests here; clusters find it, and leave it be."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def anyio_backend() -> str:
    """Starts tasks in order, so that trees have the same numbers everywhere."""
    return "asyncio"


async def test_replicas_that_are_killed_at_work_change_nothing(tmp_path: Path) -> None:
    killer = await rounds(2, 1, tmp_path / "kills.trace", lambda text: None)
    assert killer.killed == killer.while_active == 2


async def says(on: Engine) -> list[tuple[int, ...]]:
    said = []
    for number in range(4):
        async with on.thread(prompt(number)) as thread:
            said.append((await thread.generate(max_tokens=6)).tokens)
    return said


async def test_weights_reach_every_replica_of_a_cluster_that_grows(tiny_checkpoint: Path) -> None:
    new = published_weights(tiny_model(4))
    async with Engine.open(tiny_checkpoint, **SIZES) as alone:
        before = await says(alone)
        await alone.load_weights(new)
        after = await says(alone)
    async with Cluster.open(tiny_checkpoint, replicas=1, **SIZES) as cluster:
        assert await says(cluster) == before
        await cluster.load_weights(new)
        await cluster.resize(2)
        assert len({replica.pid for replica in cluster.replicas}) == 2
        await cluster.resize(1)
        assert await says(cluster) == after


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_what_keeps_replicas_from_opening_is_raised(tiny_checkpoint: Path, anyio_backend: str) -> None:
    with pytest.raises(BraidError, match="pages"):
        async with Cluster.open(tiny_checkpoint, replicas=1, page_size=4, num_pages=2**40):
            pass

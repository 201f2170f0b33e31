"""Random programs, those of `tests/fuzz`, on clusters whose replicas are lost at random words."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Engine
from tests.cluster.local import Dies, local_cluster, never
from tests.fuzz import running
from tests.fuzz.generating import random_program
from tests.fuzz.program import Setup
from tests.fuzz.running import Runner
from tests.fuzz.subjects import MOST, checkpoint_of, policy_of
from tests.fuzz.tools import add_tools

COUNTS = re.compile(r"says|say they")
"""Findings about counts: what is computed again is in no usage, and its ticks are in the trace."""


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    made = Runner()
    yield made
    made.close()


class Unlucky:
    """Loses a replica before one word in twenty, eight in all."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._left = 8

    def __call__(self, name: str, number: int) -> bool:
        is_lost = self._left > 0 and self._random.random() < 0.05
        self._left -= is_lost
        return is_lost


def on_clusters(monkeypatch: pytest.MonkeyPatch, dies: Dies) -> None:
    def opened(setup: Setup, trace: Path | None, observe: Any) -> Engine:
        settings = {
            "num_pages": setup.pages,
            "page_size": setup.page_size,
            "max_in_flight": setup.lanes,
            "prefill_chunk": setup.chunk,
            "iteration_slots": setup.slots,
            "most_iterations": MOST,
            "cpu_threads": setup.threads,
            "backend": setup.backend,
            "deterministic": setup.deterministic,
            "reuse_prefixes": setup.reuse_prefixes,
            "queue_size": setup.queue_size,
        }
        cluster = local_cluster(
            checkpoint_of(setup.model),
            dies=dies,
            trace=trace if setup.trace == "engine" else None,
            settings=settings,
            policy=policy_of("deep"),
            seed=setup.seed,
            limits=setup.limits,
            observer=None if setup.observer == "none" else observe,
        )
        return add_tools(cluster)

    monkeypatch.setattr(running, "_open", opened)


@pytest.mark.parametrize("seed", [*range(12), 20, 28])
@pytest.mark.parametrize("loses", [False, True], ids=["whole", "with losses"])
def test_threads_say_what_they_say_alone(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, seed: int, loses: bool
) -> None:
    on_clusters(monkeypatch, Unlucky(seed) if loses else never)
    outcome = runner.run(random_program(seed, faults=False), f"seed {seed} of tests/cluster/test_fuzz.py")
    assert [finding for finding in outcome.findings if not COUNTS.search(finding)] == []

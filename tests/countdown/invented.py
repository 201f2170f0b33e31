"""A problem, a checkpoint and records that nothing ran for."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.countdown.report.cells import Record
from benchmarks.countdown.report.checkpoints import CheckpointFacts
from examples.countdown.problems import Problem
from policies import Fixed

PROBLEM = Problem((22, 26, 31, 53), 27)

FACTS = CheckpointFacts(
    path="nowhere",
    fingerprint="f",
    parameters=1000,
    megabytes=0.1,
    mean_recurrence=6,
    width=128,
    outer_layers=1,
    core_layers=2,
    depth=Fixed(),
    protocol="null",
)


def record(is_right: bool = True, answer: str | None = "a", **changes: Any) -> Record:
    whole = Record(
        is_right=is_right,
        answer=answer,
        reason="returned",
        sampled=100,
        computed=120,
        iterations=720,
        threads=4,
        longest=90,
        seconds=0.5,
    )
    return msgspec.structs.replace(whole, **changes)

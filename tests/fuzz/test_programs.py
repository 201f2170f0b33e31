"""A few random programs, and one fault at each place; `python -m tests.fuzz` runs as many as there is time for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Literal

import msgspec
import pytest

from tests.fuzz.alone import Roomy, Said
from tests.fuzz.generating import random_program
from tests.fuzz.program import (
    KINDS,
    Fault,
    FaultKind,
    FaultPlace,
    Generate,
    Join,
    Program,
    Return,
    Root,
    Setup,
    Spawn,
    from_json,
    to_json,
)
from tests.fuzz.running import Runner
from tests.fuzz.subjects import DEPTHS, SAMPLINGS


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    made = Runner()
    yield made
    made.close()


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_programs_lose_nothing_and_their_threads_do_not_notice_each_other(runner: Runner, first: int) -> None:
    for seed in range(first, first + 10):
        outcome = runner.run(random_program(seed), f"python -m tests.fuzz --seed {seed} --programs 1")
        assert not outcome.findings, f"seed {seed}"


def search(setup: Setup) -> Program:
    """A small tree whose children spawn, fork and join, beside another one."""
    leaf = Spawn(message=(7, 8, 9), body=(Generate(tokens=3), Return(tokens=(4, 5))))
    fork = Spawn(message=(6,), body=(leaf, Join(), Generate(tokens=2), Return(tokens=(1,))), fork=True)
    tree = Root(prompt=(1, 2, 3, 4, 5), body=(Generate(tokens=2), fork, leaf, Join(), Generate(tokens=2)), depth="raw")
    other = Root(prompt=(5, 6, 7), body=(Generate(tokens=4, sampling="filtered"),), depth="divergence")
    return Program(setup=setup, roots=(tree, other))


@pytest.mark.parametrize(
    ("setup", "every"),
    [(Setup(pages=17), 5), (Setup(backend="torch", loop="trio", pages=40, trace="engine"), 29)],
)
@pytest.mark.parametrize(("place", "kind"), [(place, kind) for place, kinds in KINDS.items() for kind in kinds])
def test_a_fault_of_the_device_ends_what_it_concerns_and_nothing_hangs(
    runner: Runner, setup: Setup, every: int, place: FaultPlace, kind: FaultKind
) -> None:
    for at in count(1, every):
        fault = Fault(place=place, at=at, kind=kind)
        outcome = runner.run(search(msgspec.structs.replace(setup, fault=fault)), str(fault))
        assert not outcome.findings, fault
        if not outcome.fired:
            break
    assert at > 1, "the fault never came to pass"


@pytest.mark.parametrize("kind", KINDS["allocate"])
def test_memory_that_is_refused_ahead_of_need_ends_one_thread(runner: Runner, kind: FaultKind) -> None:
    root = Root(prompt=(1, 2, 3), body=(Generate(tokens=16),), depth="shallow")
    outcome = runner.run(
        Program(setup=Setup(fault=Fault(place="allocate", at=2, kind=kind)), roots=(root,)), "memory refused"
    )
    assert (outcome.findings, outcome.fired, outcome.counts["BraidError"]) == ([], True, 1)


@pytest.mark.parametrize("trace", ["engine", "recording"])
def test_an_engine_that_is_cancelled_while_it_opens_has_recorded_nothing(
    runner: Runner, trace: Literal["engine", "recording"]
) -> None:
    whole = search(Setup(trace=trace))
    assert not runner.run(whole, "a traced program").findings
    cancelled = msgspec.structs.replace(whole, setup=Setup(trace=trace, cancelled_after=0.0))
    assert not runner.run(cancelled, "the same, cancelled").findings


def test_what_differs_is_found() -> None:
    said = Said((0,), DEPTHS["deep"])
    said.receive((1, 2, 3))
    said.sample((0, 0, 0, 0), None, SAMPLINGS["greedy"], DEPTHS["deep"])
    roomy = Roomy()
    (difference,) = roomy.differences(Setup(), said)
    assert "(0, 0, 0, 0)" in difference
    roomy.close()


@pytest.mark.parametrize("seed", range(30))
def test_a_program_can_be_written_down(seed: int) -> None:
    program = random_program(seed)
    assert from_json(to_json(program)) == program
    assert random_program(seed) == program

"""One fault at every place: a program again and again, failing one time later each time, until nothing fails."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tests.fuzz.generating import random_program
from tests.fuzz.program import KINDS, Fault, Program, to_json
from tests.fuzz.running import Outcome, Runner


def sweep(runner: Runner, seed: int) -> Iterator[tuple[Program, Outcome]]:
    """Every kind of error at every time of every place, in the program of a seed."""
    plain = random_program(seed, faults=False)
    for place, kinds in KINDS.items():
        for kind in kinds:
            at, fires = 1, True
            while fires:
                setup = msgspec.structs.replace(plain.setup, fault=Fault(place=place, at=at, kind=kind))
                program = msgspec.structs.replace(plain, setup=setup)
                outcome = runner.run(program, f"python -m tests.fuzz --program FILE, where FILE has {to_json(program)}")
                yield program, outcome
                fires = outcome.fired
                at += 1

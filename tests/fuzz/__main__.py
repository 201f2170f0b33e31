"""`python -m tests.fuzz --minutes 60`: random programs until the time is over, and what they found."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from tests.fuzz.damaging import damage_files
from tests.fuzz.generating import random_program
from tests.fuzz.program import Program, from_json, to_json
from tests.fuzz.running import Outcome, Runner
from tests.fuzz.sweeping import sweep

_WRITTEN = "python -m tests.fuzz --program FILE"


Run = tuple[Program, Outcome, str]
"""A program, what came of it, and the command that runs it again."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 where nothing was found, else 1."""
    given = _parser().parse_args(arguments)
    first = random.SystemRandom().randrange(10**9) if given.seed is None else given.seed
    most = given.programs or (None if given.minutes else 100)
    if given.show:
        for seed in range(first, first + (most or 1)):
            print(to_json(random_program(seed)))
        return 0
    torch.set_num_threads(1)
    disable_progress_bar()
    if given.damage:
        return _report_damage(damage_files(first, most, given.minutes), first)
    runner = Runner()
    try:
        if given.program is not None:
            runs = _written(runner, given.program)
        elif given.sweep:
            runs = _sweeps(runner, first, most)
        else:
            runs = _random(runner, first, most)
        return _report(runs, given.minutes, f"{'--sweep ' if given.sweep else ''}--seed {first}")
    finally:
        runner.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop after so much time")
    parser.add_argument("--programs", type=int, help="stop after so many programs (100 where neither is given)")
    parser.add_argument("--seed", type=int, help="the first program's; those after it count up (default: by chance)")
    parser.add_argument("--program", type=Path, help="run the program in a JSON file (- for standard input)")
    parser.add_argument("--sweep", action="store_true", help="plant every fault at every place into each program")
    parser.add_argument("--damage", action="store_true", help="damage files of checkpoints and traces instead")
    parser.add_argument("--show", action="store_true", help="print programs instead of running them")
    return parser


def _random(runner: Runner, first: int, most: int | None) -> Iterator[Run]:
    for seed in islice(count(first), most):
        again = f"python -m tests.fuzz --seed {seed} --programs 1"
        program = random_program(seed)
        yield program, runner.run(program, again), again


def _sweeps(runner: Runner, first: int, most: int | None) -> Iterator[Run]:
    for seed in islice(count(first), most):
        for program, outcome in sweep(runner, seed):
            yield program, outcome, f"{_WRITTEN}, where FILE has the program"


def _written(runner: Runner, path: Path) -> Iterator[Run]:
    program = from_json(sys.stdin.read() if str(path) == "-" else path.read_text())
    yield program, runner.run(program, _WRITTEN), _WRITTEN


def _report_damage(counts: Counter[str], first: int) -> int:
    for name, number in sorted(counts.items()):
        print(f"{number:12,} {name}")
    print(f"{counts.total():,} damaged files, none at fault: `--damage --seed {first}`")
    return 0


def _report(runs: Iterator[Run], minutes: float | None, how: str) -> int:
    """Prints findings as they come, how far it is, and at the end the counts and a row for docs/reliability.md."""
    started = shown = time.monotonic()
    counts: Counter[str] = Counter()
    faulty = 0
    for program, outcome, again in runs:
        counts += outcome.counts
        faulty += bool(outcome.findings)
        for finding in outcome.findings:
            print(f"FOUND {finding}")
        if outcome.findings:
            print(f"again with: {again}\nthe program: {to_json(program)}", flush=True)
        now = time.monotonic()
        if now - shown > 10:
            shown = now
            print(f"{counts['programs']:,} programs in {now - started:.0f} s, {faulty} with findings", flush=True)
        if minutes is not None and now - started > 60 * minutes:
            break
    for name, number in sorted(counts.items()):
        print(f"{number:12,} {name}")
    took = time.monotonic() - started
    print(
        f"| {counts['programs']:,} | {counts['threads']:,} | {counts['tokens compared']:,} "
        f"| {counts['engines failed']:,} | {faulty} | {took / 60:.1f} min | `{how}` |"
    )
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.fuzz --minutes 60`: random programs until the time is over, and what they found."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from tests.fuzz.generating import random_program
from tests.fuzz.program import Program, from_json, to_json
from tests.fuzz.running import Outcome, Runner
from tests.fuzz.sweeping import sweep


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 where nothing was found, else 1."""
    given = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    runner = Runner()
    try:
        if given.program is not None:
            text = sys.stdin.read() if str(given.program) == "-" else given.program.read_text()
            return _tell(runner.run(from_json(text), f"--program {given.program}"), from_json(text), "")
        if given.sweep is not None:
            return _sweep(runner, given.seed or 0, given.sweep)
        return _fuzz(runner, given)
    finally:
        runner.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop after so much time")
    parser.add_argument("--programs", type=int, help="stop after so many programs (100 where neither is given)")
    parser.add_argument("--seed", type=int, help="the first program's; those after it count up (default: by chance)")
    parser.add_argument("--program", type=Path, help="run the program in a JSON file (- for standard input)")
    parser.add_argument("--sweep", type=int, metavar="N", help="plant every fault at every place into N programs")
    parser.add_argument("--show", action="store_true", help="print programs instead of running them")
    return parser


def _fuzz(runner: Runner, given: argparse.Namespace) -> int:
    first = random.SystemRandom().randrange(10**9) if given.seed is None else given.seed
    most = given.programs or (None if given.minutes else 100)
    started, shown = time.monotonic(), time.monotonic()
    counts: Counter[str] = Counter()
    faulty = 0
    seed = first
    while (most is None or seed - first < most) and not _is_over(started, given.minutes):
        program = random_program(seed)
        if given.show:
            print(to_json(program))
        else:
            outcome = runner.run(program, repeating(seed))
            counts += outcome.counts
            faulty += _tell(outcome, program, repeating(seed))
        seed += 1
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{seed - first} programs in {shown - started:.0f} s, {faulty} with findings", flush=True)
    if not given.show:
        _summarise(counts, faulty, first, time.monotonic() - started)
    return 1 if faulty else 0


def repeating(seed: int) -> str:
    """The command that runs the program of a seed again."""
    return f"python -m tests.fuzz --seed {seed} --programs 1"


def _is_over(started: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - started > 60 * minutes


def _tell(outcome: Outcome, program: Program, again: str) -> int:
    for finding in outcome.findings:
        print(f"FOUND {finding}")
    if outcome.findings:
        print(f"again with: {again}\nthe program: {to_json(program)}", flush=True)
    return 1 if outcome.findings else 0


def _summarise(counts: Counter[str], faulty: int, first: int, seconds: float) -> None:
    for name, count in sorted(counts.items()):
        print(f"{count:12,} {name}")
    print(
        f"| {counts['programs']:,} | {counts['threads']:,} | {counts['tokens compared']:,} "
        f"| {counts['engines failed']:,} | {faulty} | {seconds / 60:.0f} min | `--seed {first}` |"
    )


def _sweep(runner: Runner, seed: int, programs: int) -> int:
    counts: Counter[str] = Counter()
    faulty = 0
    for program, outcome in sweep(runner, range(seed, seed + programs)):
        counts += outcome.counts
        faulty += _tell(outcome, program, "--program FILE, with the program below")
    _summarise(counts, faulty, seed, 0.0)
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())

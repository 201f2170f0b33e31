"""Killing a process at any moment while it records: all that it had seen is in its trace, which says what it lacks.

    python -m tests.traces.kills --times 200

Each process tells through a pipe what it has seen, line by line; after a number of lines it is killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import anyio

from runtime import Engine, ReasoningThread, Sampling
from runtime.link.events import Joined
from traces import read, thread_tree, walk_threads

ROOT = Path(__file__).parents[2]


async def _say(thread: ReasoningThread) -> tuple[int, ...]:
    tokens = (await thread.generate(max_tokens=3)).tokens
    _tell("said", thread.path, tokens)
    return tokens


def _tell(what: str, path: tuple[int, ...], tokens: tuple[int, ...] = ()) -> None:
    os.write(1, f"{what}|{'.'.join(map(str, path))}|{' '.join(map(str, tokens))}\n".encode())


async def record(path: Path) -> None:
    """Records trees without end, and tells what it sees of them."""
    sampling = Sampling(temperature=1.0)
    async with Engine.open("countdown", trace=path, sampling=sampling) as engine:
        while True:
            async with engine.thread("22 26 31 53 -> 27") as root:
                await _say(root)
                await root.join([root.spawn("53 - 31 22 Q 27 26 22 22", program=_say) for _ in range(3)])
                _tell("joined", root.path)
                await _say(root)
            _tell("ended", root.path)


def kill_one(path: Path, lines: int) -> list[str]:
    """Kills a process after so many lines; what it has told."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.traces.kills", "--record", str(path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline().decode().strip() for _ in range(lines)]
        os.kill(process.pid, signal.SIGKILL)
        told += [line.decode().strip() for line in process.stdout if line.endswith(b"\n")]
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"The recording process ended by itself, with {process.returncode}.")
    return told


def missing(path: Path, told: list[str]) -> list[str]:
    """What was told and is not in the trace."""
    trace = read(path)
    records = {".".join(map(str, recorded.path)): recorded for recorded in walk_threads(thread_tree(trace.events))}
    joins = {".".join(map(str, event.thread)) for event in trace.events if isinstance(event, Joined)}
    lacking = [] if trace.lost is not None else ["that it was not closed"]
    for line in told:
        what, name, tokens = line.split("|")
        recorded = records.get(name)
        if recorded is None:
            lacking.append(line)
        elif what == "said":
            said = [" ".join(map(str, call.tokens)) for call in recorded.calls if call.reason is not None]
            lacking += [] if tokens in said else [line]
        elif what == "joined":
            lacking += [] if name in joins else [line]
        elif recorded.outcome is None:
            lacking.append(line)
    return lacking


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.traces.kills", description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record is not None:
        anyio.run(record, options.record)
    random = Random(options.seed)
    told = 0
    with TemporaryDirectory() as directory:
        for number in range(options.times):
            path = Path(directory) / f"{number}.trace"
            lines = kill_one(path, random.randrange(1, 60))
            told += len(lines)
            if lacking := missing(path, lines):
                print(f"Kill {number} of seed {options.seed}: {lacking}")
                return 1
    print(f"{options.times} kills: all {told} things that were seen before are in the traces")
    return 0


if __name__ == "__main__":
    sys.exit(main())

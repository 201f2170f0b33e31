"""Replicas of a cluster are killed at random moments while trees run: nothing is lost, and nothing is said otherwise.

python -m tests.cluster.kills --kills 50 --seed 0

Every round asks the same of one engine and of a cluster, whose replicas are ended by `kill -9` meanwhile: trees that
the model orchestrates, and a program that spawns, forks, joins, streams and cancels. Answers, tokens and usage have to
be equal, and the trace of it all has to verify.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from policies import LatentDiff, MaxChildren, Policy
from runtime import Cluster, Engine, Sampling
from runtime.console import status_of, whole
from traces.__main__ import main as traces_command

POLICY = Policy(depth=LatentDiff(0.03), spawn=MaxChildren(10))
WARM = Sampling(temperature=0.7)
SETTINGS: dict[str, Any] = {"policy": POLICY, "sampling": WARM, "seed": 5}

PROBLEMS = ("22 26 31 53 -> 27", "5 42 67 71 -> 62", "3 7 25 50 -> 48", "12 9 33 41 -> 75")
MESSAGES = ("53 - 31 22 Q 27 26 22 22", "26 - 22 4 Q 27 53 31 4", "53 + 26 79 Q 27 31 22 79")


@dataclass
class Killer:
    """Ends replicas while work is done, so many in all."""

    cluster: Cluster
    most: int
    chance: random.Random
    killed: int = 0
    while_active: int = 0
    """Of those, how many had calls that they worked on."""
    pids: set[int] = field(default_factory=set)

    async def run(self) -> None:
        """Until cancelled, or until all are killed."""
        while self.killed < self.most:
            await anyio.sleep(self.chance.uniform(0.1, 4.0))
            serving = [each for each in self.cluster.replicas if each.state == "serving" and each.pid not in self.pids]
            if serving:
                replica = self.chance.choice(serving)
                self.pids.add(replica.pid)
                self.while_active += replica.active > 0
                os.kill(replica.pid, signal.SIGKILL)
                self.killed += 1


async def work(engine: Engine) -> list[object]:
    """One round of everything, as what it came to."""
    found: dict[object, object] = {}

    async def run(number: int, problem: str) -> None:
        answer = await engine.run(problem)
        found[number] = answer.tokens, answer.text, answer.reason, answer.usage.generated, answer.usage.threads

    async def orchestrate() -> None:
        async with engine.thread(PROBLEMS[0]) as root:
            children = [root.spawn(message, max_tokens=40) for message in MESSAGES]
            said = await root.generate(max_tokens=12)
            forks = [root.fork(" ", max_tokens=20) for _ in range(2)]
            stream: list[int] = []
            async with root.stream(max_tokens=10) as chunks:
                async for chunk in chunks:
                    stream += chunk.tokens
            lost = root.spawn(MESSAGES[0])
            lost.cancel()
            joined = await root.join(children)
            forked = await root.join(forks)
            after = await root.generate(max_tokens=12)
            found["program"] = (
                said.tokens,
                tuple(stream),
                [answer.tokens for answer in joined],
                [answer.tokens for answer in forked],
                after.tokens,
                after.logprobs,
            )

    async with anyio.create_task_group() as group:
        for number, problem in enumerate(PROBLEMS):
            group.start_soon(run, number, problem)
        group.start_soon(orchestrate)
    return [found[key] for key in sorted(found, key=str)]


async def rounds(kills: int, seed: int, trace: Path, say: Callable[[str], None]) -> Killer:
    """Kills so many replicas while rounds of work are done. Raises `AssertionError` for a round that came to something
    else than on one engine, and where the trace does not verify."""
    async with Cluster.open("countdown", replicas=2, trace=trace, **SETTINGS) as cluster:
        killer = Killer(cluster, kills, random.Random(seed))
        async with Engine.open("countdown", cpu_threads=1, **SETTINGS) as engine:
            number = 0
            while killer.killed < kills or not number:
                expected = await work(engine)
                began = time.perf_counter()
                async with anyio.create_task_group() as group:
                    group.start_soon(killer.run)
                    found = await work(cluster)
                    group.cancel_scope.cancel()
                assert found == expected, f"round {number} came to something else:\n{found}\n{expected}"
                number += 1
                say(f"round {number}: equal, {killer.killed} kills so far, {time.perf_counter() - began:.1f} s")
    status = await anyio.to_thread.run_sync(traces_command, ["replay", "--verify", str(trace)])
    assert status == 0, "the trace does not verify"
    return killer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.kills", description="Kills replicas at random.")
    parser.add_argument("--kills", type=whole(1), default=50, help="how many (default: 50)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the moments")
    chosen = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "kills.trace"
        killer = anyio.run(rounds, chosen.kills, chosen.seed, trace, print)
    print(
        f"{killer.killed} kills, {killer.while_active} of them of replicas at work: nothing lost or changed; "
        f"{time.perf_counter() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))

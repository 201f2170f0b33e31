"""Answers that stay the same while the processes that compute them are killed: a cluster of two replicas on Ray.

python -m examples.chaos --kills 3
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

import anyio

from policies import LatentDiff, MaxChildren, Policy
from runtime import Answer, Cluster, Engine, Sampling
from runtime.console import status_of, whole

PROBLEMS = ("22 26 31 53 -> 27", "5 42 67 71 -> 62", "3 7 25 50 -> 48")


async def main(kills: int) -> None:
    policy = Policy(depth=LatentDiff(0.03), spawn=MaxChildren(10))
    sampling = Sampling(temperature=0.5)
    async with Engine.open("countdown", policy=policy, sampling=sampling, seed=1) as engine:
        expected = await answer_all(engine)
    async with Cluster.open("countdown", replicas=2, policy=policy, sampling=sampling, seed=1) as cluster:
        async with anyio.create_task_group() as group:
            group.start_soon(kill, cluster, kills, killed := set[int]())
            answers = await answer_all(cluster)
        lost = cluster.statistics.generated - cluster.usage.generated
    for problem, answer, alone in zip(PROBLEMS, answers, expected, strict=True):
        print(f"{problem}: {answer.text or 'nothing'} ({answer.usage.threads} threads)")
        assert answer.tokens == alone.tokens
    print(f"{len(killed)} replicas were killed, {lost} tokens were said again, and all answers are those of one engine")


async def answer_all(engine: Engine) -> list[Answer]:
    found: dict[int, Answer] = {}

    async def answer(number: int) -> None:
        found[number] = await engine.run(PROBLEMS[number])

    async with anyio.create_task_group() as group:
        for number in range(len(PROBLEMS)):
            group.start_soon(answer, number)
    return [found[number] for number in range(len(PROBLEMS))]


async def kill(cluster: Cluster, kills: int, killed: set[int]) -> None:
    """Ends replicas at work, one after the other, until so many are `killed` or all is answered."""
    while len(killed) < kills:
        await anyio.sleep(0.05)
        for replica in cluster.replicas:
            if replica.active and replica.pid not in killed and len(killed) < kills:
                os.kill(replica.pid, signal.SIGKILL)
                killed.add(replica.pid)
                break
        if not any(replica.active or replica.state == "opening" for replica in cluster.replicas):
            return


def command() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.chaos", description=__doc__)
    parser.add_argument("--kills", type=whole(0), default=2, help="replicas to kill (default: 2)")
    anyio.run(main, parser.parse_args().kills)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(command))

"""Self-consistency: several independent trees answer one prompt, and the answer that most give is taken.

python -m examples.self_consistency
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import anyio

from examples.countdown.problems import Problem
from examples.countdown.solve import solution_of
from policies import BestOf, Policy, SelfConsistency
from runtime import Engine, Sampling
from runtime.console import status_of

PROBLEM = Problem((22, 26, 31, 53), 27)


class MostlyRight(BestOf, frozen=True):
    """Takes an answer that a verifier likes best, here: one whose expression evaluates to the target."""

    def score(self, prompt: str, answer: str) -> float:
        return float(bool(answer) and answer.split()[-1] == prompt.split()[-1])


async def main() -> None:
    warm = Sampling(temperature=0.7)
    async with Engine.open("countdown", sampling=warm, seed=1) as engine:
        for select in (SelfConsistency(3), MostlyRight(3)):
            answer = await engine.run(PROBLEM.prompt, policy=Policy(select=select))
            solution = solution_of(PROBLEM, answer)
            print(f"{select}: {solution.expression} (right: {solution.is_right}), {answer.usage.threads} threads")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(status_of(partial(anyio.run, main)))

"""Reinforcement learning of a Countdown model, from where demonstrations have brought it.

python -m benchmarks.countdown.reinforce CHECKPOINT runs/parallel-rl --exclude validation.json
python -m benchmarks.countdown.reinforce CHECKPOINT runs/serial-rl --serial --exclude validation.json

The parallel model is asked mostly with budgets of children, so that it learns which ones to spend them on; the serial
one with windows, in which it has to be done. An answer is worth 1 if it evaluates to the target, else 0.
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import anyio
import msgspec

from benchmarks.countdown.train import Excluded
from examples.countdown.problems import Problem, draw_problems, problems_of
from examples.countdown.solve import LIMITS, prompt_of, solution_of
from examples.countdown.vocabulary import CHILDREN, NESTED, WITHIN
from policies.training import MOST_PROCESSES, GrpoConfig, Question, run_processes, train_grpo
from runtime import Limits
from runtime.console import input_directory, number, output_directory, status_of, whole
from runtime.model import describe

BUDGETS = (1, 2, 2, 3, 3, 4, 6)
WINDOWS = (128, 192, 256, 320, 512, 1024)


class ReinforceArguments(msgspec.Struct, frozen=True):
    checkpoint: Path
    directory: Path
    excluded: Excluded
    serial: bool
    config: GrpoConfig


def question(problem: Problem, condition: str = "", window: int = 512, limits: Limits = LIMITS[4]) -> Question:
    prompt = prompt_of(problem, condition)
    return Question(
        prompt,
        lambda answer: float(solution_of(problem, answer).is_right),
        max_tokens=window - len(prompt.split()),
        limits=limits,
    )


def budgeted_question(problem: Problem, budget: int) -> Question:
    """Spawns beyond the budget are refused: the model would soon learn not to keep to it."""
    return question(problem, f"{CHILDREN} {budget}", limits=Limits(threads=1 + budget, tree_depth=1))


def serial_question(problem: Problem, window: int) -> Question:
    return question(problem, f"{WITHIN} {window}", window)


def parallel_question(problem: Problem, chance: random.Random) -> Question:
    """With a budget of children, in most cases; else with all of them, or as a nested tree."""
    kind = chance.random()
    if kind < 0.7:
        return budgeted_question(problem, chance.choice(BUDGETS))
    return question(problem, "" if kind < 0.88 else NESTED)


def draw_question(serial: bool, excluded: Excluded, chance: random.Random) -> Question:
    problem = next(draw_problems(chance, excluded=excluded))
    if serial:
        return serial_question(problem, chance.choice(WINDOWS))
    return parallel_question(problem, chance)


def held_out(serial: bool, excluded: Excluded) -> list[Question]:
    """The same problems at every evaluation, drawn with a seed that training does not use, at a few conditions."""
    problems = islice(draw_problems(random.Random("held out of reinforcement"), excluded=excluded), 100)
    if serial:
        return [serial_question(problem, window) for problem in problems for window in (128, 256)]
    drawn = list(problems)
    budgeted = [budgeted_question(problem, budget) for problem in drawn for budget in (3, 6)]
    return [*budgeted, *(question(problem) for problem in drawn)]


def work(rank: int, world: int, arguments: ReinforceArguments) -> None:
    excluded = arguments.excluded
    run = partial(
        train_grpo,
        arguments.checkpoint,
        partial(draw_question, arguments.serial, excluded),
        arguments.config,
        arguments.directory,
        held_out(arguments.serial, excluded) if rank == 0 else (),
        rank,
        world,
    )
    anyio.run(run)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.countdown.reinforce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=input_directory, help="directory of the checkpoint to begin with")
    parser.add_argument("directory", type=output_directory, help="where the run goes; continued if it has one")
    parser.add_argument("--exclude", type=problems_of, required=True, help="problems never to train on (JSON)")
    parser.add_argument("--serial", action="store_true", help="the checkpoint is a serial one")
    parser.add_argument("--steps", type=whole(1), default=60)
    parser.add_argument("--questions", type=whole(1), default=32, help="problems a step, over all processes")
    parser.add_argument("--rate", type=number(0, 1, above=True), default=3e-4, help="of the first step; falls to 0")
    parser.add_argument("--kl", type=number(0), default=0.02, help="weight of the divergence from the start")
    parser.add_argument("--iteration-price", type=number(0), default=0.0, help="per thousand token-iterations")
    parser.add_argument("--path-price", type=number(0), default=0.0, help="per thousand tokens of the critical path")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--processes", type=whole(1, MOST_PROCESSES), default=2)
    given = parser.parse_args()
    if given.questions < given.processes:
        parser.error(f"argument --questions: is {given.questions}; give one at least for each of --processes")
    describe(given.checkpoint)
    config = GrpoConfig(
        steps=given.steps,
        seed=given.seed,
        questions=given.questions // given.processes,
        rate=given.rate,
        kl=given.kl,
        iteration_price=given.iteration_price,
        path_price=given.path_price,
        evaluate_every=20,
    )
    excluded = {problem.key for problem in given.exclude}
    arguments = ReinforceArguments(given.checkpoint, given.directory, excluded, given.serial, config)
    run_processes(work, given.processes, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))

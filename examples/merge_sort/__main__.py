"""Sorts numbers by a tree of reasoning threads that the model spawns and joins.

python -m examples.merge_sort "31 7 88 5 60 42 19" --checkpoint DIRECTORY/checkpoint
python -m examples.merge_sort --evaluate 200 --checkpoint DIRECTORY/checkpoint

python -m examples.merge_sort.train DIRECTORY makes the checkpoint.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from functools import partial

import anyio
import msgspec

from examples.merge_sort.lists import LARGEST, LONGEST, draw_list, is_sorted
from examples.merge_sort.questions import question_of
from policies.training import ask_all
from runtime import Answer, Engine, Sampling
from runtime.console import input_directory, output_file, status_of, whole

LENGTHS = ((1, 4), (5, 8), (9, 16))
"""The model is trained on lists of up to 16 numbers."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Lists of these lengths; tokens and threads are means over lists."""

    shortest: int
    longest: int
    lists: int
    sorted_exactly: float
    """Share of lists whose numbers all came back, in order."""
    tokens: float
    """Sampled tokens."""
    threads: float


async def sort_all(engine: Engine, lists: Sequence[Sequence[int]], at_once: int = 16) -> list[Answer]:
    """Sorts every list, `at_once` trees at a time; answers are in the order of the lists."""
    return await ask_all(engine, [question_of(numbers) for numbers in lists], Sampling.plain(0), at_once)


async def evaluate(engine: Engine, count: int, shortest: int, longest: int) -> Evaluation:
    """Sorts `count` lists of these lengths, drawn with a seed that training does not use."""
    random_source = random.Random(f"evaluation {shortest} {longest}")
    lists = [draw_list(random_source, shortest, longest) for _ in range(count)]
    answers = await sort_all(engine, lists)
    right = [is_sorted(numbers, answer.text) for numbers, answer in zip(lists, answers, strict=True)]
    return Evaluation(
        shortest=shortest,
        longest=longest,
        lists=count,
        sorted_exactly=sum(right) / count,
        tokens=sum(answer.usage.generated for answer in answers) / count,
        threads=sum(answer.usage.threads for answer in answers) / count,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.merge_sort", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="?", help='what to sort: "31 7 88 5 60"')
    parser.add_argument("--evaluate", type=whole(1), metavar="N", help="sort N lists of each of several lengths")
    parser.add_argument("--checkpoint", type=input_directory, required=True, help="directory of the checkpoint")
    parser.add_argument("--trace", type=output_file, help="record the run into this file")
    given = parser.parse_args()
    if (given.numbers is None) == (given.evaluate is None):
        parser.error("give either numbers or --evaluate N")
    if given.numbers is not None:
        words = given.numbers.split()
        if not words or not all(word.isdecimal() and int(word) <= LARGEST for word in words):
            parser.error(f'give numbers from 0 to {LARGEST} with spaces between them: "31 7 88 5 60"')
        given.numbers = [int(word) for word in words]
        if len(set(given.numbers)) < len(words):
            parser.error("give every number once only; this model sorts lists of different numbers")
        if len(words) > LONGEST:
            parser.error(f"this model sorts at most {LONGEST} numbers; got {len(words)}")
    return given


async def main() -> int:
    given = arguments()
    async with Engine.open(given.checkpoint, trace=given.trace) as engine:
        if given.evaluate is not None:
            for shortest, longest in LENGTHS:
                evaluation = await evaluate(engine, given.evaluate, shortest, longest)
                print(msgspec.json.encode(evaluation).decode(), flush=True)
            return 0
        (answer,) = await sort_all(engine, [given.numbers])
    print(answer.text)
    right = is_sorted(given.numbers, answer.text)
    print(
        f"{'sorted' if right else 'NOT sorted'}, by {answer.usage.threads} threads in {answer.usage.generated} tokens",
        file=sys.stderr,
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(status_of(partial(anyio.run, main)))

"""Reinforcement learning from a supervised checkpoint: right answers are rewarded, and token-iterations cost.

python -m examples.merge_sort.reinforce CHECKPOINT DIRECTORY

The new checkpoint is DIRECTORY/checkpoint. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial
from pathlib import Path

import anyio

from examples.merge_sort.demonstrations import PROTOCOL, build_tokenizer
from examples.merge_sort.lists import draw_list
from examples.merge_sort.questions import question_of
from examples.merge_sort.train import MODEL, POLICY
from policies.training import (
    MOST_PROCESSES,
    GrpoConfig,
    Question,
    export_checkpoint,
    restore,
    run_processes,
    train_grpo,
)
from runtime.console import input_directory, output_directory, status_of, whole
from runtime.model import Transformer, describe


def draw_question(random_source: random.Random) -> Question:
    return question_of(draw_list(random_source, 5, 16))


def work(rank: int, world: int, checkpoint: Path, directory: Path, config: GrpoConfig) -> None:
    """One process of the run; the first one writes the new checkpoint."""
    random_source = random.Random("held out questions")
    held_out = [draw_question(random_source) for _ in range(100)]
    anyio.run(partial(train_grpo, checkpoint, draw_question, config, directory, held_out, rank, world))
    if rank == 0:
        model = Transformer(MODEL)
        restore(directory, model)
        export_checkpoint(directory / "checkpoint", model, build_tokenizer(), PROTOCOL, POLICY)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.merge_sort.reinforce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=input_directory, help="where learning starts")
    parser.add_argument("directory", type=output_directory, help="where metrics and checkpoints go")
    parser.add_argument("--steps", type=whole(1), default=50)
    parser.add_argument(
        "--processes", type=whole(1, MOST_PROCESSES), default=2, help="one a core (default: %(default)s)"
    )
    given = parser.parse_args()
    describe(given.checkpoint)
    config = GrpoConfig(steps=given.steps, compile=False, iteration_price=0.05)
    run_processes(work, given.processes, given.checkpoint, given.directory, config)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))

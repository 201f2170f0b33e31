"""Trains the embedded model on demonstrations: `python -m examples.countdown.train runs/countdown`."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch
import torch.distributed as distributed

from examples.countdown.demonstrations import RootThread, training_problems, tree_examples
from examples.countdown.problems import LARGEST_VALUE, draw_problems, read_problems
from examples.countdown.vocabulary import WORDS
from policies.training.examples import Example
from policies.training.supervised import SupervisedConfig, train
from runtime.model.config import RavenConfig
from runtime.model.raven import Raven

MODEL = RavenConfig(
    n_embd=128,
    n_heads=4,
    intermediate_size=512,
    vocab_size=len(WORDS),
    block_size=512,
    n_layers_in_prelude=0,
    n_layers_in_recurrent_block=1,
    n_layers_in_coda=0,
    mean_recurrence=6,
    mean_backprop_depth=6,
    rope_base=1000.0,
    qk_bias=False,
    tie_embeddings=False,
    state_init="zero",
)

Excluded = set[tuple[tuple[int, ...], int]]


class TrainArguments(msgspec.Struct, frozen=True):
    directory: Path
    excluded: Path
    processes: int
    config: SupervisedConfig


def fourier_table(width: int) -> torch.Tensor:
    """[numbers, width] float32 of unit variance: sines and cosines of n and of log n, the rest zero.

    As the initial value of embedding and head it makes near numbers near and addition a rotation.
    """
    numbers = torch.arange(LARGEST_VALUE + 1).float()
    count = width // 6
    linear = 2 * math.pi / torch.logspace(math.log10(2), math.log10(400), count)
    logarithmic = 2 * math.pi / torch.logspace(math.log10(0.25), math.log10(12), width // 4 - count)
    angles = torch.cat([torch.outer(numbers, linear), torch.outer(torch.log1p(numbers), logarithmic)], dim=1)
    features = torch.cat([angles.sin(), angles.cos()], dim=1) * math.sqrt(2)
    return torch.nn.functional.pad(features, (0, width - features.shape[1]))


def fresh_model(seed: int) -> Raven:
    model = Raven(MODEL)
    model.initialise(torch.Generator().manual_seed(seed))
    features = fourier_table(MODEL.n_embd) * MODEL.init_std
    with torch.no_grad():
        for table in (model.transformer.wte.weight, model.lm_head.weight):
            table[: LARGEST_VALUE + 1] = table[: LARGEST_VALUE + 1] * 0.3 + features
    return model


def examples_without(excluded: Excluded, random_source: random.Random) -> Iterator[Example]:
    for problem in training_problems(random_source, excluded):
        yield from tree_examples(problem, random_source)


def held_out_examples(excluded: Excluded) -> dict[str, list[Example]]:
    """Roots and all children of problems from APR's distribution, drawn with a seed that training does not use."""
    random_source = random.Random("held out")
    problems = [problem for problem, _ in zip(draw_problems(random_source, excluded=excluded), range(60), strict=False)]
    roots = [tree_examples(problem, random_source)[0] for problem in problems]
    children = [child for problem in problems for child in RootThread(problem).children()]
    return {
        "roots": roots,
        "winners": [child.example() for child in children if child.path],
        "losers": [child.example() for child in children if not child.path][:400],
    }


def work(rank: int, arguments: TrainArguments) -> None:
    config = arguments.config
    if arguments.processes > 1:
        distributed.init_process_group(
            "gloo", init_method="tcp://127.0.0.1:29871", rank=rank, world_size=arguments.processes
        )
    excluded = {problem.key for problem in read_problems(arguments.excluded)}
    train(
        fresh_model(config.seed),
        lambda random_source: examples_without(excluded, random_source),
        config,
        arguments.directory,
        held_out_examples(excluded) if rank == 0 else {},
        rank,
        arguments.processes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where checkpoints and metrics go; continued if it has some")
    parser.add_argument("--exclude", type=Path, required=True, help="problems never to train on (JSON)")
    parser.add_argument("--steps", type=int, default=9500)
    parser.add_argument("--hold", type=float, default=0.45, help="share of the steps before the rates decay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    config = SupervisedConfig(steps=given.steps, hold=given.hold, seed=given.seed)
    given.directory.mkdir(parents=True, exist_ok=True)
    arguments = TrainArguments(given.directory, given.exclude, given.processes, config)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, arguments)) for rank in range(1, given.processes)]
    for worker in workers:
        worker.start()
    work(0, arguments)
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()

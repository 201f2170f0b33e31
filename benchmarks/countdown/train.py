"""Trains the embedded models on demonstrations.

python -m benchmarks.countdown.train runs/exhaustive --demonstrations exhaustive --exclude validation.json
python -m benchmarks.countdown.train runs/parallel --demonstrations parallel --start runs/exhaustive --exclude ...
python -m benchmarks.countdown.train runs/serial --demonstrations serial --start runs/exhaustive --exclude ...
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from pathlib import Path

import msgspec
import torch

from benchmarks.countdown.demonstrations import exhaustive_examples, parallel_examples, serial_examples, tree_examples
from benchmarks.countdown.parallel import RootThread
from benchmarks.countdown.serial import SerialSearch
from examples.countdown.problems import LARGEST_VALUE, Key, draw_problems, problems_of
from examples.countdown.vocabulary import WORDS, build_tokenizer
from policies.training import MOST_PROCESSES, Example, SupervisedConfig, initialise_from, run_processes, train
from runtime.console import input_directory, number, output_directory, status_of, whole
from runtime.model import RavenConfig, Tokenizer, Transformer, describe, initialise

MODEL = RavenConfig(
    n_embd=128,
    n_heads=4,
    intermediate_size=512,
    vocab_size=len(WORDS),
    block_size=4096,
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

Excluded = set[Key]


class TrainArguments(msgspec.Struct, frozen=True):
    directory: Path
    excluded: Excluded
    demonstrations: str
    start: Path | None
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


def fresh_model(seed: int) -> Transformer:
    model = Transformer(MODEL)
    initialise(model, torch.Generator().manual_seed(seed))
    features = fourier_table(MODEL.n_embd) * MODEL.init_std
    with torch.no_grad():
        for table in (model.embedding.weight, model.head.weight):
            table[: LARGEST_VALUE + 1] = table[: LARGEST_VALUE + 1] * 0.3 + features
    return model


DEMONSTRATIONS = {"exhaustive": exhaustive_examples, "parallel": parallel_examples, "serial": serial_examples}


def held_out_examples(excluded: Excluded) -> dict[str, list[Example]]:
    """Roots, all children and serial threads of problems from APR's distribution, by a seed of their own."""
    random_source = random.Random("held out")
    problems = [problem for problem, _ in zip(draw_problems(random_source, excluded=excluded), range(60), strict=False)]
    roots = [tree_examples(problem, random_source)[0] for problem in problems]
    children = [child for problem in problems for child in RootThread(problem).searching()]
    return {
        "roots": roots,
        "winners": [child.example() for child in children if child.path],
        "losers": [child.example() for child in children if not child.path][:400],
        "serial": [SerialSearch(problem, random_source).thread(1024).example() for problem in problems],
    }


def work(rank: int, world: int, arguments: TrainArguments) -> None:
    config = arguments.config
    excluded = arguments.excluded
    model = fresh_model(config.seed)
    if arguments.start is not None:
        initialise_from(model, arguments.start, Tokenizer(build_tokenizer()))
    draw = DEMONSTRATIONS[arguments.demonstrations]
    train(
        model,
        lambda random_source: draw(random_source, excluded),
        config,
        arguments.directory,
        held_out_examples(excluded) if rank == 0 else {},
        rank,
        world,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.countdown.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=output_directory, help="where the run goes; continued if it has one")
    parser.add_argument("--exclude", type=problems_of, required=True, help="problems never to train on (JSON)")
    parser.add_argument("--demonstrations", choices=DEMONSTRATIONS, default="parallel")
    parser.add_argument("--start", type=input_directory, help="a checkpoint whose weights to begin with")
    parser.add_argument("--steps", type=whole(1), default=9500)
    parser.add_argument("--hold", type=number(0, 1), default=0.45, help="share of the steps before the rates decay")
    parser.add_argument("--muon-rate", type=number(0, 1, above=True), default=0.02)
    parser.add_argument("--adam-rate", type=number(0, 1, above=True), default=2e-3)
    parser.add_argument("--tokens", type=whole(1), default=8704, help="tokens a step, over all processes")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--processes", type=whole(1, MOST_PROCESSES), default=2)
    given = parser.parse_args()
    if given.tokens < given.processes:
        parser.error(f"argument --tokens: is {given.tokens}; give one at least for each of --processes")
    if given.start is not None:
        describe(given.start)
    config = SupervisedConfig(
        steps=given.steps,
        hold=given.hold,
        seed=given.seed,
        muon_rate=given.muon_rate,
        adam_rate=given.adam_rate,
        tokens_per_step=given.tokens // given.processes,
        tokens_per_batch=2176,
    )
    excluded = {problem.key for problem in given.exclude}
    arguments = TrainArguments(given.directory, excluded, given.demonstrations, given.start, config)
    run_processes(work, given.processes, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))

"""Trains a model to sort, from scratch, and makes a checkpoint of it: `python -m examples.merge_sort.train DIRECTORY`.

A run that was stopped goes on where it was. The checkpoint is DIRECTORY/checkpoint.
"""

from __future__ import annotations

import argparse
import random
import sys
from itertools import islice
from pathlib import Path

import torch

from examples.merge_sort.demonstrations import PROTOCOL, WORDS, build_tokenizer, examples
from policies import AllChildren, Policy
from policies.training import MOST_PROCESSES, SupervisedConfig, export_checkpoint, run_processes, train
from runtime.console import output_directory, status_of, whole
from runtime.model import RavenConfig, Transformer, initialise

MODEL = RavenConfig(
    n_embd=128,
    n_heads=4,
    intermediate_size=256,
    vocab_size=len(WORDS),
    block_size=1024,
    n_layers_in_prelude=0,
    n_layers_in_recurrent_block=1,
    n_layers_in_coda=0,
    mean_recurrence=4,
    rope_base=10_000.0,
    qk_bias=False,
    tie_embeddings=False,
    state_init="zero",
)

POLICY = Policy(spawn=AllChildren(tree_depth=5))
"""The longest list halves five times until threads sort by themselves."""


def work(rank: int, world: int, directory: Path, config: SupervisedConfig) -> None:
    """One process of the run; the first one writes the checkpoint."""
    model = Transformer(MODEL)
    initialise(model, torch.Generator().manual_seed(config.seed))
    lengths = {"up to 8": (1, 8), "9 to 16": (9, 16)}
    held_out = {
        name: list(islice(examples(random.Random(f"held out {name}"), *between), 100))
        for name, between in lengths.items()
    }
    train(model, examples, config, directory, held_out if rank == 0 else {}, rank, world)
    if rank == 0:
        export_checkpoint(directory / "checkpoint", model, build_tokenizer(), PROTOCOL, POLICY)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.merge_sort.train", description=__doc__)
    parser.add_argument("directory", type=output_directory, help="where metrics and checkpoints go")
    parser.add_argument("--steps", type=whole(1), default=3000)
    parser.add_argument(
        "--processes", type=whole(1, MOST_PROCESSES), default=2, help="one a core (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole(0), default=0)
    given = parser.parse_args()
    config = SupervisedConfig(
        steps=given.steps,
        seed=given.seed,
        tokens_per_step=max(1, 4352 // given.processes),
        tokens_per_batch=2176,
        hold=0.4,
        most_backprop=4,
    )
    run_processes(work, given.processes, given.directory, config)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))

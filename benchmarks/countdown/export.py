"""Makes a checkpoint directory of a training run: `python -m benchmarks.countdown.export runs/parallel DIRECTORY`."""

from __future__ import annotations

import argparse
import sys

import msgspec

from benchmarks.countdown.protocol import COUNTDOWN
from benchmarks.countdown.train import MODEL
from examples.countdown.vocabulary import build_tokenizer
from policies import AllChildren, Fixed, Policy
from policies.training import export_checkpoint, restore
from runtime.console import input_directory, output_directory, status_of, whole
from runtime.model import Tokenizer, Transformer

LONGEST = MODEL.block_size

POLICY = Policy(depth=Fixed(), spawn=AllChildren(tree_depth=2))
"""Every token at the mean recurrence, every child that is asked for, as deep as five numbers or a nested tree need: a
thread that repeats its own prompt in a spawn would have children without end."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.countdown.export", description=__doc__)
    parser.add_argument("run", type=input_directory, help="directory of a training run, supervised or by reinforcement")
    parser.add_argument("directory", type=output_directory, help="where the checkpoint goes")
    parser.add_argument("--context", type=whole(1, LONGEST), default=LONGEST, help="most tokens a thread")
    given = parser.parse_args()
    model = Transformer(msgspec.structs.replace(MODEL, block_size=given.context))
    step = restore(given.run, model)
    if not step:
        parser.error(f"{given.run} holds no training run; make one with python -m benchmarks.countdown.train")
    export_checkpoint(given.directory, model, Tokenizer(build_tokenizer()), COUNTDOWN, POLICY)
    print(f"step {step} -> {given.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))

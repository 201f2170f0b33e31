"""Makes a checkpoint directory of a training run: `python -m examples.countdown.export runs/parallel DIRECTORY`."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from examples.countdown.protocol import COUNTDOWN
from examples.countdown.train import MODEL
from examples.countdown.vocabulary import build_tokenizer
from policies import AsAsked, Fixed, Policy
from policies.training import export_checkpoint, restore
from runtime.model.raven import Raven
from runtime.model.tokenizer import Tokenizer

POLICY = Policy(depth=Fixed(), spawn=AsAsked(tree_depth=2))
"""Every token at the mean recurrence, every child that is asked for, as deep as five numbers or a nested tree need: a
thread that repeats its own prompt in a spawn would have children without end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a training run, supervised or by reinforcement")
    parser.add_argument("directory", type=Path, help="where the checkpoint goes")
    parser.add_argument("--context", type=int, default=MODEL.block_size, help="most tokens of a thread")
    given = parser.parse_args()
    model = Raven(msgspec.structs.replace(MODEL, block_size=given.context))
    step = restore(given.run, model)
    if not step:
        parser.error(f"{given.run} holds no training run; make one with python -m examples.countdown.train")
    export_checkpoint(given.directory, model, Tokenizer(build_tokenizer()), COUNTDOWN, POLICY)
    print(f"step {step} -> {given.directory}")


if __name__ == "__main__":
    main()

"""Makes a checkpoint directory of a training run: `python -m examples.countdown.export runs/countdown DIRECTORY`."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from examples.countdown.protocol import COUNTDOWN
from examples.countdown.train import MODEL
from examples.countdown.vocabulary import END, ID_OF, build_tokenizer
from policies import AsAsked, Fixed, Policy, to_builtins
from policies.training.resume import restore
from runtime.model.checkpoint import save_checkpoint
from runtime.model.raven import Raven
from runtime.model.tokenizer import Tokenizer

POLICY = Policy(depth=Fixed(), spawn=AsAsked())
"""Every token at the mean recurrence, every child that is asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a training run")
    parser.add_argument("directory", type=Path, help="where the checkpoint goes")
    given = parser.parse_args()
    model = Raven(MODEL)
    step = restore(given.run, model)
    if not step:
        parser.error(f"{given.run} holds no training run; make one with python -m examples.countdown.train")
    braid = {"protocol": msgspec.to_builtins(COUNTDOWN), "policy": to_builtins(POLICY)}
    save_checkpoint(
        given.directory,
        model,
        tokenizer=Tokenizer(build_tokenizer()),
        eos=(ID_OF[END],),
        braid=msgspec.json.format(msgspec.json.encode(braid)),
    )
    print(f"step {step} -> {given.directory}")


if __name__ == "__main__":
    main()

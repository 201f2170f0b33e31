"""A depth policy of one's own: a token stops as soon as its likeliest successor is likely enough.

python -m examples.custom_policy
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import ClassVar, Literal

import anyio
from torch import Tensor

from policies import DepthPolicy, DepthView, Fixed, Policy
from runtime import Engine
from runtime.console import status_of


class WhenSure(DepthPolicy, frozen=True):
    """Exits when all that is not the likeliest token has less probability than `threshold` together."""

    threshold: float = 0.1
    reads: ClassVar[Literal["logits"]] = "logits"

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        assert view.logits is not None  # because it reads them
        return 1 - view.logits.softmax(-1).amax(-1), view.previous


async def main() -> None:
    async with Engine.open("countdown") as engine:
        for depth in (Fixed(), WhenSure(0.1), WhenSure(0.001)):
            answer = await engine.run("22 26 31 53 -> 27", policy=Policy(depth=depth))
            usage = answer.usage
            mean = usage.iterations / usage.computed
            print(f"{depth}: {answer.text or 'no answer'}; {mean:.2f} iterations a token over {usage.threads} threads")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(status_of(partial(anyio.run, main)))

"""A generate that is refused leaves its thread as it was, on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest

from policies import DepthPolicy, Fixed, Policy
from runtime import Engine, PolicyError

pytestmark = pytest.mark.anyio


class WithoutWidth(DepthPolicy, frozen=True):
    reads: ClassVar[Literal["latent"]] = "latent"

    def previous_width(self, width: int, vocab: int) -> int:
        raise ArithmeticError("no width")


@pytest.mark.parametrize("before", [0, 2])
async def test_a_policy_that_is_refused_takes_nothing_from_the_context(tiny_checkpoint: Path, before: int) -> None:
    """Whether the thread has generated before or not."""
    policy = Policy(depth=Fixed(3))
    async with Engine.open(tiny_checkpoint, policy=policy, num_pages=64, max_in_flight=16, prefill_chunk=16) as engine:
        async with engine.thread([1, 2, 3, 4, 5]) as root:
            expected = (await root.generate(before + 4)).tokens
        async with engine.thread([1, 2, 3, 4, 5]) as root:
            said = (await root.generate(before)).tokens if before else ()
            for _ in range(2):
                with pytest.raises(PolicyError, match="no width"):
                    await root.generate(3, depth=WithoutWidth())
            said += (await root.generate(4)).tokens
            assert said == expected
            assert root.tokens == (1, 2, 3, 4, 5, *expected)

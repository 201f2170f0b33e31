"""Rows of the head that only pad it to a round size are no tokens: nothing is as if they were not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import torch

from policies import KL, EntropyDiff, Fixed, Policy
from policies.depth.base import DepthPolicy
from runtime import Engine, PromptError, Sampling
from runtime.model.checkpoint import load_checkpoint, save_checkpoint
from runtime.model.families.raven import RavenConfig
from runtime.model.parameters import published_weights
from runtime.model.replacement import replace_weights
from runtime.model.transformer import Transformer
from tests.engine.tiny import tiny_model

PADDED = 130
"""More than one block of columns beyond the 40 tokens of the tiny model."""

SAMPLINGS = (
    Sampling(logprobs=3),
    Sampling(temperature=1.0),
    Sampling(temperature=3.0, top_p=0.9),
    Sampling(temperature=2.0, min_p=0.01, logprobs=2),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model twice: as it is, and with rows that would be the likeliest tokens everywhere."""
    plain = tiny_model(5)
    assert isinstance(plain.config, RavenConfig)
    padded = Transformer(msgspec.structs.replace(plain.config, padded_vocab_size=PADDED))
    weights = published_weights(plain)
    for table in ("transformer.wte.weight", "lm_head.weight"):
        rows = weights[table]
        weights[table] = torch.cat([rows, 5.0 * rows.repeat(3, 1)[: PADDED - len(rows)]])
    replace_weights(padded, weights)
    base = tmp_path_factory.mktemp("padded")
    save_checkpoint(base / "plain", plain)
    save_checkpoint(base / "padded", padded)
    return base / "plain", base / "padded"


async def at_once(engine: Engine) -> list[list[Any]]:
    """What threads with each of the samplings say beside one another."""
    said: dict[int, list[Any]] = {}

    async def say(number: int, sampling: Sampling) -> None:
        async with engine.thread([1, 2, 3]) as thread:
            generation = await thread.generate(20, sampling=sampling)
            said[number] = [generation.tokens, generation.depths, generation.top_logprobs, generation.logprobs]

    async with anyio.create_task_group() as group:
        for number, sampling in enumerate(SAMPLINGS):
            group.start_soon(say, number, sampling)
    return [said[number] for number in range(len(SAMPLINGS))]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
@pytest.mark.parametrize("depth", [Fixed(3), KL(0.05), EntropyDiff(0.05)])
@pytest.mark.parametrize("backend", ["torch", "native"])
async def test_padding_has_no_part_in_any_choice(saved: tuple[Path, Path], backend: Any, depth: DepthPolicy) -> None:
    said: list[list[Any]] = []
    for checkpoint in saved:
        async with Engine.open(checkpoint, backend=backend, policy=Policy(depth=depth), seed=3) as engine:
            said += await at_once(engine)
            with pytest.raises(PromptError):
                engine.thread([40])
    plain, padded = said[: len(SAMPLINGS)], said[len(SAMPLINGS) :]
    for one, other in zip(plain, padded, strict=True):
        assert one[:2] == other[:2]
        assert [top.keys() for top in one[2]] == [top.keys() for top in other[2]]
        assert one[3] == pytest.approx(other[3], abs=1e-5)
    assert len({token for one in plain for token in one[0]}) > 10


def test_padding_is_kept_on_disk_and_is_no_part_of_the_logits(saved: tuple[Path, Path], tmp_path: Path) -> None:
    model = load_checkpoint(saved[1]).model
    assert isinstance(model, Transformer)
    assert (model.specification.vocab_size, len(model.head.weight), len(model.embedding.weight)) == (40, 130, 130)
    save_checkpoint(tmp_path / "again", model)
    again = load_checkpoint(tmp_path / "again").model
    assert torch.equal(again.head.weight, model.head.weight)

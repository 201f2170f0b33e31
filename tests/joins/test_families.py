"""Merged joins on models with windows, caps and scaled rotations, against dense passes under explicit masks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from policies import Fixed, Policy
from runtime import Engine, ReasoningThread
from runtime.model.checkpoint import load_checkpoint
from runtime.model.transformer import Transformer, attend_densely
from tests.families.checkpoints import make, save

pytestmark = pytest.mark.anyio
PREFIX = [5, 9, 3, 17, 22, 8, 11, 30, 2, 2, 14]
CHILDREN = [([4, 6], 13), ([7], 2), ([20, 21, 23], 8)]
CONCLUSION = [12, 13]


@torch.no_grad()
def dense_logits(model: Transformer, tokens: list[int], borders: list[int]) -> Tensor:
    """Of a context whose children lie between borders; the parent goes on behind the last."""
    length, start, end = len(tokens), borders[0], borders[-1]
    position = torch.arange(length)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    for first, last in pairwise(borders):
        position[first:last] = start + torch.arange(last - first)
        seen[first:last, start:first] = False
    position[end:] = position[start:end].max() + 1 + torch.arange(length - end)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rule = model.specification.attention(layer)
        visible = seen
        if rule.window is not None:
            visible = seen & (position[:, None] - position < rule.window)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        return attend_densely(query, key, value, rule, visible).transpose(1, 2)

    rotation = model.rotation(position)
    embedded = model.prelude(torch.tensor([tokens]), rotation, attend)
    state = model.iterate(model.first_state(embedded), embedded, rotation, attend)
    return model.coda(state, rotation, attend)[0]


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize(
    ("family", "variant"),
    [("mistral", "windows"), ("qwen2", "windows"), ("qwen3", "windows"), ("qwen3", "yarn"), ("gemma2", "windows")],
)
async def test_what_is_said_after_a_merged_join_is_what_a_dense_pass_says(
    family: str, variant: str, backend: Literal["torch", "native"], tmp_path: Path
) -> None:
    directory = save(tmp_path / "model", make(family, variant))
    model = load_checkpoint(directory).model
    assert isinstance(model, Transformer)
    settings: dict[str, Any] = {
        "page_size": 3,
        "num_pages": 24,
        "prefill_chunk": 4,
        "max_in_flight": 16,
    }
    said: list[tuple[int, int]] = []

    async def intrude(engine: Engine) -> None:
        async with engine.thread([1] * 40) as other:
            await other.generate(8)

    async with Engine.open(directory, policy=Policy(depth=Fixed(1)), backend=backend, **settings) as engine:
        async with engine.thread(PREFIX) as root:

            def thinks(tokens: int) -> Callable[[ReasoningThread], Awaitable[None]]:
                async def think(thread: ReasoningThread) -> None:
                    await thread.generate(tokens)

                return think

            children = [root.fork(seed, program=thinks(count)) for seed, count in CHILDREN]
            await root.join(children, merge=True)
            await intrude(engine)
            borders = [len(PREFIX)]
            for seed, count in CHILDREN:
                borders.append(borders[-1] + len(seed) + count)
                said.append((borders[-1] - count, borders[-1]))
            assert len(root.tokens) == borders[-1]
            root.append(CONCLUSION)
            await root.generate(14)
            tokens = list(root.tokens)
        said.append((len(tokens) - 14, len(tokens)))
    best = dense_logits(model, tokens, borders).argmax(-1).tolist()
    for start, end in said:
        # The first token of a child is its seed, so all that were sampled follow a token of their own segment.
        assert tokens[start:end] == best[start - 1 : end - 1]
    assert engine.statistics.pages_used == 0

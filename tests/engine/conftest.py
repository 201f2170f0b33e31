"""A tiny model, by itself and as a checkpoint directory, with a protocol that its random tokens speak by accident."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from policies import LatentDiff, Policy, to_builtins
from runtime import Engine, TagProtocol
from runtime.model.checkpoint import save_checkpoint
from runtime.model.tokenizer import Tokenizer
from runtime.model.transformer import Transformer
from tests.engine.engines import opened
from tests.engine.tiny import tiny_model
from traces import read

TAGS = ("<spawn>", "</spawn>", "<join>", "<message>", "</message>", "<win>", "<end>")
PROTOCOL = TagProtocol(
    spawn_open="<spawn>",
    spawn_close="</spawn>",
    join="<join>",
    return_open="<win>",
    end=("<end>",),
    delivered="<message> {message} </message> ",
    received="{message} ",
    most_messages=2,
    longest_message=8,
    on_malformed="ignore",
)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(3)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [*(f"w{number}" for number in range(39 - len(TAGS))), *TAGS, "<unknown>"]
    inner = Inner(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    braid = {
        "protocol": msgspec.to_builtins(PROTOCOL),
        "policy": to_builtins(Policy(depth=LatentDiff(0.7, max_iterations=4))),
    }
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(directory, tiny_model(3), tokenizer=Tokenizer(inner), braid=msgspec.json.encode(braid))
    return directory


@pytest.fixture(params=["traced", "untraced"])
async def engine(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[Engine]:
    path = tmp_path / "run.trace" if request.param == "traced" else None
    async with opened(tiny_checkpoint, trace=path) as engine:
        yield engine
    if path is not None:
        assert read(path).lost is None

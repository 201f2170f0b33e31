"""Engines that ask servers of the tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from transformers import LlamaConfig

from runtime import Engine, RemoteSettings
from runtime.link import Device
from tests.runtime_loop.scripted_core import Say, Speaker
from tests.runtime_loop.turns import turn
from tests.runtime_loop.words import PROTOCOL, WORDS, ids, word_tokenizer
from tests.serve.serving import MODEL, Served, served, words_on

QUICK = RemoteSettings(first_pause=0.001, connect_seconds=5, silence_seconds=5)
"""What is wrong is asked for again at once."""


def words_checkpoint(directory: Path) -> Path:
    """Writes what an engine needs to know of a model whose tokens are words."""
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "max_position_embeddings": 4096,
        "hidden_size": 16,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(**sizes, num_hidden_layers=1, eos_token_id=None, bos_token_id=None).to_dict()
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(word_tokenizer().to_json())
    (directory / "braid.json").write_text(json.dumps({"protocol": msgspec.to_builtins(PROTOCOL)}))
    return directory


def asking(server: Served, words: Path | None, **options: Any) -> Engine:
    """An engine whose tokens a server makes."""
    options.setdefault("remote", QUICK)
    return Engine.open(f"{server.url}/v1", model=MODEL, tokenizer=words, **options)


@asynccontextmanager
async def served_words(device: Device, words: Path, **options: Any) -> AsyncIterator[tuple[Served, Engine]]:
    """A server on a device, and an engine that asks it."""
    async with served(words_on(device)) as server, asking(server, words, **options) as engine:
        yield server, engine


TREE = (
    "1 a <spawn> 2 </spawn> b <spawn> 3 </spawn> <join> <message> 7 </message> <message> 8 </message> "
    "c <spawn> 2 </spawn> <join> <message> 7 </message> <return> 9 9 <end>",
    "2 x <return> 7 <end>",
    "3 <spawn> 2 </spawn> <join> <message> 7 </message> <return> 8 <end>",
)
"""What the threads of a tree have in their contexts at the end."""


def transcripts(*texts: str) -> Say:
    """Threads say what follows in the first of these texts that begins with their context, and then z for ever."""
    whole = [ids(text) for text in texts]

    def say(speaker: Speaker) -> int:
        context = tuple(speaker.tokens)
        return next((each[len(context)] for each in whole if each[: len(context)] == context != each), ids("z")[0])

    return say


async def until(device: Any, kind: type[Any], count: int = 1) -> list[Any]:
    """The commands of a kind that a stepped device was sent, once there are so many."""
    while len(found := [command for command in device.sent if isinstance(command, kind)]) < count:
        await turn()
    return found

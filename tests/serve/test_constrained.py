"""Answers that must be something, as clients of the OpenAI API ask for it, from random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from policies import Fixed, Policy
from runtime import Engine
from tests import vocabularies
from tests.constraints.checkpoints import save_random

from .serving import Served, served

pytestmark = pytest.mark.anyio

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"is_right": {"type": "boolean"}, "line": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["is_right", "line"],
    "additionalProperties": False,
}
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_random(tmp_path_factory.mktemp("random") / "0", vocabularies.byte_level(), 0)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def is_asked(text: str) -> bool:
    value = json.loads(text)
    return value["is_right"] in (True, False) and 0 <= value["line"] <= 99


async def ask(server: Served, **fields: Any) -> str:
    answer = await server.chat([{"role": "user", "content": "the cat"}], temperature=1.5, **fields)
    assert answer.choices[0].finish_reason == "stop"
    return str(answer.choices[0].message.content)


async def test_answers_are_what_was_asked_for(checkpoint: Path) -> None:
    sizes: dict[str, Any] = {"page_size": 8, "num_pages": 128, "max_in_flight": 32, "prefill_chunk": 16}

    def make(observer: Any) -> Engine:
        return Engine.open(checkpoint, policy=Policy(depth=Fixed(2)), observer=observer, **sizes)

    async with served(make) as server:
        format = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}
        assert is_asked(await ask(server, response_format=format))
        assert is_asked(await ask(server, json_schema=SCHEMA))
        assert await ask(server, choices=["yes", "no"]) in ("yes", "no")
        assert re.fullmatch("[a-c]{3}", await ask(server, regex="[a-c]{3}"))
        chunks = await server.completion("the cat", json_schema=SCHEMA, stream=True, n=3, max_tokens=60)
        texts = {0: "", 1: "", 2: ""}
        async for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert all(is_asked(text) for text in texts.values())
        begun = await server.chat(
            [{"role": "user", "content": "a"}], response_format={"type": "json_object"}, max_tokens=3, temperature=1.0
        )
        assert begun.choices[0].message.content.startswith("{")
        object_said = await server.completion("the cat", choices=["a"], logprobs=1)
        assert object_said.choices[0].logprobs.token_logprobs == [0.0]

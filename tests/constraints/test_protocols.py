"""Protocols that declare what stands between their tags, spoken by random models; and thoughts, which are free."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import anyio.to_thread
import msgspec
import pytest

from policies import Fixed, Limits, MaxChildren, Policy
from runtime import BoundProtocol, Engine, EngineSettings, ProtocolError, Sampling, TagProtocol, open_device
from runtime.link import Spawned, ThreadEnded
from runtime.model import Tokenizer
from tests import vocabularies
from tests.constraints.checkpoints import save_random, words
from traces import Verification, read, verify, what_if

pytestmark = pytest.mark.anyio

TAGS = ("<spawn>", "</spawn>", "<join>", "<win>", "<end>", "<think>", "</think>")
WORDS = (*map(str, range(10)), "+", "-", *TAGS, "<unk>")
MESSAGE, RETURNED = r"[0-9] \+ [0-9]", r"- [0-9]( [0-9]){0,2}"
PROTOCOL = TagProtocol(
    spawn_open="<spawn>",
    spawn_close="</spawn>",
    join="<join>",
    return_open="<win>",
    end=("<end>",),
    messages={"regex": MESSAGE},
    returns={"regex": RETURNED},
    thought=("<think>", "</think>"),
    on_malformed="ignore",
)
SIZES: dict[str, Any] = {"page_size": 8, "num_pages": 256, "max_in_flight": 32, "prefill_chunk": 16}
POLICY = Policy(depth=Fixed(2), spawn=MaxChildren(2))
HOT = Sampling(temperature=1.5)


class Move(msgspec.Struct):
    by: int


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def saved(directory: Path, protocol: TagProtocol, seed: int = 0) -> Path:
    path = save_random(directory, words(*WORDS), seed, stops=False)
    (path / "braid.json").write_bytes(msgspec.json.encode({"protocol": msgspec.to_builtins(protocol)}))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("spoken") / "0", PROTOCOL)


@pytest.mark.parametrize("backend", ["torch", "native"])
async def test_messages_and_returned_values_are_what_is_declared(
    tmp_path: Path, backend: Literal["torch", "native"]
) -> None:
    path, checkpoint = tmp_path / "run.trace", saved(tmp_path / "0", msgspec.structs.replace(PROTOCOL, thought=None))
    async with Engine.open(checkpoint, policy=POLICY, trace=path, backend=backend, **SIZES) as engine:
        for number in range(20):
            limits = Limits(threads=6, tree_depth=2)
            await engine.run(f"{number % 10} +", sampling=HOT, limits=limits, max_tokens=60)
    tokenizer = Tokenizer.from_file(checkpoint / "tokenizer.json")
    trace = read(path)
    asked = [tokenizer.decode(event.tokens) for event in trace.events if isinstance(event, Spawned)]
    given = [event.text for event in trace.events if isinstance(event, ThreadEnded) and event.outcome == "returned"]
    assert len(asked) > 5
    assert len(given) > 5
    assert all(re.fullmatch(MESSAGE, text) for text in asked), asked
    assert all(re.fullmatch(RETURNED, text.strip()) for text in given), given
    if backend == "native":

        def run() -> Verification:
            settings = EngineSettings(backend="native", **SIZES)
            return verify(trace, open_device(checkpoint, settings, policy=POLICY, trace=None, seed=0).device)

        found = await anyio.to_thread.run_sync(run)
        assert found.equal, found
        again = await what_if(trace, checkpoint=checkpoint, limit=3)
        assert all(comparison.recorded.answer == comparison.now.answer for comparison in again.comparisons)


async def test_a_thought_is_free_and_what_follows_it_is_not(checkpoint: Path) -> None:
    form: dict[str, Any] = {"regex": r"[0-9] - [0-9]", "sampling": Sampling(temperature=30.0)}
    async with Engine.open(checkpoint, policy=POLICY, **SIZES) as engine:
        thoughts = 0
        for number in range(20):
            async with engine.thread(f"{number % 10} <think>") as thread:
                said = await thread.generate(60, **form)
                thought, closed, answer = said.text.partition("</think>")
                assert re.fullmatch(r" [0-9] - [0-9]", thought) is None
                if closed:
                    assert re.fullmatch(r" [0-9] - [0-9]", answer)
                    assert said.reason == "stop"
            async with engine.thread(f"{number % 10} <think> 5 </think> 1") as thread:
                said = await thread.generate(60, **form)
                if said.text.startswith(" <think>"):
                    thoughts += 1
                    assert said.reason == "length" or re.search(r"</think> [0-9] - [0-9]$", said.text)
                    continue
                assert re.fullmatch(r" [0-9] - [0-9]", said.text)
        assert thoughts > 0
        async with engine.thread("1 <think>") as thread:
            begun = await thread.generate(2, **form)
            rest = await thread.generate(80, resume=True, **form)
            whole = begun.text + rest.text
            assert rest.reason == "length" or re.search(r"</think> [0-9] - [0-9]$", whole)


def test_a_type_is_declared_as_its_schema() -> None:
    declared = TagProtocol(
        spawn_open="<spawn>", spawn_close="</spawn>", join="<join>", return_open="<win>", end=("<end>",), returns=Move
    )
    assert declared.returns == {"json_schema": msgspec.json.schema(Move)}
    assert msgspec.json.decode(msgspec.json.encode(declared), type=TagProtocol) == declared
    BoundProtocol(declared, Tokenizer(words(*WORDS)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"returns": {"regex": "("}}, "returns: regex is no regular expression"),
        ({"returns": {"regex": "a", "choices": ["a"]}}, r"returns has \['choices', 'regex'\]; declare one of"),
        ({"messages": {}}, r"messages has \[\]; declare one of"),
        ({"messages": 5}, "messages is neither a type that msgspec knows nor a mapping"),
        ({"messages": {"choices": "a"}}, "messages: choices is 'a'"),
        ({"thought": ("<think> 5", "</think>")}, "is not one token of the vocabulary"),
        ({"returns": {"regex": "a"}, "child_pattern": "(?P<a>5)"}, "this protocol matches on text"),
    ],
)
def test_what_cannot_be_declared_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        BoundProtocol(msgspec.structs.replace(PROTOCOL, **fields), Tokenizer(words(*WORDS)))


def test_tags_of_several_tokens_are_refused() -> None:
    tags: dict[str, Any] = {"spawn_open": "it's", "spawn_close": "cat.", "join": "sat!", "return_open": "the café"}
    declared = TagProtocol(**tags, end=("日本",), messages={"regex": "a"})
    with pytest.raises(ProtocolError, match="is not one token of the vocabulary"):
        BoundProtocol(declared, Tokenizer(vocabularies.byte_level()))

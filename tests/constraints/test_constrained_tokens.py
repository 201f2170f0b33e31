"""Constrained tokens on both backends: whatever the weights, the text is what was asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from tokenizers import Tokenizer as Inner

from policies import DepthPolicy, Fixed, LatentDiff, Policy, Speculative
from runtime import ConstraintError, Engine, Generation, Sampling
from tests import vocabularies
from tests.constraints.checkpoints import save_random, words
from tests.loops import both_loops

pytestmark = pytest.mark.anyio

BACKENDS = ("torch", "native")
SIZES: dict[str, Any] = {"page_size": 8, "num_pages": 128, "max_in_flight": 32, "prefill_chunk": 16}
HOT = Sampling(temperature=1.5)


class Found(msgspec.Struct, forbid_unknown_fields=True):
    """What the models here are made to find."""

    sum: int
    """It is bounded by the tokens of the call alone."""
    exact: bool
    kind: str


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "bé", "日本"]}, "maxItems": 3},
        "inner": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "size", "tags", "inner"],
    "additionalProperties": False,
}
GRAMMAR = 'start: sum\nsum: NUMBER ("+" NUMBER)? ";"\nNUMBER: /[1-9][0-9]{0,2}/\n'
REGEX = r"(cat|the)( sat)?: [0-9]{2,3}\.[a-f]?"
CHOICES = ["yes", "yesterday", "no", "日本"]


def is_found(text: str) -> bool:
    value = json.loads(text)
    assert list(value) == ["name", "size", "tags", "inner"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 6
    assert 0 <= value["size"] <= 99
    assert set(value["tags"]) <= {"a", "bé", "日本"}
    assert len(value["tags"]) <= 3
    return value["inner"] in (None, True, False)


FORMS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "json_schema": ({"json_schema": SCHEMA}, is_found),
    "regex": ({"regex": REGEX}, lambda text: re.fullmatch(REGEX, text) is not None),
    "choices": ({"choices": CHOICES}, CHOICES.__contains__),
    "grammar": ({"grammar": GRAMMAR}, lambda text: re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2})?;", text) is not None),
}


def opened(checkpoint: Path, backend: str = "native", depth: DepthPolicy | None = None, **options: Any) -> Engine:
    policy = Policy(depth=depth or LatentDiff(0.5, max_iterations=4))
    return Engine.open(checkpoint, policy=policy, **{**SIZES, "backend": backend, **options})


async def said(engine: Engine, *, context: str = "the cat: ", **options: Any) -> Generation:
    async with engine.thread(context) as thread:
        generation = await thread.generate(**options)
    return generation


# ---- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vocabulary", [vocabularies.byte_level, vocabularies.byte_fallback, vocabularies.byte_unigram])
async def test_whatever_the_weights_the_text_is_what_was_asked_for(
    tmp_path: Path, vocabulary: Callable[[], Inner], seed: int, backend: str
) -> None:
    path = save_random(tmp_path / "random", vocabulary(), seed)
    filtered = Sampling(temperature=0.8, top_k=5, top_p=0.9, repetition_penalty=1.3)
    async with opened(path, backend, seed=seed) as engine, anyio.create_task_group() as group:

        async def check(name: str, sampling: Sampling) -> None:
            asked, is_right = FORMS[name]
            generation = await said(engine, context="the cat sat", sampling=sampling, max_tokens=100, **asked)
            assert generation.reason == "stop", generation
            assert is_right(generation.text), generation
            assert generation.is_constrained

        for name in FORMS:
            for sampling in (Sampling(), HOT, filtered, Sampling(temperature=1.0, logprobs=3)):
                group.start_soon(check, name, sampling)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_word_of_a_vocabulary_of_words(tmp_path: Path, backend: str) -> None:
    path = save_random(tmp_path / "words", words("nothing", "5", "+", "3", "<unk>"), 1, stops=False)
    async with opened(path, backend) as engine:
        sum_said = await said(engine, context="5 + 3", regex=r"[0-9] \+ [0-9]", max_tokens=9)
        assert re.fullmatch(r" [0-9] \+ [0-9]", sum_said.text)
        chosen = await said(engine, context="5 + 3", choices=["nothing", "5 5"], max_tokens=9, sampling=HOT)
        assert chosen.text in (" nothing", " 5 5")
        with pytest.raises(ConstraintError, match="No token of the model's vocabulary can go on with the regex"):
            await said(engine, context="5 + 3", regex="5 elephants", max_tokens=9)
        # The engine serves on.
        assert (await said(engine, context="5", choices=["3"])).text == " 3"


@pytest.mark.parametrize("depth", [Fixed(3), LatentDiff(0.5, max_iterations=4)], ids=["fixed", "adaptive"])
async def test_backends_agree(checkpoint: Path, depth: DepthPolicy) -> None:
    found = []
    for backend in BACKENDS:
        async with opened(checkpoint, backend, depth) as engine:
            found.append(await said(engine, json_schema=SCHEMA, sampling=HOT))
    assert found[0].tokens == found[1].tokens
    assert found[0].logprobs == pytest.approx(found[1].logprobs, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_company_changes_nothing(checkpoint: Path, backend: str) -> None:
    """Constrained among free ones, whose lanes go on by themselves."""
    free: dict[str, Any] = {"max_tokens": 40, "stop": [-1], "sampling": HOT}
    bound: dict[str, Any] = {"json_schema": SCHEMA, "sampling": HOT}
    options: dict[str, Any] = {"deterministic": True} if backend == "torch" else {}
    async with opened(checkpoint, backend, Fixed(3), **options) as engine:
        alone = [await said(engine, **free), await said(engine, **bound)]
    together: dict[int, Generation] = {}
    async with (
        opened(checkpoint, backend, Fixed(3), **options) as engine,
        engine.thread("the cat: ") as first,
        engine.thread("the cat: ") as second,
        anyio.create_task_group() as group,
    ):

        async def run(number: int, thread: Any, asked: dict[str, Any]) -> None:
            together[number] = await thread.generate(**asked)

        group.start_soon(run, 0, first, free)
        group.start_soon(run, 1, second, bound)
    assert [together[0], together[1]] == alone


@pytest.mark.parametrize("backend", BACKENDS)
async def test_logprobs_are_those_of_the_constrained_distribution(checkpoint: Path, backend: str) -> None:
    async with opened(checkpoint, backend) as engine:
        sampling = Sampling(temperature=1.0, logprobs=500)
        choice = await said(engine, choices=["a", "the cat", "日"], sampling=sampling)
        for top, token, logprob in zip(choice.top_logprobs, choice.tokens, choice.logprobs, strict=True):
            assert math.fsum(map(math.exp, top.values())) == pytest.approx(1, abs=1e-5)
            assert top[token] == pytest.approx(logprob, abs=1e-6)
            assert len(top) < 12
        only = await said(engine, regex="it's", sampling=HOT)
        assert only.text == "it's"
        assert only.logprobs == pytest.approx([0.0] * len(only.tokens), abs=1e-6)
        assert not (await said(engine, max_tokens=2)).is_constrained


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_text_that_may_end_ends_where_the_model_says_so(checkpoint: Path, backend: str) -> None:
    async with opened(checkpoint, backend) as engine:
        found = [
            await said(engine, context=f"the cat {turn}", regex="[0-9]+", sampling=Sampling(temperature=3.0))
            for turn in range(6)
        ]
    assert all(generation.reason == "stop" and generation.text.isdigit() for generation in found)
    assert all(generation.tokens[-1] == 0 for generation in found)
    assert len({len(generation.tokens) for generation in found}) > 1


async def test_a_type_is_its_schema(checkpoint: Path) -> None:
    async with opened(checkpoint) as engine:
        for seed in range(4):
            generation = await said(engine, context=f"{seed}", json_schema=list[bool], sampling=HOT)
            assert generation.reason in ("stop", "context")
            if generation.reason == "stop":
                assert msgspec.json.decode(generation.text, type=list[bool]) is not None
        begun = await said(engine, json_schema=Found, max_tokens=3)
        assert begun.text.startswith("{")


async def test_drafts_change_nothing(checkpoint: Path) -> None:
    found = []
    for depth in (Fixed(3), Speculative(max_iterations=3, draft_iterations=1)):
        async with opened(checkpoint, depth=depth) as engine:
            found.append(await said(engine, json_schema=SCHEMA, sampling=HOT))
    assert found[0].tokens == found[1].tokens


# ---- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
async def test_an_unfinished_text_is_gone_on_with_by_the_thread_and_its_forks(checkpoint: Path, backend: str) -> None:
    async with opened(checkpoint, backend) as engine, engine.thread("the cat: ") as root:
        whole = await said(engine, json_schema=SCHEMA)
        begun = await root.generate(5, json_schema=SCHEMA)
        assert begun.reason == "length"

        async def go_on(thread: Any) -> str:
            return str((await thread.generate(json_schema=SCHEMA, resume=True, sampling=HOT)).text)

        texts = [answer.text for answer in await root.join([root.fork(program=go_on) for _ in range(3)], append=False)]
        assert all(is_found(begun.text + text) for text in texts)
        rest = await root.generate(json_schema=SCHEMA, resume=True)
        assert begun.tokens + rest.tokens == whole.tokens
        with pytest.raises(ConstraintError, match="no unfinished text"):
            await root.generate(json_schema=SCHEMA, resume=True)


async def test_what_a_program_appends_is_a_part_of_the_text(checkpoint: Path) -> None:
    async with opened(checkpoint) as engine, engine.thread("the cat: ") as root:
        begun = await root.generate(1, json_schema=SCHEMA)
        assert begun.text[0] == "{"
        root.append('{"name": "me", '[len(begun.text) :])
        rest = await root.generate(json_schema=SCHEMA, resume=True)
        assert is_found('{"name": "me", ' + rest.text)
        await root.generate(1, choices=["yes", "no"])
        root.append("never")
        with pytest.raises(ConstraintError, match=r"does not fit: of its \d tokens, \d do"):
            await root.generate(choices=["yes", "no"], resume=True)
        await root.generate(3)
        with pytest.raises(ConstraintError, match="no unfinished text"):
            await root.generate(choices=["yes", "no"], resume=True)


@both_loops
async def test_streams_and_cancelled_calls(checkpoint: Path) -> None:
    async with opened(checkpoint) as engine, engine.thread("the cat: ") as root:
        whole = await said(engine, json_schema=SCHEMA)
        with anyio.move_on_after(0):
            await root.generate(json_schema=SCHEMA)
        async with root.stream(json_schema=SCHEMA) as stream:
            text = "".join([chunk.text async for chunk in stream])
        assert text == whole.text
        assert stream.generation == whole


async def test_an_evicted_text_goes_on(checkpoint: Path) -> None:
    async with opened(checkpoint, num_pages=14, depth=Fixed(3)) as engine:
        found: list[str] = []

        async def run(number: int) -> None:
            generation = await said(engine, context=f"the cat {number} " * 4, json_schema=SCHEMA, sampling=HOT)
            found.append(generation.text)

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(run, number)
        assert engine.statistics.recomputed > 0
        assert all(is_found(text) for text in found)


# ---- refusals -------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": {"type": "strin"}}, "json_schema is no schema that can be followed: Invalid type: strin"),
    ({"json_schema": "object"}, "json_schema is 'object'; give a schema as a mapping, or a type"),
    ({"json_schema": {"type": object()}}, "json_schema has a value that JSON has not"),
    ({"json_schema": {"enum": []}}, "json_schema is no schema that can be followed"),
    ({"regex": "("}, "regex is no regular expression that can be followed.*unclosed group"),
    ({"regex": ""}, "regex is ''; give it as a string that is not empty"),
    ({"regex": 5}, "regex is 5; give it as a string"),
    ({"regex": "\ud800"}, "half a surrogate pair"),
    ({"grammar": "start: foo"}, 'grammar is none that can be followed.*unknown name: "foo"'),
    ({"grammar": "x" * 2**21}, "grammar takes 2097152 bytes; give one of at most 1048576"),
    ({"choices": []}, "choices is \\[\\]; give a list of strings"),
    ({"choices": "yes"}, "choices is 'yes'; give a list of strings"),
    ({"choices": ["yes", ""]}, "choices has ''; give strings that are not empty"),
    ({"regex": "a", "choices": ["a"]}, "regex and choices are given together"),
    ({"regex": "a", "stop": ["b"]}, "stop is given with a constraint"),
    ({"resume": True}, "resume is given without what the text must be"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
async def test_what_cannot_be_followed_is_refused_at_the_call(
    checkpoint: Path, options: dict[str, Any], message: str
) -> None:
    async with opened(checkpoint) as engine, engine.thread("the cat: ") as thread:
        with pytest.raises(ConstraintError, match=message):
            await thread.generate(**options)
        with pytest.raises(ConstraintError, match=message):
            thread.stream(**options)
        assert thread.text == "the cat: "
        assert (await thread.generate(choices=["a"])).text == "a"


async def test_an_unknown_argument_is_one(checkpoint: Path) -> None:
    async with opened(checkpoint) as engine, engine.thread("the cat: ") as thread:
        with pytest.raises(TypeError, match="there is no argument 'schema'"):
            await thread.generate(schema={})  # type: ignore[call-arg]


async def test_without_the_library_the_error_says_how_to_get_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    async with opened(checkpoint) as engine, engine.thread("the cat: ") as thread:
        with pytest.raises(ImportError, match=r"pip install 'braid-runtime\[constrain\]'"):
            await thread.generate(regex="[a-z]{7}")

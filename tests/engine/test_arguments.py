"""No argument of a public call ends an engine: it is converted, or its caller gets an error that names it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import numpy as np
import pytest
import torch

from policies import Fixed, LatentDiff, Limits, Policy
from runtime import Engine, EngineSettings, Sampling
from runtime.errors import BraidError, CapacityError, PromptError
from runtime.threads.thread import ReasoningThread
from tests.engine.engines import SIZES, opened, works
from traces import read

pytestmark = pytest.mark.anyio


async def coroutine_function(*arguments: object) -> None:
    """What nobody awaits."""


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


NO_INTEGERS: list[object] = [True, np.bool_(True), 1.5, np.float64(1.5), "1", b"1", [1], 2**70, 10**6000, float("nan")]
NO_COUNTS = [*NO_INTEGERS, 0, -1, np.int64(0), torch.tensor(-1), torch.tensor([1, 2]), Unprintable()]
NO_SEEDS = [*NO_INTEGERS, None, object(), lambda: 1]
NO_STRUCTS: list[object] = [1, "greedy", {}, object(), Sampling, Fixed, Limits, Policy, np.zeros(2), lambda: None]
NO_FLAGS: list[object] = [1, 0, "yes", None, np.bool_, []]
NO_TOKENS: list[object] = [
    3,
    b"ab",
    None,
    [None],
    [1.0],
    [True],
    ["1"],
    [[1]],
    [1, 40],
    [-1],
    [2**70],
    {1: 2},
    np.array([0.5]),
    np.array([True]),
    np.array([[1]]),
    torch.tensor([[1]]),
    torch.zeros(2),
    torch.zeros(1, dtype=torch.int64, device="meta"),
    Unprintable(),
]
NO_STOPS: list[object] = [None, "w1", 3, [None], [1.5], [True], [b"w"], [["w1"]], [2**70], [""], {"a": 1}]
NO_FUNCTIONS: list[object] = [1, "print", [], coroutine_function, functools.partial(coroutine_function, 1)]
NO_PATHS: list[object] = [1, True, b"x", "", "a\0b", object(), ["x"]]
NO_WEIGHTS: list[object] = [None, 1, [], "w", {"lm_head.weight": 1}, {1: torch.zeros(1)}, {"x": np.zeros(2)}]

THREAD: dict[str, list[object]] = {
    "limits": NO_STRUCTS,
    "sampling": NO_STRUCTS,
    "max_tokens": NO_COUNTS,
    "priority": NO_INTEGERS,
}
GENERATE: dict[str, list[object]] = {
    "max_tokens": NO_COUNTS,
    "stop": NO_STOPS,
    "sampling": NO_STRUCTS,
    "depth": NO_STRUCTS,
    "nowait": NO_FLAGS,
}
CHILD: dict[str, list[object]] = {**THREAD, "depth": NO_STRUCTS, "program": [1, "run", []]}

Call = Callable[[Engine, ReasoningThread, dict[str, Any]], Awaitable[object]]


async def open_thread(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    async with engine.thread(**{"prompt": [1, 2], **given}) as other:
        await other.generate(1)


async def run(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    await engine.run(**{"prompt": [1, 2], "max_tokens": 2, **given})


async def load_weights(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    await engine.load_weights(**given)


async def record(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    async with engine.recording(**{"path": "never.trace", **given}):
        pass


async def append(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    thread.append(**given)


async def generate(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    await thread.generate(**{"max_tokens": 1, **given})


async def stream(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    async for _ in thread.stream(**{"max_tokens": 1, **given}):
        pass


async def spawn(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    thread.spawn(**{"message": [1], "max_tokens": 1, **given})


async def fork(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    thread.fork(**{"message": [1], "max_tokens": 1, **given})


async def join(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    await thread.join(**{"children": (), **given})


async def first(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    await thread.first(**{"children": (), **given})


async def as_completed(engine: Engine, thread: ReasoningThread, given: dict[str, Any]) -> None:
    thread.as_completed(**given)


NO_CHILDREN: list[object] = [np.array(3), 1, "x", [1], [None], [[]], object()]
CALLS: list[tuple[Call, dict[str, list[object]]]] = [
    (open_thread, {**THREAD, "prompt": NO_TOKENS, "policy": NO_STRUCTS}),
    (run, {**THREAD, "prompt": NO_TOKENS, "policy": NO_STRUCTS}),
    (load_weights, {"weights": NO_WEIGHTS}),
    (record, {"path": NO_PATHS, "overwrite": NO_FLAGS, "on_trace_error": [None, 1, "never", []]}),
    (append, {"text": NO_TOKENS}),
    (generate, GENERATE),
    (stream, GENERATE),
    (spawn, {**CHILD, "message": NO_TOKENS}),
    (fork, {**CHILD, "message": [value for value in NO_TOKENS if value is not None]}),
    (join, {"children": NO_CHILDREN, "append": NO_FLAGS}),
    (first, {"children": NO_CHILDREN, "accept": NO_FUNCTIONS, "append": NO_FLAGS}),
    (as_completed, {"children": NO_CHILDREN}),
]
Made = TypeVar("Made")
UNNAMED = {"prompt": "text", "message": "text"}
"""Arguments that are told about under another name."""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("call", "arguments"), CALLS, ids=[call.__name__ for call, _ in CALLS])
async def test_a_wrong_value_is_its_callers_error(
    engine: Engine, call: Call, arguments: dict[str, list[object]]
) -> None:
    for name, values in arguments.items():
        for value in values:
            async with engine.thread([1, 2, 3]) as thread:
                with pytest.raises(ValueError, match=rf"\b{UNNAMED.get(name, name)}\b.*[^.]\.$"):
                    await call(engine, thread, {name: value})
                assert thread.tokens == (1, 2, 3)
                assert not len(thread.children)
        assert await works(engine)


def of(kind: Callable[..., Made], *numbers: object, **named: object) -> Made:
    """Made of numbers that its signature does not name, and that it converts."""
    return kind(*numbers, **named)


RIGHT: list[tuple[Call, dict[str, Any]]] = [
    (open_thread, {"prompt": np.arange(3), "max_tokens": np.int64(3), "priority": np.int8(-1)}),
    (open_thread, {"prompt": torch.arange(3), "max_tokens": torch.tensor(3)}),
    (run, {"prompt": np.array([1, 2], np.uint8), "limits": of(Limits, tokens=np.int64(9), seconds=np.float32(60))}),
    (append, {"text": range(3)}),
    (append, {"text": [np.int32(1), torch.tensor(2)]}),
    (generate, {"max_tokens": np.uint64(2), "stop": np.array([3, 4]), "sampling": of(Sampling, top_k=np.int64(3))}),
    (
        generate,
        {"stop": ["w3", np.int64(4)], "sampling": of(Sampling, temperature=np.float32(0.5), logprobs=np.int8(2))},
    ),
    (generate, {"sampling": Sampling(logprobs=1000, top_k=2**40, temperature=0.5), "depth": of(Fixed, np.int64(2))}),
    (generate, {"max_tokens": 2**50, "stop": {1, 2, 3, *range(4, 40)}}),
    (stream, {"max_tokens": torch.tensor(2), "depth": of(LatentDiff, np.float32(0.5), max_iterations=np.int64(3))}),
    (spawn, {"message": torch.tensor([1, 2]), "priority": np.int64(2**40)}),
    (fork, {"message": np.array([1]), "max_tokens": np.int64(1)}),
]


async def test_numbers_of_other_libraries_are_converted(engine: Engine) -> None:
    for call, given in RIGHT:
        async with engine.thread([1, 2, 3]) as thread:
            await call(engine, thread, given)
            await thread.join(append=False)
        assert await works(engine)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("policy", NO_STRUCTS),
        ("trace", NO_PATHS),
        ("overwrite", NO_FLAGS),
        ("on_trace_error", [None, 1, "never"]),
        ("seed", NO_SEEDS),
        ("limits", NO_STRUCTS),
        ("sampling", NO_STRUCTS),
        ("observer", NO_FUNCTIONS),
        ("checkpoint", [None, 1, b"countdown", "", "a\0b", []]),
        ("drafts", [1, b"countdown", "", "a\0b", []]),
        *(
            (field, NO_COUNTS)
            for field in (
                "max_in_flight",
                "prefill_chunk",
                "page_size",
                "num_pages",
                "kv_cache_bytes",
                "max_context",
                "iteration_slots",
            )
        ),
        *((field, [*NO_COUNTS, 2**16]) for field in ("most_iterations", "cpu_threads")),
        ("queue_size", NO_COUNTS),
        ("dtype", [1, None, "float16", torch.float32]),
        ("lockstep", NO_FLAGS),
        ("device", [1, b"cpu", torch.device("cpu")]),
    ],
)
async def test_an_engine_is_not_made_of_wrong_values(tiny_checkpoint: Path, name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"\b{name}\b.*[^.]\.$"):
            Engine.open(**{"checkpoint": tiny_checkpoint, **SIZES, name: value})


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_pages": None, "kv_cache_bytes": 10}, "kv_cache_bytes"),
        ({"num_pages": 10**12}, "num_pages"),
        ({"num_pages": None, "kv_cache_bytes": 2**50}, "kv_cache_bytes"),
        ({"max_in_flight": 10**12}, "max_in_flight"),
        ({"page_size": 10**12}, "page_size"),
        ({"num_pages": None, "page_size": 10**9}, "page_size"),
        ({"device": "no such thing"}, "device"),
        ({"device": "meta"}, "device"),
        ({"device": "cuda:99"}, "device"),
        ({"policy": Policy(depth=Fixed(10**6))}, "Fixed"),
    ],
)
async def test_what_cannot_be_had_is_told_at_entering(
    tiny_checkpoint: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    engine = opened(tiny_checkpoint, trace=tmp_path / "run.trace", **settings)
    with pytest.raises((BraidError, ValueError), match=words):
        await engine.__aenter__()
    assert not (tmp_path / "run.trace").exists()


async def test_memory_that_is_refused_when_the_device_starts_is_told_at_entering(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("runtime.device.build.build_backend", refuse)
    with pytest.raises(CapacityError, match=r"no room.*EngineSettings\.kv_cache_bytes"):
        await opened(tiny_checkpoint).__aenter__()


@pytest.mark.parametrize("error", [OSError("no such file: caf\udce9"), ValueError("x" * 10**5), KeyError("\ud800")])
async def test_any_error_of_a_body_can_be_recorded(engine: Engine, error: Exception, anyio_backend: str) -> None:
    with pytest.raises(type(error)) as caught:
        async with engine.thread([1]):
            raise error
    assert caught.value is error
    assert await works(engine)


async def test_a_stream_leaves_its_place_to_what_its_loop_generates(tiny_checkpoint: Path, anyio_backend: str) -> None:
    async with opened(tiny_checkpoint, queue_size=1) as engine, engine.thread([1]) as one, engine.thread([2]) as two:
        with anyio.fail_after(60):
            async for _ in one.stream(3, stop=[-1]):
                await two.generate(1, nowait=True)
            assert len((await one.generate(1, stop=[-1])).tokens) == 1
    assert len(one.tokens) == 5


async def test_an_observer_that_gives_coroutines_is_told_about(
    tiny_checkpoint: Path, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tiny_checkpoint, observer=lambda event: coroutine_function()) as engine:
        assert await works(engine)
    assert "nobody awaits" in caplog.text


async def test_paths_begin_at_home(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with opened(tiny_checkpoint, trace="~/run.trace") as engine:
        assert await works(engine)
    async with opened(tiny_checkpoint) as engine, engine.recording("~/part.trace"):
        assert await works(engine)
    assert read(tmp_path / "run.trace").lost is None
    assert read(tmp_path / "part.trace").lost is None


async def test_a_shipped_checkpoint_may_be_named_by_a_path(anyio_backend: str) -> None:
    async with Engine.open(Path("countdown"), backend="torch") as engine:
        with pytest.raises(PromptError):
            engine.thread([10**6])


def test_settings_take_numbers_of_other_libraries() -> None:
    settings = of(EngineSettings, max_in_flight=np.int64(32), prefill_chunk=torch.tensor(16))
    assert (type(settings.max_in_flight), type(settings.prefill_chunk)) == (int, int)

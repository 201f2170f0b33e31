"""Latent states beside a trace are those of the dense model after every iteration, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor

from policies import DepthPolicy, Fixed, LatentDiff, Policy, Speculative
from runtime import Engine, Latents, TraceError
from runtime.device.latent_file import LatentFile
from runtime.link.latents import latents_path
from runtime.model import load_checkpoint, save_checkpoint
from runtime.model.transformer import Transformer
from tests.engine.tiny import tiny_model
from tests.llamas import make_llama
from traces import Evicted, LatentStates, context_of, read, read_latents, thread_tree, walk_threads

SIZES: dict[str, Any] = {"page_size": 4, "max_in_flight": 16, "prefill_chunk": 5, "most_iterations": 6}
MOST = 6


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(3)


@pytest.fixture(scope="module")
def checkpoint(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents") / "tiny"
    save_checkpoint(path, model)
    return path


@torch.inference_mode()
def dense_states(model: Transformer, tokens: list[int], depths: list[int]) -> list[list[Tensor]]:
    """By token, the states [width] after each of its iterations; one that has done its own keeps its state, and shows
    the keys and values of its last iteration."""
    ids = torch.tensor(tokens)[None]
    rotation = model.rotation(torch.arange(len(tokens)))
    embedded = model.prelude(ids, rotation, model.attend_causally)
    state = model.first_state(embedded)
    done = torch.tensor(depths)
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    found: list[list[Tensor]] = [[] for _ in tokens]
    for iteration in range(1, max(depths) + 1):
        active = (done >= iteration)[None, :, None, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, active: Tensor = active) -> Tensor:
            if layer in kept:
                key, value = torch.where(active, key, kept[layer][0]), torch.where(active, value, kept[layer][1])
            kept[layer] = key, value
            return model.attend_causally(layer, query, key, value)

        after = model.iterate(state, embedded, rotation, attend)
        state = torch.where(active[..., 0], after, state)
        for at, depth in enumerate(depths):
            if depth >= iteration:
                found[at].append(state[0, at].clone())
    return found


def prompt_of(number: int) -> list[int]:
    return [(number * 7 + step * 3) % 40 for step in range(9 + number % 3)]


async def work(engine: Engine, threads: int, tokens: int) -> None:
    async def run(number: int) -> None:
        async with engine.thread(prompt_of(number)) as root:
            await root.generate(tokens, stop=[-1])
            root.append([1, 2, 3])
            await root.generate(tokens, stop=[-1])

    async with anyio.create_task_group() as group:
        for number in range(threads):
            group.start_soon(run, number)


def recorded(path: Path, checkpoint: Path, asked: Latents, depth: DepthPolicy, **changes: Any) -> LatentStates:
    async def run() -> None:
        async with Engine.open(
            checkpoint,
            policy=Policy(depth=depth),
            trace=path,
            record_latents=asked,
            overwrite=True,
            **{**SIZES, "num_pages": 128, **changes},
        ) as engine:
            await work(engine, 5, 8)

    anyio.run(run)
    return read_latents(latents_path(path))


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    ("depth", "changes"),
    [
        (Fixed(4), {}),
        (LatentDiff(0.5, max_iterations=MOST), {}),
        (Speculative(max_iterations=4, draft_iterations=2), {}),
        (Fixed(3), {"num_pages": 24}),
    ],
    ids=["fixed", "adaptive", "speculative", "evicted"],
)
def test_states_are_those_of_the_dense_model(
    model: Transformer, checkpoint: Path, tmp_path: Path, backend: str, depth: DepthPolicy, changes: dict[str, Any]
) -> None:
    path = tmp_path / "run.trace"
    states = recorded(path, checkpoint, Latents(), depth, backend=backend, reuse_prefixes=False, **changes)
    trace = read(path)
    assert any(isinstance(event, Evicted) for event in trace.events) == ("num_pages" in changes)
    threads = list(walk_threads(thread_tree(trace.events)))
    assert len(threads) == len(states.threads) == 5
    seen = set()
    for thread in threads:
        context = context_of(thread)
        count = sum(depth > 0 for depth in context.depths)
        assert count >= len(context.tokens) - 1
        tokens, depths = list(context.tokens[:count]), list(context.depths[:count])
        expected = dense_states(model, tokens, depths)
        own = states.of_thread(".".join(map(str, thread.path)))
        assert [token.position for token in own] == list(range(count))
        for token, dense in zip(own, expected, strict=True):
            assert token.token == tokens[token.position]
            torch.testing.assert_close(torch.from_numpy(token.states), torch.stack(dense), atol=2e-4, rtol=1e-3)
            seen.add(len(dense))
    assert len(seen) > 1 or not isinstance(depth, LatentDiff)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_causal_models_have_one_state_a_token(tmp_path: Path, backend: str) -> None:
    make_llama(3, num_key_value_heads=2).save_pretrained(tmp_path / "llama")
    path = tmp_path / "run.trace"
    changes = {"backend": backend, "reuse_prefixes": False, "most_iterations": 1}
    states = recorded(path, tmp_path / "llama", Latents(), Fixed(1), **changes)
    model = load_checkpoint(tmp_path / "llama").model
    for thread in walk_threads(thread_tree(read(path).events)):
        own, context = states.of_thread(str(thread.path[0])), context_of(thread)
        expected = dense_states(model, list(context.tokens[: len(own)]), [1] * len(own))
        assert len(own) == len(context.tokens) - 1
        for token, dense in zip(own, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(token.states), torch.stack(dense), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_threads_and_positions_are_chosen_and_states_projected(checkpoint: Path, tmp_path: Path, backend: str) -> None:
    changes = {"backend": backend, "reuse_prefixes": False}
    path = tmp_path / "run.trace"
    whole = recorded(path, checkpoint, Latents(), Fixed(3), **changes)
    said = [context_of(thread).tokens for thread in walk_threads(thread_tree(read(path).events))]
    some = recorded(
        path, checkpoint, Latents(threads=("1", "3*"), positions=(4, 15), dimensions=3), Fixed(3), **changes
    )
    assert said == [context_of(thread).tokens for thread in walk_threads(thread_tree(read(path).events))]
    assert sorted(some.threads) == ["1", "3"]
    assert some.directions is not None
    assert some.directions.shape == (3, 16)
    for name in some.threads:
        tokens = some.of_thread(name)
        assert [token.position for token in tokens] == list(range(4, 15))
        for token, full in zip(tokens, whole.of_thread(name)[4:15], strict=True):
            np.testing.assert_allclose(token.states, full.states @ some.directions.T, atol=1e-5)
    directions = torch.eye(16)[[2, 5]]
    given = recorded(path, checkpoint, Latents(threads=("0",), directions=directions), Fixed(3), **changes)
    for token, full in zip(given.of_thread("0"), whole.of_thread("0"), strict=True):
        np.testing.assert_allclose(token.states, full.states[:, [2, 5]], atol=1e-5)


def test_threads_that_nobody_looks_at_go_on_by_themselves(model: Transformer) -> None:
    """While the lanes of a chosen thread stop at every token."""
    from policies import Fixed
    from runtime.device.build import build_loop
    from runtime.device.latents import LatentRecorder
    from runtime.device.settings import EngineSettings
    from runtime.link.commands import Extend, Generate, OpenThread
    from runtime.link.sampling import Sampling

    class Memory:
        def append(self, thread: tuple[int, ...], columns: Any, states: Any) -> None:
            assert thread == (0,)

    loop = build_loop(
        model,
        EngineSettings(backend="native", cpu_threads=1, **{**SIZES, "num_pages": 64}),
        Fixed(2),
        latents=LatentRecorder(Latents(threads=("0",)), Memory()),  # type: ignore[arg-type]
    )
    for number in range(2):
        loop.handle(OpenThread(thread=(number,), seed=0, depth=Fixed(2)))
        loop.handle(Extend((number,), tuple(prompt_of(number))))
        loop.handle(Generate(thread=(number,), max_tokens=20, sampling=Sampling()))
    runs: dict[int, set[int]] = {0: set(), 1: set()}
    while loop.has_work:
        loop.step()
        for number in range(2):
            flight = loop.threads[(number,)].flight
            runs[number].add(0 if flight is None else flight.run)
    loop.close()
    assert runs[0] == {0}
    assert max(runs[1]) > 2


@pytest.mark.anyio
async def test_a_recording_has_states_beside_it(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "part.trace"
    async with Engine.open(checkpoint, **SIZES, num_pages=64) as engine:
        await work(engine, 2, 3)
        async with engine.recording(path, latents=Latents(dimensions=2)):
            await work(engine, 2, 3)
        await work(engine, 2, 3)
        path.rename(tmp_path / "moved.trace")
        with pytest.raises(TraceError, match="has latent states of another run"):
            await engine.recording(path, latents=Latents()).__aenter__()
        await work(engine, 1, 3)
        with pytest.raises(ValueError, match="directions have 3 numbers each; the model's states have 16"):
            await engine.recording(path, latents=Latents(directions=[[1.0, 2.0, 3.0]])).__aenter__()
    assert sorted(read_latents(latents_path(path)).threads) == ["2", "3"]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.anyio
@pytest.mark.parametrize("on_trace_error", ["drop", "stop"])
async def test_states_that_cannot_be_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_trace_error: Any
) -> None:
    """Answers come all the same; the trace is whole, if the engine goes on."""
    appended = LatentFile.append
    count = 0

    def fail(self: LatentFile, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(28, "No space left on device")
        appended(self, *arguments)

    monkeypatch.setattr(LatentFile, "append", fail)
    path = tmp_path / "run.trace"
    async with (
        Engine.open(
            checkpoint, trace=path, record_latents=Latents(), on_trace_error=on_trace_error, **SIZES, num_pages=64
        ) as engine,
        engine.thread(prompt_of(0)) as root,
    ):
        said = await root.generate(5, stop=[-1])
    assert len(said.tokens) == 5
    assert count == 4
    assert not list(tmp_path.glob("*latents*"))
    if on_trace_error == "drop":
        assert read(path).lost is None


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"threads": "0"}, "threads"),
        ({"positions": (-1, None)}, "positions"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 2, "directions": [[1.0]]}, "directions and dimensions are both given"),
        ({"directions": [1.0, 2.0]}, "directions have shape"),
        ({"directions": [[float("nan")]]}, "finite"),
        ({"directions": "north"}, "directions are no array"),
    ],
)
def test_what_says_nothing_of_states(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Latents(**fields)


def test_states_without_a_trace(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="record_latents are recorded beside a trace"):
        Engine.open(checkpoint, record_latents=Latents())
    with pytest.raises(ValueError, match="record_latents is 64; give a Latents"):
        Engine.open(checkpoint, trace="run.trace", record_latents=64)  # type: ignore[arg-type]

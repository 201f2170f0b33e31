"""Other weights in a running engine: what is said from then on is what a new engine says, and nothing old is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policies import Fixed, LatentDiff, Policy
from runtime import Engine, EngineClosed, EngineFailed, Opened, ThreadStateError, TraceError
from runtime.backend.interface import CacheShape
from runtime.backend.torch.cuda_graphs import GraphedBackend
from runtime.device.build import wire
from runtime.device.model_limits import ModelLimits
from runtime.model.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from runtime.model.parameters import derived_names, published_weights
from runtime.model.replacement import replace_weights
from runtime.model.transformer import Transformer
from tests.backend import conversations
from tests.backend.capturing import PlanlessAttention, TapeCapture
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model
from tests.runtime_loop.scripted import SteppedDevice
from tests.runtime_loop.scripted_core import counting
from tests.runtime_loop.turns import turn
from traces import read

SIZES: dict[str, Any] = {
    "page_size": 4,
    "num_pages": 64,
    "max_in_flight": 32,
    "prefill_chunk": 16,
    "most_iterations": 6,
}
PROMPT = [(5 * position + position * position) % 40 for position in range(27)]
"""Six full pages, and three tokens more."""
BACKENDS = [("torch", "float32"), ("native", "float32"), ("torch", "bfloat16"), ("native", "bfloat16")]

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of one shape, as checkpoints."""
    base = tmp_path_factory.mktemp("weights")
    for name, seed in (("old", 3), ("new", 11)):
        save_checkpoint(base / name, tiny_model(seed))
    return base / "old", base / "new"


def weights_of(model: Transformer) -> Weights:
    derived = derived_names(model)
    return {name: tensor.clone() for name, tensor in published_weights(model).items() if name not in derived}


async def say(engine: Engine) -> tuple[tuple[object, ...], ...]:
    """What greedy threads under two depth policies say, to the last bit, and how much of their prompt was found."""
    said: list[tuple[object, ...]] = []
    for depth in (LatentDiff(0.7, max_iterations=6), Fixed(3)):
        async with engine.thread(PROMPT, policy=Policy(depth=depth)) as thread:
            generation = await thread.generate(max_tokens=8, stop=[-1])
            said.append((generation.tokens, generation.logprobs, generation.depths, thread.usage.cached_tokens))
    return tuple(said)


async def said_anew(directory: Path, **changes: Any) -> tuple[object, ...]:
    async with Engine.open(directory, **SIZES, **changes) as engine:
        return await say(engine)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
async def test_new_weights_say_what_a_new_engine_says(
    directories: tuple[Path, Path], tmp_path: Path, backend: Any, dtype: Any
) -> None:
    old, new = directories
    kind: dict[str, Any] = {"backend": backend, "dtype": dtype}
    expected = {path: await said_anew(path, **kind) for path in directories}
    assert expected[old] != expected[new]
    async with Engine.open(old, **SIZES, **kind) as engine:
        assert await say(engine) == expected[old]
        # The prompt's pages are stored now, of the old weights.
        again = await say(engine)
        assert [part[3] for part in again] == [24, 24]
        weights = weights_of(tiny_model(11))
        await engine.load_weights(weights)
        for tensor in weights.values():
            tensor.zero_()  # the engine has copies
        assert await say(engine) == expected[new], "tokens, log-probabilities, depths, and no page of the old weights"
        async with engine.recording(tmp_path / "new.trace"):
            pass
        await engine.load_weights(weights_of(tiny_model(3)))
        assert await say(engine) == expected[old]
    model = load_checkpoint(new, dtype=getattr(torch, dtype)).model
    assert read(tmp_path / "new.trace").header.fingerprint == fingerprint(model)


@pytest.mark.anyio
async def test_weights_of_other_dtypes_are_converted(directories: tuple[Path, Path]) -> None:
    expected = await said_anew(directories[1])
    async with Engine.open(directories[0], **SIZES) as engine:
        await engine.load_weights({name: weight.double() for name, weight in weights_of(tiny_model(11)).items()})
        assert await say(engine) == expected


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Transformer, Transformer]:
    """Two models of one shape: Ravens and Llamas, with and without biases and tied embeddings."""
    model = draw(st.one_of(conversations.ravens(), conversations.llamas()))
    return model, conversations.sharpened(Transformer(model.config), draw(st.integers(0, 2**16)))


@given(pairs(), st.sampled_from(["native", "torch"]), st.booleans())
@settings(max_examples=8)
def test_any_model_becomes_another_of_its_shape(
    models: tuple[Transformer, Transformer], backend: Any, with_derived: bool
) -> None:
    first, second = models
    sizes = conversations.settings(backend=backend, most_iterations=3)
    policy = Fixed(3)
    prompt = [number % first.specification.vocab_size for number in range(33)]
    expected = Solo.over(second, sizes, policy).generate(prompt, policy, 5)
    solo = Solo.over(first, sizes, policy)
    solo.generate(prompt, policy, 5)
    given_weights = published_weights(second) if with_derived else weights_of(second)
    solo.core.backend.load_weights(given_weights)
    solo.core.scheduler.kv_cache.forget_prefixes()
    solo.core.check_integrity()
    found = solo.generate(prompt, policy, 5)
    assert (found.tokens, found.logprobs, found.work.cached_tokens) == (expected.tokens, expected.logprobs, 0)
    assert fingerprint(first) == fingerprint(second)


def test_captured_ticks_read_the_new_weights() -> None:
    """A recorder of operators in the place of CUDA graphs: replays have the parameters' memory, not the model."""
    found = []
    for first in (3, 11):
        model = tiny_model(first)
        cache = CacheShape(pages=40, page_size=4, slots=3, rows=12, pages_per_row=16, lanes=12)
        capture = TapeCapture()
        backend = GraphedBackend(model, cache, PlanlessAttention(), capture, (1, 4), state_std=0.0)
        backend.load_weights(weights_of(tiny_model(11)))
        limits = ModelLimits(max_context=64, vocab=40, mean_recurrence=3, most_iterations=3, shares_prefixes=True)
        solo = Solo(wire(backend, limits, 12))
        said = solo.generate([5, 6, 7], Fixed(3), 6)
        found.append((said.tokens, said.logprobs))
        assert capture.replays > 0
    assert found[0] == found[1]


# ---- what is refused ------------------------------------------------------------------------------------------------

LAST, FIRST = "lm_head.weight", "transformer.wte.weight"


def without_last(weights: Weights) -> None:
    del weights[LAST]


def with_another(weights: Weights) -> None:
    weights["lm_head.bias"] = torch.zeros(40)


def of_another_shape(weights: Weights) -> None:
    weights[LAST] = weights[LAST][:-1]


def not_a_number(weights: Weights) -> None:
    weights[LAST][3, 5] = torch.nan


def too_large(weights: Weights) -> None:
    weights[LAST] = weights[LAST].double()
    weights[LAST][0, 0] = 1e39


def of_integers(weights: Weights) -> None:
    weights[LAST] = weights[LAST].long()


def a_list(weights: Weights) -> None:
    weights[LAST] = [1.0]  # type: ignore[assignment]


WRONG: list[tuple[Callable[[Weights], None], str]] = [
    (without_last, r"lack lm_head.weight; expected a tensor of shape \[40, 16\]"),
    (with_another, "have a tensor lm_head.bias, of which the model knows nothing"),
    (of_another_shape, r"lm_head.weight has shape \[39, 16\] in the weights; expected \[40, 16\]"),
    (not_a_number, "lm_head.weight has 1 numbers in the weights that are not finite in torch.float32"),
    (too_large, "lm_head.weight has 1 numbers in the weights that are not finite"),
    (of_integers, "lm_head.weight is torch.int64 in the weights; expected a floating-point tensor"),
    (a_list, "lm_head.weight is list in the weights"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("backend", ["torch", "native"])
async def test_wrong_weights_change_nothing(directories: tuple[Path, Path], backend: Any) -> None:
    async with Engine.open(directories[0], backend=backend, reuse_prefixes=False, **SIZES) as engine:
        expected = await say(engine)
        for spoil, message in WRONG:
            weights = weights_of(tiny_model(11))
            assert next(iter(weights)) == FIRST
            assert list(weights)[-1] == LAST, "the others would be copied before it is looked at"
            spoil(weights)
            with pytest.raises(ValueError, match=message):
                await engine.load_weights(weights)
        assert await say(engine) == expected


def test_tied_parameters_are_one(golden_a: Path) -> None:
    model = load_checkpoint(golden_a).model
    assert isinstance(model, Transformer)
    assert model.specification.tied
    weights = {name: tensor + 1 for name, tensor in weights_of(model).items()}
    assert LAST not in weights
    replace_weights(model, {LAST: weights.pop(FIRST), **weights})
    assert model.head.weight is model.embedding.weight
    before = fingerprint(model)
    weights = weights_of(model)
    with pytest.raises(ValueError, match=rf"other numbers for {LAST} than for {FIRST}"):
        replace_weights(model, {**weights, LAST: weights[FIRST] + 1})
    assert fingerprint(model) == before


@pytest.mark.anyio
async def test_open_threads_have_to_end_first(directories: tuple[Path, Path]) -> None:
    weights = weights_of(tiny_model(11))
    async with Engine.open(directories[0], **SIZES) as engine:
        async with engine.thread(PROMPT, policy=Policy(depth=Fixed(3))) as thread:
            whole = await thread.generate(max_tokens=9, stop=[-1])
        async with engine.thread(PROMPT, policy=Policy(depth=Fixed(3))) as thread:
            first = await thread.generate(max_tokens=4, stop=[-1])
            with pytest.raises(ThreadStateError, match=r"1 open, \(1,\). Finish or leave them first"):
                await engine.load_weights(weights)
            second = await thread.generate(max_tokens=5, stop=[-1])
            assert first.tokens + second.tokens == whole.tokens
        await engine.load_weights(weights)
        assert await say(engine) == await said_anew(directories[1])


@pytest.mark.anyio
async def test_a_trace_is_of_one_model(directories: tuple[Path, Path], tmp_path: Path) -> None:
    weights = weights_of(tiny_model(11))
    async with Engine.open(directories[0], trace=tmp_path / "run.trace", **SIZES) as engine:
        expected = await say(engine)
        with pytest.raises(TraceError, match="cannot be replaced while a trace is recorded"):
            await engine.load_weights(weights)
    async with Engine.open(directories[0], **SIZES) as engine:
        async with engine.recording(tmp_path / "block.trace"):
            with pytest.raises(TraceError, match="Leave engine"):
                await engine.load_weights(weights)
        assert await say(engine) == expected
        await engine.load_weights(weights)
    async with Engine.playback(read(tmp_path / "run.trace")) as engine:
        with pytest.raises(TraceError, match="no weights to replace"):
            await engine.load_weights(weights)


# ---- waiting for the device -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_cancelled_it_changes_nothing_or_waits(directories: tuple[Path, Path]) -> None:
    async with Engine.open(directories[0], **SIZES) as engine:
        expected = await say(engine)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await engine.load_weights(weights_of(tiny_model(11)))
        assert scope.cancelled_caught
        assert [part[:3] for part in await say(engine)] == [part[:3] for part in expected]

    device, done = SteppedDevice(counting), []

    async def load(engine: Engine) -> None:
        await engine.load_weights({})
        done.append(True)

    async with Engine.from_device(Opened(device=device)) as engine, anyio.create_task_group() as group:
        group.start_soon(load, engine)
        await turn()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await turn()
            assert not done, "the device has its tensors"
            device.step()
            await turn()
            assert done


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["failed", "closed"])
async def test_nobody_waits_for_a_device_that_is_gone(how: str) -> None:
    device, errors = SteppedDevice(counting), []

    async def load(engine: Engine) -> None:
        try:
            await engine.load_weights({})
        except (EngineFailed, EngineClosed) as error:
            errors.append(type(error))

    async with anyio.create_task_group() as group, Engine.from_device(Opened(device=device)) as engine:
        group.start_soon(load, engine)
        await turn()
        if how == "failed":
            device.fail(MemoryError("gone"))
            await turn()
    assert errors == [EngineFailed if how == "failed" else EngineClosed]
    with pytest.raises((EngineFailed, EngineClosed)):
        await engine.load_weights({})


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    """asyncio's own cancellation is not held up by shields."""
    device = SteppedDevice(counting)
    async with Engine.from_device(Opened(device=device)) as engine:
        task = asyncio.create_task(engine.load_weights({}))
        await turn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        device.step()
        await turn()
        async with engine.thread([1]):
            device.step()

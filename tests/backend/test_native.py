"""The native CPU backend against the PyTorch one, and against itself in other company."""

from __future__ import annotations

import copy
import importlib.util
import logging
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Fixed
from runtime.backend.native.backend import NativeBackend
from runtime.backend.torch.backend import TorchBackend
from runtime.device.build import build_loop, load_native_code
from runtime.device.settings import EngineSettings
from runtime.link.commands import ThreadPath
from runtime.link.sampling import Sampling
from runtime.model.families.raven import RavenConfig
from runtime.model.rotary import Rotary
from runtime.model.specification import LayerSpecification, NormPlaces
from runtime.model.transformer import Transformer
from tests.backend import conversations
from tests.backend.conversations import CONTEXT, Talk, Turn, assert_alike, hold, llamas, ravens, telling_all
from tests.backend.specified import model_of, specified

WIDE = RavenConfig(
    n_embd=96,
    n_heads=4,
    intermediate_size=200,
    vocab_size=500,
    block_size=CONTEXT,
    n_layers_in_prelude=1,
    n_layers_in_recurrent_block=1,
    n_layers_in_coda=1,
    mean_recurrence=3,
    state_init="zero",
)
"""Wide enough that workers share the phases of a few rows."""

GATED = msgspec.structs.replace(
    WIDE.specification,
    kv_heads=2,
    layers=(LayerSpecification(window=20), LayerSpecification(rotary=1), LayerSpecification(rotary=None)),
    rotaries=(Rotary(base=1e4, width=24), Rotary(base=1e3, width=12, pairs="neighbours")),
    norms=NormPlaces(before=True, branch=True),
    norm_offset=1.0,
    query_key_norm="heads",
    projection_bias="query_key_value",
    activation="gelu_tanh",
    attention_softcap=20.0,
    logits_softcap=10.0,
    injection="state",
    norms_iterations=True,
    norms_coda=False,
    norms_head=False,
    exit_gate=True,
)
BIASED = msgspec.structs.replace(
    WIDE.specification,
    norms=NormPlaces(before=False, branch=True, total=True),
    query_key_norm="whole",
    output_bias=True,
    mlp_bias=True,
    activation="gelu",
    residual_scale=0.7,
    logits_scale=0.5,
    adapter_bias=True,
    exit_gate=True,
)
KINDS = {"raven": WIDE.specification, "gated": GATED, "biased": BIASED}


@cache
def wide_model(dtype: str, kind: str = "raven") -> Transformer:
    model = conversations.sharpened(Transformer(WIDE), 5) if kind == "raven" else model_of(KINDS[kind], 5)
    return model.to(getattr(torch, dtype))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Transformer, EngineSettings, list[Talk]]:
    """A model, an engine that is sometimes short of memory and lanes, and threads."""
    model: Transformer = draw(st.one_of(ravens(), llamas(), specified(), specified()))
    most = model.specification.mean_recurrence
    page_size = draw(st.sampled_from([1, 3, 4, 16, 20, 32]))
    chunk = draw(st.sampled_from([1, 5, 16]))
    needed = -(-CONTEXT // page_size)
    engine = conversations.settings(
        page_size=page_size,
        prefill_chunk=chunk,
        max_in_flight=draw(st.sampled_from([16, 40])),
        num_pages=needed * draw(st.integers(1, 6)),
        most_iterations=most,
        iteration_slots=draw(st.sampled_from([None, None, 1, 2])),
        reuse_prefixes=draw(st.booleans()),
    )
    return model, engine, draw(conversations.talks(model.specification))


@settings(max_examples=40)
@given(worlds(), st.integers(1, 64))
def test_says_what_the_pytorch_backend_says(
    world: tuple[Transformer, EngineSettings, list[Talk]], most_ticks: int
) -> None:
    model, engine, talks = world
    torch_engine = msgspec.structs.replace(engine, backend="torch")
    vocab = model.specification.vocab_size
    reference = hold(model, torch_engine, [telling_all(talk, vocab) for talk in talks], observed=True)
    native = hold(model, engine, talks, most_ticks=most_ticks)
    try:
        assert assert_alike(talks, reference, native) > 0
    except AssertionError:
        # Some drawn models magnify rounding until answers differ: then PyTorch's own two orders of sums disagree, too.
        fixed_shapes = msgspec.structs.replace(torch_engine, deterministic=True)
        again = hold(model, fixed_shapes, [telling_all(talk, vocab) for talk in talks], observed=True)
        with pytest.raises(AssertionError):
            assert_alike(talks, reference, again)


@st.composite
def crowds(draw: st.DrawFn) -> tuple[str, list[Talk]]:
    """A kind of wide model and threads on it, some of kinds that the native loop does not know."""
    kind = draw(st.sampled_from(list(KINDS)))
    talks, more = (draw(conversations.talks(KINDS[kind])) for _ in range(2))
    moved = {talk.path: (talk.path[0] + 10, *talk.path[1:]) for talk in more}
    return kind, talks + [
        replace(talk, path=moved[talk.path], inherits=None if talk.inherits is None else moved[talk.inherits])
        for talk in more
    ]


def family_of(talks: list[Talk], path: ThreadPath) -> list[Talk]:
    """A thread with all that it inherits from."""
    (talk,) = [talk for talk in talks if talk.path == path]
    return [*([] if talk.inherits is None else family_of(talks, talk.inherits)), talk]


@settings(max_examples=25)
@given(
    crowds(),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from([3, 16, 20]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([None, 1, 2]),
    st.integers(2, 64),
)
def test_nobody_notices_company_workers_or_runs(
    crowd: tuple[str, list[Talk]], dtype: str, page_size: int, threads: int, slots: int | None, most_ticks: int
) -> None:
    """Bit by bit: tokens, log-probabilities and depths."""
    kind, talks = crowd
    model = wide_model(dtype, kind)
    engine = conversations.settings(page_size=page_size, iteration_slots=slots, max_in_flight=48, reuse_prefixes=False)
    crowded = msgspec.structs.replace(engine, cpu_threads=threads, num_pages=3 * -(-CONTEXT // page_size))
    together = hold(model, crowded, talks, most_ticks=most_ticks).essence()
    for talk in talks:
        alone = hold(model, engine, family_of(talks, talk.path), observed=True).essence()
        assert together[talk.path] == alone[talk.path]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_rows_of_any_batch_are_bitwise_alike(dtype: str, threads: int, kind: str) -> None:
    """One thread beside 0, 1, ... others: every number of rows in the last tile of a matrix product."""
    model = wide_model(dtype, kind)
    engine = conversations.settings(cpu_threads=threads, max_in_flight=64)
    first = Talk((0,), Fixed(2), (Turn((5, 9, 2, 7, 7), 6, Sampling(temperature=1.0)),))
    alone = hold(model, engine, [first]).essence()[0,]
    for company in [*range(1, 9), 13, 30]:
        others = [Talk((number,), Fixed(2), (Turn((number,), 9),)) for number in range(1, company + 1)]
        assert hold(model, engine, [first, *others]).essence()[0,] == alone


def test_lanes_go_on_by_themselves() -> None:
    """What the other tests compare with is not what they compare."""
    model = wide_model("float32")
    talk = Talk((0,), Fixed(2), (Turn((1, 2, 3), 40),))
    native = hold(model, conversations.settings(page_size=64), [talk])
    assert max(len(run.token) for run in native.runs) == 39
    assert max(native.ticks) > 30
    stepwise = hold(model, conversations.settings(page_size=64), [talk], observed=True)
    assert not stepwise.runs
    assert set(stepwise.ticks) == {1}
    assert native.essence() == stepwise.essence()


@settings(max_examples=15)
@given(st.one_of(ravens(), llamas(), specified()), st.sampled_from([3, 16, 20]), st.sampled_from([None, 1]), st.data())
def test_bfloat16_is_as_close_as_the_pytorch_backends(
    model: Transformer, page_size: int, slots: int | None, data: st.DataObject
) -> None:
    """Distributions over all tokens, in contexts that are given: sampled tokens would lead them apart."""
    vocab, most = model.specification.vocab_size, model.specification.mean_recurrence
    prompt = data.draw(st.lists(st.integers(0, vocab - 1), min_size=2, max_size=40))
    talks = [
        Talk((end,), Fixed(most), (Turn(tuple(prompt[:end]), 1, Sampling(logprobs=vocab)),))
        for end in {1, len(prompt) // 2, len(prompt)}
    ]
    engine = conversations.settings(
        page_size=page_size, iteration_slots=slots, most_iterations=most, initial_state="zero"
    )
    torch_engine = msgspec.structs.replace(engine, backend="torch")
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    exact = hold(model, engine, talks)
    weights_rounded = hold(copy.deepcopy(rounded).float(), engine, talks)
    expected, found = hold(rounded, torch_engine, talks), hold(rounded, engine, talks)
    for talk in talks:
        truth, with_weights, usual, ours = (
            np.array([said.finished[talk.path][0].top_logprobs[0][token] for token in range(vocab)])
            for said in (exact, weights_rounded, expected, found)
        )
        # Some models are so sensitive that the PyTorch backend is close by luck alone: rounded weights tell.
        error = max(np.abs(usual - truth).max(), np.abs(with_weights - truth).max())
        assert np.abs(ours - truth).max() <= 3 * error + 0.05 * (truth.max() - truth.min())


# ---- the choice -----------------------------------------------------------------------------------------------------


def build(model: Transformer, **changes: Any) -> tuple[object, list[str]]:
    """The backend that the settings give, and what was warned of."""
    handler = Warnings()
    logger = logging.getLogger("runtime.device")
    logger.addHandler(handler)
    try:
        core = build_loop(model, conversations.settings(**changes), Fixed(2))
        core.close()
        return core.backend, handler.messages
    finally:
        logger.removeHandler(handler)


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_the_native_backend_is_chosen_where_it_runs() -> None:
    model = wide_model("float32")
    for choice, kind in (("auto", NativeBackend), ("native", NativeBackend), ("torch", TorchBackend)):
        backend, warned = build(model, backend=choice)
        assert type(backend) is kind
        assert not warned


@pytest.mark.parametrize("lacking", ["numba", "compiling", "64 bits"])
def test_where_it_does_not_run_the_pytorch_backend_does_and_says_so_once(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wide_model("float32")
    if lacking == "numba":
        real = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == "numba" else real(name, *rest)
        )
        reason = "the numba package is not installed"
    elif lacking == "compiling":
        monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
        reason = "NUMBA_DISABLE_JIT is set, so that nothing is compiled"
    else:
        monkeypatch.setattr(sys, "byteorder", "big")
        reason = "the processor is not a 64-bit one of little-endian order"
    backend, warned = build(model, backend="auto")
    assert type(backend) is TorchBackend
    (message,) = warned
    assert "no_native_backend" in message
    assert reason in message
    backend, warned = build(model, backend="torch")
    assert type(backend) is TorchBackend
    assert not warned, "who asks for it knows"
    with pytest.raises(ValueError, match=f"EngineSettings.backend is 'native', but {reason}. Use 'auto' or 'torch'."):
        build(model, backend="native")
    with pytest.raises(ValueError, match=reason):
        load_native_code(model, EngineSettings(backend="native"))
    load_native_code(model, EngineSettings())


def test_the_native_backend_is_for_cpus() -> None:
    with torch.device("meta"):
        elsewhere = Transformer(WIDE)
    with pytest.raises(ValueError, match="the device is not a CPU"):
        build(elsewhere, backend="native")


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"backend": "numba"}, EngineSettings)

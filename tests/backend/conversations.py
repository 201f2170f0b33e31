"""Threads that say something on a device core, and what two cores may differ in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from policies import KL, Cosine, DepthPolicy, EvenBudget, Fixed, GateExit, LatentDiff
from runtime.backend.interface import Run, Tick, TickResult
from runtime.backend.randomness import SAMPLING_STREAM, thread_key, uniforms
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.device.scheduler import Scheduler
from runtime.device.settings import EngineSettings
from runtime.link.commands import CloseThread, Extend, Failed, Finished, Generate, OpenThread, ThreadPath
from runtime.link.sampling import Sampling
from runtime.model.architecture import parse_config
from runtime.model.families.raven import RavenConfig
from runtime.model.parameters import derived_names, initialise, published_weights
from runtime.model.specification import Specification
from runtime.model.transformer import Transformer

SEED = 3
CONTEXT = 80


# ---- models ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sharpened(model: Transformer, seed: int) -> Transformer:
    """Random weights of which every one matters, so that tokens vary and nothing can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    initialise(model, generator)
    derived = derived_names(model)
    for name, parameter in published_weights(model).items():
        if name in derived:
            continue
        if parameter.dim() == 1 and "bias" not in name:
            parameter.uniform_(0.5, 1.5, generator=generator)
        elif "bias" in name:
            parameter.normal_(0, 0.3, generator=generator)
        elif "head" in name or "proj" in name:
            parameter.mul_(3.0)
    return model.eval()


@st.composite
def ravens(draw: st.DrawFn) -> Transformer:
    heads = draw(st.integers(1, 4))
    config = RavenConfig(
        n_embd=heads * draw(st.sampled_from([2, 6, 8, 12, 16, 24, 40])),
        n_heads=heads,
        intermediate_size=draw(st.integers(1, 100)),
        vocab_size=draw(st.integers(8, 200)),
        block_size=CONTEXT,
        n_layers_in_prelude=draw(st.integers(0, 2)),
        n_layers_in_recurrent_block=draw(st.integers(1, 2)),
        n_layers_in_coda=draw(st.integers(0, 2)),
        mean_recurrence=draw(st.integers(2, 4)),
        qk_bias=draw(st.booleans()),
        bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        norm_eps=draw(st.sampled_from([1e-6, 1e-3])),
        state_init=draw(st.sampled_from(["zero", "zero", "like-init"])),
    )
    model = sharpened(Transformer(config), draw(st.integers(0, 2**16)))
    assert isinstance(model, Transformer)
    return model


@st.composite
def llamas(draw: st.DrawFn) -> Transformer:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    config = parse_config(
        Path("config.json"),
        {
            "model_type": "llama",
            "hidden_size": draw(st.integers(5, 50)),
            "num_attention_heads": kv_heads * group,
            "num_key_value_heads": kv_heads,
            "head_dim": draw(st.sampled_from([2, 6, 8, 14, 16, 24])),
            "intermediate_size": draw(st.integers(1, 100)),
            "vocab_size": draw(st.integers(8, 200)),
            "num_hidden_layers": draw(st.integers(1, 3)),
            "max_position_embeddings": CONTEXT,
            "initializer_range": 0.2,
            "tie_word_embeddings": draw(st.booleans()),
        },
    )
    model = sharpened(Transformer(config), draw(st.integers(0, 2**16)))
    assert isinstance(model, Transformer)
    return model


# ---- threads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """Tokens received, then tokens sampled."""

    receive: tuple[int, ...]
    tokens: int
    sampling: Sampling = Sampling()  # noqa: RUF009
    entropies: bool = False


@dataclass(frozen=True)
class Talk:
    """What a thread is to do."""

    path: ThreadPath
    policy: DepthPolicy
    turns: tuple[Turn, ...]
    inherits: ThreadPath | None = None
    """It begins with the context of a thread that has had its turns."""


@dataclass
class Said:
    """What came of talks."""

    finished: dict[ThreadPath, list[Finished]] = field(default_factory=dict)
    tests: dict[ThreadPath, list[float]] = field(default_factory=dict)
    """Exit values in order, where the core was observed."""
    runs: list[Run] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    """Of each call of the backend."""

    def essence(self) -> dict[ThreadPath, list[tuple[object, ...]]]:
        """What must not depend on anything but the thread."""
        return {
            path: [(report.tokens, report.logprobs, report.depths, report.reason) for report in reports]
            for path, reports in self.finished.items()
        }


def settings(**changes: Any) -> EngineSettings:
    fields = {
        "num_pages": 400,
        "page_size": 16,
        "max_in_flight": 64,
        "prefill_chunk": 16,
        "backend": "native",
        "cpu_threads": 1,
    }
    return EngineSettings(**{**fields, **changes})


def hold(
    model: Transformer,
    settings: EngineSettings,
    talks: Iterable[Talk],
    *,
    observed: bool = False,
    most_ticks: int = 64,
) -> Said:
    """Has all talks at once, children as soon as their parents are done, and leaves nothing behind."""
    said = Said()

    def observe(scheduler: Scheduler, result: TickResult) -> None:
        for lane, value in zip(result.tested.tolist(), result.exit_value.tolist(), strict=True):
            sequence = scheduler.in_flight.in_lane(lane)
            assert sequence is not None
            said.tests.setdefault(sequence.path, []).append(value)

    most = settings.most_iterations or model.specification.mean_recurrence
    core = build_loop(model, settings, Fixed(most), observe=observe if observed else None)
    watch(core, said.runs, said.ticks, 1 if observed else most_ticks)
    try:
        _converse(core, {talk.path: talk for talk in talks}, said)
    finally:
        core.close()
    return said


def watch(core: DeviceLoop, runs: list[Run], ticks: list[int], most_ticks: int) -> None:
    """Notes the runs and ticks of each call of the backend, which may do `most_ticks`, however long they take."""
    tick = core.backend.tick

    def watched(arguments: Tick) -> TickResult:
        result = tick(msgspec.structs.replace(arguments, most_ticks=most_ticks))
        assert 1 <= result.ticks <= most_ticks
        runs.extend(result.runs.values())
        ticks.append(result.ticks)
        return result

    pytest.MonkeyPatch().setattr(core.backend, "tick", watched)


def _converse(core: DeviceLoop, talks: dict[ThreadPath, Talk], said: Said) -> None:
    def take_turn(talk: Talk) -> None:
        turn = talk.turns[len(said.finished[talk.path])]
        core.handle(Extend(talk.path, turn.receive))
        core.handle(
            Generate(thread=talk.path, max_tokens=turn.tokens, sampling=turn.sampling, entropies=turn.entropies)
        )

    def open_children(parent: ThreadPath | None) -> None:
        for talk in talks.values():
            if talk.inherits == parent:
                core.handle(OpenThread(thread=talk.path, seed=SEED, depth=talk.policy, inherits=parent))
                said.finished[talk.path] = []
                take_turn(talk)

    open_children(None)
    while core.has_work or core.journal.reports:
        if core.has_work:
            core.step()
        core.check_integrity()
        for report in core.journal.take_reports():
            assert isinstance(report, Finished), report
            said.finished[report.thread].append(report)
            talk = talks[report.thread]
            if len(said.finished[report.thread]) < len(talk.turns):
                take_turn(talk)
            else:
                open_children(talk.path)
    assert all(len(said.finished[path]) == len(talk.turns) for path, talk in talks.items())
    load = core.statistics()
    for name in ("generated", "computed", "iterations", "recomputed", "cached_tokens"):
        reported = sum(getattr(report.work, name) for reports in said.finished.values() for report in reports)
        assert getattr(load, name) == reported, name
    for path in talks:
        core.handle(CloseThread(path))
    if core.has_work:
        core.step()
    core.check_integrity()
    assert core.statistics().pages_used == 0
    assert not any(isinstance(report, Failed) for report in core.journal.take_reports())


SAMPLINGS = (
    Sampling(),
    Sampling(),
    Sampling(temperature=0.8),
    Sampling(temperature=1.3),
    Sampling(temperature=0.01),
    Sampling(temperature=1.2, top_k=5),
    Sampling(temperature=1.0, min_p=0.02),
    Sampling(repetition_penalty=1.3),
    Sampling(logprobs=3),
)


def policies(most: int, has_gate: bool) -> tuple[DepthPolicy, ...]:
    """Of all kinds, with at most so many iterations."""
    by_gate = (
        GateExit(0.3, max_iterations=most),
        GateExit(0.9, max_iterations=most, exit_received=False),
        GateExit(0.6, max_iterations=most, min_iterations=most - 1, check_every=2),
        EvenBudget(GateExit(0.7, max_iterations=most)),
    )
    return (
        *(by_gate if has_gate else ()),
        Fixed(1),
        Fixed(most),
        LatentDiff(0.6, max_iterations=most),
        LatentDiff(0.9, max_iterations=most, min_iterations=most - 1, check_every=2),
        LatentDiff(0.8, max_iterations=most, exit_received=False),
        Cosine(0.3, max_iterations=most),
        KL(0.05, max_iterations=most),
        EvenBudget(LatentDiff(0.7, max_iterations=most)),
    )


@st.composite
def talks(draw: st.DrawFn, specification: Specification) -> list[Talk]:
    """A few threads, some with children that inherit; their contexts stay below `CONTEXT`."""
    ids = st.integers(0, specification.vocab_size - 1)
    choices = policies(specification.mean_recurrence, specification.exit_gate)

    def turns(received: int) -> tuple[Turn, ...]:
        return tuple(
            Turn(
                tuple(draw(st.lists(ids, min_size=received, max_size=20))),
                draw(st.integers(1, 8)),
                draw(st.sampled_from(SAMPLINGS)),
                draw(st.integers(0, 7)) == 0,
            )
            for _ in range(draw(st.integers(1, 2)))
        )

    chosen: list[Talk] = []
    for number in range(draw(st.integers(1, 5))):
        policy = draw(st.sampled_from(choices))
        if chosen and len(chosen[0].turns) == 1 and draw(st.booleans()):
            chosen.append(Talk((0, number), chosen[0].policy, turns(0)[:1], inherits=(0,)))
        else:
            chosen.append(Talk((number,), policy, turns(1)))
    return chosen


# ---- comparing ------------------------------------------------------------------------------------------------------


def telling_all(talk: Talk, vocab: int) -> Talk:
    """The same with every token's log-probability reported."""
    turns = [replace(turn, sampling=msgspec.structs.replace(turn.sampling, logprobs=vocab)) for turn in talk.turns]
    return replace(talk, turns=tuple(turns))


def assert_alike(talks: Iterable[Talk], reference: Said, other: Said) -> int:
    """The other's tokens and depths are the reference's, which tells all, up to where a tie was decided otherwise.

    Returns how many tokens were compared.
    """
    compared = 0
    split: set[ThreadPath] = set()
    lengths: dict[ThreadPath, int] = {}
    for talk in talks:
        if talk.inherits in split:
            split.add(talk.path)
            continue
        length = lengths[talk.inherits] if talk.inherits is not None else 0
        for turn, ours, theirs in zip(
            talk.turns, reference.finished[talk.path], other.finished[talk.path], strict=True
        ):
            length += len(turn.receive)
            same = 0
            for index, (ours_said, theirs_said) in enumerate(zip(ours.tokens, theirs.tokens, strict=False)):
                if ours.depths[index] != theirs.depths[index]:
                    values = np.array(reference.tests[talk.path])
                    assert (np.abs(values - talk.policy.threshold) < 1e-4).any(), "another depth without a tie"
                    break
                top = ours.top_logprobs[index]
                if ours_said != theirs_said:
                    key = thread_key(SEED, talk.path)
                    _check_tie(top, turn.sampling, ours_said, theirs_said, key, length + index - 1)
                    break
                tolerance = 3e-4 * (1 + max(map(abs, top.values())))
                assert abs(ours.logprobs[index] - theirs.logprobs[index]) < tolerance
                same += 1
            compared += same
            length += same
            if same < max(len(ours.tokens), len(theirs.tokens)):
                split.add(talk.path)
                break
            assert ours.reason == theirs.reason
        lengths[talk.path] = length
    return compared


def _check_tie(top: Mapping[int, float], sampling: Sampling, ours: int, theirs: int, key: int, position: int) -> None:
    if sampling.is_greedy:
        assert top[ours] - top[theirs] < 1e-3, "another token without a tie"
        return
    likely = np.zeros(max(top) + 1)
    likely[list(top)] = np.exp(list(top.values()))
    drawn = uniforms(torch.tensor([key]), torch.tensor([position]), 1, SAMPLING_STREAM).item()
    borders = np.cumsum(likely)
    assert np.abs(borders - drawn * borders[-1]).min() < 3e-4, "another token without a tie"

"""Random programs of threads on a device core: they end, leak nothing, and no thread notices the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policies import DepthPolicy, DepthView, EntryView, Fixed, LatentDiff
from policies.depth.base import IntArray
from runtime.device.settings import EngineSettings
from runtime.errors import PolicyError
from runtime.link.commands import CloseThread, Extend, Failed, Finished, Generate, Interrupt, OpenThread, ThreadPath
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model

MOST = 4
PAGE = 4
CONTEXT = 64
PAGES_FOR_ONE = CONTEXT // PAGE


class FailsAtTest(DepthPolicy, frozen=True):
    """Raises in its exit test."""

    reads: ClassVar[Literal["latent"]] = "latent"

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        raise ArithmeticError("no measure")


class FailsAtBound(DepthPolicy, frozen=True):
    """Raises when asked for a bound."""

    def bound(self, entering: EntryView) -> IntArray:
        raise ArithmeticError("no bound")


POLICIES: tuple[DepthPolicy, ...] = (
    Fixed(2),
    Fixed(MOST),
    LatentDiff(0.7, max_iterations=MOST),
    LatentDiff(0.9, max_iterations=3),
    Fixed(3, carry="normed"),
    LatentDiff(0.8, max_iterations=MOST, carry="raw"),
)
SAMPLINGS = (Sampling(), Sampling(temperature=0.9), Sampling(temperature=1.5, top_k=8, repetition_penalty=1.3))


@dataclass
class Said:
    """What a thread was told and what it said: enough to say it again alone."""

    policy: DepthPolicy
    path: ThreadPath
    steps: list[tuple[str, tuple[int, ...], Sampling]] = field(default_factory=list)
    """("receive", tokens, -) or ("sample", tokens, sampling)."""
    origins: tuple[ThreadPath, ...] = ()
    length: int = 0
    alive: bool = True
    generating: Generate | None = None
    logprobs: list[float] = field(default_factory=list)
    """Of the tokens that it sampled itself."""

    def add(self, kind: str, tokens: tuple[int, ...], sampling: Sampling) -> None:
        self.steps.append((kind, tokens, sampling))
        self.length += len(tokens)


@cache
def model(state_init: str, coda: int) -> Transformer:
    return tiny_model(7, state_init=state_init, coda=coda, prelude=coda)


@st.composite
def engine_settings(draw: st.DrawFn) -> tuple[EngineSettings, str, int]:
    lanes = draw(st.sampled_from([8, 16, 48]))
    return (
        EngineSettings(
            num_pages=draw(st.integers(PAGES_FOR_ONE, 3 * PAGES_FOR_ONE)),
            page_size=PAGE,
            max_in_flight=lanes,
            prefill_chunk=draw(st.sampled_from([4, 8])),
            most_iterations=MOST,
            iteration_slots=draw(st.sampled_from([None, 1, 2])),
            deterministic=True,
        ),
        draw(st.sampled_from(["zero", "like-init"])),
        draw(st.sampled_from([0, 1])),
    )


class Program:
    """Interprets random operations against one core and keeps the books that the properties are about."""

    def __init__(self, setup: tuple[EngineSettings, str, int]) -> None:
        self.setup = setup
        self.solo = Solo.over(model(*setup[1:]), setup[0], Fixed(MOST))
        self.threads: dict[ThreadPath, Said] = {}
        self.finished: list[Finished] = []
        self.failed: list[Failed] = []
        self.opened = 0

    def idle(self) -> list[Said]:
        return [said for said in self.threads.values() if said.alive and said.generating is None]

    def open(self, policy: DepthPolicy, prompt: tuple[int, ...]) -> None:
        path = (self.opened,)
        self.opened += 1
        self.threads[path] = said = Said(policy, path)
        self.solo.send(OpenThread(thread=path, seed=3, depth=policy))
        self.extend(said, prompt)

    def extend(self, said: Said, tokens: tuple[int, ...]) -> None:
        if said.length + len(tokens) <= CONTEXT:
            self.solo.send(Extend(said.path, tokens))
            said.add("receive", tokens, SAMPLINGS[0])

    def generate(self, said: Said, count: int, sampling: Sampling) -> None:
        said.generating = Generate(thread=said.path, max_tokens=count, sampling=sampling)
        self.solo.send(said.generating)

    def fork(self, parent: Said) -> None:
        path = (*parent.path, self.opened)
        self.opened += 1
        child = Said(parent.policy, path, list(parent.steps), (*parent.origins, parent.path), parent.length)
        self.threads[path] = child
        self.solo.send(OpenThread(thread=path, seed=3, depth=parent.policy, inherits=parent.path))

    def close(self, said: Said) -> None:
        self.solo.send(CloseThread(said.path))
        said.alive = False

    def advance(self, ticks: int) -> None:
        for _ in range(ticks):
            if self.solo.core.has_work:
                self.solo.core.step()
            self.solo.core.check_integrity()
        self.take_reports()

    def take_reports(self) -> None:
        for report in self.solo.core.journal.take_reports():
            assert isinstance(report, Finished | Failed)
            said = self.threads[report.thread]
            if isinstance(report, Finished):
                self.finished.append(report)
                if said.generating is not None:
                    said.add("sample", report.tokens, said.generating.sampling)
                    said.logprobs += report.logprobs
            else:
                assert isinstance(report, Failed)
                assert isinstance(report.error, PolicyError), report.error
                assert isinstance(said.policy, FailsAtTest | FailsAtBound)
                self.failed.append(report)
                self.close(said)
            said.generating = None


prompts = st.one_of(
    st.lists(st.integers(0, 39), min_size=1, max_size=14).map(tuple),
    # Whole pages, which an evicted thread finds again up to its first sampled token.
    st.sampled_from([PAGE, 2 * PAGE, 3 * PAGE]).map(lambda length: tuple(range(length))),
)


def one_operation(policies: st.SearchStrategy[DepthPolicy], *, most_tokens: int) -> st.SearchStrategy[Any]:
    """What a program does next with one of its threads, or to begin another."""
    generate = st.tuples(
        st.just("generate"), st.integers(0, 9), st.integers(1, most_tokens), st.sampled_from(SAMPLINGS)
    )
    return st.one_of(
        st.tuples(st.just("open"), policies, prompts),
        st.tuples(st.just("extend"), st.integers(0, 9), prompts),
        generate,
        generate,
        st.tuples(st.just("fork"), st.integers(0, 9)),
        st.tuples(st.just("interrupt"), st.integers(0, 9), st.integers(0, 6)),
        st.tuples(st.just("close"), st.integers(0, 9)),
        st.tuples(st.just("advance"), st.integers(1, 12)),
    )


operations = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from([*POLICIES, FailsAtTest(), FailsAtBound()]), prompts),
        one_operation(st.sampled_from(POLICIES), most_tokens=12),
    ),
    min_size=3,
    max_size=30,
)
# Threads that say more, from the start, than fits: they are evicted, and computed again.
crowds = st.lists(
    st.builds(
        lambda policy, prompt, count: [("open", policy, prompt), ("generate", 0, count, SAMPLINGS[0])],
        st.sampled_from(POLICIES),
        prompts,
        st.integers(20, 40),
    ),
    max_size=6,
).map(lambda begun: [step for steps in begun for step in steps])


def run_program(setup: tuple[EngineSettings, str, int], steps: list[tuple[Any, ...]]) -> Program:
    program = Program(setup)
    for name, *arguments in steps:
        if name == "open":
            program.open(*arguments)
        elif name == "advance":
            program.advance(arguments[0])
        elif name == "interrupt":
            busy = [said for said in program.threads.values() if said.generating is not None]
            if busy:
                said = busy[arguments[0] % len(busy)]
                program.solo.send(Interrupt(said.path, arguments[1]))
                program.take_reports()
        elif name == "close":
            alive = [said for said in program.threads.values() if said.alive]
            if alive:
                said = alive[arguments[0] % len(alive)]
                program.close(said)
                program.take_reports()
        elif idle := program.idle():
            said = idle[arguments[0] % len(idle)]
            if name == "extend":
                program.extend(said, arguments[1])
            elif name == "generate":
                program.generate(said, arguments[1], arguments[2])
                program.take_reports()
            elif name == "fork":
                program.fork(said)
        program.solo.core.check_integrity()
    return program


def say_alone(program: Program, said: Said) -> None:
    """Repeats a thread in an engine of its own with memory to spare, and compares every token."""
    engine, state_init, coda = program.setup
    roomy = EngineSettings(
        num_pages=8 * PAGES_FOR_ONE,
        page_size=PAGE,
        max_in_flight=48,
        prefill_chunk=engine.prefill_chunk,
        most_iterations=MOST,
        iteration_slots=engine.iteration_slots,
        backend=engine.backend,
        deterministic=True,
    )
    logprobs: list[float] = []
    solo = Solo.over(model(state_init, coda), roomy, Fixed(MOST))
    solo.send(OpenThread(thread=said.path, seed=3, depth=said.policy))
    for kind, tokens, sampling in said.steps:
        if kind == "receive":
            solo.send(Extend(said.path, tokens))
        elif tokens:
            solo.send(Generate(thread=said.path, max_tokens=len(tokens), sampling=sampling))
            (finished,) = solo.run(check=False)
            assert isinstance(finished, Finished)
            assert finished.tokens == tokens
            logprobs += finished.logprobs
    assert logprobs == said.logprobs


@settings(max_examples=60)
@given(engine_settings(), crowds, operations)
def test_any_program_ends_leaks_nothing_and_threads_do_not_notice_each_other(
    setup: tuple[EngineSettings, str, int], crowd: list[tuple[Any, ...]], steps: list[tuple[Any, ...]]
) -> None:
    program = run_program(setup, crowd + steps)
    ticks = 0
    while program.solo.core.has_work:
        program.advance(1)
        ticks += 1
        assert ticks < 5000, "the program does not end"
    program.take_reports()
    assert all(said.generating is None for said in program.threads.values())
    for said in program.threads.values():
        # A fork draws with its parent's key up to the fork, which a thread alone under the child's path cannot do.
        if said.alive and not said.origins:
            say_alone(program, said)
    for said in program.threads.values():
        program.close(said)
    program.take_reports()
    program.solo.core.check_integrity()
    load = program.solo.core.statistics()
    assert load.pages_used == 0
    assert load.open_threads == 0
    spent = [report.work for report in program.finished] + [report.work for report in program.failed]
    for name in ("generated", "computed", "iterations", "recomputed", "cached_tokens", "prompt_tokens"):
        reported = sum(getattr(work, name) for work in spent)
        assert getattr(load, name) == reported, name


@settings(max_examples=40)
@given(engine_settings(), prompts, st.integers(1, 10), st.integers(1, 10))
def test_a_fork_goes_on_as_its_parent_would(
    setup: tuple[EngineSettings, str, int], prompt: tuple[int, ...], before: int, after: int
) -> None:
    """Greedy, from zero states: parent and fork must say the same, though they write to the same pages."""
    engine, _, coda = setup
    solo = Solo.over(model("zero", coda), engine, Fixed(MOST))
    policy = LatentDiff(0.7, max_iterations=MOST)
    solo.send(OpenThread(thread=(0,), seed=0, depth=policy), Extend((0,), prompt))
    solo.send(Generate(thread=(0,), max_tokens=before, sampling=Sampling()))
    solo.run()
    solo.send(OpenThread(thread=(0, 0), seed=0, depth=policy, inherits=(0,)))
    for path in ((0,), (0, 0)):
        solo.send(Generate(thread=path, max_tokens=after, sampling=Sampling()))
    parent, child = sorted(
        (report for report in solo.run() if isinstance(report, Finished)), key=lambda report: report.thread
    )
    assert parent.tokens == child.tokens
    assert np.allclose(parent.logprobs, child.logprobs, atol=1e-6)
    solo.send(CloseThread((0,)), CloseThread((0, 0)))
    solo.core.check_integrity()
    assert solo.core.statistics().pages_used == 0

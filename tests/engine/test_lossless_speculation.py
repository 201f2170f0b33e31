"""Threads that speculate say what plain decoding says, in fewer ticks, whatever else runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from policies import Fixed, LatentDiff, Speculative
from runtime.device.settings import EngineSettings
from runtime.link.commands import (
    Interrupt,
)
from runtime.link.sampling import Sampling
from tests.engine.speculating import (
    PLAIN,
    ask,
    only,
    solo_over,
)
from tests.engine.test_programs import MOST, PAGE, PAGES_FOR_ONE, SAMPLINGS, Program, one_operation, prompts, say_alone

policies = st.one_of(
    st.builds(
        lambda most, draft, look, adaptive: Speculative(
            min(draft, most - 1), look, max_iterations=most, adaptive=adaptive
        ),
        st.integers(2, MOST),
        st.integers(1, MOST - 1),
        st.integers(1, 6),
        st.booleans(),
    ),
    st.sampled_from([Fixed(2), LatentDiff(0.7, max_iterations=MOST), Fixed(3, carry="raw")]),
)

beginnings = st.lists(
    st.tuples(policies, prompts, st.integers(2, 40), st.sampled_from(SAMPLINGS)), min_size=1, max_size=6
)

operations = st.lists(one_operation(policies, most_tokens=20), max_size=24)


@st.composite
def setups(draw: st.DrawFn) -> tuple[EngineSettings, str, int]:
    engine = EngineSettings(
        num_pages=draw(st.sampled_from([PAGES_FOR_ONE, PAGES_FOR_ONE + 3, 3 * PAGES_FOR_ONE])),
        page_size=PAGE,
        max_in_flight=draw(st.sampled_from([8, 16, 32])),
        prefill_chunk=draw(st.sampled_from([4, 8])),
        most_iterations=MOST,
        # A tick of PyTorch's takes ten times as long.
        backend=draw(st.sampled_from(["native", "native", "native", "torch"])),
        deterministic=True,
        cpu_threads=1,
    )
    return engine, draw(st.sampled_from(["zero", "like-init"])), draw(st.sampled_from([0, 1]))


def perform(program: Program, operation: tuple[Any, ...]) -> None:
    name, *arguments = operation
    if name == "open":
        program.open(*arguments)
    elif name == "advance":
        program.advance(arguments[0])
    elif name in ("interrupt", "close"):
        threads = [said for said in program.threads.values() if said.alive]
        threads = [said for said in threads if name == "close" or said.generating is not None]
        if threads:
            said = threads[arguments[0] % len(threads)]
            program.solo.send(Interrupt(said.path, arguments[1])) if name == "interrupt" else program.close(said)
    elif idle := program.idle():
        said = idle[arguments[0] % len(idle)]
        begin: dict[str, Callable[..., None]] = {
            "extend": program.extend,
            "generate": program.generate,
            "fork": program.fork,
        }
        begin[name](said, *arguments[1:])
    program.take_reports()
    program.solo.core.check_integrity()


@settings(max_examples=50)
@given(setups(), beginnings, operations)
def test_threads_that_speculate_say_what_plain_ones_say(
    setup: tuple[EngineSettings, str, int], begun: list[tuple[Any, ...]], steps: list[tuple[Any, ...]]
) -> None:
    program = Program(setup)
    for number, (policy, prompt, count, sampling) in enumerate(begun):
        program.open(policy, prompt)
        program.generate(program.threads[number,], count, sampling)
    for operation in steps:
        perform(program, operation)
    ticks = 0
    while program.solo.core.has_work:
        program.advance(1)
        ticks += 1
        assert ticks < 5000, "the program does not end"
    program.take_reports()
    for said in program.threads.values():
        if said.alive and not said.origins:
            if isinstance(said.policy, Speculative):
                said.policy = Fixed(said.policy.max_iterations)
            say_alone(program, said)
    for said in program.threads.values():
        program.close(said)
    program.take_reports()
    journal = program.solo.core.journal
    program.solo.core.check_integrity()
    load = program.solo.core.statistics()
    assert load.pages_used == 0
    spent = [report.work for report in program.finished] + [report.work for report in program.failed]
    for name in ("generated", "computed", "iterations", "recomputed", "cached_tokens"):
        reported = sum(getattr(work, name) for work in spent)
        assert getattr(load, name) == reported, name
    event("drafts were thrown away" if journal.accepted < journal.drafted else "all drafts were right")
    event(f"drafted: {journal.drafted > 0}, recomputed: {journal.work.recomputed > 0}")
    assert journal.accepted <= journal.drafted


@settings(max_examples=20)
@given(
    st.integers(0, 5), st.integers(1, 5), st.integers(1, 8), st.booleans(), st.sampled_from(SAMPLINGS), st.booleans()
)
def test_fewer_ticks_and_only_what_was_thrown_away_more(
    seed: int, draft: int, look: int, adaptive: bool, sampling: Sampling, coda: bool
) -> None:
    plain, speculating = (solo_over(seed, coda=int(coda)) for _ in range(2))
    ask(plain, PLAIN, 30, sampling=sampling)
    ask(speculating, Speculative(draft, look, max_iterations=6, adaptive=adaptive), 30, sampling=sampling)
    expected, finished = only(plain), only(speculating)
    assert finished.tokens == expected.tokens
    assert finished.logprobs == expected.logprobs
    assert finished.depths == expected.depths
    assert (finished.work.generated, finished.work.computed) == (expected.work.generated, expected.work.computed)
    journal = speculating.core.journal
    assert journal.drafted > 0
    # A draft that was right saves the iterations that it had done by then.
    saved = plain.core.journal.ticks - journal.ticks
    assert journal.accepted <= saved <= journal.accepted * (6 - draft)
    wasted = finished.work.iterations - expected.work.iterations
    assert journal.drafted - journal.accepted <= wasted <= (journal.drafted - journal.accepted) * (6 - draft)

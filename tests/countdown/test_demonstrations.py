"""What the Countdown solvers write for the models to learn: it solves problems and speaks the protocol."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.countdown.demonstrations import (
    exhaustive_examples,
    parallel_examples,
    serial_examples,
    training_problems,
)
from benchmarks.countdown.parallel import BudgetedRoot, ChildThread, NestedRoot, ParentThread, RootThread
from benchmarks.countdown.protocol import COUNTDOWN
from benchmarks.countdown.serial import SerialSearch
from examples.countdown.problems import LARGEST_VALUE, Problem, draw_problems, expression_of, is_solution, reachable
from examples.countdown.search import first_steps, ranked
from examples.countdown.solve import steps_in
from examples.countdown.vocabulary import ID_OF, WINDOWS, WORDS, build_tokenizer
from runtime import BoundProtocol
from runtime.model.tokenizer import Tokenizer

numbers = st.lists(st.integers(1, 99), min_size=4, max_size=4).map(tuple)


@given(numbers, st.integers(10, 100))
def test_the_solver_finds_exactly_what_can_be_reached(nums: tuple[int, ...], target: int) -> None:
    problem = Problem(nums, target)
    paths = [child.path for child in RootThread(problem).children() if child.path is not None]
    assert bool(paths) == (target in reachable(problem.key[0], {}))
    for path in paths:
        expression = expression_of(path, nums)
        assert expression is not None
        assert is_solution(problem, expression)


def test_demonstrations_speak_the_protocol() -> None:
    """Children's prompts and returns, found by the protocol's watcher in what the solver's root writes."""
    protocol = BoundProtocol(COUNTDOWN, Tokenizer(build_tokenizer()))
    problem = Problem((22, 26, 31, 53), 27)
    root = RootThread(problem)
    watcher = protocol.watcher([ID_OF[word] for word in root.prompt])
    signals = [signal for word in root.written for signal in watcher.feed(ID_OF[word])]
    prompts = [[WORDS[token] for token in signal.tokens] for signal in signals if signal.kind == "spawn"]
    assert prompts == [child.prompt for child in root.children()]
    assert signals[-1].kind == "join"
    for child in root.children():
        watcher = protocol.watcher([ID_OF[word] for word in child.prompt])
        (end,) = [signal for word in child.written for signal in watcher.feed(ID_OF[word])]
        assert end.kind == "end"
        text = " ".join(WORDS[token] for token in end.tokens)
        assert (steps_in(text) or None) == child.path


@pytest.mark.parametrize("nums", [(22, 26, 31, 53), (22, 26, 31, 53, 6)])
def test_every_kind_of_parent_spawns_its_children(nums: tuple[int, ...]) -> None:
    protocol = BoundProtocol(COUNTDOWN, Tokenizer(build_tokenizer()))
    problem = Problem(nums, 27)
    ranking = ranked(first_steps(problem.key[0]), problem.target, random.Random(0))
    roots: list[ParentThread] = [RootThread(problem), BudgetedRoot(problem, ranking, 5)]
    if len(nums) == 4:
        roots.append(NestedRoot(problem))
    waiting, seen = list(roots), 0
    while waiting:
        parent = waiting.pop()
        seen += 1
        watcher = protocol.watcher([ID_OF[word] for word in parent.prompt])
        signals = [signal for word in parent.written for signal in watcher.feed(ID_OF[word])]
        prompts = [[WORDS[token] for token in signal.tokens] for signal in signals if signal.kind == "spawn"]
        assert prompts == [child.prompt for child in parent.children()]
        assert [signal.kind for signal in signals[len(prompts) :]] == ["join"]
        waiting += [child for child in parent.children() if isinstance(child, ParentThread)][:3]
    assert seen > len(roots)
    assert roots[0].path is not None
    assert len(list(roots[1].children())) == 5


def test_what_serial_threads_write_solves_the_problem() -> None:
    chance = random.Random(3)
    succeeded = dict.fromkeys(WINDOWS[:-1], 0)
    for problem, _ in zip(draw_problems(chance), range(40), strict=False):
        search = SerialSearch(problem, chance)
        for window in succeeded:
            thread = search.thread(window)
            assert len(thread.prompt) + len(thread.written) <= window
            if thread.path is not None:
                succeeded[window] += 1
                expression = expression_of(thread.path, problem.nums)
                assert expression is not None
                assert is_solution(problem, expression)
                assert thread.written[-1 - 4 * len(thread.path) - 1] == "<win>"
            else:
                assert "<win>" not in thread.written
    assert list(succeeded.values()) == sorted(succeeded.values())
    assert 5 < succeeded[128] < 30
    assert succeeded[1024] > 30


def test_training_examples_stay_inside_vocabulary_and_context() -> None:
    chance = random.Random(1)
    excluded = {problem.key for problem, _ in zip(draw_problems(random.Random(2)), range(5), strict=False)}
    for problem, _ in zip(training_problems(chance, excluded), range(200), strict=False):
        assert problem.key not in excluded
    for draw, longest in ((exhaustive_examples, 512), (parallel_examples, 512), (serial_examples, 4096)):
        for example, _ in zip(draw(chance, excluded), range(300), strict=False):
            assert len(example.tokens) == len(example.weights) <= longest
            assert all(0 <= token < len(WORDS) for token in example.tokens)
            assert example.weights[0] == 0.0
            assert any(example.weights)


def test_a_child_stops_at_its_first_success() -> None:
    child = ChildThread([], 27, (26, 22, 22))
    assert child.written[-1] == "<end>"
    assert child.written.count("<win>") == 1
    assert child.path is not None
    assert max(int(word) for word in child.written if word.isdigit()) <= LARGEST_VALUE

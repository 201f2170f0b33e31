"""Endless examples to learn from: threads of the solvers, drawn over problems that are not held out."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator

from benchmarks.countdown.parallel import BudgetedRoot, ChildThread, Messages, NestedRoot, ParentThread, RootThread
from benchmarks.countdown.protocol import MOST_MESSAGES
from benchmarks.countdown.serial import SerialSearch
from examples.countdown.problems import LARGEST_VALUE, Key, Problem, Step, steps
from examples.countdown.search import first_steps, ranked, search_three
from examples.countdown.vocabulary import MOST_CHILDREN, WINDOWS
from policies.training import Example


def false_path(child: ChildThread, random_source: random.Random) -> list[Step] | None:
    """A path as a mistaken child would return it: one wrong result, so that the end seems to meet the target."""
    numbers, target = child.numbers, child.target
    i, j, k = random_source.choice(((0, 1, 2), (0, 2, 1), (1, 2, 0)))
    options = steps(numbers[i], numbers[j])
    if not options:
        return None
    step = random_source.choice(options)
    if random_source.random() < 0.3:
        shifted = step.result + random_source.choice((-20, -10, -2, -1, 1, 2, 10, 20))
        if 0 <= shifted <= LARGEST_VALUE:
            step = Step(step.left, step.operator, step.right, shifted)
    larger, smaller = max(step.result, numbers[k]), min(step.result, numbers[k])
    leaves = steps(larger, smaller)
    if not leaves or (any(leaf.result == target for leaf in leaves) and step in options):
        return None
    # The closest misses are the ones that children get wrong.
    leaf = min(leaves, key=lambda leaf: abs(leaf.result - target) + random_source.random() * 10)
    return [*child.before, step, Step(leaf.left, leaf.operator, leaf.right, target)]


def messages_of(parent: ParentThread, random_source: random.Random) -> Messages:
    """What a parent receives from children that miss some paths and invent others."""
    messages: Messages = []
    for child in parent.children():
        path = child.path
        if path is not None:
            if random_source.random() < 0.85:
                messages.append((path, True))
            continue
        authors = [child] if isinstance(child, ChildThread) else child.searching()
        if authors and random_source.random() < 0.02:
            path = false_path(random_source.choice(authors), random_source)
            if path is not None:
                messages.append((path, False))
    return messages[:MOST_MESSAGES]


def _searched(parent: ParentThread, random_source: random.Random, winners: int, others: int) -> list[Example]:
    """A sample of a parent's child threads, of those that win and of those that do not."""
    children = parent.searching()
    winning = [child for child in children if child.path is not None]
    losing = [child for child in children if child.path is None]
    losing.sort(key=lambda child: random_source.random() ** (1.0 / child.rarity), reverse=True)
    chosen = random_source.sample(winning, min(winners, len(winning))) + losing[:others]
    return [child.example() for child in chosen]


def tree_examples(problem: Problem, random_source: random.Random) -> list[Example]:
    """The root of one problem and a sample of its children, with messages as an imperfect tree would return them."""
    root = RootThread(problem)
    return [root.example(messages_of(root, random_source)), *_searched(root, random_source, 3, 6)]


def budgeted_examples(problem: Problem, random_source: random.Random) -> list[Example]:
    """Roots with budgets of children, mostly such as suffice: the model learns what to try when it has only so many."""
    branches = first_steps(problem.key[0])
    examples = []
    for _ in range(3):
        ranking = ranked(branches, problem.target, random_source)
        wins = [search_three([step], problem.target, rest)[1] is not None for step, rest in ranking]
        won = 1 + wins.index(True) if True in wins else len(wins)
        budget = random_source.randint(1, MOST_CHILDREN)
        if random_source.random() < 0.75:
            budget = min(random_source.randint(won, won + 2), MOST_CHILDREN)
        root = BudgetedRoot(problem, ranking, budget)
        examples.append(root.example(messages_of(root, random_source)))
    return [*examples, *_searched(RootThread(problem), random_source, 2, 1)]


def nested_examples(problem: Problem, random_source: random.Random) -> list[Example]:
    """The root of a nested tree and some of its pair threads."""
    root = NestedRoot(problem)
    pairs = random_source.sample(root.children(), 3)
    return [
        root.example(messages_of(root, random_source)),
        *(pair.example(messages_of(pair, random_source)) for pair in pairs),
        *(example for pair in pairs[:1] for example in _searched(pair, random_source, 1, 1)),
    ]


def five_examples(problem: Problem, random_source: random.Random) -> list[Example]:
    """Threads of a tree of three levels: the root of five numbers, two of its children, and some of theirs."""
    root = RootThread(problem)
    middles = [child for child in root.children() if isinstance(child, ParentThread)]
    winning = [middle for middle in middles if middle.path is not None]
    chosen = [random_source.choice(middles), random_source.choice(winning or middles)]
    return [
        root.example(messages_of(root, random_source)),
        *(middle.example(messages_of(middle, random_source)) for middle in chosen),
        *(example for middle in chosen for example in _searched(middle, random_source, 1, 1)),
    ]


def training_problems(random_source: random.Random, excluded: Collection[Key], count: int = 4) -> Iterator[Problem]:
    """Endless problems; half with numbers that divide or multiply more often than chance.

    Most problems of four numbers are solvable. Those whose `key` is in `excluded` are never drawn.
    """
    while True:
        numbers = [random_source.randint(1, 99) for _ in range(count)]
        kind = random_source.random()
        if kind < 0.25:
            divisor = random_source.randint(2, 12)
            numbers[:2] = divisor, divisor * random_source.randint(1, 99 // divisor)
        elif kind < 0.5:
            numbers[0] = random_source.randint(1, 15)
        random_source.shuffle(numbers)
        problem = Problem(tuple(numbers), random_source.randint(10, 100))
        if problem.key in excluded:
            continue
        if count != 4 or random_source.random() < 0.15 or RootThread(problem).path is not None:
            yield problem


def exhaustive_examples(random_source: random.Random, excluded: Collection[Key]) -> Iterator[Example]:
    """Endless threads of trees in which the root spawns every child: arithmetic, and how to write it down."""
    for problem in training_problems(random_source, excluded):
        yield from tree_examples(problem, random_source)


def parallel_examples(random_source: random.Random, excluded: Collection[Key]) -> Iterator[Example]:
    """Endless threads of the parallel solver, in all its variations."""
    problems = training_problems(random_source, excluded)
    of_five = training_problems(random_source, excluded, count=5)
    while True:
        kind = random_source.random()
        if kind < 0.35:
            yield from tree_examples(next(problems), random_source)
        elif kind < 0.8:
            yield from budgeted_examples(next(problems), random_source)
        elif kind < 0.88:
            yield from nested_examples(next(problems), random_source)
        else:
            yield from five_examples(next(of_five), random_source)


def serial_examples(random_source: random.Random, excluded: Collection[Key]) -> Iterator[Example]:
    """Endless threads of the serial solver, mostly in the smallest window in which they succeed.

    Four in a thousand have five numbers.
    """
    problems = training_problems(random_source, excluded)
    of_five = training_problems(random_source, excluded, count=5)
    *windows, longest = WINDOWS
    while True:
        if random_source.random() < 0.004:
            yield SerialSearch(next(of_five), random_source).thread(longest).example()
            continue
        search = SerialSearch(next(problems), random_source)
        threads = [search.thread(window) for window in windows]
        succeeding = next((thread for thread in threads if thread.path is not None), threads[-1])
        yield (succeeding if random_source.random() < 0.75 else random_source.choice(threads)).example()

"""What parent and child threads should write: the symbolic solver that the model learns to imitate.

A root thread is prompted with `n1 n2 n3 n4 -> t`. It writes `Q t` and its numbers sorted descending, then one
spawn per allowed first operation, whose message is that operation and the question left over, then a join:

    22 26 31 53 -> 27  Q 27 53 31 26 22
    <spawn> 53 + 31 84 Q 27 84 26 22 </spawn>  <spawn> 53 - 31 22 Q 27 26 22 22 </spawn> ...  <join>

A child's prompt is exactly its message. It lists every operation on two of its three numbers with its result and
the number left over, and below each every operation on those two: its symbol, its value, and its distance to the
target. At distance 0 it writes the whole path from the root's numbers and stops:

    53 - 31 22 Q 27 26 22 22   26 + 22 48 22 + 70 43 - 26 1 ...   <win> 53 - 31 22  ...  <end>

A child that finds nothing ends without `<win>` and returns nothing. The root receives the first few paths as
`<message> path </message>`, and ends with `<win> path <end>` for one whose arithmetic is right, or `<end>`.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator

from examples.countdown.problems import LARGEST_VALUE, Problem, Step, steps
from examples.countdown.vocabulary import ARROW, END, ID_OF, JOIN, MESSAGE, MESSAGE_END, QUESTION, SPAWN, SPAWN_END, WIN
from policies.training.examples import Example

MOST_MESSAGES = 4
"""How many children's paths a root is given at its join."""

ANSWER_WEIGHT = 4.0
"""Loss weight of the root's answer: one wrong token there costs the whole problem."""


def words_of(path: Iterable[Step]) -> list[str]:
    return [str(word) for step in path for word in (step.left, step.operator, step.right, step.result)]


def question_words(target: int, numbers: tuple[int, ...]) -> list[str]:
    return [QUESTION, str(target), *map(str, numbers)]


def first_steps(numbers: tuple[int, ...]) -> list[tuple[Step, tuple[int, ...]]]:
    """Every allowed operation on two of `numbers`, with the numbers left after it, sorted descending."""
    found = []
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for step in steps(numbers[i], numbers[j]):
                found.append((step, tuple(sorted((*rest, step.result), reverse=True))))
    return found


class ChildThread:
    """The thread that searches three numbers: its prompt, what it writes, and the path it found, if any."""

    def __init__(self, before: list[Step], target: int, numbers: tuple[int, ...]) -> None:
        self.prompt = [*words_of(before), *question_words(target, numbers)]
        self.written: list[str] = []
        self.path: list[Step] | None = None
        for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
            for step in steps(numbers[i], numbers[j]):
                self.written += [*words_of([step]), str(numbers[k])]
                for leaf in steps(step.result, numbers[k]):
                    distance = abs(leaf.result - target)
                    self.written += [leaf.operator, str(leaf.result), str(distance)]
                    if distance == 0:
                        self.path = [*before, step, leaf]
                        self.written += [WIN, *words_of(self.path), END]
                        return
        self.written.append(END)

    @property
    def rarity(self) -> float:
        """How much more often than others it is drawn: products and quotients are rarer and harder than sums."""
        return 3.0 if self.prompt[1] in ("*", "/") or {"*", "/"} & set(self.written[:5]) else 1.0

    def example(self) -> Example:
        return example([(self.prompt, 0.0), (self.written, 1.0)])


class RootThread:
    """The thread that spawns a child per first operation."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        numbers = problem.key[0]
        self.branches = first_steps(numbers)
        self.prompt = [*map(str, problem.nums), ARROW, str(problem.target)]
        self.written = question_words(problem.target, numbers)
        for step, rest in self.branches:
            self.written += [SPAWN, *words_of([step]), *question_words(problem.target, rest), SPAWN_END]
        self.written.append(JOIN)

    def children(self) -> list[ChildThread]:
        return [ChildThread([step], self.problem.target, rest) for step, rest in self.branches]

    def example(self, messages: list[tuple[list[Step], bool]]) -> Example:
        """`messages` are the returned paths, each with whether its arithmetic is right."""
        received = [word for path, _ in messages for word in (MESSAGE, *words_of(path), MESSAGE_END)]
        right = next((path for path, is_right in messages if is_right), None)
        answer = [END] if right is None else [WIN, *words_of(right), END]
        return example([(self.prompt, 0.0), (self.written, 1.0), (received, 0.0), (answer, ANSWER_WEIGHT)])


def example(parts: list[tuple[list[str], float]]) -> Example:
    return Example(
        tokens=[ID_OF[word] for words, _ in parts for word in words],
        weights=[weight for words, weight in parts for _ in words],
    )


def false_path(child: ChildThread, before: list[Step], target: int, random_source: random.Random) -> list[Step] | None:
    """A path as a mistaken child would return it: one wrong result, so that the end seems to meet the target."""
    numbers = tuple(int(word) for word in child.prompt[-3:])
    i, j, k = random_source.choice(((0, 1, 2), (0, 2, 1), (1, 2, 0)))
    options = steps(numbers[i], numbers[j])
    step = random_source.choice(options)
    if random_source.random() < 0.3:
        shifted = step.result + random_source.choice((-20, -10, -2, -1, 1, 2, 10, 20))
        if 0 <= shifted <= LARGEST_VALUE:
            step = Step(step.left, step.operator, step.right, shifted)
    larger, smaller = max(step.result, numbers[k]), min(step.result, numbers[k])
    leaves = steps(larger, smaller)
    if any(leaf.result == target for leaf in leaves) and step in options:
        return None
    # The closest misses are the ones that children get wrong.
    leaf = min(leaves, key=lambda leaf: abs(leaf.result - target) + random_source.random() * 10)
    return [*before, step, Step(leaf.left, leaf.operator, leaf.right, target)]


def tree_examples(problem: Problem, random_source: random.Random, winners: int = 3, others: int = 6) -> list[Example]:
    """The root of one problem and a sample of its children, with messages as an imperfect tree would return them."""
    root = RootThread(problem)
    children = root.children()
    messages: list[tuple[list[Step], bool]] = []
    for child, (step, _) in zip(children, root.branches, strict=True):
        if child.path is not None and random_source.random() < 0.85:
            messages.append((child.path, True))
        elif child.path is None and random_source.random() < 0.02:
            path = false_path(child, [step], problem.target, random_source)
            if path is not None:
                messages.append((path, False))
    winning = [child for child in children if child.path is not None]
    losing = [child for child in children if child.path is None]
    losing.sort(key=lambda child: random_source.random() ** (1.0 / child.rarity), reverse=True)
    chosen = random_source.sample(winning, min(winners, len(winning))) + losing[:others]
    return [root.example(messages[:MOST_MESSAGES]), *(child.example() for child in chosen)]


def training_problems(
    random_source: random.Random, excluded: Collection[tuple[tuple[int, ...], int]]
) -> Iterator[Problem]:
    """Endless problems, most of them solvable; half with numbers that divide or multiply more often than chance."""
    while True:
        numbers = [random_source.randint(1, 99) for _ in range(4)]
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
        if random_source.random() < 0.15 or any(child.path for child in RootThread(problem).children()):
            yield problem

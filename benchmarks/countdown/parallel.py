"""What parent and child threads should write: the symbolic solver that the parallel model learns to imitate.

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

Three variations. `... -> 27 children 6` asks for six spawns at most, those of the most promising operations, and
counts them down: `6 <spawn> 53 - 31 22 ... </spawn> 5 <spawn> ...`. `... -> 27 nested` asks for one spawn per pair of
numbers, `<spawn> P 27 53 31 26 22 </spawn>`, of a thread that spawns the children of that pair. And a thread of four
numbers that has a parent (`8 - 3 5 Q 27 53 31 26 22`) spawns as a root does and returns what it receives: with it,
five numbers are a tree of three levels.
"""

from __future__ import annotations

from collections.abc import Sequence

from examples.countdown.problems import Problem, Step, steps
from examples.countdown.search import (
    Branch,
    Numbers,
    first_steps,
    in_order,
    question_words,
    search_three,
    without,
    words_of,
)
from examples.countdown.vocabulary import (
    ARROW,
    CHILDREN,
    END,
    ID_OF,
    JOIN,
    MESSAGE,
    MESSAGE_END,
    NESTED,
    PAIR,
    SPAWN,
    SPAWN_END,
    WIN,
)
from policies.training import Example

ANSWER_WEIGHT = 4.0
"""Loss weight of a path that is returned: one wrong token there costs the whole problem."""

CHOICE_WEIGHT = 0.3
"""Loss weight of spawns within a budget: which ones are best is a guess, and guesses make noisy gradients."""

Messages = list[tuple[list[Step], bool]]
"""Paths as children returned them, each with whether its arithmetic is right."""


class ChildThread:
    """The thread that searches three numbers: its prompt, what it writes, and the path it found, if any."""

    def __init__(self, before: list[Step], target: int, numbers: Numbers) -> None:
        self.before, self.target, self.numbers = before, target, numbers
        self.prompt = [*words_of(before), *question_words(target, numbers)]
        written, self.path = search_three(before, target, numbers)
        self.written = [*written, END]
        self.answer = len(self.written) if self.path is None else self.written.index(WIN)
        """Where in `written` the returned path begins."""

    @property
    def rarity(self) -> float:
        """How much more often than others it is drawn: products and quotients are rarer and harder than sums."""
        is_rare = self.before[-1].operator in "*/" or {"*", "/"} & set(self.written[:5])
        return 3.0 if is_rare else 1.0

    def example(self) -> Example:
        searched, answer = self.written[: self.answer], self.written[self.answer :]
        return example([(self.prompt, 0.0), (searched, 1.0), (answer, ANSWER_WEIGHT)])


class ParentThread:
    """A thread that spawns, joins and answers; subclasses make its prompt, what it writes, and its children."""

    prompt: list[str]
    written: list[str]
    weight = 1.0
    """Of what it writes before its join."""
    before: list[Step]
    branches: list[Branch]
    target: int

    def children(self) -> Sequence[ChildThread | ParentThread]:
        """In the order in which they are spawned."""
        return [child_thread([*self.before, step], self.target, rest) for step, rest in self.branches]

    def searching(self) -> list[ChildThread]:
        """Those of its children that spawn no further."""
        return [child for child in self.children() if isinstance(child, ChildThread)]

    @property
    def path(self) -> list[Step] | None:
        """What it returns if nobody makes a mistake."""
        return next((child.path for child in self.children() if child.path is not None), None)

    def example(self, messages: Messages) -> Example:
        """The thread as it goes on after `messages`."""
        received = [word for path, _ in messages for word in (MESSAGE, *words_of(path), MESSAGE_END)]
        right = next((path for path, is_right in messages if is_right), None)
        answer = [END] if right is None else [WIN, *words_of(right), END]
        return example([(self.prompt, 0.0), (self.written, self.weight), (received, 0.0), (answer, ANSWER_WEIGHT)])

    def _messages(self) -> list[list[str]]:
        return [[*words_of([*self.before, step]), *question_words(self.target, rest)] for step, rest in self.branches]


def spawn_words(messages: list[list[str]]) -> list[str]:
    return [*(word for message in messages for word in (SPAWN, *message, SPAWN_END)), JOIN]


class RootThread(ParentThread):
    """Spawns a child per first operation."""

    def __init__(self, problem: Problem) -> None:
        numbers = problem.key[0]
        self.before, self.target = [], problem.target
        self.branches = first_steps(numbers)
        self.prompt = prompt_words(problem, [])
        self.written = [*question_words(problem.target, numbers), *spawn_words(self._messages())]


class BudgetedRoot(ParentThread):
    """Spawns the first `budget` of ranked operations, in the order in which a root lists them all."""

    weight = CHOICE_WEIGHT

    def __init__(self, problem: Problem, ranking: list[Branch], budget: int) -> None:
        numbers = problem.key[0]
        self.before, self.target = [], problem.target
        self.branches = in_order(ranking[:budget], first_steps(numbers))
        self.prompt = prompt_words(problem, [CHILDREN, str(budget)])
        spawns = [
            word
            for number, message in enumerate(self._messages())
            for word in (str(budget - number), SPAWN, *message, SPAWN_END)
        ]
        self.written = [*question_words(problem.target, numbers), *spawns, JOIN]


class NestedRoot(ParentThread):
    """Spawns a thread per pair of its numbers."""

    def __init__(self, problem: Problem) -> None:
        numbers = problem.key[0]
        self.before, self.target = [], problem.target
        self.prompt = prompt_words(problem, [NESTED])
        self._children = [
            PairThread(problem.target, (numbers[i], numbers[j]), without(numbers, i, j))
            for i in range(len(numbers))
            for j in range(i + 1, len(numbers))
        ]
        messages = [child.prompt for child in self._children]
        self.written = [*question_words(problem.target, numbers), *spawn_words(messages)]

    def children(self) -> Sequence[ParentThread]:
        return self._children


class PairThread(ParentThread):
    """Spawns the children whose first operation is on one pair of numbers."""

    def __init__(self, target: int, pair: tuple[int, int], others: Numbers) -> None:
        self.before, self.target = [], target
        self.prompt = [PAIR, str(target), *map(str, pair), *map(str, others)]
        self.branches = [
            (step, tuple(sorted((*others, step.result), reverse=True))) for step in steps(pair[0], pair[1])
        ]
        self.written = spawn_words(self._messages())


class MiddleThread(ParentThread):
    """A thread of four numbers that has a parent: spawns as a root does."""

    def __init__(self, before: list[Step], target: int, numbers: Numbers) -> None:
        self.before, self.target = before, target
        self.branches = first_steps(numbers)
        self.prompt = [*words_of(before), *question_words(target, numbers)]
        self.written = spawn_words(self._messages())


def child_thread(before: list[Step], target: int, numbers: Numbers) -> ChildThread | MiddleThread:
    return (ChildThread if len(numbers) == 3 else MiddleThread)(before, target, numbers)


def prompt_words(problem: Problem, condition: list[str]) -> list[str]:
    return [*map(str, problem.nums), ARROW, str(problem.target), *condition]


def example(parts: list[tuple[list[str], float]]) -> Example:
    return Example(
        tokens=[ID_OF[word] for words, _ in parts for word in words],
        weights=[weight for words, weight in parts for _ in words],
    )

"""What a serial thread should write: the same search as the parallel solver's, by a single thread (SoS+ in APR, A.3).

    22 26 31 53 -> 27 within 256  Q 27 53 31 26 22
    53 - 31 22 Q 27 26 22 22   26 + 22 48 22 + 70 43 - 26 1 ...   31 - 26 5 Q ...   <win> 53 - 31 22 ... <end>

One first operation after the other, the most promising ones first, each with the search that the parallel solver
leaves to a child. It stops at its first success, or when its window is full. `within` tells the model how long its
context may get: in demonstrations mostly the smallest window into which they fit.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator

from examples.countdown.demonstrations import example, prompt_words, training_problems
from examples.countdown.problems import Problem, Step
from examples.countdown.search import Numbers, first_steps, most_promising, question_words, search_three, words_of
from examples.countdown.vocabulary import END, WINDOWS, WITHIN
from policies.training.examples import Example


class SerialThread:
    """The whole search: what it writes, whatever its window, and the path it ends with, if any."""

    def __init__(self, problem: Problem, random_source: random.Random, longest: int = WINDOWS[-1]) -> None:
        self.problem = problem
        self._random, self._longest = random_source, longest
        self.path: list[Step] | None = None
        self.written = question_words(problem.target, problem.key[0])
        self._search([], problem.key[0])
        self.written.append(END)

    def _search(self, before: list[Step], numbers: Numbers) -> None:
        target = self.problem.target
        for step, rest in most_promising(first_steps(numbers), target, self._random):
            self.written += [*words_of([step]), *question_words(target, rest)]
            if len(rest) == 3:
                words, self.path = search_three([*before, step], target, rest)
                self.written += words
            else:
                self._search([*before, step], rest)
            if self.path is not None or len(self.written) > self._longest:
                return

    def prompt(self, window: int) -> list[str]:
        return prompt_words(self.problem, [WITHIN, str(window)])

    @property
    def length(self) -> int:
        """Tokens of the whole thread, prompt included."""
        return len(self.prompt(WINDOWS[0])) + len(self.written)

    def succeeds_within(self, window: int) -> bool:
        return self.path is not None and self.length <= window

    def example(self, window: int) -> Example:
        prompt = self.prompt(window)
        return example([(prompt, 0.0), (self.written[: window - len(prompt)], 1.0)])


def serial_examples(
    random_source: random.Random, excluded: Collection[tuple[tuple[int, ...], int]]
) -> Iterator[Example]:
    """Endless threads of the serial solver; one in a hundred has five numbers."""
    problems = training_problems(random_source, excluded)
    of_five = training_problems(random_source, excluded, count=5)
    while True:
        if random_source.random() < 0.01:
            yield SerialThread(next(of_five), random_source).example(WINDOWS[-1])
            continue
        thread = SerialThread(next(problems), random_source)
        windows = WINDOWS[:-1]
        fitting = next((window for window in windows if thread.succeeds_within(window)), windows[-1])
        yield thread.example(fitting if random_source.random() < 0.75 else random_source.choice(windows))

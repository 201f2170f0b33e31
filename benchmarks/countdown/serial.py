"""What a serial thread should write: the same search as the parallel solver's, by a single thread (SoS+ in APR, A.3).

    22 26 31 53 -> 27 within 256  Q 27 53 31 26 22
    53 - 31 22 Q 27 26 22 22   26 + 22 48 22 + 70 43 - 26 1 ...   31 - 26 5 Q ...   <win> 53 - 31 22 ... <end>

One first operation after the other, each with the search that the parallel solver leaves to a child, up to the first
success. Where the window has no room for all of them, it has those that a parallel root with a budget would spawn: the
most promising ones, in the order in which a root lists them all.
"""

from __future__ import annotations

import random

from benchmarks.countdown.parallel import example, prompt_words
from examples.countdown.problems import Problem, Step
from examples.countdown.search import (
    Branch,
    Numbers,
    first_steps,
    in_order,
    question_words,
    ranked,
    search_three,
    words_of,
)
from examples.countdown.vocabulary import END, WITHIN
from policies.training import Example

Segment = tuple[list[str], list[Step] | None]
"""What is written about a first operation, and the path it ends with, if it succeeds."""


class SerialSearch:
    """The search of one problem, with one ranking of its first operations, for windows of any size."""

    def __init__(self, problem: Problem, random_source: random.Random) -> None:
        self.problem = problem
        self._branches = first_steps(problem.key[0])
        self._ranking = ranked(self._branches, problem.target, random_source)
        self._segments: dict[Branch, Segment] = {}

    def thread(self, window: int) -> SerialThread:
        """The thread that fits into so many tokens, its prompt included."""
        prompt = prompt_words(self.problem, [WITHIN, str(window)])
        written = question_words(self.problem.target, self.problem.key[0])
        room = window - len(prompt) - len(written) - 1
        chosen: list[Branch] = []
        for branch in self._ranking:
            room -= len(self._segment(branch)[0])
            if room < 0:
                break
            chosen.append(branch)
        path: list[Step] | None = None
        for branch in in_order(chosen, self._branches):
            words, path = self._segment(branch)
            written += words
            if path is not None:
                break
        return SerialThread(prompt, [*written, END], path)

    def _segment(self, branch: Branch) -> Segment:
        if branch not in self._segments:
            self._segments[branch] = self._search([branch[0]], branch[1])
        return self._segments[branch]

    def _search(self, before: list[Step], numbers: Numbers) -> Segment:
        target = self.problem.target
        written = [*words_of(before[-1:]), *question_words(target, numbers)]
        if len(numbers) == 3:
            words, path = search_three(before, target, numbers)
            return [*written, *words], path
        for step, rest in first_steps(numbers):
            words, path = self._search([*before, step], rest)
            written += words
            if path is not None:
                return written, path
        return written, None


class SerialThread:
    """A thread of the serial solver: its prompt, what it writes, and the path it ends with, if any."""

    def __init__(self, prompt: list[str], written: list[str], path: list[Step] | None) -> None:
        self.prompt, self.written, self.path = prompt, written, path

    def example(self) -> Example:
        return example([(self.prompt, 0.0), (self.written, 1.0)])

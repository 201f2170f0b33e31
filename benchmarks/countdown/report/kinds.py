"""What kind of token a thread of the Countdown language samples, so that depth can be told by kind."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from examples.countdown.problems import OPERATORS
from examples.countdown.vocabulary import CHILDREN, END, PAIR, QUESTION, SPAWN, WIN, WORDS
from traces import ThreadRecord

Kind = Literal["operand", "result", "verdict", "structure", "path"]
KINDS: dict[Kind, str] = {
    "operand": "numbers copied from the question",
    "result": "results of operations",
    "verdict": "distances to the target, `<win>`, `<end>`",
    "structure": "operators, and what separates, counts and joins spawns",
    "path": "the path after `<win>`",
}


def kinds_of(words: list[str], begin: int) -> list[Kind]:
    """The kinds of the words from `begin` on; those before were received.

    Reads what stands between symbols: questions, the steps of a spawn (left, right, result), the steps of a search
    (left, right, result, the number left over) and its leaves (result, distance), paths after `<win>`.
    """
    kinds: list[Kind] = []
    # A root with a budget counts its spawns down.
    is_counting = CHILDREN in words
    state: Literal["question", "spawn", "step", "leaf", "path"] = "question"
    numbers = 0
    for index, word in enumerate(words):
        kind: Kind = "operand"
        if is_counting and words[index + 1 : index + 2] == [SPAWN]:
            kind = "structure"
        elif word in (WIN, END):
            kind, state = "verdict", "path"
        elif not word.isdigit():
            kind = "structure"
            if word in (QUESTION, PAIR):
                state = "question"
            elif word == SPAWN:
                state, numbers = "spawn", 0
            elif state == "leaf":
                numbers = 0
        elif state == "path":
            kind = "path"
        elif state == "spawn":
            numbers += 1
            kind = "operand" if numbers % 3 else "result"
        elif state == "step":
            numbers += 1
            kind = "result" if numbers == 3 else "operand"
            if numbers == 4:
                state, numbers = "leaf", 2
        elif state == "leaf" and numbers < 2:
            numbers += 1
            kind = "result" if numbers == 1 else "verdict"
        elif state == "leaf" or _starts_step(words, index):
            state, numbers = "step", 1
        if index >= begin:
            kinds.append(kind)
    return kinds


def _starts_step(words: list[str], index: int) -> bool:
    """Whether an operator follows, as only the left operand of a step has it."""
    return index + 1 < len(words) and words[index + 1] in OPERATORS


def depths_by_kind(thread: ThreadRecord) -> dict[Kind, tuple[int, int]]:
    """Sampled tokens and their iterations, by kind, of one thread."""
    counts: Counter[Kind] = Counter()
    iterations: Counter[Kind] = Counter()
    words: list[str] = []
    for segment in thread.segments:
        begin = len(words)
        words += [WORDS[token] for token in segment.tokens]
        depths = getattr(segment, "depths", None)
        if depths is None:
            continue
        for kind, depth in zip(kinds_of(words, begin), depths, strict=True):
            counts[kind] += 1
            iterations[kind] += depth
    return {kind: (counts[kind], iterations[kind]) for kind in counts}

"""How threads sort, as a protocol and as demonstrations that the model learns to imitate.

A thread is given a list of numbers, each of them once:

    <list> 31 7 88 5 60 </list>

One number it returns as it is, two in order: `<return> 7 < 31 <end>`. A longer list it deals out to two children, one
number to the first, the next to the second, and merges what they return. Each line of the merge has the heads of both
lists, `.` for one that is used up, and which of them is smaller:

    <spawn> 31 88 60 </spawn> <spawn> 7 5 </spawn> <join>
    <message> 31 < 60 < 88 </message> <message> 5 < 7 </message>
    merge 31 5 -> 5 31 7 -> 7 31 . -> 31 60 . -> 60 88 . -> 88
    <return> 5 < 7 < 31 < 60 < 88 <end>

So every step is a comparison or a look-up, and each look-up has its own mark: `<` is only behind a number that has a
successor in a sorted list, and `->` only in front of one that goes out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain

import tokenizers

from examples.merge_sort.lists import LARGEST, LONGEST, draw_list, prompt_of
from policies.training import Example
from runtime import TagProtocol
from runtime.model import Tokenizer

SHORT = 2
"""Numbers in the longest list that a thread sorts by itself."""

USED_UP = "."

WORDS = (
    *map(str, range(LARGEST + 1)),
    *(USED_UP, "<", "->", "merge", "<list>", "</list>", "<spawn>", "</spawn>", "<join>"),
    *("<message>", "</message>", "<return>", "<end>", "<unknown>"),
)
"""Position in this tuple is the token id."""

ID_OF = {word: token for token, word in enumerate(WORDS)}

PROTOCOL = TagProtocol(
    prompt="<list> {prompt} </list>",
    spawn_open="<spawn>",
    spawn_close="</spawn>",
    child="<list> {message} </list>",
    join="<join>",
    delivered="<message> {message} </message> ",
    return_open="<return>",
    end=("<end>",),
    forbidden=("<message>", "</message>"),
    longest_message=2 * LONGEST,
    on_malformed="ignore",
)


def build_tokenizer() -> Tokenizer:
    """One token per word, split at spaces."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ID_OF, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(tokenizer)


def ascending(numbers: Sequence[int]) -> str:
    """What a thread returns of these numbers."""
    return " < ".join(map(str, sorted(numbers)))


def merged(first: Sequence[int], second: Sequence[int]) -> Iterator[str]:
    """The lines of a merge: both heads and the smaller, until both lists are used up."""
    left, right = sorted(first), sorted(second)
    while left or right:
        heads = [str(numbers[0]) if numbers else USED_UP for numbers in (left, right)]
        smaller = (left if left and (not right or left[0] < right[0]) else right).pop(0)
        yield f"{heads[0]} {heads[1]} -> {smaller}"


def thread_example(numbers: Sequence[int]) -> Example:
    """The whole thread that sorts `numbers`; its prompt and what its children return weigh nothing."""
    parts = [(f"<list> {prompt_of(numbers)} </list>", 0.0)]
    if len(numbers) > SHORT:
        halves = numbers[::2], numbers[1::2]
        parts += [(f"<spawn> {prompt_of(half)} </spawn>", 1.0) for half in halves]
        parts += [("<join>", 1.0)]
        parts += [(f"<message> {ascending(half)} </message>", 0.0) for half in halves]
        parts += [("merge " + " ".join(merged(*halves)), 1.0)]
    parts += [(f"<return> {ascending(numbers)} <end>", 1.0)]
    tokens = [[ID_OF[word] for word in text.split()] for text, _ in parts]
    weights = [[weight] * len(part) for part, (_, weight) in zip(tokens, parts, strict=True)]
    return Example([*chain.from_iterable(tokens)], [*chain.from_iterable(weights)])


def examples(random_source: random.Random, shortest: int = 1, longest: int = 16) -> Iterator[Example]:
    """Endless threads with lists of these lengths.

    Shorter lists come more often. They teach the same steps and cost less, and most threads of a tree have one.
    """
    while True:
        yield thread_example(draw_list(random_source, shortest, random_source.randint(shortest, longest)))

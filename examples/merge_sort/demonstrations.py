"""How threads sort, as a protocol and as demonstrations that the model learns to imitate.

A thread is given a list of letters, each with a label of its own:

    <list> 1 q 2 w 3 e 4 r 5 e </list>

One letter it returns: `<return> 1 q , <end>`. Two it merges as lists of one letter. A longer list it deals out to two
children, one letter to the first, the next to the second, and merges what they return. Each line of the merge has the
heads of both lists, `$` for one that is used up, and from which of them it takes the smaller:

    split <spawn> 1 q 3 e 5 e </spawn> <spawn> 2 w 4 r </spawn> <join>
    <message> 5 e , 3 e , 1 q , </message> <message> 4 r , 2 w , </message>
    merge  5 e 4 r first 5  3 e 4 r first 3  1 q 4 r first 1  $ $ 4 r second 4  $ $ 2 w second 2
    <return> 5 e , 3 e , 1 q , 4 r , 2 w , <end>

So every step is a look-up: labels tell equal letters apart, and commas tell what follows a label in a sorted list
from what follows it elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import tokenizers

from examples.merge_sort.lists import LETTERS, MOST_LABELS, draw_list
from policies.training import Example
from runtime import TagProtocol
from runtime.model.tokenizer import Tokenizer

SHORT = 2
"""Letters in the longest list that a thread sorts by itself."""

USED_UP = "$"

WORDS = (
    *LETTERS,
    *map(str, range(1, MOST_LABELS + 1)),
    *(USED_UP, ",", "split", "merge", "first", "second", "<list>", "</list>", "<spawn>", "</spawn>", "<join>"),
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
    longest_message=3 * MOST_LABELS,
    on_malformed="ignore",
)

Item = tuple[str, str]
"""A label and a letter."""


def build_tokenizer() -> Tokenizer:
    """One token per word, split at spaces."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ID_OF, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(tokenizer)


def words_of(items: list[Item]) -> list[str]:
    return [word for item in items for word in item]


def returned_words(items: list[Item]) -> list[str]:
    return [word for item in items for word in (*item, ",")]


def sorted_by_threads(items: list[Item]) -> list[Item]:
    """What a thread with this list returns: letters in order, equal ones in the order its merges leave them."""
    if len(items) < 2:
        return items
    return [winner for *_, winner in merge(sorted_by_threads(items[::2]), sorted_by_threads(items[1::2]))]


def merge(first: list[Item], second: list[Item]) -> Iterator[tuple[Item, Item, str, Item]]:
    """Both heads, which list the smaller is from, and the smaller, until both lists are used up."""
    first, second, end = list(first), list(second), (USED_UP, USED_UP)
    while first or second:
        side = "first" if first and (not second or first[0][1] <= second[0][1]) else "second"
        heads = (first[0] if first else end, second[0] if second else end)
        yield (*heads, side, (first if side == "first" else second).pop(0))


def thread_example(items: list[Item]) -> Example:
    """The whole thread that sorts `items`; its prompt and what its children return weigh nothing."""
    parts = [("<list> {} </list>", words_of(items), 0.0)]
    halves = items[::2], items[1::2]
    returned = [sorted_by_threads(half) for half in halves]
    if len(items) > SHORT:
        parts += [("split", [], 1.0)]
        parts += [("<spawn> {} </spawn>", words_of(half), 1.0) for half in halves]
        parts += [("<join>", [], 1.0)]
        parts += [("<message> {} </message>", returned_words(message), 0.0) for message in returned]
    if len(items) > 1:
        lines = [[*words_of([left, right]), side, winner[0]] for left, right, side, winner in merge(*returned)]
        parts += [("merge {}", [word for line in lines for word in line], 1.0)]
    parts += [("<return> {} <end>", returned_words(sorted_by_threads(items)), 1.0)]
    tokens, weights = [], []
    for template, words, weight in parts:
        part = [ID_OF[word] for word in template.format(" ".join(words)).split()]
        tokens += part
        weights += [weight] * len(part)
    return Example(tokens, weights)


def examples(random_source: random.Random, shortest: int = 1, longest: int = 16) -> Iterator[Example]:
    """Endless threads with lists of these lengths, under labels in any order: children get any part of a list.

    Shorter lists come more often. They teach the same steps and cost less, and most threads of a tree have one.
    """
    while True:
        letters = draw_list(random_source, shortest, random_source.randint(shortest, longest))
        labels = random_source.sample(range(1, MOST_LABELS + 1), len(letters))
        yield thread_example([(str(label), letter) for label, letter in zip(labels, letters, strict=True)])

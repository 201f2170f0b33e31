"""Merge sort: lists, demonstrations that speak the protocol, and a model that begins to learn them."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import anyio
import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.merge_sort import __main__ as command
from examples.merge_sort.demonstrations import (
    ID_OF,
    PROTOCOL,
    SHORT,
    WORDS,
    Item,
    build_tokenizer,
    examples,
    returned_words,
    sorted_by_threads,
    thread_example,
)
from examples.merge_sort.lists import MOST_LABELS, draw_list, is_sorted, letters_in, prompt_of
from examples.merge_sort.train import MODEL
from policies.training import Example, SupervisedConfig, exactness, export_checkpoint, train
from runtime.model.raven import Raven

letters = st.lists(st.sampled_from("abcxyz"), min_size=1, max_size=MOST_LABELS)
BOUND = PROTOCOL.bind(build_tokenizer())


def items_of(tokens: list[int] | tuple[int, ...]) -> list[Item]:
    """The labelled letters of a returned message, of a spawn, or of a prompt without its brackets."""
    words = [WORDS[token] for token in tokens if WORDS[token] != ","]
    return list(zip(words[::2], words[1::2], strict=True))


def demonstrated(prompt: list[int]) -> list[Item]:
    """What a tree returns whose threads write as demonstrated: every signal and delivery is the protocol's own."""
    thread = thread_example(items_of(prompt[1:-1]))
    assert thread.tokens[: len(prompt)] == prompt
    assert set(thread.weights[: len(prompt)]) == {0.0}
    watcher = BOUND.watcher(prompt)
    messages: list[tuple[int, ...]] = []
    position = len(prompt)
    while True:
        assert thread.weights[position] == 1.0
        for signal in watcher.feed(thread.tokens[position]):
            if signal.kind == "end":
                assert position == len(thread.tokens) - 1
                return items_of(signal.tokens)
            if signal.kind == "spawn":
                returned = demonstrated(list(signal.tokens))
                messages.append(tuple(ID_OF[word] for word in returned_words(returned)))
            else:
                assert signal.kind == "join"
                delivery = BOUND.delivery(messages)
                received = slice(position + 1, position + 1 + len(delivery))
                assert thread.tokens[received] == delivery
                assert set(thread.weights[received]) == {0.0}
                position += len(delivery)
        position += 1


@given(letters)
def test_threads_that_write_as_demonstrated_sort(drawn: list[str]) -> None:
    returned = demonstrated(BOUND.prompt(prompt_of(drawn)))
    assert returned == sorted_by_threads([(str(label), letter) for label, letter in enumerate(drawn, 1)])
    assert is_sorted(drawn, " ".join(returned_words(returned)))


@given(letters, st.randoms(use_true_random=False))
def test_an_answer_counts_only_with_every_letter_in_order(drawn: list[str], chance: random.Random) -> None:
    def answer(letters: list[str]) -> str:
        return " ".join(returned_words([(str(label), letter) for label, letter in enumerate(letters, 1)]))

    right = sorted(drawn)
    assert letters_in(answer(right)) == right
    assert is_sorted(drawn, answer(right))
    assert not is_sorted(drawn, answer(right[1:]))
    assert not is_sorted(drawn, answer([*right, "z"]))
    assert not is_sorted(drawn, " ".join(right))
    shuffled = chance.sample(drawn, len(drawn))
    assert is_sorted(drawn, answer(shuffled)) == (shuffled == right)


def test_training_examples_fit_the_model() -> None:
    for example in islice(examples(random.Random(1), 1, MOST_LABELS), 200):
        assert len(example.tokens) == len(example.weights) <= MODEL.block_size
        assert max(example.tokens) < len(WORDS) == MODEL.vocab_size
        assert set(example.weights) == {0.0, 1.0}
        labels = [word for word in (WORDS[token] for token in example.tokens) if word.isdigit()]
        assert len(set(labels)) <= MOST_LABELS


def test_drawn_lists_have_the_lengths_asked_for_and_duplicates() -> None:
    drawn = [draw_list(random.Random(seed), 5, 16) for seed in range(300)]
    assert {len(letters) for letters in drawn} == set(range(5, 17))
    assert sum(len(set(letters)) < len(letters) for letters in drawn) > 150


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Example]]:
    """A checkpoint of a model that has seen one list of four and the lists of its children, over and over."""
    directory = tmp_path_factory.mktemp("merge sort")
    items = [(str(label), letter) for label, letter in enumerate("dbca", 1)]
    threads = [thread_example(part) for part in (items, items[::2], items[1::2])]
    model = Raven(msgspec.structs.replace(MODEL, n_embd=64, intermediate_size=64, block_size=128))
    model.initialise(torch.Generator().manual_seed(0))
    config = SupervisedConfig(
        steps=120, mean_iterations=3, most_iterations=4, most_backprop=4, warmup=5, compile=False, bfloat16=False
    )
    train(model, lambda _: threads, config, directory, {})
    assert exactness(model, threads, MODEL.mean_recurrence) == 1.0
    export_checkpoint(directory / "checkpoint", model, build_tokenizer(), PROTOCOL)
    return directory / "checkpoint", threads


def test_what_was_learned_runs_as_a_tree(
    overfitted: tuple[Path, list[Example]], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, threads = overfitted
    monkeypatch.setattr("sys.argv", ["merge_sort", "d b c a", "--checkpoint", str(checkpoint)])
    assert anyio.run(command.main) == 0
    printed = capfd.readouterr()
    assert printed.out.split() == sorted("dbca")
    written = sum(int(sum(thread.weights)) for thread in threads)
    assert f"sorted, by 3 threads in {written} tokens" in printed.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a B"], "lower-case letters"),
        (["a " * 65], "at most 64"),
        ([], "either letters or --evaluate"),
        (["--evaluate", "0"], "at least one"),
    ],
)
def test_unusable_commands_are_explained(
    given: list[str], message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["merge_sort", *given, "--checkpoint", "nowhere"])
    with pytest.raises(SystemExit):
        anyio.run(command.main)
    assert message in capfd.readouterr().err


def test_a_missing_checkpoint_is_explained(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["merge_sort", "b a", "--checkpoint", str(tmp_path / "none")])
    assert anyio.run(command.main) == 2
    assert "CheckpointError" in capfd.readouterr().err


def test_short_lists_spawn_nothing() -> None:
    thread = thread_example([(str(label), "a") for label in range(1, SHORT + 1)])
    assert ID_OF["<spawn>"] not in thread.tokens
    assert ID_OF["<spawn>"] in thread_example([(str(label), "a") for label in range(1, SHORT + 2)]).tokens

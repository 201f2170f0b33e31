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
    ascending,
    build_tokenizer,
    examples,
    thread_example,
)
from examples.merge_sort.lists import LARGEST, LONGEST, draw_list, is_sorted, prompt_of
from examples.merge_sort.train import MODEL
from policies.training import Example, SupervisedConfig, exactness, export_checkpoint, train
from runtime import BoundProtocol
from runtime.model.parameters import initialise
from runtime.model.transformer import Transformer

numbers = st.lists(st.integers(0, LARGEST), min_size=1, max_size=LONGEST, unique=True)
BOUND = BoundProtocol(PROTOCOL, build_tokenizer())


def numbers_in(tokens: list[int] | tuple[int, ...]) -> list[int]:
    """The numbers of a returned message, of a spawn, or of a prompt."""
    return [int(WORDS[token]) for token in tokens if WORDS[token].isdecimal()]


def demonstrated(prompt: list[int]) -> list[int]:
    """What a tree returns whose threads write as demonstrated: every signal and delivery is the protocol's own."""
    thread = thread_example(numbers_in(prompt))
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
                return numbers_in(signal.tokens)
            if signal.kind == "spawn":
                returned = demonstrated(list(signal.tokens))
                messages.append(tuple(ID_OF[word] for word in ascending(returned).split()))
            else:
                assert signal.kind == "join"
                delivery = BOUND.delivery(messages)
                received = slice(position + 1, position + 1 + len(delivery))
                assert thread.tokens[received] == delivery
                assert set(thread.weights[received]) == {0.0}
                position += len(delivery)
        position += 1


@given(numbers)
def test_threads_that_write_as_demonstrated_sort(drawn: list[int]) -> None:
    returned = demonstrated(BOUND.prompt(prompt_of(drawn)))
    assert returned == sorted(drawn)


@given(st.lists(st.integers(0, LARGEST), min_size=2, max_size=9, unique=True), st.randoms(use_true_random=False))
def test_an_answer_counts_only_with_every_number_in_order(drawn: list[int], chance: random.Random) -> None:
    right = sorted(drawn)
    assert is_sorted(drawn, ascending(right))
    assert not is_sorted(drawn, ascending(right[1:]))
    assert not is_sorted(drawn, f"{ascending(right)} < {right[-1]}")
    assert not is_sorted(drawn, " ".join(map(str, right)))
    shuffled = chance.sample(drawn, len(drawn))
    assert is_sorted(drawn, " < ".join(map(str, shuffled))) == (shuffled == right)


def test_training_examples_fit_the_model() -> None:
    for example in islice(examples(random.Random(1), 1, LONGEST), 200):
        assert len(example.tokens) == len(example.weights) <= MODEL.block_size
        assert max(example.tokens) < len(WORDS) == MODEL.vocab_size
        assert set(example.weights) == {0.0, 1.0}


def test_drawn_lists_have_the_lengths_asked_for() -> None:
    drawn = [draw_list(random.Random(seed), 5, 16) for seed in range(300)]
    assert {len(numbers) for numbers in drawn} == set(range(5, 17))
    assert all(len(set(numbers)) == len(numbers) for numbers in drawn)


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Example]]:
    """A checkpoint of a model that has seen one list of four and the lists of its children, over and over."""
    directory = tmp_path_factory.mktemp("merge sort")
    drawn = [31, 7, 88, 5]
    threads = [thread_example(part) for part in (drawn, drawn[::2], drawn[1::2])]
    model = Transformer(msgspec.structs.replace(MODEL, n_embd=64, intermediate_size=64, block_size=128))
    initialise(model, torch.Generator().manual_seed(0))
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
    monkeypatch.setattr("sys.argv", ["merge_sort", "31 7 88 5", "--checkpoint", str(checkpoint)])
    assert anyio.run(command.main) == 0
    printed = capfd.readouterr()
    assert printed.out.strip() == "5 < 7 < 31 < 88"
    written = sum(int(sum(thread.weights)) for thread in threads)
    assert f"sorted, by 3 threads in {written} tokens" in printed.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["7 x"], "from 0 to 99"),
        (["7 100"], "from 0 to 99"),
        (["7 5 7"], "every number once"),
        ([" ".join(map(str, range(65)))], "at most 64"),
        ([], "either numbers or --evaluate"),
        (["--evaluate", "0"], "at least 1"),
    ],
)
def test_unusable_commands_are_explained(
    given: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("sys.argv", ["merge_sort", *given, "--checkpoint", str(tmp_path)])
    with pytest.raises(SystemExit):
        anyio.run(command.main)
    assert message in capfd.readouterr().err


def test_short_lists_spawn_nothing() -> None:
    assert ID_OF["<spawn>"] not in thread_example(range(SHORT)).tokens
    assert ID_OF["<spawn>"] in thread_example(range(SHORT + 1)).tokens

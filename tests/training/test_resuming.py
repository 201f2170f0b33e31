"""Training goes on after a kill as if nothing had happened, and begins from checkpoints whose vocabulary has grown."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from policies import Fixed, Policy
from policies.training import (
    Example,
    export_checkpoint,
    initialise_from,
    restore,
    train,
)
from policies.training.metrics import read_metrics
from policies.training.resume import save
from runtime import CheckpointError, ProtocolError, TagProtocol
from runtime.model.checkpoint import load_checkpoint
from runtime.model.families.raven import RavenConfig
from runtime.model.parameters import initialise
from runtime.model.tokenizer import Tokenizer
from runtime.model.transformer import Transformer
from tests.engine.tiny import tiny_model
from tests.training.counting import CONFIG, differences, steps_logged, successors


@pytest.mark.parametrize("state_init", ["zero", "like-init"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path, state_init: str) -> None:
    def run(directory: Path, *stops: int) -> Transformer:
        for steps in stops:
            model = tiny_model(5, state_init=state_init)
            # Rates that do not decay: a kill is a config that ends early and is otherwise the same.
            train(model, successors, msgspec.structs.replace(CONFIG, steps=steps, hold=1.0), directory, {})
        return model

    whole, resumed = run(tmp_path / "whole", 6), run(tmp_path / "resumed", 3, 6)
    assert not differences(whole, resumed)
    assert steps_logged(tmp_path / "resumed") == [1, 2, 3, 4, 5, 6]


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", ["before any checkpoint", "after a checkpoint", "inside a line"])
def test_a_kill_neither_doubles_nor_loses_metrics(tmp_path: Path, moment: str) -> None:
    """The process ends while drawing the examples of step 4; the last checkpoint is older than the last line."""

    def until_killed(random_source: random.Random) -> Iterator[Example]:
        if len(read_metrics(tmp_path)) == 4:
            raise Killed
        return successors(random_source)

    slow = msgspec.structs.replace(CONFIG, checkpoint_seconds=1e9)
    model = tiny_model(5)
    if moment != "before any checkpoint":
        train(model, successors, msgspec.structs.replace(CONFIG, steps=2), tmp_path, {})
    with pytest.raises(Killed):
        train(tiny_model(5), until_killed, slow, tmp_path, {})
    assert steps_logged(tmp_path) == [1, 2, 3, 4]
    if moment == "inside a line":
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step":5,"lo')
    train(tiny_model(5), successors, slow, tmp_path, {})
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert restore(tmp_path, tiny_model(0)) == 6


def test_a_run_of_another_model_is_refused_and_nothing_changed(tmp_path: Path) -> None:
    save(tmp_path, 3, tiny_model(0, core=2), [])
    model = tiny_model(1)
    with pytest.raises(CheckpointError, match="another model"):
        restore(tmp_path, model)
    assert not differences(model, tiny_model(1))
    (tmp_path / "training.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="not a training run"):
        restore(tmp_path, model)


PROTOCOL = TagProtocol(spawn_open="<s>", spawn_close="</s>", join="<j>", return_open="<r>", end=("<e>",))


def word_tokenizer(words: list[str]) -> Tokenizer:
    model = tokenizers.models.WordLevel({word: token for token, word in enumerate(words)}, unk_token=words[-1])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(tokenizer)


def test_a_run_starts_from_a_checkpoint_whose_vocabulary_has_grown(tmp_path: Path) -> None:
    tags = [*PROTOCOL.tags, "<unknown>"]
    words = [*(str(number) for number in range(34)), *tags]
    old = tiny_model(1)
    config = old.config
    assert isinstance(config, RavenConfig)
    export_checkpoint(tmp_path, old, word_tokenizer(words), PROTOCOL, Policy(depth=Fixed(2)))
    written = load_checkpoint(tmp_path)
    assert written.stop_tokens == (words.index("<e>"),)
    grown = ["new", *words[:20], "newer", *words[20:]]
    model = Transformer(msgspec.structs.replace(config, vocab_size=len(grown)))
    initialise(model, torch.Generator().manual_seed(9))
    fresh = model.head.weight.detach().clone()
    assert initialise_from(model, tmp_path, word_tokenizer(grown)) == 2
    for place, word in enumerate(grown):
        expected = old.head.weight[words.index(word)] if word in words else fresh[place]
        assert torch.equal(model.head.weight[place], expected), word
    assert torch.equal(model.get_parameter("adapter.weight"), old.get_parameter("adapter.weight"))
    with pytest.raises(CheckpointError, match="only the number of tokens may differ"):
        initialise_from(
            Transformer(msgspec.structs.replace(config, intermediate_size=32)), tmp_path, word_tokenizer(words)
        )
    with pytest.raises(CheckpointError, match="another structure"):
        initialise_from(tiny_model(core=2), tmp_path, word_tokenizer(words))


def test_a_tokenizer_that_cannot_write_the_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError):
        export_checkpoint(tmp_path / "checkpoint", tiny_model(), word_tokenizer(["1", "2", "?"]), PROTOCOL)
    assert not (tmp_path / "checkpoint").exists()


def test_weights_that_are_not_finite_are_neither_saved_nor_restored(tmp_path: Path) -> None:
    model = tiny_model(0)
    save(tmp_path, 1, model, [])
    written = (tmp_path / "training.safetensors").read_bytes()
    with torch.no_grad():
        model.head.weight[3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"head\.weight are not finite"):
        save(tmp_path, 2, model, [])
    assert (tmp_path / "training.safetensors").read_bytes() == written
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    save_file(tensors, tmp_path / "training.safetensors", {"step": "2"})
    with pytest.raises(CheckpointError, match=r"model\.head\.weight is not finite"):
        restore(tmp_path, tiny_model(0))

"""A checkpoint without a tokenizer.json may name a shipped one that has it, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.errors import CheckpointError
from runtime.model.checkpoint import describe, load_checkpoint, save_checkpoint
from runtime.model.directories import shipped_directory, tokenizer_file
from runtime.model.tokenizer import Tokenizer
from runtime.protocol.declared import read_braid
from tests.vocabularies import word_level

ROOT = Path(__file__).parents[2]
SHIPPED = shipped_directory() / "countdown" / "tokenizer.json"
SUPERVISED = ROOT / "benchmarks" / "countdown" / "checkpoints"


@pytest.fixture
def naming(tmp_path: Path) -> Path:
    """A copy of the serial checkpoint, which names the tokenizer of the other."""
    return Path(shutil.copytree(shipped_directory() / "countdown-serial", tmp_path / "naming"))


def name_in(directory: Path, value: Any) -> None:
    content = msgspec.json.decode((directory / "braid.json").read_bytes())
    (directory / "braid.json").write_bytes(msgspec.json.encode({**content, "tokenizer": value}))


def test_the_tokenizer_of_the_countdown_models_is_stored_once() -> None:
    directories = [shipped_directory(), SUPERVISED]
    assert [path for directory in directories for path in directory.rglob("tokenizer.json")] == [SHIPPED]
    named = [*shipped_directory().glob("*/config.json"), *SUPERVISED.glob("*/config.json")]
    assert len(named) == 4
    assert {tokenizer_file(config.parent) for config in named} == {SHIPPED}


def test_a_checkpoint_that_names_a_tokenizer_has_it_wherever_it_lies(naming: Path) -> None:
    loaded = load_checkpoint(naming)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.to_json() == Tokenizer.from_file(SHIPPED).to_json()
    protocol, _ = read_braid(loaded)
    assert protocol is not None
    save_checkpoint(naming, loaded.model, tokenizer=loaded.tokenizer, braid=loaded.braid)
    assert tokenizer_file(naming) == naming / "tokenizer.json"


def test_a_tokenizer_of_its_own_counts_first(naming: Path) -> None:
    (naming / "tokenizer.json").write_text(word_level().to_str())
    (naming / "braid.json").write_text('{"tokenizer": "countdown"}')
    tokenizer = describe(naming).tokenizer
    assert tokenizer is not None
    assert tokenizer.to_json() == Tokenizer(word_level()).to_json()


def test_no_name_is_no_tokenizer(naming: Path) -> None:
    (naming / "braid.json").write_text('{"tokenizer": null}')
    assert describe(naming).tokenizer is None
    (naming / "braid.json").unlink()
    assert describe(naming).tokenizer is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "../countdown",
        "./countdown",
        "countdown/",
        "countdown/../countdown",
        "countdown-serial",
        "Countdown",
        "countdown\0",
        "~",
        str(shipped_directory() / "countdown"),
        str(SHIPPED),
        "*",
        "x" * 10**6,
        7,
        ["countdown"],
        {"name": "countdown"},
    ],
    ids=lambda value: repr(value)[:24],
)
def test_anything_but_a_name_is_refused(naming: Path, value: Any) -> None:
    shutil.copy(SHIPPED, naming.parent)
    name_in(naming, value)
    with pytest.raises(CheckpointError) as raised:
        describe(naming)
    message = str(raised.value)
    assert message.startswith(str(naming / "braid.json"))
    assert "tokenizer" in message
    assert message.endswith(".")
    assert len(message) < 1000

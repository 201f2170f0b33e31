"""Stop tokens of a checkpoint: where they are declared, which count, and which are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.model.checkpoint import load_checkpoint, save_checkpoint
from runtime.model.transformer import Transformer
from tests.model.damaged import change_config, refused

MakeModel = Callable[..., Transformer]


@pytest.mark.parametrize(
    ("generation", "expected"),
    [({}, ()), ({"eos_token_id": None}, ()), ({"eos_token_id": 3}, (3,)), ({"eos_token_id": [9, 3]}, (3, 9))],
)
def test_stop_tokens_are_the_declared_ones(saved: Path, generation: object, expected: tuple[int, ...]) -> None:
    (saved / "generation_config.json").write_text(json.dumps(generation))
    assert load_checkpoint(saved).stop_tokens == expected


@pytest.mark.parametrize("generation", [None, {}, {"temperature": 0.6}, {"eos_token_id": None}])
@pytest.mark.parametrize(("declared", "expected"), [(4, (4,)), ([9, 4], (4, 9))])
def test_where_generation_config_declares_none_the_model_config_does(
    saved: Path, generation: object, declared: object, expected: tuple[int, ...]
) -> None:
    (saved / "generation_config.json").unlink()
    if generation is not None:
        (saved / "generation_config.json").write_text(json.dumps(generation))
    change_config(saved, eos_token_id=declared)
    assert load_checkpoint(saved).stop_tokens == expected


def test_what_generation_config_declares_counts_before_the_model_config(saved: Path) -> None:
    (saved / "generation_config.json").write_text('{"eos_token_id": 3}')
    change_config(saved, eos_token_id=4)
    assert load_checkpoint(saved).stop_tokens == (3,)


@pytest.mark.parametrize("declared", [True, 1.5, "4", [4, None], {"id": 4}, 40, -1, [4, 40], 2**70])
def test_bad_stop_tokens_of_the_model_config_are_named(saved: Path, declared: object) -> None:
    change_config(saved, eos_token_id=declared)
    refused(saved, saved / "config.json", "eos_token_id")


def test_a_large_vocabulary_has_the_reference_stops(tmp_path: Path, make_model: MakeModel) -> None:
    small = {"n_embd": 2, "n_heads": 1, "intermediate_size": 1}
    save_checkpoint(tmp_path, make_model(vocab_size=65506, **small), eos=[1])
    assert load_checkpoint(tmp_path).stop_tokens == (1, 65504, 65505)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"eos_token_id": "end"}', ["eos_token_id", "int"]),
        ('{"eos_token_id": 40}', ["eos_token_id", "40", "0 to 39"]),
        ('{"eos_token_id": [1, -1]}', ["eos_token_id", "-1", "0 to 39"]),
        ("{", ["generation_config.json"]),
    ],
)
def test_bad_stop_tokens_are_named(saved: Path, content: str, parts: list[str]) -> None:
    (saved / "generation_config.json").write_text(content)
    refused(saved, saved / "generation_config.json", *parts)

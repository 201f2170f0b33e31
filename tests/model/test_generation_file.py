"""What is taken of generation_config.json, and what is refused or left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import CheckpointError
from runtime.link.sampling import Sampling
from runtime.model.generation_file import Generation, read_generation


def read(directory: Path, content: dict[str, Any] | None, **config: Any) -> Generation:
    (directory / "config.json").write_text(json.dumps(config))
    if content is not None:
        (directory / "generation_config.json").write_text(json.dumps(content))
    return read_generation(directory, vocab_size=40)


SAMPLED = {"do_sample": True}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, Sampling()),
        ({}, Sampling()),
        ({"temperature": 0.6, "top_p": 0.9}, Sampling()),
        (
            {"do_sample": False, "temperature": 0.6, "top_k": 5, "repetition_penalty": 1.1},
            Sampling(repetition_penalty=1.1),
        ),
        (SAMPLED, Sampling(temperature=1.0)),
        (SAMPLED | {"temperature": 0}, Sampling()),
        (
            SAMPLED | {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.05},
            Sampling(temperature=0.6, top_k=20, top_p=0.95, min_p=0.1, repetition_penalty=1.05),
        ),
        (SAMPLED | {"temperature": None, "top_k": 0, "top_p": 1.0, "min_p": 0.0}, Sampling(temperature=1.0)),
    ],
)
def test_what_the_file_says_of_sampling(tmp_path: Path, content: dict[str, Any] | None, expected: Sampling) -> None:
    assert read(tmp_path, content).sampling == expected


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (SAMPLED | {"temperature": -1.0}, "temperature"),
        (SAMPLED | {"temperature": "hot"}, "temperature"),
        ({"top_k": -5}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"eos_token_id": 40}, "eos_token_id"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, content: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: .*{key}.*[^.]\.$"):
        read(tmp_path, content)


def test_ways_of_sampling_that_are_not_here_are_named(tmp_path: Path) -> None:
    content = {
        "_from_model_config": True,
        "transformers_version": "5.0.0",
        "bos_token_id": 1,
        "pad_token_id": 0,
        "max_length": 4096,
        "use_cache": True,
        "output_scores": True,
        "num_beams": 1,
        "no_repeat_ngram_size": 0,
        "typical_p": 1.0,
        "bad_words_ids": None,
        "suppress_tokens": [],
        "max_new_tokens": 7,
    }
    assert read(tmp_path, content).ignored == ()
    assert read(tmp_path, content).max_tokens == 7
    odd = {"num_beams": 4, "typical_p": 0.9, "suppress_tokens": [3], "a_new_one": "x"}
    assert read(tmp_path, content | odd).ignored == ("a_new_one", "num_beams", "suppress_tokens", "typical_p")


def test_stop_tokens_are_those_of_the_first_file_that_has_some(tmp_path: Path) -> None:
    assert read(tmp_path, {"eos_token_id": [9, 3]}, eos_token_id=4).stop_tokens == (9, 3)
    assert read(tmp_path, {}, eos_token_id=4).stop_tokens == (4,)
    assert read(tmp_path, {}).stop_tokens == ()

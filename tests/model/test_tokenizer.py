"""Encoding, the words that are refused, and decoding token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, processors

from examples.countdown.vocabulary import WORDS, build_tokenizer
from runtime.errors import CheckpointError, PromptError
from runtime.model.incremental import IncrementalDecoder
from runtime.model.tokenizer import Tokenizer

from ..vocabularies import byte_fallback, byte_level

COUNTDOWN = Tokenizer(build_tokenizer())


BYTE_LEVEL, BYTE_FALLBACK = Tokenizer(byte_level()), Tokenizer(byte_fallback())


def test_words_map_to_their_places_and_back() -> None:
    ids = COUNTDOWN.encode("22 26 31 53 -> 27")
    assert ids == [22, 26, 31, 53, WORDS.index("->"), 27]
    assert COUNTDOWN.decode(ids) == "22 26 31 53 -> 27"
    assert COUNTDOWN.vocab_size == len(WORDS)
    assert COUNTDOWN.token_to_id("<join>") == WORDS.index("<join>")
    assert COUNTDOWN.id_to_token(WORDS.index("<join>")) == "<join>"
    assert COUNTDOWN.token_to_id("nowhere") is None
    assert COUNTDOWN.id_to_token(len(WORDS)) is None


def test_unknown_words_are_named_once_each() -> None:
    with pytest.raises(PromptError, match=r"'please', '1234'\. ") as raised:
        COUNTDOWN.encode("22 please 26 1234 please -> 27")
    assert "'22'" not in str(raised.value)


def test_many_unknown_words_are_counted() -> None:
    with pytest.raises(PromptError, match="'x7' and 3 more"):
        COUNTDOWN.encode(" ".join(f"x{number}" for number in range(11)))


def test_a_tokenizer_without_unknown_token_refuses_too() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="<none>"))
    with pytest.raises(PromptError, match="'b'"):
        Tokenizer(inner).encode("b")


def test_unigram_names_unknown_words() -> None:
    inner = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.5)], unk_id=0))
    assert Tokenizer(inner).encode("ab") == [1, 2]
    with pytest.raises(PromptError, match="'zz'"):
        Tokenizer(inner).encode("azzb")


def test_special_tokens_surround_only_whole_prompts() -> None:
    inner = build_tokenizer()
    inner.post_processor = processors.TemplateProcessing(single="Q $A", special_tokens=[("Q", WORDS.index("Q"))])
    tokenizer = Tokenizer(inner)
    assert tokenizer.encode("1 2") == [1, 2]
    assert tokenizer.encode("1 2", add_special_tokens=True) == [WORDS.index("Q"), 1, 2]


def test_prompts_are_neither_cut_nor_padded() -> None:
    inner = build_tokenizer()
    inner.enable_truncation(2)
    inner.enable_padding(length=8)
    assert Tokenizer(inner).encode("1 2 3") == [1, 2, 3]


def test_a_file_gives_the_same_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(BYTE_LEVEL.to_json())
    read = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert read.to_json() == BYTE_LEVEL.to_json()
    assert read.encode("naïve 🧵") == BYTE_LEVEL.encode("naïve 🧵")


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "Nothing"}}', "\x00\x01"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"not a tokenizer\.json") as raised:
        Tokenizer.from_file(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file") as raised:
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert str(tmp_path / "tokenizer.json") in str(raised.value)


def test_words_are_final_at_once() -> None:
    decoder = IncrementalDecoder(COUNTDOWN)
    assert [decoder.feed(token) for token in COUNTDOWN.encode("22 + 5 ->")] == ["22", " +", " 5", " ->"]
    assert decoder.pending == ""


def test_a_character_waits_for_its_last_byte() -> None:
    decoder = IncrementalDecoder(BYTE_LEVEL, BYTE_LEVEL.encode("a"))
    assert [decoder.feed(token) for token in BYTE_LEVEL.encode("ü日")] == ["", "ü", "", "日"]


def test_a_run_of_bytes_waits_for_its_end() -> None:
    decoder = IncrementalDecoder(BYTE_FALLBACK, BYTE_FALLBACK.encode("a"))
    seen = [(decoder.feed(token), decoder.pending) for token in BYTE_FALLBACK.encode_inside("éût")]
    assert seen == [("", ""), ("", "é"), ("", "é"), ("", "éû"), ("éût", "")]


@given(ids=st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=60))
def test_any_tokens_stream_with_one_character_held_back_at_most(ids: list[int]) -> None:
    decoder = IncrementalDecoder(BYTE_LEVEL)
    said = ""
    for end, token in enumerate(ids, 1):
        said += decoder.feed(token)
        assert len(BYTE_LEVEL.decode(ids[:end])) - len(said) <= 1

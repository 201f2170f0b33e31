"""Encoding, the words that are refused, and decoding token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from examples.countdown.vocabulary import WORDS, build_tokenizer
from runtime.errors import CheckpointError, PromptError
from runtime.model.tokenizer import IncrementalDecoder, Tokenizer

COUNTDOWN = Tokenizer(build_tokenizer())


def byte_level() -> Tokenizer:
    """Byte-level BPE with a few merges, so that tokens end inside characters."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["the café, the naïve thé", "日本語 日本 語", "🧵🧵 🪢"], trainer)
    return Tokenizer(inner)


def byte_fallback() -> Tokenizer:
    """BPE as Llama has it: words with their space in front, and single bytes for what it has no token for."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abc", "▁a", "▁b", "ab"]
    inner = tokenizers.Tokenizer(
        models.BPE({word: index for index, word in enumerate(words)}, [("▁", "a"), ("▁", "b"), ("a", "b")])
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(inner)


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()


def streamed(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], str]:
    decoder = IncrementalDecoder(tokenizer)
    return [decoder.feed(token) for token in ids], decoder.finish()


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
    texts, rest = streamed(COUNTDOWN, COUNTDOWN.encode("22 + 5 ->"))
    assert texts == ["22", " +", " 5", " ->"]
    assert rest == ""


def test_a_character_waits_for_its_last_byte() -> None:
    ids = BYTE_FALLBACK.encode("a") + [1 + byte for byte in "🧵".encode()] + BYTE_FALLBACK.encode("b")
    texts, rest = streamed(BYTE_FALLBACK, ids)
    assert texts == ["a", "", "", "", "🧵", "b"]
    assert rest == ""


def test_what_stays_incomplete_comes_at_the_end() -> None:
    ids = [*BYTE_LEVEL.encode("a"), *BYTE_LEVEL.encode("é")[:1]]
    texts, rest = streamed(BYTE_LEVEL, ids)
    assert texts[0] == "a"
    assert "".join(texts) + rest == BYTE_LEVEL.decode(ids)


def test_a_decoder_starts_anew_after_finish() -> None:
    decoder = IncrementalDecoder(COUNTDOWN)
    assert decoder.finish() == ""
    assert decoder.feed(5) + decoder.finish() == "5"
    assert decoder.feed(6) == "6"


@given(text=st.text(alphabet="at héñ日本語🧵🪢\n", max_size=40))
def test_streamed_text_is_the_decoded_text(text: str) -> None:
    ids = BYTE_LEVEL.encode(text)
    texts, rest = streamed(BYTE_LEVEL, ids)
    assert "".join(texts) + rest == BYTE_LEVEL.decode(ids) == text
    assert not any("\ufffd" in part for part in texts)
    assert rest == ""


@given(ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=30))
def test_streamed_words_are_the_decoded_words(ids: list[int]) -> None:
    texts, rest = streamed(COUNTDOWN, ids)
    assert "".join(texts) + rest == COUNTDOWN.decode(ids)


@given(text=st.text(alphabet="abé日🧵", max_size=20))
def test_byte_fallback_streams_what_it_decodes(text: str) -> None:
    known = {"a": "▁a", "b": "b"}
    ids: list[int] = []
    for character in text:
        if character in known:
            ids.append(BYTE_FALLBACK.token_to_id(known[character]) or 0)
        else:
            ids += [1 + byte for byte in character.encode()]
    texts, rest = streamed(BYTE_FALLBACK, ids)
    assert "".join(texts) + rest == BYTE_FALLBACK.decode(ids)


@given(ids=st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=60))
def test_any_tokens_stream_without_being_held_for_long(ids: list[int]) -> None:
    texts, rest = streamed(BYTE_LEVEL, ids)
    assert all(any(texts[start : start + 16]) for start in range(len(ids) - 15))
    assert bool("".join(texts) + rest) == bool(ids)

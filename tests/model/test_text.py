"""Text in and out is that of transformers' tokenizer for the same directory: whole, in parts and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import takewhile
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from runtime.errors import CheckpointError, PromptError
from runtime.model.checkpoint import describe, save_checkpoint
from runtime.model.incremental import IncrementalDecoder, text_after
from runtime.model.tokenizer import Tokenizer

from ..vocabularies import (
    KINDS,
    byte_fallback,
    byte_level,
    byte_unigram,
    metaspace,
    spaced_byte_level,
    unigram,
    word_level,
    word_piece,
    write_directory,
)
from .conftest import MakeModel

Kind = Callable[[], Inner]

TEXTS = st.one_of(
    st.text(alphabet="thecas it.,!'n é日🧵\n", max_size=30),
    st.lists(st.sampled_from(["the", "a", "cat.", "日本", "<s>", "</s>", " ", "café,"]), max_size=6).map(" ".join),
)


@cache
def directory(kind: Kind) -> Path:
    return write_directory(Path(mkdtemp()), kind(), clean_up_tokenization_spaces=kind in (word_piece, byte_unigram))


@cache
def pair(kind: Kind) -> tuple[Tokenizer, Any]:
    """Ours, and transformers'."""
    where = directory(kind)
    return Tokenizer.from_file(where / "tokenizer.json"), AutoTokenizer.from_pretrained(where)


def ids_of(kind: Kind) -> st.SearchStrategy[list[int]]:
    """Any tokens, and some that are none; every second list is of few, so that bytes and marks meet often."""
    size = pair(kind)[0].vocab_size
    few = [pair(kind)[0].token_to_id(f"<0x{byte:02X}>") for byte in "🧵é ,".encode()]
    some = [token for token in few if token is not None] or [0, 1, 2]
    return st.lists(st.integers(0, size + 1), max_size=40) | st.lists(
        st.sampled_from([*some, size - 1, 3]), max_size=40
    )


def growth(reference: Any, context: list[int], tokens: list[int]) -> str:
    before, after = reference.decode(context), reference.decode(context + tokens)
    return after[sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(before, after, strict=False))) :]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_prompts_are_those_of_transformers_without_what_closes_them(kind: Kind, text: str) -> None:
    ours, reference = pair(kind)
    expected = reference(text).input_ids
    bare = reference(text, add_special_tokens=False).input_ids
    closing = len(reference("").input_ids) - len(ours.leading)
    if 0 in bare and reference.convert_ids_to_tokens(0) == "<unk>":
        with pytest.raises(PromptError, match="vocabulary"):
            ours.encode(text)
        return
    assert ours.encode(text, add_special_tokens=True) == expected[: len(expected) - closing]
    assert ours.encode(text) == bare


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=100)
def test_streamed_text_is_what_the_decoded_text_grows_by(kind: Kind, data: st.DataObject) -> None:
    ours, reference = pair(kind)
    context, tokens = data.draw(ids_of(kind)), data.draw(ids_of(kind))
    assert ours.decode(tokens) == reference.decode(tokens)
    decoder = IncrementalDecoder(ours, context)
    streamed = ""
    for end, token in enumerate(tokens, 1):
        streamed += decoder.feed(token)
        said = text_after(ours, context, tokens[:end])
        assert said == growth(reference, context, tokens[:end])
        assert said.startswith(streamed)
        if "\ufffd" not in reference.decode(context + tokens[:end]):
            assert streamed + decoder.pending == said


@pytest.mark.parametrize("kind", [byte_level, spaced_byte_level, byte_fallback, metaspace])
@given(parts=st.lists(TEXTS, min_size=1, max_size=4))
def test_parts_of_a_text_are_put_together_without_spaces(kind: Kind, parts: list[str]) -> None:
    ours, reference = pair(kind)
    context = ours.encode("a", add_special_tokens=True)
    for part in parts:
        context += ours.encode_inside(part)
    begun = ours.encode("a", add_special_tokens=True)
    assert reference.decode(context) == reference.decode(begun) + "".join(parts)


def test_words_that_are_marked_one_by_one_go_on_inside_a_text() -> None:
    ours = pair(unigram)[0]
    context = ours.encode("the cat")
    assert ours.decode([*context, *ours.encode_inside("s a")]) == "the cats a"
    assert ours.decode([*context, *ours.encode_inside(" s a")]) == "the cat s a"


@pytest.mark.parametrize("kind", [byte_fallback, byte_level])
def test_long_runs_without_a_clean_border_are_decoded_whole(kind: Kind) -> None:
    ours = pair(kind)[0]
    text = "🧵🪢" * 40
    ids = ours.encode_inside(text)
    decoder = IncrementalDecoder(ours, ours.encode("a"))
    seen = [decoder.feed(token) + decoder.pending for token in ids]
    assert seen[-1].endswith("🪢")
    assert not any("\ufffd" in piece for piece in seen)
    assert text_after(ours, ours.encode("a"), ids) == text


def test_a_byte_that_is_no_character_spoils_its_run_alone() -> None:
    ours, reference = pair(byte_fallback)
    tokens = [3 + byte for byte in "é".encode()] + [3 + 0xFF] * 9
    decoder = IncrementalDecoder(ours, ours.encode("a"))
    assert [decoder.feed(token) for token in tokens] == [""] * 11
    assert decoder.feed(ours.token_to_id("▁cat") or 0) == "\ufffd" * 11 + " cat"
    assert reference.decode(ours.encode("a") + tokens).endswith("\ufffd" * 11)


def test_nothing_settles_where_a_decoder_works_on_the_whole_text() -> None:
    inner = metaspace()
    inner.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("▁cat", "dog")])
    ours = Tokenizer(inner)
    ids = ours.encode("a cat cat")
    decoder = IncrementalDecoder(ours, ids[:1])
    assert [decoder.feed(token) for token in ids[1:]] == [""] * (len(ids) - 1)
    assert decoder.pending == text_after(ours, ids[:1], ids[1:]) == "dogdog"


X = {"content": "<x>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}

PLACES: tuple[tuple[str, dict[str, object]], ...] = (
    ("tokenizer_config.json", {"added_tokens_decoder": {"40": X}}),
    ("tokenizer_config.json", {"additional_special_tokens": ["<x>"]}),
    ("tokenizer_config.json", {"extra_special_tokens": {"marker_token": "<x>"}}),
    ("tokenizer_config.json", {"bos_token": "<x>"}),
    ("added_tokens.json", {"<x>": 40}),
    ("special_tokens_map.json", {"pad_token": "<x>"}),
    ("special_tokens_map.json", {"additional_special_tokens": [X["content"]]}),
)


@pytest.mark.parametrize(("name", "content"), PLACES)
def test_tokens_declared_beside_the_tokenizer_are_tokens(tmp_path: Path, name: str, content: dict[str, object]) -> None:
    path = write_directory(tmp_path, word_level()) / name
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **content}))
    ours, reference = Tokenizer.from_file(tmp_path / "tokenizer.json"), AutoTokenizer.from_pretrained(tmp_path)
    ids = ours.encode("the <x>cat. sat!", add_special_tokens=True)
    assert ids == reference("the <x>cat. sat!").input_ids
    assert ours.token_to_id("<x>") in ids
    assert ours.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}',
        '{"added_tokens_decoder": 3}',
    ],
)
def test_what_transformers_cannot_read_is_refused_by_name(tmp_path: Path, content: str) -> None:
    write_directory(tmp_path, word_level())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_declared_token_beyond_the_model_is_refused_by_its_file(tmp_path: Path, make_model: MakeModel) -> None:
    tokenizer = Tokenizer(word_level())
    save_checkpoint(tmp_path, make_model(vocab_size=tokenizer.vocab_size), tokenizer=tokenizer)
    assert describe(tmp_path).tokenizer is not None
    (tmp_path / "added_tokens.json").write_text('{"<x>": 40}')
    with pytest.raises(CheckpointError, match=r"added_tokens\.json beside it: token '<x>'"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("special", "reason"),
    [({}, "no entry"), ({"<s>": {"id": "<s>", "ids": [9999], "tokens": ["<s>"]}}, "token 9999 before texts")],
)
def test_a_template_of_tokens_that_are_none_is_refused(tmp_path: Path, special: object, reason: str) -> None:
    inner = word_level()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    content = json.loads(inner.to_str())
    content["post_processor"]["special_tokens"] = special
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=reason):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_an_unknown_token_that_is_added_or_spelled_is_no_unknown_word() -> None:
    inner = Inner(models.WordLevel({"<e>": 0, "a": 1, "b": 2}, unk_token="<e>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<e> $A", special_tokens=[("<e>", 0)])
    ours = Tokenizer(inner)
    assert ours.encode("a b", add_special_tokens=True) == [0, 1, 2]
    assert ours.encode("a <e> b") == [1, 0, 2]
    with pytest.raises(PromptError, match="'zebra'"):
        ours.encode("a <e> zebra", add_special_tokens=True)


class PanicException(BaseException):
    """As the bindings of the tokenizers library raise it where its Rust code panics."""


def test_panics_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panicking:
        def __getattr__(self, name: str) -> Callable[..., None]:
            def panic(*args: object, **options: object) -> None:
                raise PanicException(f"index out of bounds in {name}")

            return panic

    write_directory(tmp_path, word_level())
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    monkeypatch.setattr(ours, "_inner", Panicking())
    with pytest.raises(PromptError, match="out of bounds"):
        ours.encode("a")
    with pytest.raises(PromptError, match="out of bounds"):
        ours.decode([0])
    monkeypatch.setattr(tokenizers.Tokenizer, "from_file", Panicking().from_file)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_space_that_is_taken_from_a_text_s_beginning_is_a_whole_character() -> None:
    ours = pair(byte_fallback)[0]
    space, *face = (3 + byte for byte in " 🟟".encode())
    decoder = IncrementalDecoder(ours, [space, *face])
    assert decoder.feed(3) + decoder.pending == "\x00"

"""Text to token ids and back, from a checkpoint's `tokenizer.json` and what is declared beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import tokenizers

from runtime.errors import CheckpointError, PromptError
from runtime.model.marking import Marked, Marking, any_of
from runtime.model.settling import settling_of
from runtime.model.spacing import Continuation
from runtime.model.tokenizer_files import ReadTokenizer, is_of_library, read_tokenizer

_MOST_NAMED = 8

_Parsed = Literal["all", "added", "nothing"]
"""What is looked for in a text beside its words: added tokens, those that are not special, or none."""


class _Model(msgspec.Struct):
    unk_token: str | None = None
    unk_id: int | None = None


class _Content(msgspec.Struct):
    model: _Model
    decoder: dict[str, Any] | None = None


class Tokenizer:
    """A tokenizer of the `tokenizers` library that refuses words it does not know. Safe to share between threads."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        clean_up: Callable[[str], str] | None = None,
        where: str = "the tokenizer",
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """`clean_up` is what is done to every decoded text, `where` names the tokenizer in errors, and
        `special_tokens` are its tokens by what they are for, such as "bos_token".

        Raises `ValueError` for a tokenizer that drops texts, or puts tokens before them that it does not have.
        """
        # Either of the two would silently change what a prompt says.
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._clean_up = clean_up
        self.where = where
        self.named_tokens = dict(special_tokens or {})
        """Special tokens by what they are for: "bos_token", "eos_token", ..."""
        self._continuation = Continuation(inner)
        added = inner.get_added_tokens_decoder()
        self._added = {number: token.content for number, token in added.items()}
        self._any_added = any_of(self._added.values())
        self.special_tokens = tuple(token.content for token in added.values() if token.special)
        """What in a text is parsed as a token of its own, unless it is said not to be."""
        self._special_ids = frozenset(number for number, token in added.items() if token.special)
        self._plain, self._plain_continuation = inner, self._continuation
        if self.special_tokens:
            self._plain = tokenizers.Tokenizer.from_str(inner.to_str())
            self._plain.encode_special_tokens = True
            self._plain_continuation = Continuation(self._plain)
        self._marking, self._marked = Marking(self.special_tokens), Marked(self._added.values())
        content = msgspec.json.decode(inner.to_str(), type=_Content)
        unk_token, unk_id = content.model.unk_token, content.model.unk_id
        self._unknown = unk_id if unk_token is None else inner.token_to_id(unk_token)
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.settling = settling_of(content.decoder, vocabulary, cleans_up=clean_up is not None)
        """How much of a decoded text is final."""
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        """One more than the largest token id."""
        self._ids = frozenset(vocabulary.values())
        self.leading = _leading(inner, self._ids)
        """What the tokenizer puts before a whole text, such as a beginning-of-text token."""

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads `tokenizer.json`, and what the files beside it declare, as transformers' `AutoTokenizer` does.

        Raises `CheckpointError`, naming the file, if it is missing or cannot be read so.
        """
        return cls.of(read_tokenizer(path))

    @classmethod
    def of(cls, read: ReadTokenizer) -> Tokenizer:
        """The tokenizer that was read. Raises `CheckpointError`, naming its files, for one that is not for prompts."""
        try:
            return cls(*read)
        except BaseException as error:
            if not is_of_library(error):
                raise
            raise CheckpointError(f"{read.where}: not a tokenizer for prompts ({error}).") from error

    def encode(self, text: str, *, add_special_tokens: bool = False, parse_special_tokens: bool = True) -> list[int]:
        """Token ids of a text that stands for itself.

        `add_special_tokens` puts before it what the tokenizer is made to put before a whole text, such as a
        beginning-of-text token; right for a whole prompt, wrong for a message inside one. What it is made to put after
        whole texts is left out, because a model goes on after a prompt. Without `parse_special_tokens`, special tokens
        that the text spells out are characters like any others. Raises `PromptError`, naming the words, if the
        tokenizer would replace words by its unknown token, or cannot write a special token as text.
        """
        ids = (
            self._encode([(self._inner, text)], "all")
            if parse_special_tokens
            else self._encode([(self._plain, text)], "added")
        )
        return [*self.leading, *ids] if add_special_tokens else ids

    def encode_inside(self, text: str, *, parse_special_tokens: bool = True) -> list[int]:
        """Token ids of a text that goes on after other text: without the space that the tokenizer puts before a text.

        Raises `PromptError` like `encode`.
        """
        if parse_special_tokens:
            return self._encode(self._continuation.parts(text), "all")
        return self._encode(self._plain_continuation.parts(text), "added")

    def encode_marked(self, text: str, after: Sequence[int] = ()) -> list[int]:
        """Token ids of a text in which users' control tokens are marked: these are text, all others are parsed.

        `after` is the context that it goes on after; the ids are those that follow it where both are encoded as one
        text. Raises `PromptError` like `encode`.
        """
        ids: list[int] = []
        last = after[-1] if after else None
        for piece, is_plain in self._marked.pieces(text):
            if is_plain:
                parts = [(self._inner, piece)] if last is None else self._continuation.parts(piece)
                ids += self._encode(parts, "nothing")
            else:
                ids += self._encode_after(piece, last)
            last = ids[-1] if ids else last
        return ids

    def _encode_after(self, text: str, last: int | None) -> list[int]:
        """Token ids of a text that follows a token, or nothing. What tokenizers put before texts they put after added
        tokens too, or not, but never after other text."""
        if last is None:
            return self._encode([(self._inner, text)], "all")
        if last in self._added:
            return self._encode([(self._inner, self._added[last] + text)], "all")[1:]
        added = self._any_added.search(text)
        end = len(text) if added is None else added.start()
        return self._encode([*self._continuation.parts(text[:end]), (self._inner, text[end:])], "all")

    def marked(self, text: str) -> str:
        """A user's text that is put into a template, for `encode_marked`: its special tokens are not parsed."""
        return self._marking.marked(text)

    def control_tokens(self, template: str) -> tuple[str, ...]:
        """What controls a model under a chat template: special tokens, and added ones that the template writes."""
        return tuple(
            token
            for token in self._added.values()
            if token in self.special_tokens or (token in template and not token.isspace())
        )

    def led(self, tokens: Sequence[int]) -> list[int]:
        """A whole context of these tokens: with `leading` before them, unless they begin with it."""
        has_it = tuple(tokens[: len(self.leading)]) == self.leading
        return list(tokens) if has_it else [*self.leading, *tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included. Ids outside the vocabulary add nothing.

        Raises `PromptError` where the tokenizer fails.
        """
        try:
            text = self._inner.decode(list(ids), skip_special_tokens=False)
        except BaseException as error:
            if not is_of_library(error):
                raise
            raise PromptError(f"The tokenizer cannot decode these tokens ({error}).") from error
        return text if self._clean_up is None else self._clean_up(text)

    def has(self, token: int) -> bool:
        """Whether an id is in the vocabulary, so that it has a text."""
        return token in self._ids

    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary writes it; None if it has no such token."""
        return self._inner.token_to_id(token)

    def id_to_token(self, token: int) -> str | None:
        """The token as the vocabulary writes it; None for an id that has none."""
        return self._inner.id_to_token(token)

    def to_json(self) -> str:
        """The content of its `tokenizer.json`."""
        return self._inner.to_str(pretty=True)

    def _encode(self, parts: Sequence[tuple[tokenizers.Tokenizer, str]], parsed: _Parsed) -> list[int]:
        ids: list[int] = []
        unknown: list[str] = []
        for inner, text in parts:
            try:
                encoded = _encoded_plainly(inner, text) if parsed == "nothing" else _encoded(inner, text)
            except BaseException as error:
                if not is_of_library(error):
                    raise
                raise PromptError(f"The text cannot be tokenized ({error}): {text!r}.") from error
            ids += encoded.ids
            if self._unknown is not None and self._unknown in encoded.ids:
                words_of_ids = zip(encoded.ids, encoded.words(), strict=True)
                unknown += [word for token, word in words_of_ids if token == self._unknown]
        # Texts may spell the unknown token out.
        spelled = None if self._unknown is None else self.id_to_token(self._unknown)
        words = list(dict.fromkeys(word for word in unknown if word.strip() != spelled))
        if words:
            raise PromptError(_unknown_words(words))
        if parsed != "all" and (found := self._special_ids.intersection(ids)):
            raise PromptError(
                f"The tokenizer cannot write {self.id_to_token(min(found))!r} as plain text. Leave it out, or ask for "
                f"it with parse_special_tokens."
            )
        return ids


class _Encoded(NamedTuple):
    ids: list[int]
    words: Callable[[], list[str]]
    """What each of them stands for."""


def _encoded(inner: tokenizers.Tokenizer, text: str) -> _Encoded:
    encoding = inner.encode(text, add_special_tokens=False)
    return _Encoded(encoding.ids, lambda: [text[start:end] for start, end in encoding.offsets])


def _encoded_plainly(inner: tokenizers.Tokenizer, text: str) -> _Encoded:
    """The same without looking for added tokens."""
    text = text if inner.normalizer is None else inner.normalizer.normalize_str(text)
    splits = [text] if inner.pre_tokenizer is None else [word for word, _ in inner.pre_tokenizer.pre_tokenize_str(text)]
    tokens = [(token.id, word) for word in splits for token in inner.model.tokenize(word)]
    return _Encoded([token for token, _ in tokens], lambda: [word for _, word in tokens])


def _leading(inner: tokenizers.Tokenizer, known: Collection[int]) -> tuple[int, ...]:
    """What the tokenizer puts before any text, seen around an encoding of one token."""
    text = tokenizers.Tokenizer(tokenizers.models.WordLevel({"text": 0}, unk_token="text")).encode("text")
    whole = inner.post_process(text, None, True)
    if 0 not in whole.sequence_ids:
        raise ValueError("its post-processor leaves texts out")
    leading = tuple(whole.ids[: whole.sequence_ids.index(0)])
    if strange := [token for token in leading if token not in known]:
        raise ValueError(f"its post-processor puts token {strange[0]} before texts, which its vocabulary lacks")
    return leading


def _unknown_words(words: list[str]) -> str:
    named = ", ".join(repr(word) for word in words[:_MOST_NAMED])
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return f"Not in the model's vocabulary: {named}{more}. Write the prompt in the words the model was trained on."

"""Text to token ids and back, from a checkpoint's `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import tokenizers

from runtime.errors import CheckpointError, PromptError

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a character."""

_MOST_NAMED = 8
_MOST_HELD = 16


class _Model(msgspec.Struct):
    unk_token: str | None = None
    unk_id: int | None = None


class _Content(msgspec.Struct):
    model: _Model


class Tokenizer:
    """A tokenizer of the `tokenizers` library that refuses words it does not know. Safe to share between threads."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        # Either of the two would silently change what a prompt says.
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        model = msgspec.json.decode(inner.to_str(), type=_Content).model
        self._unknown = model.unk_id if model.unk_token is None else inner.token_to_id(model.unk_token)
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        """One more than the largest token id."""

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads `tokenizer.json`. Raises `CheckpointError`, naming the file, if it is missing or is not one."""
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; expected a tokenizer.json of the tokenizers library.")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises nothing more specific
            raise CheckpointError(
                f"{path}: not a tokenizer.json that tokenizers {tokenizers.__version__} reads ({error})."
            ) from error

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text.

        `add_special_tokens` puts around it what the tokenizer is made to put around a whole text, such as a
        beginning-of-text token; right for a whole prompt, wrong for a message inside one. Raises `PromptError`,
        naming the words, if the tokenizer would replace words by its unknown token.
        """
        try:
            encoding = self._inner.encode(text, add_special_tokens=add_special_tokens)
        except Exception as error:  # the library raises nothing more specific
            raise PromptError(f"The text cannot be tokenized ({error}): {text!r}.") from error
        if self._unknown is not None and self._unknown in encoding.ids:
            spans = [span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token == self._unknown]
            raise PromptError(_unknown_words(list(dict.fromkeys(text[start:end] for start, end in spans))))
        return encoding.ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included. Ids outside the vocabulary add nothing."""
        return self._inner.decode(list(ids), skip_special_tokens=False)

    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary writes it; None if it has no such token."""
        return self._inner.token_to_id(token)

    def id_to_token(self, token: int) -> str | None:
        """The token as the vocabulary writes it; None for an id that has none."""
        return self._inner.id_to_token(token)

    def to_json(self) -> str:
        """The content of its `tokenizer.json`."""
        return self._inner.to_str(pretty=True)


class IncrementalDecoder:
    """Text of a growing sequence of tokens, for streaming.

    All texts that `feed` returned, and that of `finish`, joined are what `Tokenizer.decode` makes of all the tokens,
    as long as their bytes are well-formed UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # tokens of the last text returned: what comes next may depend on them
        self._held: list[int] = []  # tokens whose text may still change

    def feed(self, token: int) -> str:
        """Takes the next token; returns the text that is final with it, "" while a character is incomplete."""
        self._held.append(token)
        text = self._new_text()
        # A character has at most four bytes, so that after more tokens than that the bytes are broken, not late.
        if (not text or text.endswith(REPLACEMENT)) and len(self._held) < _MOST_HELD:
            return ""
        self._shown, self._held = self._held, []
        return text

    def finish(self) -> str:
        """The text held back so far, with U+FFFD for what stayed incomplete; the decoder starts anew after it."""
        text = self._new_text() if self._held else ""
        self._shown, self._held = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._held)[len(before) :]


def _unknown_words(words: list[str]) -> str:
    named = ", ".join(repr(word) for word in words[:_MOST_NAMED])
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return f"Not in the model's vocabulary: {named}{more}. Write the prompt in the words the model was trained on."

"""What every token of a model writes, as llguidance wants it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from runtime.model.tokenizer import Tokenizer
from runtime.protocol.constraints.compiling import library

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How vocabularies with a fallback to bytes write them."""


def vocabulary_of(tokenizer: Tokenizer, size: int) -> tuple[LLTokenizer, str]:
    """The vocabulary of a model with `size` tokens, and what all its tokens begin with: a space where it is put between
    tokens, else nothing.

    What ends texts is its last token, which the model does not have: which tokens may end one is the engine's to say.
    """
    library()
    from llguidance import LLTokenizer, TokenizerWrapper

    size = max(size, tokenizer.vocab_size)
    content = tokenizer.to_json()
    if _is_of_bytes(content):
        return LLTokenizer(content, n_vocab=size + 1, eos_token=size), ""
    written = _Written(tokenizer, size)
    return LLTokenizer(TokenizerWrapper(written)), written.before


def _is_of_bytes(content: str) -> bool:
    """Whether tokens are bytes as llguidance reads them: of any text, written as GPT-2 or as Llama 2 writes them."""
    decoder = msgspec.json.decode(content, type=_Content).decoder or _Decoder()
    kinds = {decoder.type, *(part.type for part in decoder.decoders)}
    return "ByteLevel" in kinds or {"Replace", "ByteFallback"} <= kinds


class _Part(msgspec.Struct):
    type: str = ""


class _Decoder(_Part):
    decoders: tuple[_Part, ...] = ()


class _Content(msgspec.Struct):
    decoder: _Decoder | None = None


class _Written:
    """Tokens as texts, found by decoding. Has what llguidance asks a tokenizer for."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        special = set(tokenizer.special_tokens)
        texts = [self._text_of(tokenizer, token, special) for token in range(size)]
        plain = [text for text in texts if text and not text.startswith(b"\xff")]
        self.before = " " if plain and all(text.startswith(b" ") for text in plain) else ""
        self.eos_token_id = size
        self.bos_token_id = None
        self.special_token_ids = [
            size,
            *(token for token in range(size) if tokenizer.id_to_token(token) in special),
        ]
        # The library cuts texts that it knows to come into tokens: bytes for what the model cannot say.
        self.tokens = [*texts, b"</s>", *(bytes([byte]) for byte in range(256))]
        self._longest = max(map(len, texts), default=1)
        self._ids: dict[bytes, int] = {text: token for token, text in reversed([*enumerate(texts)]) if text}
        self._first_byte = size + 1

    @staticmethod
    def _text_of(tokenizer: Tokenizer, token: int, special: set[str]) -> bytes:
        name = tokenizer.id_to_token(token)
        if name is None:
            return b""
        if name in special:
            return name.encode()
        if byte := _BYTE.fullmatch(name):
            return bytes([int(byte[1], 16)])
        # After itself, so that what is put between tokens, or left out before the first one, is seen.
        return tokenizer.decode([token, token])[len(tokenizer.decode([token])) :].encode()

    def __call__(self, text: bytes | str) -> Sequence[int]:
        """Token ids of a text: as few as make it, and no bytes that the model does not have where there is a way."""
        given = text.encode() if isinstance(text, str) else text
        best: list[tuple[int, int, int]] = [(0, 0, 0)]
        """By end: foreign bytes, tokens, and where the last token begins."""
        for end in range(1, len(given) + 1):
            foreign, count, _ = best[end - 1]
            options = [(foreign + 1, count + 1, end - 1)]
            for start in range(max(0, end - self._longest), end):
                if given[start:end] in self._ids:
                    options.append((best[start][0], best[start][1] + 1, start))
            best.append(min(options))
        ids: list[int] = []
        end = len(given)
        while end:
            start = best[end][2]
            ids.append(self._ids.get(given[start:end], self._first_byte + given[start]))
            end = start
        return ids[::-1]

"""What a server's text is to an engine: token ids, by the tokenizer that was given, or bytes without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from runtime.model.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    """A token for each byte of UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner, where="bytes")


class Vocabulary:
    """Text that goes to a server that takes no ids, and what comes from it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text_of(self, context: Sequence[int]) -> str:
        """A context as the server is to read it, which puts what stands before whole texts there by itself."""
        leading = self._tokenizer.leading
        if leading and tuple(context[: len(leading)]) == leading:
            context = context[len(leading) :]
        return self._tokenizer.decode(context)

    def tokens_of(self, text: str) -> list[int]:
        """What a context gains by a text that goes on after it. Raises `PromptError` for one that it cannot hold."""
        return self._tokenizer.encode_inside(text)

    def likeliest(self, top: Mapping[str, float]) -> dict[int, float]:
        """Of some tokens of the server's by their text, those that are one token here."""
        found: dict[int, float] = {}
        for text, logprob in top.items():
            tokens = self._tokenizer.encode_inside(text)
            if len(tokens) == 1:
                found.setdefault(tokens[0], logprob)
        return found

"""Chunks of a stream as servers write them, and what is heard in them: tokens, or what a stream ends with."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from runtime.device.remote.vocabulary import Vocabulary
from runtime.errors import RemoteError

Id = Annotated[int, Meta(ge=0, lt=2**31)]

BUSY = frozenset((408, 409, 425, 429))
"""Answers after which it is worth asking again, beside 5xx."""

_IDS_AS_TEXT = "token_id:"


class BrokenStream(Exception):
    """An answer that ended early or makes no sense; what came of it before counts, and the rest is asked for again."""


class _Logprobs(msgspec.Struct):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    token_ids: list[Id] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    depths: list[Id | None] | None = None
    """Our own server's: None for the first token of an echo."""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None
    object: Any = None
    """ "error", where what is told of one follows."""
    message: Any = None
    code: Any = None


class Heard(msgspec.Struct, kw_only=True):
    """What one chunk says."""

    tokens: list[int] = []
    logprobs: list[float] = []
    """Of each token; NaN where the server says nothing of it."""
    tops: list[dict[int, float]] = []
    """The likeliest tokens in the place of each."""
    depths: list[int] = []
    """Iterations of each token; empty where the server says nothing of it."""
    finish: str | None = None
    """Why the text ends here; of our own server, its own reason."""


_decode = msgspec.json.Decoder(_Chunk).decode


class Reader:
    """Reads the chunks of one server's answers."""

    def __init__(self, vocabulary: Vocabulary | None, *, tops: int, vocab_size: int | None) -> None:
        """`vocabulary` makes tokens of text; None where the server tells ids. `tops` are how many of the likeliest
        tokens are wanted in the place of each."""
        self._vocabulary = vocabulary
        self._tops = tops
        self._vocab_size = vocab_size

    def read(self, data: bytes) -> Heard:
        """Raises `BrokenStream` for what is no chunk, `RemoteError` for an error that asking again will not help, and
        `PromptError` for text that the vocabulary cannot hold."""
        try:
            # As text: what is no UTF-8 would be passed over in names of fields.
            chunk = _decode(data.decode())
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise BrokenStream(f"a chunk is garbled: {error}") from None
        if chunk.error is not None:
            raise _told(chunk.error)
        if chunk.object == "error":
            raise _told({"message": chunk.message, "code": chunk.code})
        if len(chunk.choices) > 1 or (chunk.choices and chunk.choices[0].index):
            raise BrokenStream("a chunk is of another choice than was asked for")
        heard = Heard()
        if chunk.choices:
            self._take(chunk.choices[0], heard)
        return heard

    def _take(self, choice: _Choice, heard: Heard) -> None:
        if self._vocabulary is None:
            self._take_ids(choice, heard)
        else:
            self._take_text(choice, heard, self._vocabulary)
        if choice.finish_reason in ("abort", "error"):
            raise BrokenStream(f"the server gave up ({choice.finish_reason})")
        heard.finish = choice.finish_reason
        if heard.finish is not None and isinstance(choice.stop_reason, str) and choice.stop_reason in _BRAIDS_OWN:
            heard.finish = choice.stop_reason

    def _take_ids(self, choice: _Choice, heard: Heard) -> None:
        if choice.token_ids is None:
            if choice.text:
                raise BrokenStream("a chunk has text and no token ids")
            return
        tokens = heard.tokens = choice.token_ids
        if self._vocab_size is not None and tokens and max(tokens) >= self._vocab_size:
            raise BrokenStream(f"a chunk has token {max(tokens)}, and there are {self._vocab_size}")
        logprobs = None if choice.logprobs is None else choice.logprobs.token_logprobs
        if logprobs is None:
            heard.logprobs = [math.nan] * len(tokens)
        elif len(logprobs) != len(tokens):
            raise BrokenStream(f"a chunk has {len(tokens)} tokens and {len(logprobs)} log-probabilities")
        else:
            heard.logprobs = [math.nan if each is None else each for each in logprobs]
        if choice.depths is not None and len(choice.depths) == len(tokens):
            heard.depths = [depth or 0 for depth in choice.depths]
        if self._tops:
            tops = None if choice.logprobs is None else choice.logprobs.top_logprobs
            given = [self._by_id(top or {}) for top in tops or []]
            heard.tops = given if len(given) == len(tokens) else [{} for _ in tokens]

    def _take_text(self, choice: _Choice, heard: Heard, vocabulary: Vocabulary) -> None:
        logprobs = choice.logprobs
        texts, each = (None, None) if logprobs is None else (logprobs.tokens, logprobs.token_logprobs)
        if not texts or each is None or len(each) != len(texts) or "".join(texts) != choice.text:
            # Of no use token by token: parts of characters, say, or spaces that the text has not.
            heard.tokens = vocabulary.tokens_of(choice.text or "")
            heard.logprobs = [math.nan] * len(heard.tokens)
            heard.tops = [{} for _ in heard.tokens] if self._tops else []
            return
        tops = (logprobs and logprobs.top_logprobs) or []
        for index, (text, logprob) in enumerate(zip(texts, each, strict=True)):
            tokens = vocabulary.tokens_of(text)
            rest = len(tokens) - 1
            if rest < 0:
                continue
            heard.tokens += tokens
            # So that the sum over a text is right.
            heard.logprobs += [math.nan if logprob is None else logprob, *[0.0] * rest]
            if self._tops:
                top = vocabulary.likeliest(tops[index] or {}) if index < len(tops) else {}
                heard.tops += [_largest(top, self._tops), *({} for _ in range(rest))]

    def _by_id(self, top: dict[str, float]) -> dict[int, float]:
        found = {}
        for name, logprob in top.items():
            number = name.removeprefix(_IDS_AS_TEXT)
            if number is not name and number.isdecimal() and number.isascii() and len(number) < 10:
                found[int(number)] = logprob
        return _largest(found, self._tops)


_BRAIDS_OWN = ("context", "iterations", "limit")


def _largest(top: dict[int, float], count: int) -> dict[int, float]:
    return dict(sorted(top.items(), key=lambda item: -item[1])[:count])


def _told(error: object) -> Exception:
    """What a server says that went wrong after it had begun to answer."""
    text, kind, code = error, None, None
    if isinstance(error, dict):
        text, kind, code = error.get("message", error), error.get("type"), error.get("code")
    told = f"The server ended its answer with an error: {str(text)[:500]}"
    is_final = kind == "invalid_request_error" or (isinstance(code, int) and 400 <= code < 500 and code not in BUSY)
    return RemoteError(told) if is_final else BrokenStream(told)

"""Answers as clients of the OpenAI API read them: whole ones, and chunks of streams."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from runtime.serve.requests import Job
from runtime.threads.results import Usage

Json = dict[str, Any]

LEAST_LOGPROB = -9999.0
"""What clients are told of a token that cannot be, since JSON has no infinity."""

_FINISHED = {"returned": "stop", "stop": "stop", "nothing": "stop"}


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """What one choice grew by."""

    text: str = ""
    tokens: Sequence[int] = ()
    logprobs: Sequence[float | None] = ()
    """None for the first token of an echo, which nothing precedes."""
    top_logprobs: Sequence[Mapping[int, float]] = ()
    depths: Sequence[int | None] = ()
    """Iterations that made each token; None for the first of an echo. None at all where they are not known."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How one choice ended, and what it cost."""

    reason: str
    """Braid's own."""
    prompt_tokens: int
    generated: int
    usage: Usage

    @property
    def finish_reason(self) -> str:
        """The one of OpenAI's that is nearest."""
        return _FINISHED.get(self.reason, "length")


class Form:
    """How answers to one job are written."""

    def __init__(self, job: Job, model: str, decode: Callable[[Sequence[int]], str]) -> None:
        self._job = job
        self._decode = decode
        self._is_chat = job.kind == "chat"
        self._head: Json = {
            "id": ("chatcmpl-" if self._is_chat else "cmpl-") + uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }
        self._offsets: dict[int, int] = {}
        """By choice, characters of the tokens told so far."""

    def chunk(
        self, index: int, piece: Piece, *, first: Sequence[int] | None = None, ended: Ended | None = None
    ) -> Json:
        """A part of a stream. `first` are the prompt's tokens, in the first chunk of a choice."""
        choice: Json = {"index": index}
        if self._is_chat:
            choice["delta"] = {"role": "assistant"} if first is not None else {}
            if piece.text or first is not None:
                choice["delta"]["content"] = piece.text
        else:
            choice["text"] = piece.text
        return self._wrapped([self._finished(choice, index, piece, first, ended)], is_chunk=True)

    def event(self, event: Json) -> Json:
        """What happened in a tree, as a part of a stream."""
        return {**self._wrapped([], is_chunk=True), "event": event}

    def usage_chunk(self, ended: Sequence[Ended]) -> Json:
        return {**self._wrapped([], is_chunk=True), "usage": self.usage(ended)}

    def whole(
        self,
        choices: Sequence[tuple[Piece, Sequence[int], Ended]],
        events: Sequence[Json],
    ) -> Json:
        """The answer to a request that is no stream: of each choice what it said, its prompt and its end."""
        written = []
        for index, (piece, prompt, ended) in enumerate(choices):
            choice: Json = {"index": index}
            if self._is_chat:
                choice["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
            else:
                choice["text"] = piece.text
            written.append(self._finished(choice, index, piece, prompt, ended))
        answer = {**self._wrapped(written, is_chunk=False), "usage": self.usage([ended for *_, ended in choices])}
        return {**answer, "events": list(events)} if self._job.tells_tree else answer

    def usage(self, ended: Sequence[Ended]) -> Json:
        """Of all choices; a prompt counts once, however many answers it got."""
        prompt = sum(each.prompt_tokens for each in ended[:: self._job.n])
        generated = sum(each.generated for each in ended)
        names = ("iterations", "computed", "threads", "spawns_requested", "spawns_granted")
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": sum(each.usage.cached_tokens for each in ended)},
            "braid": {name: sum(getattr(each.usage, name) for each in ended) for name in names},
        }

    def _wrapped(self, choices: list[Json], *, is_chunk: bool) -> Json:
        kind = "text_completion"
        if self._is_chat:
            kind = "chat.completion.chunk" if is_chunk else "chat.completion"
        return {**self._head, "object": kind, "choices": choices}

    def _finished(
        self, choice: Json, index: int, piece: Piece, prompt: Sequence[int] | None, ended: Ended | None
    ) -> Json:
        choice["logprobs"] = self._logprobs(index, piece)
        choice["finish_reason"] = None if ended is None else ended.finish_reason
        if ended is not None:
            choice["stop_reason"] = ended.reason
        if self._job.tells_ids:
            choice["token_ids"] = list(piece.tokens)
            choice["depths"] = list(piece.depths) if len(piece.depths) == len(piece.tokens) else None
            if prompt is not None:
                choice["prompt_token_ids"] = list(prompt)
        return choice

    def _logprobs(self, index: int, piece: Piece) -> Json | None:
        if self._job.logprobs is None or not piece.tokens:
            return None
        texts = [self._text(token) for token in piece.tokens]
        tops = piece.top_logprobs or [{}] * len(texts)
        if self._is_chat:
            rows = zip(texts, piece.logprobs, tops, strict=True)
            content = [
                {**self._row(text, logprob), "top_logprobs": [self._row(self._text(t), p) for t, p in top.items()]}
                for text, logprob, top in rows
            ]
            return {"content": content, "refusal": None}
        start = self._offsets.get(index, 0)
        offsets = []
        for text in texts:
            offsets.append(start)
            start += len(text)
        self._offsets[index] = start
        is_told = [logprob is not None for logprob in piece.logprobs]
        return {
            "tokens": texts,
            "token_logprobs": [None if logprob is None else _finite(logprob) for logprob in piece.logprobs],
            "top_logprobs": [
                {self._text(token): _finite(logprob) for token, logprob in top.items()} if told else None
                for told, top in zip(is_told, tops, strict=True)
            ],
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        return f"token_id:{token}" if self._job.ids_as_text else self._decode([token])

    def _row(self, text: str, logprob: float | None) -> Json:
        return {"token": text, "logprob": _finite(logprob or 0.0), "bytes": list(text.encode(errors="replace"))}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB

"""Makes matchers of constraints: a vocabulary, and a grammar in it, are prepared once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from runtime.errors import ConstraintError
from runtime.link.constraints import Constraint
from runtime.model.tokenizer import Tokenizer
from runtime.protocol.constraints.compiling import grammar_of, library, refused
from runtime.protocol.constraints.matching import Matching
from runtime.protocol.constraints.vocabulary import vocabulary_of
from runtime.protocol.constraints.worker import MaskWorker

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_REMEMBERED = 64
"""Grammars that are kept."""


class Matchers:
    """The matchers of one engine. Safe to use from any thread; making one takes milliseconds, the first a second."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int | None, stop_tokens: frozenset[int]) -> None:
        """`stop_tokens` end a text wherever its constraint lets it end."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size or (0 if tokenizer is None else tokenizer.vocab_size)
        self._stop_tokens = stop_tokens
        self._lock = Lock()
        self._vocabulary: tuple[LLTokenizer, str] | None = None
        self._worker: MaskWorker | None = None
        self._fresh: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def make(self, constraint: Constraint, begun: Sequence[int] = ()) -> Matching:
        """A matcher at the beginning of a constraint's text, or after the tokens that it has `begun` with.

        Raises `ConstraintError` without a tokenizer, for a constraint that is refused, and for a beginning that does
        not fit; `ImportError` without llguidance.
        """
        with self._lock:
            matcher = self._prepared(msgspec.structs.replace(constraint, begun=0))
            if self._worker is None:
                self._worker = MaskWorker(self._stop_tokens, self._vocab_size)
            worker = self._worker
        accepted = matcher.try_consume_tokens(list(begun)) if begun else 0
        if accepted < len(begun):
            raise ConstraintError(
                f"The text that the context has of the {constraint.kind} does not fit: of its {len(begun)} tokens, "
                f"{accepted} do. Append nothing that it does not allow, or begin anew without resume"
            )
        return Matching(matcher, worker, constraint, self._stop_tokens)

    def close(self) -> None:
        """Ends the thread that computes masks; none is asked for any more."""
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
                self._worker = None

    def _prepared(self, constraint: Constraint) -> LLMatcher:
        if self._tokenizer is None:
            raise ConstraintError(
                "Constraints are on text, and the checkpoint has no tokenizer.json. Put one beside its weights"
            )
        if self._vocabulary is None:
            self._vocabulary = vocabulary_of(self._tokenizer, self._vocab_size)
        vocabulary, before = self._vocabulary
        fresh = self._fresh.pop(constraint, None)
        if fresh is None:
            fresh = library()(vocabulary, grammar_of(constraint, before), log_level=0)
            if fresh.is_error():
                raise refused(constraint, fresh.get_error())
        self._fresh[constraint] = fresh
        if len(self._fresh) > _REMEMBERED:
            self._fresh.popitem(last=False)
        return fresh.deep_copy()

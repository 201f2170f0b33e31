"""Makes matchers of constraints: a vocabulary, and a grammar in it, are prepared once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from runtime.errors import ConstraintError
from runtime.link.constraints import Constraint, Kind, Matcher
from runtime.model.tokenizer import Tokenizer
from runtime.protocol.constraints.compiling import grammar_of, library, refused
from runtime.protocol.constraints.matching import AfterThought, InBlocks, Matching
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
        self._fresh: OrderedDict[tuple[Kind, str], LLMatcher] = OrderedDict()

    def make(self, constraint: Constraint, begun: Sequence[int] = ()) -> Matcher:
        """A matcher at the beginning of a constraint's text, or after the tokens that it has `begun` with.

        Raises `ConstraintError` without a tokenizer, for a constraint that is refused, and for a beginning that does
        not fit; `ImportError` without llguidance.
        """
        if constraint.kind == "blocks":
            return self._in_blocks(constraint)
        thought, is_thinking, has_begun = constraint.thought, constraint.is_thinking, bool(begun)
        if thought is not None and begun:
            is_thinking = (is_thinking or begun[0] == thought[0]) and thought[1] not in begun
            begun = () if is_thinking else _after_thought(begun, thought[1])
        matcher, worker = self._fresh_of(constraint.kind, constraint.form)
        accepted = matcher.try_consume_tokens(list(begun)) if begun else 0
        if accepted < len(begun):
            raise ConstraintError(
                f"The text that the context has of the {constraint.kind} does not fit: of its {len(begun)} tokens, "
                f"{accepted} do. Append nothing that it does not allow, or begin anew without resume"
            )
        matching = Matching(matcher, worker, constraint.kind, self._stop_tokens)
        return (
            matching
            if thought is None
            else AfterThought(matching, *thought, is_thinking=is_thinking, has_begun=has_begun)
        )

    def close(self) -> None:
        """Ends the thread that computes masks; none is asked for any more."""
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
                self._worker = None

    def _in_blocks(self, constraint: Constraint) -> InBlocks:
        blocks: dict[int, Callable[[], Matcher]] = {}
        for block in constraint.blocks:
            matcher, worker = self._fresh_of(block.kind, block.form)
            ends = frozenset(block.closes)

            def begin(
                matcher: LLMatcher = matcher, worker: MaskWorker = worker, name: str = block.kind, ends: Any = ends
            ) -> Matching:
                return Matching(matcher.deep_copy(), worker, name, ends, waits=True)

            blocks[block.opens] = begin
        return InBlocks(blocks, constraint.thought, is_thinking=constraint.is_thinking)

    def _fresh_of(self, kind: Kind, form: str) -> tuple[LLMatcher, MaskWorker]:
        """A matcher of the library's at its beginning, and what computes its masks."""
        if self._tokenizer is None:
            raise ConstraintError(
                "Constraints are on text, and the checkpoint has no tokenizer.json. Put one beside its weights"
            )
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = vocabulary_of(self._tokenizer, self._vocab_size)
            if self._worker is None:
                self._worker = MaskWorker(self._vocab_size)
            vocabulary, before = self._vocabulary
            fresh = self._fresh.pop((kind, form), None)
            if fresh is None:
                fresh = library()(vocabulary, grammar_of(Constraint(kind=kind, form=form), before), log_level=0)
                if fresh.is_error():
                    raise refused(kind, fresh.get_error())
            self._fresh[kind, form] = fresh
            if len(self._fresh) > _REMEMBERED:
                self._fresh.popitem(last=False)
            return fresh.deep_copy(), self._worker


def _after_thought(begun: Sequence[int], closes: int) -> Sequence[int]:
    """What follows the thought that a text begins with, if it does."""
    return begun[begun.index(closes) + 1 :] if closes in begun else begun

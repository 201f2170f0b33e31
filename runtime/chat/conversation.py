"""What is known of the messages in a context, and what a new message adds to it.

A context grows and never changes. So what a message adds is what the template writes with it, after what it has written
without it, and a template that writes the earlier part anew is refused. What a thread says between two messages is the
assistant's, and stays as the thread said it: the template is asked with a stand-in for it, and goes on after that.

    rendering before  <user>hi</user><assistant>
    context           <user>hi</user><assistant>Hello!</assistant>
    rendering after   <user>hi</user><assistant>STAND-IN</assistant><user>why?</user><assistant>
    added                                                           <user>why?</user><assistant>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from runtime.errors import PromptError
from runtime.model.chat_files import ChatTemplate
from runtime.model.marking import Marking

Message = Mapping[str, object]
"""A role and what it says: `{"role": "user", "content": "..."}`, and whatever else a template reads."""

_STAND_IN = "\ufdd2\ufdd3\ufdd2"
"""Code points that no user's text has, because marking takes them out."""

_ASSISTANT = ("assistant", "model")
_BEFORE_USERS = ("system", "developer")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which the same is given; templates read the first or the second."""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """The messages at the beginning of a context. Immutable: forks share it."""

    template: ChatTemplate
    variables: Mapping[str, Any]
    """What the template finds beside messages."""
    marking: Marking
    now: float
    """When it began, in seconds since 1970: what the template's clock shows."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """As the template gets them; what threads said is stood in for."""
    text: str = ""
    """Their rendering."""
    length: int = 0
    """Tokens of the context that are of it; what follows them was said by the thread, or appended otherwise."""

    def with_results(self, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What to render, for `results_in`, where the assistant has called tools and these messages answer it. All
        before them stays as it is, so that a question and a stand-in are rendered for it."""
        before = [{"role": "user", "content": ""}, {"role": "assistant", "content": _STAND_IN}]
        messages = [*self.messages, *before, *results]
        return {**self.variables, "messages": messages, "add_generation_prompt": True}

    def results_in(self, text: str, stop: str) -> str:
        """What the template puts behind the assistant's calls, which ended with `stop`, a stop token's text.

        Raises `PromptError` where the template leaves out what the assistant said."""
        _, found, added = text.rpartition(_STAND_IN)
        if not found:
            raise PromptError(f"{self.template.where}: the template leaves out what the assistant said before a tool.")
        return added.lstrip().removeprefix(stop) if stop and added.lstrip().startswith(stop) else added


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """What messages add to a conversation: what to render, and what it says."""

    conversation: Conversation
    answer: str | None
    """Text that the context has after the conversation, without a stop token; None if it has nothing there."""
    stop: str
    """Text of the stop token that the context ends with; "" for none."""
    messages: tuple[Mapping[str, Any], ...]
    asks: bool
    """Whether the assistant is the next to speak."""

    def renderings(self) -> list[dict[str, Any]]:
        """Variables of everything that is to be rendered, for `read`."""
        earlier = self.conversation.messages
        if self.answer is None:
            return [self._rendering([*earlier, *self.messages])]
        answers = [_STAND_IN, self.conversation.marking.marked(self.answer)]
        return [
            self._rendering([*earlier, {"role": "assistant", "content": answer}, *self.messages]) for answer in answers
        ]

    def read(self, texts: Sequence[str]) -> tuple[str, Conversation]:
        """From the texts of `renderings`: what is added to the context, with its marks, and the conversation that it
        has then, but for its length.

        Raises `PromptError` where the template does not go on after what the context has.
        """
        before, whole = self.conversation, texts[0]
        # An answer may begin with other white space than the template writes before it.
        written = before.text if self.answer is None else before.text.rstrip()
        if not whole.startswith(written):
            raise self._rewrites("what it has written for the messages before")
        added = whole[len(written) :]
        messages = (*before.messages, *self.messages)
        if self.answer is not None:
            opening, found, added = added.partition(_STAND_IN)
            if not found or opening.strip():
                raise self._rewrites("how the assistant's answer begins")
            if not _goes_on(texts[1][len(written) :], before.marking.marked(self.answer), added):
                raise self._rewrites("the assistant's answer")
            if self.stop and added.lstrip().startswith(self.stop):
                added = added.lstrip().removeprefix(self.stop)
            messages = (*before.messages, {"role": "assistant", "content": _STAND_IN}, *self.messages)
        return added, msgspec.structs.replace(before, messages=messages, text=whole)

    def _rendering(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.conversation.variables, "messages": messages, "add_generation_prompt": self.asks}

    def _rewrites(self, what: str) -> PromptError:
        if self.answer is None and self.conversation.messages:
            return PromptError(
                f"{self.conversation.template.where}: the template does not go on after the messages that the thread "
                f"has, where nothing was said since the last of them. Append messages that follow each other in one "
                f"call, as a list."
            )
        return PromptError(
            f"{self.conversation.template.where}: with the new message, the template changes {what}, which stays in "
            f"this thread as it is. Open a thread with the whole conversation as its messages."
        )


def prepared(message: Mapping[str, Any], marking: Marking) -> dict[str, Any]:
    """A message as templates get it: control tokens marked, nothing that is None, and reasoning under the names that
    templates read."""
    given: dict[str, Any] = {key: marking.values(value) for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def is_assistants(message: Mapping[str, Any]) -> bool:
    return message.get("role") in _ASSISTANT


def asks_for_answer(message: Mapping[str, Any]) -> bool:
    """Whether the assistant speaks after this message: after all but its own and those before a user's first."""
    return message.get("role") not in (*_ASSISTANT, *_BEFORE_USERS)


def _goes_on(text: str, answer: str, after: str) -> bool:
    """Whether a text is an answer, but for white space around it, and what comes after it."""
    answer = answer.strip()
    if not answer:
        return True
    if not text.endswith(after):
        return False
    return text.removesuffix(after).strip() == answer

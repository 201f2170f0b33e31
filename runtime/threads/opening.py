"""What a thread begins with: token ids, or messages that are still to be rendered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from policies.conversion import converted, shown
from runtime.chat import Message, is_assistants
from runtime.errors import PromptError, prompt_too_long
from runtime.threads.arguments import is_chat, messages_of
from runtime.threads.context import Context
from runtime.threads.session import Session, ThreadSettings

Received = str | Sequence[int] | Message | Sequence[Message]
"""Text, token ids, or chat messages."""


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """Messages that a context is to begin or to go on with."""

    messages: tuple[dict[str, Any], ...]
    parse_special_tokens: bool


def opening_of(
    session: Session, prompt: str | Sequence[int], messages: Sequence[Message] | None, parse_special_tokens: bool | None
) -> tuple[int, ...] | Opening:
    """What a root begins with. Where it is not said, special tokens that a prompt spells out are parsed, and those in
    messages, which have what users wrote, are text.

    Raises `PromptError` for what cannot be encoded or does not fit into the model's context, `ValueError` where both
    are given."""
    session.check()
    if messages is None:
        return _fitting(session, session.encode_prompt(prompt, parse_special_tokens=parse_special_tokens is not False))
    if len(prompt):
        raise ValueError(f"prompt is {shown(prompt)} and messages is {shown(messages)}; give one of them.")
    return Opening(messages=messages_of(messages), parse_special_tokens=parse_special_tokens is True)


def received(
    context: Context,
    message: Received,
    parse_special_tokens: bool | None,
    after: Sequence[int] = (),
) -> tuple[int, ...] | Opening:
    """What a context gets, after some tokens of it; special tokens as in `opening_of`.

    Raises `PromptError` for what cannot be encoded."""
    asked = converted(parse_special_tokens, bool | None, "parse_special_tokens")
    if is_chat(message):
        return Opening(messages=messages_of(message, "text"), parse_special_tokens=asked is True)
    text = cast(str | Sequence[int], message)
    return context.session.encode(text, after, parse_special_tokens=asked is not False)


async def to_be_answered(
    session: Session, opening: tuple[int, ...] | Opening, settings: ThreadSettings
) -> tuple[int, ...]:
    """The tokens of an opening that the model is to answer. Raises `PromptError` where there is nothing to answer."""
    if isinstance(opening, Opening):
        if is_assistants(opening.messages[-1]):
            raise PromptError(
                "The last of the messages is the assistant's, so that there is nothing to answer. Leave it out; for an "
                "answer that goes on with a text, open a thread with the others and append that text."
            )
        opening, _ = await session.chat.begun(
            opening.messages,
            settings.chat_template_kwargs,
            parse_special_tokens=opening.parse_special_tokens,
            asks=True,
        )
        opening = _fitting(session, opening)
    if not opening:
        raise PromptError("The prompt is empty; give at least one token.")
    return opening


async def render_opening(context: Context, opening: Opening) -> tuple[int, ...]:
    """Notes the messages that a context is to begin with, which has no tokens. Returns theirs, still to be appended.

    Raises like `append_messages`.
    """
    tokens, context.conversation = await context.session.chat.begun(
        opening.messages,
        context.settings.chat_template_kwargs,
        parse_special_tokens=opening.parse_special_tokens,
    )
    return _fitting(context.session, tokens)


async def append_messages(context: Context, opening: Opening) -> None:
    """Appends messages to a context. Cancelled, or where it raises, the context is as it was before.

    Raises `PromptError` for a conversation that the template does not go on with, or that does not fit, and for a
    context that has tokens and no conversation; `ThreadStateError` while the thread generates.
    """
    context.check_idle("append")
    before = context.conversation
    if context.tokens and before is None:
        raise PromptError(
            f"Thread {context.path} does not begin with messages, so that its chat template cannot go on with one. "
            f"Open it with messages, or append text."
        )
    context.is_busy = True
    try:
        if before is None:
            tokens = await render_opening(context, opening)
            after = context.conversation
        else:
            tokens, after = await context.session.chat.continued(
                before, context.tokens, opening.messages, parse_special_tokens=opening.parse_special_tokens
            )
    finally:
        context.conversation = before
        context.is_busy = False
    context.extend(tokens)
    context.conversation = after


def _fitting(session: Session, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Raises `PromptError` for a prompt that is longer than the model's context."""
    most = session.opened.max_context
    if most is not None and len(prompt) > most:
        raise prompt_too_long(len(prompt), most)
    return prompt

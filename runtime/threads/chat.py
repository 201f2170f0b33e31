"""Messages of a conversation, as tokens of a context.

messages -> marked -> rendered by the template, in a process of its own -> what is new of it -> tokens
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from runtime.chat import Conversation, Growth, Renderer, asks_for_answer, prepared
from runtime.errors import PromptError
from runtime.model.chat_files import ChatTemplate, ChatTemplates
from runtime.model.incremental import text_after
from runtime.model.marking import Marking
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import HERMES, BoundToolTags

_AS_IT_IS = Marking(())
"""Marks nothing: what users write is parsed for tokens."""


class Chat:
    """The chat templates of one engine, and the process that renders them. Used on the event loop."""

    def __init__(
        self, templates: ChatTemplates | None, tokenizer: Tokenizer | None, stop_tokens: frozenset[int]
    ) -> None:
        self._templates = templates
        self._tokenizer = tokenizer
        self._stop_tokens = stop_tokens
        self._renderer = Renderer()
        self._marking: dict[str, Marking] = {}
        """By template."""
        self._tool_tags: BoundToolTags | None = None

    async def begun(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        *,
        parse_special_tokens: bool,
        asks: bool | None = None,
    ) -> tuple[tuple[int, ...], Conversation]:
        """A context that begins with these messages, and the conversation that it then has. `asks` says whether the
        assistant speaks next; None is as the last message says.

        Raises `PromptError` where the checkpoint has no chat template or no tokenizer, for messages that the template
        refuses and text that cannot be encoded, and `CheckpointError` for a template that is none.
        """
        tokenizer = self._tokenizer_for_text()
        conversation = self._new_conversation(variables, parse_special_tokens)
        text, conversation = await self._grown(
            self._growth(conversation, messages, parse_special_tokens=parse_special_tokens, asks=asks)
        )
        tokens = tuple(tokenizer.led(tokenizer.encode_marked(text)))
        return tokens, msgspec.structs.replace(conversation, length=len(tokens))

    async def continued(
        self,
        conversation: Conversation,
        context: Sequence[int],
        messages: Sequence[Mapping[str, Any]],
        *,
        parse_special_tokens: bool,
    ) -> tuple[tuple[int, ...], Conversation]:
        """What these messages append to a context that began with a conversation, and the conversation that it has
        then. What follows the conversation in it is the assistant's answer.

        Raises like `begun`, and `PromptError` where the template does not go on after what the context has.
        """
        tokenizer = self._tokenizer_for_text()
        said = list(context[conversation.length :])
        stop = said.pop() if said and said[-1] in self._stop_tokens else None
        answer = None
        if len(context) > conversation.length:
            answer = text_after(tokenizer, context[: conversation.length], said)
        growth = self._growth(
            conversation,
            messages,
            parse_special_tokens=parse_special_tokens,
            answer=answer,
            stop="" if stop is None else tokenizer.decode([stop]).strip(),
        )
        text, conversation = await self._grown(growth)
        tokens = tuple(tokenizer.encode_marked(text, context))
        return tokens, msgspec.structs.replace(conversation, length=len(context) + len(tokens))

    def tool_tags(self) -> BoundToolTags | None:
        """How models call tools in the format of the chat template; None where it has none that is known."""
        if self._templates is None or self._tokenizer is None:
            return None
        if HERMES.open not in self._templates.chosen(tools=True).source:
            return None
        if self._tool_tags is None:
            self._tool_tags = BoundToolTags(HERMES, self._tokenizer)
        return self._tool_tags

    async def answered(
        self, context: Sequence[int], results: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> list[int]:
        """What messages with the results of tools append to a context whose last turn called them, and what the
        assistant begins with after them. It is the same whatever the conversation was before. Raises like `begun`.
        """
        tokenizer = self._tokenizer_for_text()
        conversation = self._new_conversation(variables, parse_special_tokens=False)
        stop = tokenizer.decode(context[-1:]).strip() if context and context[-1] in self._stop_tokens else ""
        messages = [prepared(result, conversation.marking) for result in results]
        rendering = conversation.with_results(messages)
        (text,) = await self._renderer.render(conversation.template, [rendering], conversation.now)
        return tokenizer.encode_marked(conversation.results_in(text, stop), context)

    async def aclose(self) -> None:
        await self._renderer.aclose()

    def _new_conversation(self, variables: Mapping[str, Any], parse_special_tokens: bool) -> Conversation:
        """One without messages."""
        tokenizer = self._tokenizer_for_text()
        if self._templates is None:
            raise PromptError(
                "The checkpoint has no chat template: no chat_template.jinja, and no chat_template in its "
                "tokenizer_config.json. Give a prompt instead of messages."
            )
        template = self._templates.chosen(tools=bool(variables.get("tools")))
        marking = self._marking_of(template, tokenizer)
        return Conversation(
            template=template,
            # As in transformers, what is given counts before a tokenizer's own, and is marked as messages are.
            variables={
                **{"tools": None, "documents": None},
                **tokenizer.named_tokens,
                **{
                    name: self._chosen(marking, parse_special_tokens).values(value) for name, value in variables.items()
                },
            },
            marking=marking,
            now=time.time(),
        )

    async def _grown(self, growth: Growth) -> tuple[str, Conversation]:
        conversation = growth.conversation
        return growth.read(await self._renderer.render(conversation.template, growth.renderings(), conversation.now))

    def _growth(
        self,
        conversation: Conversation,
        messages: Sequence[Mapping[str, Any]],
        *,
        parse_special_tokens: bool,
        asks: bool | None = None,
        answer: str | None = None,
        stop: str = "",
    ) -> Growth:
        marking = self._chosen(conversation.marking, parse_special_tokens)
        return Growth(
            conversation=conversation,
            answer=answer,
            stop=stop,
            messages=tuple(prepared(message, marking) for message in messages),
            asks=asks_for_answer(messages[-1]) if asks is None else asks,
        )

    def _chosen(self, marking: Marking, parse_special_tokens: bool) -> Marking:
        return _AS_IT_IS if parse_special_tokens else marking

    def _marking_of(self, template: ChatTemplate, tokenizer: Tokenizer) -> Marking:
        if template.source not in self._marking:
            self._marking[template.source] = Marking(tokenizer.control_tokens(template.source))
        return self._marking[template.source]

    def _tokenizer_for_text(self) -> Tokenizer:
        if self._tokenizer is None:
            raise PromptError("The checkpoint has no tokenizer.json. Give token ids instead of messages.")
        return self._tokenizer

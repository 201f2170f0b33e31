"""How a model calls tools: tags around a call, and how its result is put into the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from runtime.errors import PromptError, ProtocolError, ToolError
from runtime.link.commands import Watcher
from runtime.model.tokenizer import Tokenizer
from runtime.protocol.templates import check_template
from runtime.protocol.tool_watcher import TextToolWatcher, TokenToolWatcher


class ToolTags(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Literal texts around a call of a tool, in whatever a thread says: within a thought, or a message, too.

    Between them stands a JSON object with `name` and `arguments`, or the `argument` of one `tool`. Raises
    `ProtocolError` for a declaration that contradicts itself.
    """

    open: str
    close: str
    result: str = "{result}"
    """What is put behind a call that is over; {name} is the tool's."""
    wait: str = ""
    """Where declared, calls run while the thread goes on, until it says this: then their results follow, in the order
    of the calls. Otherwise each call is waited for."""
    tool: str = ""
    """The one that is called, where tags are of one tool; what stands between them is its `argument`, a string."""
    argument: str = ""

    def __post_init__(self) -> None:
        for name in ("open", "close"):
            if not getattr(self, name):
                raise ProtocolError(f"tools: {name} is empty; calls need tags around them.")
        tags = [tag for tag in (self.open, self.close, self.wait) if tag]
        for index, tag in enumerate(tags):
            if any(tag in other for at, other in enumerate(tags) if at != index):
                raise ProtocolError(f"tools: tag {tag!r} is contained in another, so that text could be read as both.")
        if bool(self.tool) != bool(self.argument):
            raise ProtocolError("tools: tool and argument belong together; declare both or neither.")
        check_template("tools: result", self.result, {"result", "name"}, ("result",))


HERMES = ToolTags(open="<tool_call>", close="</tool_call>")
"""What Hermes, Qwen and others were taught; their results are put into the context by the chat template."""


class ToolProtocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The protocol of a model that calls tools, and neither spawns nor forks."""

    tools: ToolTags
    prompt: str = "{prompt}"
    """A root's context."""

    def __post_init__(self) -> None:
        check_template("prompt", self.prompt, {"prompt"}, ("prompt",))


class WrittenCall(NamedTuple):
    """A call as a model has written it."""

    name: str
    arguments: str
    """As JSON."""


class BoundToolTags:
    """Tags over a tokenizer's ids. Immutable; one serves all threads of an engine."""

    def __init__(self, tags: ToolTags, tokenizer: Tokenizer) -> None:
        """Raises `ProtocolError` if the tokenizer cannot write a tag."""
        self.tags = tags
        self._tokenizer = tokenizer
        declared = [tag for tag in (tags.open, tags.close, tags.wait) if tag]
        single = {tag: token for tag in declared if (token := self._token_of(tag)) is not None}
        is_on_ids = len(single) == len(declared) and not self._are_in_others(single)
        self._single = single if is_on_ids else None
        """The tags' tokens, where each is one, and part of no other."""

    def watcher(self, context: Sequence[int] = (), *, is_in_turns: bool = False) -> Watcher:
        """A watcher for one generate, after a context. `is_in_turns` says that a thread stops at the end of its turn,
        and not at its calls."""
        tags = self.tags
        stops = not (tags.wait or is_in_turns)
        if self._single is None:
            return TextToolWatcher(tags.open, tags.close, tags.wait, self._tokenizer, context, stops=stops)
        open_, close = self._single[tags.open], self._single[tags.close]
        wait = self._single[tags.wait] if tags.wait else None
        return TokenToolWatcher(open_, close, wait, self._tokenizer, stops=stops)

    def written(self, text: str) -> WrittenCall:
        """The call that stands between tags. Raises `ToolError` where there is none."""
        if self.tags.tool:
            return WrittenCall(self.tags.tool, msgspec.json.encode({self.tags.argument: text.strip()}).decode())
        try:
            call: Any = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ToolError(f"This call is no JSON ({error}).") from error
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise ToolError('This call has no name; write {"name": ..., "arguments": {...}}.')
        arguments = call.get("arguments", {})
        return WrittenCall(call["name"], msgspec.json.encode(arguments).decode())

    def result(self, name: str, text: str, context: Sequence[int]) -> list[int]:
        """What is put behind a context for a result; special tokens that it spells out are text. Raises `PromptError`
        for a text that the tokenizer cannot write."""
        marked = self._tokenizer.marked
        return self._tokenizer.encode_marked(self.tags.result.format(result=marked(text), name=marked(name)), context)

    def _token_of(self, tag: str) -> int | None:
        """The tag's id, if it is one token."""
        try:
            encoded = self._tokenizer.encode_inside(tag)
        except PromptError as error:
            raise ProtocolError(f"The tokenizer cannot write the tag {tag!r} of tools: {error}") from error
        token = self._tokenizer.token_to_id(tag)
        return token if token is not None and encoded == [token] else None

    def _are_in_others(self, single: Mapping[str, int]) -> bool:
        others = set(range(self._tokenizer.vocab_size)) - set(single.values())
        names = (self._tokenizer.id_to_token(token) or "" for token in others)
        return any(tag in name for name in names for tag in single)


class BoundToolProtocol:
    """A `ToolProtocol` over a tokenizer's ids. Immutable; one serves all threads of an engine."""

    def __init__(self, protocol: ToolProtocol, tokenizer: Tokenizer) -> None:
        self.protocol = protocol
        self.tools = BoundToolTags(protocol.tools, tokenizer)
        self._tokenizer = tokenizer

    def prompt(self, text: str, *, parse_special_tokens: bool = False) -> list[int]:
        """A root thread's context; see `BoundProtocol.prompt`."""
        given = text if parse_special_tokens else self._tokenizer.marked(text)
        return self._tokenizer.led(self._tokenizer.encode_marked(self.protocol.prompt.format(prompt=given)))

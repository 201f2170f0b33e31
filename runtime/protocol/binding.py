"""A protocol over one tokenizer's ids: prompts, deliveries and watchers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from runtime.errors import PromptError, ProtocolError
from runtime.link.commands import Watcher
from runtime.model.tokenizer import Tokenizer
from runtime.protocol.constraints.declared import blocks_of, thought_of
from runtime.protocol.declaration import TagProtocol
from runtime.protocol.grammar import grammar_of, tags_by_text
from runtime.protocol.patterns import Pattern
from runtime.protocol.templates import fill, over_ids
from runtime.protocol.text_watcher import TextWatcher, text_tags
from runtime.protocol.token_watcher import TokenWatcher
from runtime.protocol.tool_tags import BoundToolTags
from runtime.protocol.watcher import TagWatcher, Tokens


class BoundProtocol:
    """A protocol over a tokenizer's ids. Immutable; one serves all threads of an engine."""

    def __init__(self, protocol: TagProtocol, tokenizer: Tokenizer) -> None:
        """Raises `ProtocolError` if the tokenizer cannot write a tag."""
        self.protocol = protocol
        self._tokenizer = tokenizer
        tags = tags_by_text(protocol)
        single = {tag: token for tag in tags if (token := self._token_of(tag)) is not None}
        self.on_ids = len(single) == len(tags) and not protocol.needs_text and not self._in_other_tokens(single)
        """Whether matching is on token ids."""
        forms = {
            "messages": (protocol.messages, protocol.spawn_open, (protocol.spawn_close,)),
            "returns": (
                protocol.returns,
                protocol.return_open,
                (protocol.return_close,) if protocol.return_close else protocol.end,
            ),
        }
        self.constraint = blocks_of(forms, protocol.thought, self._token_of)
        """What stands between tags is constrained to."""
        self.thought = thought_of(protocol.thought, self._token_of)
        """The tokens of a thought's tags."""
        if self.constraint is not None and not self.on_ids:
            raise ProtocolError(
                "messages and returns are constrained, and this protocol matches on text. Declare tags that are one "
                "token each, and no patterns."
            )
        self._table = grammar_of(protocol)
        self._by_id = {token: (tags[text], text) for text, token in single.items()}
        self._text_tags = text_tags(tags, protocol)
        self._child_pattern = Pattern(protocol.child_pattern)
        self.tools = None if protocol.tools is None else BoundToolTags(protocol.tools, tokenizer)
        names = ("child", "delivered", "delivered_nothing", "joined") if self.on_ids else ()
        self._over_ids = {
            name: over_ids(getattr(protocol, name), partial(self._encode_declared, name)) for name in names
        }

    def watcher(self, context: Sequence[int] = ()) -> Watcher:
        """A watcher for one generate. `context` is the thread's context before it: spawns may refer to its text."""
        return self._watcher(context, lenient=False)

    def prompt(self, text: str, *, parse_special_tokens: bool = False) -> list[int]:
        """A root thread's context. `parse_special_tokens` is about those that the text spells out; the protocol's own
        are parsed. Raises `PromptError` if there is nothing to encode."""
        given = text if parse_special_tokens else self._tokenizer.marked(text)
        tokens = self._tokenizer.encode_marked(self.protocol.prompt.format(prompt=given))
        if not tokens:
            raise PromptError("The prompt is empty; give at least one token.")
        return self._tokenizer.led(tokens)

    def delivery(self, messages: Sequence[Tokens], prompts: Sequence[Tokens] = ()) -> list[int]:
        """What is appended to the parent's context at a join.

        `messages` are the returned messages of all children of this join in the order of their spawns, empty where a
        child returned nothing (or was refused); `prompts` are the children's prompts, which a protocol with a
        `child_pattern` needs and others do not look at. Raises `ProtocolError` if they are missing then.
        """
        protocol = self.protocol
        if protocol.child_pattern and len(prompts) != len(messages):
            raise ProtocolError(
                f"{len(messages)} messages were returned, but there are {len(prompts)} prompts; this protocol says "
                "in a delivery which child it is from, so that each message needs its child's prompt."
            )
        parts = []
        left = len(messages) if protocol.most_messages is None else protocol.most_messages
        for index, message in enumerate(messages):
            if message and left == 0:
                continue
            left -= bool(message)
            parts.append((index, message))
        return self._delivery_of_ids(parts) if self.on_ids else self._delivery_of_text(parts, prompts)

    def returned(self, tokens: Sequence[int]) -> Tokens:
        """The returned message out of everything a thread emitted; empty if it returned nothing."""
        watcher = self._watcher((), lenient=True)
        for token in tokens:
            for signal in watcher.feed(token):
                if signal.kind == "end":
                    return signal.tokens
        return watcher.returned()

    def _delivery_of_ids(self, messages: Sequence[tuple[int, Tokens]]) -> list[int]:
        children: list[int] = []
        for index, message in messages:
            template = self._over_ids["delivered" if message else "delivered_nothing"]
            fields = {"message": message}
            if "index" in template:
                fields["index"] = tuple(self._tokenizer.encode_inside(str(index)))
            children += fill(template, fields)
        return fill(self._over_ids["joined"], {"children": children})

    def _delivery_of_text(self, messages: Sequence[tuple[int, Tokens]], prompts: Sequence[Tokens]) -> list[int]:
        protocol = self.protocol
        children = []
        for index, message in messages:
            about = dict.fromkeys(self._child_pattern.groups, "")
            if about and (match := self._child_pattern.search(self._tokenizer.decode(prompts[index]))):
                about = match.fields
            template = protocol.delivered if message else protocol.delivered_nothing
            text = self._tokenizer.decode(message)
            children.append(template.format_map({**about, "index": index, "message": text}))
        return self._tokenizer.encode_inside(protocol.joined.format(children="".join(children)))

    def _watcher(self, context: Sequence[int], lenient: bool) -> TagWatcher:
        if self.on_ids:
            child = self._over_ids["child"]
            return TokenWatcher(self.protocol, self._table, self._by_id, child, self._tokenizer.led, lenient)
        return TextWatcher(self.protocol, self._table, self._text_tags, self._tokenizer, context, lenient)

    def _token_of(self, tag: str) -> int | None:
        """The tag's id, if it is one token. Raises `ProtocolError` if the tokenizer cannot write it at all."""
        encoded = self._encode_declared("tag", tag)
        token = self._tokenizer.token_to_id(tag)
        if token is not None and encoded == [token]:
            return token
        if tag not in self._tokenizer.decode(encoded):
            raise ProtocolError(
                f"The tokenizer cannot write the protocol's tag {tag!r}: encoded and decoded it is "
                f"{self._tokenizer.decode(encoded)!r}. Declare a tag that it can write."
            )
        return None

    def _in_other_tokens(self, single: Mapping[str, int]) -> bool:
        """Whether a token that is no tag contains one, as a token of two line ends contains one of them."""
        others = set(range(self._tokenizer.vocab_size)) - set(single.values())
        names = (self._tokenizer.id_to_token(token) or "" for token in others)
        return any(tag in name for name in names for tag in single)

    def _encode_declared(self, name: str, text: str) -> list[int]:
        try:
            return self._tokenizer.encode_inside(text)
        except PromptError as error:
            raise ProtocolError(f"The tokenizer cannot write {text!r} of the protocol's {name}: {error}") from error

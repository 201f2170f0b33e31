"""The declarative spawn/join protocol: a checkpoint carries one, as JSON, in its `braid.json`."""

from __future__ import annotations

from typing import Literal

import msgspec

from runtime.errors import ProtocolError
from runtime.protocol.constraints.declared import Form, form_of
from runtime.protocol.templates import check_template, groups_of
from runtime.protocol.tool_tags import ToolTags

_MOST_TAGS = 100
"""Every one is looked for in every token of the vocabulary."""


class Definition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something a thread's text defines by name, for spawns that give only the name.

    Every match of `pattern` in the text before the spawn is one definition; its named groups are fields for the
    child's prompt. Group `name` is what a spawn refers to. Where there is a group `parent`, it names an earlier
    definition, and `appends` says what is added to that one's fields: {"path": "{step}"} makes the field path the
    parent's path, the separator (unless the parent's is empty) and the match's step.
    """

    pattern: str
    appends: dict[str, str] = {}
    separator: str = ", "

    def __post_init__(self) -> None:
        needed = ("name", "parent") if self.appends else ("name",)
        groups = groups_of("a definition's pattern", self.pattern, needed)
        for field, template in self.appends.items():
            check_template(f"a definition's appends[{field!r}]", template, groups)


class TagProtocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What spawn, message, join, return and end look like.

    Tags are literal text. Where each of them is one token of the vocabulary (and part of no other) and no pattern is
    declared, matching is on token ids, and messages keep their ids. Otherwise it is on the decoded text, in which tags
    may be split over tokens in any way, and messages are encoded anew.

    Patterns are regular expressions of RE2, without lookarounds and back references: matching takes time in
    proportion to the text. Raises `ProtocolError` for a declaration that contradicts itself.
    """

    # What a thread emits.
    spawn_open: str
    spawn_close: str
    """A close of white space alone (a line's end) is a tag only inside a spawn."""
    block_open: str = ""
    block_close: str = ""
    """Where declared, spawns stand inside blocks only."""
    join: str = ""
    """Empty: the end of a block is the join."""
    cuts_block: bool = False
    """Whether the delivery replaces the block in the parent's context, as if it had never been written."""
    return_open: str = ""
    return_close: str = ""
    """Empty: the returned message runs to the end tag."""
    return_pattern: str = ""
    """Instead of return tags: group `message` of the first match in all that the thread emitted is returned."""
    end: tuple[str, ...] = ()
    send_open: str = ""
    send_close: str = ""
    """Around an address and a message to another thread, told apart by `send_pattern`."""
    send_pattern: str = r"(?s)\s*(?P<to>[^\s:]+)\s*:(?P<message>.*)"
    """Must match all that is between them."""
    receive: str = ""
    """Where the thread gets what others have sent or posted; white space alone, such as a line's end, is that wherever
    it stands outside of messages and blocks."""
    forbidden: tuple[str, ...] = ()
    """Tags that only the runtime writes; a thread that emits one is malformed."""

    messages: Form = None
    """What a spawn's message must be; see `runtime.protocol.constraints`. Such protocols match on token ids."""
    returns: Form = None
    """What a returned message must be."""
    thought: tuple[str, str] | None = None
    """Tags around a thought, in which nothing is constrained."""

    tools: ToolTags | None = None
    """How tools are called, anywhere in what a thread emits."""

    # What a thread is given.
    prompt: str = "{prompt}"
    """A root's context."""
    message_pattern: str = ""
    """Must match a spawn's whole message; its groups are fields of `child`."""
    definitions: tuple[Definition, ...] = ()
    """Searched in this order for group `name` of `message_pattern`, each match within 1,024 characters; an earlier
    one's names take precedence, and of several matches for one name the last counts."""
    child: str = "{message}"
    """A child's prompt, from the message and the fields of `message_pattern` and the definition."""
    child_pattern: str = ""
    """Searched in a child's prompt at the join; its groups are fields of `delivered` and `delivered_nothing`."""
    delivered: str = "{message}"
    """One child's returned message, in its parent's context; {index} counts the joined children from 0."""
    delivered_nothing: str = ""
    """The same for a child that returned nothing; empty leaves it out."""
    joined: str = "{children}"
    """All of them, in spawn order."""
    received: str = "{sender}: {message}\n"
    """What another thread has sent, or posted on the board; {sender} is its address: "root", "0", "0.2"."""
    undelivered: str = ""
    """What a thread gets to know of a message that could not be sent, as {to} has ended; empty for nothing."""
    most_messages: int | None = None
    """Returned messages beyond these are not delivered."""

    strip: bool = True
    """Whether white space around messages is dropped (matching on text)."""
    longest_message: int | None = None
    """Most tokens between a message's tags; a longer one is malformed, and on token ids it is given up as soon as
    it is too long, so that the tags after it count again."""
    on_malformed: Literal["end", "ignore"] = "end"
    """"end" ends the thread with an error; "ignore" takes what is malformed for plain tokens, and spawns or returns
    nothing."""

    def __post_init__(self) -> None:
        for name in ("messages", "returns"):
            msgspec.structs.force_setattr(self, name, form_of(name, getattr(self, name)))
        self._check_tags()
        self._check_structure()
        groups = groups_of("message_pattern", self.message_pattern, ("name",) if self.definitions else ())
        for definition in self.definitions:
            groups |= groups_of("a definition's pattern", definition.pattern) | definition.appends.keys()
        check_template("child", self.child, groups | {"message"})
        about_child = groups_of("child_pattern", self.child_pattern) | {"index"}
        check_template("delivered", self.delivered, about_child | {"message"}, ("message",))
        check_template("delivered_nothing", self.delivered_nothing, about_child)
        check_template("joined", self.joined, {"children"}, ("children",))
        check_template("received", self.received, {"sender", "message"}, ("message",))
        check_template("undelivered", self.undelivered, {"to"})
        check_template("prompt", self.prompt, {"prompt"}, ("prompt",))

    @property
    def tags(self) -> tuple[str, ...]:
        """Every declared tag."""
        single = (self.spawn_open, self.spawn_close, self.block_open, self.block_close, self.join, self.send_open)
        several = (self.return_open, self.return_close, self.send_close, *self.end, *self.forbidden)
        # A line's end may close one thing and be a place to receive, too.
        receive = "" if self.receive in (self.spawn_close, self.send_close) else self.receive
        return tuple(tag for tag in (*single, *several, receive) if tag)

    @property
    def needs_text(self) -> bool:
        """Whether a pattern is declared, which only decoded text can match."""
        patterns = (self.message_pattern, self.definitions, self.return_pattern, self.child_pattern, self.send_open)
        return any(patterns)

    def _check_tags(self) -> None:
        for name in ("spawn_open", "spawn_close"):
            if not getattr(self, name):
                raise ProtocolError(f"{name} is empty; a protocol needs tags around a spawn's message.")
        if "" in (*self.end, *self.forbidden):
            raise ProtocolError("end and forbidden list tags; an empty one cannot be recognised.")
        tags = self.tags
        if len(tags) > _MOST_TAGS:
            raise ProtocolError(f"{len(tags)} tags are declared; a protocol may have {_MOST_TAGS} of them.")
        for index, tag in enumerate(tags):
            for other_index, other in enumerate(tags):
                if index != other_index and tag in other:
                    raise ProtocolError(
                        f"Tag {tag!r} is contained in tag {other!r}, so that text could be read as both."
                    )

    def _check_structure(self) -> None:
        if bool(self.block_open) != bool(self.block_close):
            raise ProtocolError("block_open and block_close belong together; declare both or neither.")
        if not self.join and not self.block_open:
            raise ProtocolError("join is empty and there are no blocks whose end could be the join; declare either.")
        if self.cuts_block and (self.join or not self.block_open):
            raise ProtocolError("cuts_block needs blocks whose end is the join: declare block_open, and no join.")
        if bool(self.send_open) != bool(self.send_close):
            raise ProtocolError("send_open and send_close belong together; declare both or neither.")
        if self.receive in (self.spawn_close, self.send_close) and self.receive.strip():
            raise ProtocolError(f"receive is {self.receive!r}, which closes messages; only a line's end may do both.")
        groups_of("send_pattern", self.send_pattern, ("to", "message"))
        if bool(self.return_open) == bool(self.return_pattern):
            raise ProtocolError("Declare either return_open or return_pattern, so that threads can return a message.")
        if self.return_close and not self.return_open:
            raise ProtocolError("return_close is declared without return_open.")
        if self.return_pattern:
            groups_of("return_pattern", self.return_pattern, ("message",))
        elif not self.return_close and not self.end:
            raise ProtocolError("A returned message has no end: declare return_close or an end tag.")
        if self.definitions and not self.message_pattern:
            raise ProtocolError("definitions need a message_pattern whose group `name` says which one a spawn means.")
        for name in ("most_messages", "longest_message"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ProtocolError(f"{name} is {value}; it must be at least 1, or null for no bound.")

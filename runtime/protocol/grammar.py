"""Which tag may follow where: a protocol's state machine, shared by matching on ids and on text."""

from __future__ import annotations

from enum import Enum, auto

from runtime.protocol.declaration import TagProtocol


class Tag(Enum):
    """What a text that a protocol declares stands for."""

    SPAWN_OPEN = auto()
    SPAWN_CLOSE = auto()
    BLOCK_OPEN = auto()
    BLOCK_CLOSE = auto()
    JOIN = auto()
    RETURN_OPEN = auto()
    RETURN_CLOSE = auto()
    SEND_OPEN = auto()
    SEND_CLOSE = auto()
    RECEIVE = auto()
    END = auto()
    FORBIDDEN = auto()


class State(Enum):
    """Where in its grammar a thread is; the value says so in an error."""

    OUTSIDE = "outside any message"
    BLOCK = "inside a spawn block"
    SPAWN = "inside a spawn message"
    RETURN = "inside a returned message"
    SEND = "inside a message to another thread"


class Meaning(Enum):
    """What a tag that is allowed means."""

    PLAIN = auto()
    OPENED = auto()
    BLOCK_OPENED = auto()
    BLOCK_CLOSED = auto()
    SPAWNED = auto()
    JOINED = auto()
    RETURNED = auto()
    SENT = auto()
    RECEIVED = auto()
    ENDED = auto()


Table = dict[tuple[State, Tag], tuple[State, Meaning]]
"""What follows from a tag in a state; a pair that is missing is malformed."""


def grammar_of(protocol: TagProtocol) -> Table:
    """The state machine of a protocol: which tags are allowed in which state, and what they mean there.

    A declaration without blocks spawns outside of them; one without a closing tag for returned messages ends them at
    the thread's end; where a line end closes messages, one that closes nothing is plain, or a place to receive.
    """
    has_block, has_close = bool(protocol.block_open), bool(protocol.return_close)
    around_spawn = State.BLOCK if has_block else State.OUTSIDE
    table: Table = {
        (State.OUTSIDE, Tag.JOIN): (State.OUTSIDE, Meaning.JOINED),
        (State.OUTSIDE, Tag.RETURN_OPEN): (State.RETURN, Meaning.OPENED),
        (State.OUTSIDE, Tag.END): (State.OUTSIDE, Meaning.ENDED),
        (around_spawn, Tag.SPAWN_OPEN): (State.SPAWN, Meaning.OPENED),
        (State.SPAWN, Tag.SPAWN_CLOSE): (around_spawn, Meaning.SPAWNED),
        (State.RETURN, Tag.RETURN_CLOSE if has_close else Tag.END): (
            State.OUTSIDE,
            Meaning.RETURNED if has_close else Meaning.ENDED,
        ),
    }
    if has_block:
        closed = Meaning.BLOCK_CLOSED if protocol.join else Meaning.JOINED
        table[State.OUTSIDE, Tag.BLOCK_OPEN] = (State.BLOCK, Meaning.BLOCK_OPENED)
        table[State.BLOCK, Tag.BLOCK_CLOSE] = (State.OUTSIDE, closed)
    if protocol.send_open:
        table[State.OUTSIDE, Tag.SEND_OPEN] = (State.SEND, Meaning.OPENED)
        table[State.SEND, Tag.SEND_CLOSE] = (State.OUTSIDE, Meaning.SENT)
    for text, tag, closed_state in (
        (protocol.spawn_close, Tag.SPAWN_CLOSE, State.SPAWN),
        (protocol.send_close, Tag.SEND_CLOSE, State.SEND),
        (protocol.receive, Tag.RECEIVE, None),
    ):
        if text.isspace():
            for state in set(State) - {closed_state}:
                table[state, tag] = (state, Meaning.PLAIN)
    if protocol.receive:
        table[State.OUTSIDE, tags_by_text(protocol)[protocol.receive]] = (State.OUTSIDE, Meaning.RECEIVED)
    return table


def tags_by_text(protocol: TagProtocol) -> dict[str, Tag]:
    """The tags that a protocol declares, by how they are written."""
    # What closes something as well as being a place to receive is a close.
    single = {
        protocol.receive: Tag.RECEIVE,
        protocol.send_open: Tag.SEND_OPEN,
        protocol.send_close: Tag.SEND_CLOSE,
        protocol.spawn_open: Tag.SPAWN_OPEN,
        protocol.spawn_close: Tag.SPAWN_CLOSE,
        protocol.block_open: Tag.BLOCK_OPEN,
        protocol.block_close: Tag.BLOCK_CLOSE,
        protocol.join: Tag.JOIN,
        protocol.return_open: Tag.RETURN_OPEN,
        protocol.return_close: Tag.RETURN_CLOSE,
    }
    several = dict.fromkeys(protocol.end, Tag.END) | dict.fromkeys(protocol.forbidden, Tag.FORBIDDEN)
    return {text: tag for text, tag in (single | several).items() if text}

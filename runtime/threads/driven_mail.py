"""Messages of threads that models drive: what a model addresses and sends by its protocol's tags, and what it receives.

A thread that its model drives takes whatever is sent to it while it waits itself, for children or for room in another
mailbox: so threads that models drive never wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import ProtocolError, ThreadStateError
from runtime.link.commands import Signal, ThreadPath
from runtime.protocol import BoundProtocol, TagProtocol
from runtime.threads.context import Context
from runtime.threads.mail import post, send, take_all, written


def prepare_mailbox(context: Context) -> None:
    """Says of a thread that its model drives whether it receives messages at all, and how."""
    protocol = context.session.opened.protocol
    if isinstance(protocol, BoundProtocol) and protocol.protocol.receive:
        context.mailbox.template = protocol.protocol.received
    else:
        context.mailbox.refuse("its model drives it, and no tag `receive` is declared in its protocol.")


@contextmanager
def parked(context: Context) -> Iterator[None]:
    """A block in which a thread waits for others."""
    context.mailbox.park(True)
    try:
        yield
    finally:
        context.mailbox.park(False)


async def send_as_written(context: Context, signal: Signal, protocol: TagProtocol) -> tuple[int, ...]:
    """Sends what a model has written, or posts it. Gives what the model is told, where that is anything: that it could
    not be sent, because the other thread has ended.

    Raises `ProtocolError` for what is no address, where the protocol does not ignore that.
    """
    if signal.address == "board":
        post(context, signal.text)
        return ()
    to = path_of(context.path, signal.address)
    if to is None or to == context.path:
        if protocol.on_malformed == "ignore":
            return ()
        raise ProtocolError(
            f"Thread {context.path} sends to {signal.address!r}, which is not another thread: write root, parent, "
            "board, or a thread's path in its tree, such as 0.2."
        )
    try:
        with parked(context):
            await send(context, to, signal.text)
    except ThreadStateError:
        context.check_open()
        told = protocol.undelivered.format(to=signal.address)
        return context.session.encode_message(told) if told else ()
    return ()


async def receive_as_declared(context: Context, protocol: TagProtocol) -> tuple[int, ...]:
    """What a model gets at a place to receive: tokens to be appended."""
    return written(context, await take_all(context), protocol.received)


def path_of(path: ThreadPath, address: str) -> ThreadPath | None:
    """Whom a thread means by an address; None for what is none."""
    if address == "parent":
        return path[:-1] or None
    if address == "root":
        return path[:1]
    numbers = address.split(".")
    if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in numbers):
        return None
    return (path[0], *map(int, numbers))

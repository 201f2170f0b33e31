"""What a thread sends to others of its tree, receives of them, and posts for all; recorded, and played back.

send:     wait for room in the mailbox -> MessageSent -> the mailbox has it
receive:  wait, if asked to -> take from the mailbox -> MessagesReceived
post:     Posted -> the board has it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from policies.conversion import converted
from runtime.errors import PromptError, ThreadStateError
from runtime.link.commands import ThreadPath
from runtime.link.events import MessageSent, MessagesReceived, Posted
from runtime.protocol import BoundProtocol
from runtime.threads.board import Posting
from runtime.threads.context import Context
from runtime.threads.mailbox import ThreadMessage
from runtime.threads.recorded_mail import RecordedMail, differs


async def send(context: Context, to: ThreadPath, text: str, tokens: tuple[int, ...] = ()) -> None:
    """Puts a message into another thread's mailbox, when there is room. See `ReasoningThread.send`."""
    context.check_open()
    if to == context.path:
        raise ValueError(f"Thread {to} sends to itself; append to its context instead.")
    if to[:1] != context.path[:1]:
        raise ValueError(f"Thread {to} is not in the tree of thread {context.path}; messages stay in a tree.")
    message = ThreadMessage(sender=context.path, text=text, tokens=tokens)
    addressee = context.office.find(to)
    if addressee is not None and addressee.template is not None:
        # What a model cannot read is its sender's error.
        written(context, [message], addressee.template)
    mail = context.session.opened.recorded_mail
    if mail is not None:
        await _send_again(context, mail, to, message)
        return
    try:
        await context.office.mailbox(to).room(to)
    except ThreadStateError as error:
        _record_sent(context, to, message, str(error))
        raise
    except BaseException:
        _record_sent(context, to, message, "cancelled")
        raise
    _record_sent(context, to, message, "")
    context.office.mailbox(to).put(message)


async def _send_again(context: Context, mail: RecordedMail, to: ThreadPath, message: ThreadMessage) -> None:
    """The same while a trace is played back: as it was recorded, without waiting for room."""
    recorded = mail.sent(context.path, to, message.text, message.tokens)
    if recorded.error == "cancelled":
        await _until_cancelled(context, mail, "a message it sends was cancelled")
    _record_sent(context, to, message, recorded.error)
    if recorded.error:
        raise ThreadStateError(recorded.error)
    mailbox = context.office.find(to)
    if mailbox is not None:
        mailbox.put(message)


async def take(context: Context, *, waits: bool) -> ThreadMessage | None:
    """The oldest message of a thread's mailbox. None where there is none, and with `waits` where none can come: no
    other thread of the tree is open, or the thread has ended meanwhile. Cancelled, it has taken nothing."""
    context.check_open()
    mail = context.session.opened.recorded_mail
    if mail is not None:
        recorded = mail.received(context.path)
        await _wait_as_recorded(context, mail, recorded)
        taken = _take_recorded(context, recorded)
        return taken[0] if taken else None
    ending: Literal["", "alone"] = ""
    try:
        while not (message := context.mailbox.take()) and waits:
            if context.office.has_one or context.state != "open":
                ending = "alone"
                break
            await context.office.changed(context.path, context.mailbox)
    except ThreadStateError:
        raise
    except BaseException:
        _record_received(context, [], "cancelled")
        raise
    _record_received(context, [] if message is None else [message], ending)
    return message


async def take_all(context: Context) -> list[ThreadMessage]:
    """Everything in a thread's mailbox, and then what others have posted since it last looked; waits for nothing."""
    context.check_open()
    mailbox, board = context.mailbox, context.office.board
    mail = context.session.opened.recorded_mail
    seen, upto, taken = mailbox.posts_seen, len(board), list[ThreadMessage]()
    if mail is not None:
        recorded = mail.received(context.path)
        await _wait_as_recorded(context, mail, recorded)
        taken, upto = _take_recorded(context, recorded), recorded.posts
    else:
        while message := mailbox.take():
            taken.append(message)
        mailbox.posts_seen = upto
        _record_received(context, taken)
    posted = (posting for posting in board[seen:upto] if posting.path != context.path)
    return taken + [ThreadMessage(sender=posting.path, text=posting.text) for posting in posted]


async def receive(context: Context) -> tuple[ThreadMessage, ...]:
    """A receive point: appends `take_all` to the context, and gives it. Raises like `written` and `Context.extend`;
    what was taken is gone then."""
    messages = await take_all(context)
    protocol = context.session.opened.protocol
    template = protocol.protocol.received if isinstance(protocol, BoundProtocol) else "{sender}: {message}\n"
    context.extend(written(context, messages, template))
    return tuple(messages)


def content_of(context: Context, message: str | Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """A message as text and token ids. Raises `PromptError` for ids outside the vocabulary."""
    if isinstance(message, str):
        return message, ()
    tokens = context.session.encode_message(message)
    return context.session.decode(tokens), tokens


def post(context: Context, text: str) -> None:
    """Puts a text on the board of a thread's tree."""
    context.check_open()
    mail = context.session.opened.recorded_mail
    place = None if mail is None else mail.posted(context.path, text)
    if context.session.is_recording:
        context.session.record(Posted(time=0.0, thread=context.path, text=text))
    context.office.post(Posting(context.path, text), place)


def address(path: ThreadPath) -> str:
    """A thread's name inside of its tree, as models read and write it: "root", "0", "0.2"."""
    return ".".join(map(str, path[1:])) or "root"


def written(context: Context, messages: Sequence[ThreadMessage], template: str) -> tuple[int, ...]:
    """Messages as a context gets them, by a template with {sender} and {message}; without a tokenizer, their tokens.

    Raises `PromptError` for what cannot be encoded."""
    session = context.session
    if session.opened.tokenizer is None:
        if any(message.text for message in messages):
            raise PromptError("The checkpoint has no tokenizer.json to append a text that was sent. Send token ids.")
        return tuple(token for message in messages for token in message.tokens)
    text = "".join(
        template.format(sender=address(message.sender), message=message.text or session.decode(message.tokens))
        for message in messages
    )
    return session.encode_message(text) if text else ()


class Messages:
    """Async iterator over the messages of a thread's mailbox."""

    def __init__(self, context: Context, waits: bool) -> None:
        """Made by `ReasoningThread.messages`."""
        self._context = context
        self._waits = converted(waits, bool, "waits")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ThreadMessage:
        message = await take(self._context, waits=self._waits)
        if message is None:
            raise StopAsyncIteration
        return message


async def _wait_as_recorded(context: Context, mail: RecordedMail, recorded: MessagesReceived) -> None:
    """Waits until what a thread took when it was recorded has come again, or for what ended its waiting."""
    if recorded.ending == "cancelled":
        await _until_cancelled(context, mail, "waiting for messages was cancelled")
    mailbox, office = context.mailbox, context.office

    def is_missing() -> bool:
        if recorded.ending == "alone":
            return not (office.has_one or context.state != "open")
        return not mailbox.has(recorded.senders) or len(office.board) < recorded.posts

    def what() -> str:
        if recorded.ending == "alone":
            return "it was alone in its tree, and other threads are open"
        return f"{len(recorded.senders)} messages and {recorded.posts} posts were there, and do not come"

    async with mail.awaiting(context.path, what):
        while is_missing():
            await office.changed(context.path, mailbox)


async def _until_cancelled(context: Context, mail: RecordedMail, how: str) -> None:
    async with mail.awaiting(context.path, lambda: f"{how}, and is not now"):
        while True:
            await context.office.changed(context.path, context.mailbox)


def _take_recorded(context: Context, recorded: MessagesReceived) -> list[ThreadMessage]:
    taken = list[ThreadMessage]()
    for sender in recorded.senders:
        message = context.mailbox.take(sender)
        if message is None:
            raise differs(context.path, f"thread {sender} has not sent what it had")
        taken.append(message)
    context.mailbox.posts_seen = recorded.posts
    _record_received(context, taken, recorded.ending)
    return taken


def _record_sent(context: Context, to: ThreadPath, message: ThreadMessage, error: str) -> None:
    if context.session.is_recording:
        context.session.record(
            MessageSent(time=0.0, thread=context.path, to=to, text=message.text, tokens=message.tokens, error=error)
        )


def _record_received(
    context: Context, messages: Sequence[ThreadMessage], ending: Literal["", "alone", "cancelled"] = ""
) -> None:
    if context.session.is_recording:
        context.session.record(
            MessagesReceived(
                time=0.0,
                thread=context.path,
                senders=tuple(message.sender for message in messages),
                posts=context.mailbox.posts_seen,
                ending=ending,
            )
        )

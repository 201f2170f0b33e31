"""Messages between threads, and the board of a tree: order, room, ends, and what a trace makes of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from policies import Fixed, Policy
from runtime import Engine, PromptError, ReasoningThread, Sampling, ThreadMessage, ThreadStateError, TraceError
from runtime.device.settings import EngineSettings
from runtime.loading.local import open_device
from runtime.threads.mailbox import MOST_MESSAGES
from tests.engine.engines import SIZES, opened
from traces import (
    MessageSent,
    MessagesReceived,
    Posted,
    Trace,
    imbalances,
    read,
    thread_lines,
    thread_tree,
    verify,
    walk_threads,
)
from traces.mail import deliveries
from traces.viewer_format import trace_events

pytestmark = pytest.mark.anyio
POLICY = Policy(depth=Fixed(2))
Said = list[tuple[object, ...]]


@pytest.fixture
async def engine(tiny_checkpoint: Path, anyio_backend: str) -> Engine:
    return opened(tiny_checkpoint, policy=POLICY)


async def nothing(thread: ReasoningThread) -> None:
    pass


async def test_messages_come_in_the_order_in_which_they_were_sent(engine: Engine) -> None:
    async def tell(thread: ReasoningThread) -> None:
        for number in range(3):
            await thread.send(thread.path[:-1], f"w{number}")
        await thread.send((*thread.path[:-1],), [4, 5])

    async with engine, engine.thread([1]) as root:
        child = root.spawn([2], program=tell)
        found = [message async for message in root.messages()]
        assert [message.text for message in found] == ["w0", "w1", "w2", "w4 w5"]
        assert found[3] == ThreadMessage(sender=child.path, text="w4 w5", tokens=(4, 5))


async def test_siblings_are_addressed_by_handle_and_by_path(engine: Engine) -> None:
    got: list[str] = []

    async def hear(thread: ReasoningThread) -> None:
        async for message in thread.messages():
            got.append(message.text)
            if message.text == "last":
                break

    async with engine, engine.thread([1]) as root:
        hearer = root.spawn([2], program=hear)

        async def tell(thread: ReasoningThread) -> None:
            await thread.send(hearer, "by handle")
            await thread.send(hearer.path, "by path")
            await thread.send(list(hearer.path), "last")  # type: ignore[arg-type]

        root.spawn([3], program=tell)
        await root.join(append=False)
    assert got == ["by handle", "by path", "last"]


async def test_an_iteration_without_waiting_ends_where_the_mailbox_is_empty(engine: Engine) -> None:
    async with engine, engine.thread([1]) as root:
        assert [message async for message in root.messages(waits=False)] == []
        waiting = root.spawn([2], program=lambda thread: _until_told(thread))
        await waiting_sends(root, waiting.path, 1)
        await waiting


async def _until_told(thread: ReasoningThread) -> None:
    async for _ in thread.messages():
        break


async def waiting_sends(thread: ReasoningThread, to: tuple[int, ...], count: int) -> None:
    for number in range(count):
        await thread.send(to, str(number))


async def test_a_full_mailbox_makes_senders_wait_in_turn(engine: Engine) -> None:
    async with engine, engine.thread([1]) as root:
        release = anyio.Event()

        got: list[str] = []

        async def hear(thread: ReasoningThread) -> None:
            await release.wait()
            async for message in thread.messages():
                got.append(message.text)
                if len(got) == MOST_MESSAGES + 3:
                    break

        hearer = root.spawn([2], program=hear)
        await waiting_sends(root, hearer.path, MOST_MESSAGES)
        order: list[str] = []

        async def tell(text: str) -> None:
            await root.send(hearer, text)
            order.append(text)

        async with anyio.create_task_group() as group:
            for text in ("w1", "w2", "w3"):
                group.start_soon(tell, text)
                await anyio.wait_all_tasks_blocked()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await root.send(hearer, "never")
            assert not order
            release.set()
        await hearer
        # Which of those who are woken together runs first, trio draws.
        assert sorted(order) == ["w1", "w2", "w3"]
        assert got == [*map(str, range(MOST_MESSAGES)), *order]


async def test_a_thread_that_ends_lets_go_of_those_who_wait_to_send_to_it(engine: Engine) -> None:
    async with engine, engine.thread([1]) as root:
        release = anyio.Event()

        async def deaf(thread: ReasoningThread) -> None:
            await release.wait()

        child = root.spawn([2], program=deaf)
        await waiting_sends(root, child.path, MOST_MESSAGES)
        async with anyio.create_task_group() as group:

            async def one_more() -> None:
                with pytest.raises(ThreadStateError, match="has ended, so that it receives no message"):
                    await root.send(child, "one more")

            group.start_soon(one_more)
            await anyio.wait_all_tasks_blocked()
            release.set()
        with pytest.raises(ThreadStateError, match="has ended, or was never started"):
            await root.send(child, "too late")


async def test_what_cannot_be_addressed_is_refused(engine: Engine) -> None:
    async with engine, engine.thread([1]) as root, engine.thread([1]) as other:
        with pytest.raises(ValueError, match="sends to itself"):
            await root.send(root, "w1")
        with pytest.raises(ValueError, match="messages stay in a tree"):
            await root.send(other, "w1")
        with pytest.raises(ThreadStateError, match="never started"):
            await root.send((*root.path, 7), "w1")
        with pytest.raises(ValueError, match="to is"):
            await root.send("0.1", "w1")  # type: ignore[arg-type]
        with pytest.raises(PromptError):
            await root.send((*root.path, 0), [99])


async def test_two_coroutines_do_not_wait_for_one_threads_messages(engine: Engine) -> None:
    async with engine, engine.thread([1]) as root:
        child = root.spawn([2], program=_until_told)
        async with anyio.create_task_group() as group:
            group.start_soon(_until_told, root)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ThreadStateError, match="by another coroutine"):
                await _until_told(root)
            group.cancel_scope.cancel()
        child.cancel()


async def test_the_board_has_all_posts_and_a_context_gets_what_it_has_not_seen(engine: Engine) -> None:
    async def share(thread: ReasoningThread) -> None:
        thread.post(f"w{thread.path[-1]}")

    async with engine, engine.thread([1]) as root:
        root.post("w9")
        for _ in range(2):
            await root.join([root.spawn([2], program=share)], append=False)
        assert list(root.tree.board) == [(root.path, "w9"), ((*root.path, 0), "w0"), ((*root.path, 1), "w1")]
        before = root.tokens
        got = await root.receive()
        assert [message.text for message in got] == ["w0", "w1"]
        assert root.tokens[: len(before)] == before
        assert len(root.tokens) > len(before)
        assert await root.receive() == ()
        late = root.fork([3], program=passed_over)
        new = root.spawn([3], program=passed_over)
        assert (await late).text == ""
        assert (await new).text == "w9 w0 w1"


async def passed_over(thread: ReasoningThread) -> str:
    return " ".join(message.text for message in await thread.receive())


# ---- traces ---------------------------------------------------------------------------------------------------------


async def share_and_listen(thread: ReasoningThread) -> str:
    """Some rounds of saying something, telling the others and taking in what they have told."""
    number, parent = thread.path[-1], thread.path[:-1]
    heard = []
    for _ in range(3):
        said = await thread.generate(1 + number % 3)
        thread.post(said.text)
        await thread.send(parent, said.text)
        if number:
            with suppress(ThreadStateError):
                await thread.send((*parent, number - 1), said.text)
        heard += [f"{message.sender[-1]}:{message.text}" for message in await thread.receive()]
    return "w1 " if len(heard) % 2 else "w2 "


async def talk(engine: Engine) -> Said:
    said: Said = []
    async with engine.thread([1, 2, 3]) as root:
        children = [root.fork([4 + i], program=share_and_listen) for i in range(4)]
        async for message in root.messages():
            said.append((message.sender, message.text))
        await root.join(children)
        said += [*root.tree.board, root.tokens]
        with anyio.move_on_after(0):
            await root.generate(20)
        said.append((await root.generate(3)).tokens)
    return said


async def recorded(tiny_checkpoint: Path, path: Path, program: Callable[[Engine], Awaitable[Said]]) -> Said:
    async with opened(tiny_checkpoint, policy=POLICY, sampling=Sampling(temperature=0.8), trace=path) as engine:
        return await program(engine)


def executed(path: Path, checkpoint: Path) -> bool:
    """Whether a trace can be executed again, token by token."""
    device = open_device(checkpoint, EngineSettings(**SIZES), policy=POLICY, trace=None, seed=0).device
    return verify(read(path), device).equal


async def played(trace: Trace, program: Callable[[Engine], Awaitable[Said]]) -> Said:
    async with Engine.playback(trace, sampling=Sampling(temperature=0.8)) as engine:
        return await program(engine)


async def test_a_trace_plays_back_every_message_and_post(tiny_checkpoint: Path, tmp_path: Path) -> None:
    said = await recorded(tiny_checkpoint, tmp_path / "run.trace", talk)
    trace = read(tmp_path / "run.trace")
    assert imbalances(trace.events) == []
    assert await anyio.to_thread.run_sync(executed, tmp_path / "run.trace", tiny_checkpoint)
    assert await played(trace, talk) == said
    sent = [event for event in trace.events if isinstance(event, MessageSent) and not event.error]
    found = deliveries(trace.events)
    assert 12 < len(sent) <= 21
    ends = [event for event in trace.events if isinstance(event, MessagesReceived) and event.ending == "alone"]
    assert len(ends) == 1
    assert all(delivery.sent <= delivery.received for delivery in found)
    arrows = [each for each in trace_events(trace) if each["name"] in ("message", "post") and each["ph"] in "sf"]
    assert [each["ph"] for each in arrows] == ["s", "f"] * len(found)
    lines = [msgspec.json.decode(line) for line in thread_lines(trace.events)]
    assert sum(each["kind"] == "sent" and not each["error"] for line in lines for each in line["mail"]) == len(sent)
    mail = [event for record in walk_threads(thread_tree(trace.events)) for event in record.mail]
    assert len(mail) == sum(
        type(event).__name__ in ("MessageSent", "Posted", "MessagesReceived") for event in trace.events
    )


async def short(engine: Engine, *, text: str = "w1", posted: str = "w2", looks: int = 1) -> Said:
    async def tell(thread: ReasoningThread) -> None:
        await thread.send(thread.path[:-1], text)
        thread.post(posted)

    async with engine.thread([1]) as root:
        await root.join([root.spawn([2], program=tell)])
        got: Said = []
        for _ in range(looks):
            got += [(message.sender, message.text) for message in await root.receive()]
        got.append((await root.generate(2)).tokens)
    return got


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": "w3"}, "the message it sends is"),
        ({"posted": "w3"}, "the text it posts is 'w3', and was 'w2'"),
        ({"looks": 2}, "receives messages where the recording does not"),
    ],
)
async def test_a_program_whose_messages_differ_is_told(
    change: dict[str, str | int], told: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    said = await recorded(tiny_checkpoint, tmp_path / "run.trace", short)
    trace = read(tmp_path / "run.trace")
    assert said[:2] == [((0, 0), "w1"), ((0, 0), "w2")]
    assert await played(trace, short) == said
    with pytest.raises(TraceError, match=told):
        await played(trace, partial(short, **change))  # type: ignore[arg-type]


async def late(engine: Engine, *, first: bool) -> Said:
    """Two threads send, one after the other; which first, the root says."""
    async with engine.thread([1]) as root:
        events = [anyio.Event(), anyio.Event()]

        async def tell(thread: ReasoningThread) -> None:
            number = thread.path[-1]
            if number != first:
                await events[not number].wait()
            await thread.send(root, f"w{number}")
            thread.post(f"w{number}")
            events[number].set()

        children = [root.spawn([2], program=tell) for _ in range(2)]
        await root.join(children, append=False)
        received = [(message.sender, message.text) for message in await root.receive()]
    return [*received, *root.tree.board]


@pytest.mark.parametrize("first", [False, True])
async def test_deliveries_come_in_recorded_order_whichever_is_sent_first_now(
    first: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    said = await recorded(tiny_checkpoint, tmp_path / "run.trace", partial(late, first=first))
    assert said[0] == ((0, int(first)), f"w{int(first)}")
    assert await played(read(tmp_path / "run.trace"), partial(late, first=not first)) == said


async def test_a_trace_whose_messages_do_not_fit_together_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    await recorded(tiny_checkpoint, tmp_path / "run.trace", short)
    trace = read(tmp_path / "run.trace")
    events = [event for event in trace.events if not isinstance(event, MessageSent | Posted)]
    assert imbalances(events) == [
        "thread 0 receives a message that thread 0.0 has not sent",
        "thread 0 passes 1 posts of a board that has 0",
    ]

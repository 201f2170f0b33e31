"""Messages of threads that models drive, by the tags of a protocol."""

from __future__ import annotations

import msgspec
import pytest

from runtime import ProtocolError, ReasoningThread, ThreadStateError
from runtime.link.commands import Extend, Signal
from runtime.link.events import MessageSent, MessagesReceived, Posted
from runtime.protocol import BoundProtocol
from runtime.threads.driven_mail import path_of
from runtime.threads.mailbox import MOST_MESSAGES
from tests.runtime_loop.engines import engine_under
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import assert_all_closed, scripts
from tests.runtime_loop.words import bound_protocol, ids

pytestmark = pytest.mark.anyio


def mail_protocol(**changes: object) -> BoundProtocol:
    """A message is "<send> address : text </send>", and is read as "! sender : text"."""
    declared = {
        "send_open": "<send>",
        "send_close": "</send>",
        "receive": "<receive>",
        "received": "! {sender} : {message} ",
        "undelivered": "! {to} ",
    }
    return bound_protocol(**{**declared, **changes})


def received_by(device: ScriptedDevice, *path: int) -> list[tuple[int, ...]]:
    return [c.tokens for c in device.core.commands if isinstance(c, Extend) and c.thread == path]


async def test_messages_and_posts_are_read_at_the_tag_that_receives() -> None:
    device = ScriptedDevice(
        scripts(
            {
                "1": "<spawn> 2 </spawn> <join> <spawn> 3 </spawn> <join> a <receive> b <receive> <return> 9 <end>",
                "2": "<send> root : 5 6 </send> <return> 7 <end>",
                "3": "<send> board : 4 </send> <receive> <return> 8 <end>",
            }
        )
    )
    async with engine_under(device, mail_protocol()) as engine:
        assert (await engine.run("1")).text == "9"
    delivered = [ids("<message> 7 </message>"), ids("<message> 8 </message>")]
    assert received_by(device, 0) == [ids("1"), *delivered, ids("! 0 : 5 6 ! 1 : 4")]
    # What it has posted itself is not read back to it.
    assert received_by(device, 0, 1) == [ids("3")]
    events = device.core.events
    assert [(e.thread, e.to, e.text) for e in events if isinstance(e, MessageSent)] == [((0, 0), (0,), "5 6")]
    assert [(e.thread, e.text) for e in events if isinstance(e, Posted)] == [((0, 1), "4")]
    looks = [(e.thread, e.senders, e.posts) for e in events if isinstance(e, MessagesReceived)]
    assert looks == [((0, 1), (), 1), ((0,), ((0, 0),), 1), ((0,), (), 1)]
    assert_all_closed(device.core)


async def test_a_message_to_a_thread_that_has_ended_is_told_to_the_model() -> None:
    device = ScriptedDevice(
        scripts({"1": "<spawn> 2 </spawn> <join> <send> 0 : 5 </send> <return> 9 <end>", "2": "<return> 7 <end>"})
    )
    async with engine_under(device, mail_protocol()) as engine:
        assert (await engine.run("1")).text == "9"
    assert received_by(device, 0)[-1] == ids("! 0")
    (sent,) = (event for event in device.core.events if isinstance(event, MessageSent))
    assert "has ended" in sent.error


@pytest.mark.parametrize("address", ["a", "root"])
async def test_what_is_no_other_thread_is_malformed(address: str) -> None:
    device = ScriptedDevice(scripts({"1": f"<send> {address} : 5 </send> <return> 9 <end>"}))
    async with engine_under(device, mail_protocol()) as engine:
        with pytest.raises(ProtocolError, match="is not another thread"):
            await engine.run("1")
    device = ScriptedDevice(scripts({"1": f"<send> {address} : 5 </send> <return> 9 <end>"}))
    async with engine_under(device, mail_protocol(on_malformed="ignore")) as engine:
        assert (await engine.run("1")).text == "9"


async def test_a_message_without_an_address_is_malformed() -> None:
    device = ScriptedDevice(scripts({"1": "<send> 5 </send> <return> 9 <end>"}))
    async with engine_under(device, mail_protocol()) as engine:
        with pytest.raises(ProtocolError, match="does not match the protocol's send_pattern"):
            await engine.run("1")


async def test_what_a_thread_returns_may_stand_before_its_last_message() -> None:
    device = ScriptedDevice(scripts({"1": "<return> 9 </message> a <receive> b <end>"}))
    protocol = mail_protocol(return_close="</message>")
    async with engine_under(device, protocol) as engine:
        assert (await engine.run("1")).text == "9"


async def test_a_parent_at_its_join_holds_up_no_child_that_sends_to_it() -> None:
    sends = "<send> parent : 5 </send> " * (MOST_MESSAGES + 3)
    device = ScriptedDevice(
        scripts(
            {"1": "<spawn> 2 </spawn> <join> <receive> <return> 9 <end>", "2": sends + "<return> 7 <end>"},
        )
    )
    async with engine_under(device, mail_protocol()) as engine:
        assert (await engine.run("1")).text == "9"
    assert received_by(device, 0)[-1] == ids("! 0 : 5") * (MOST_MESSAGES + 3)


async def test_a_thread_without_a_place_to_receive_cannot_be_sent_to() -> None:
    device = ScriptedDevice(scripts({"2": "<return> 7 <end>"}))
    async with engine_under(device) as engine, engine.thread("1") as root:
        child = root.spawn("2")
        with pytest.raises(ThreadStateError, match="no tag `receive` is declared"):
            await root.send(child, "5")
        assert (await child).text == "7"


async def test_a_program_sends_to_a_thread_that_its_model_drives() -> None:
    device = ScriptedDevice(scripts({"2": "a <receive> <return> 7 <end>"}))
    async with engine_under(device, mail_protocol()) as engine, engine.thread("1") as root:
        child = root.spawn("2")
        await root.send(child, "5 6")
        assert (await child).text == "7"

        async def listen(thread: ReasoningThread) -> None:
            await thread.send(root, "no word at all")

        await root.join([root.spawn("3", program=listen)], append=False)
        assert [message.text async for message in root.messages(waits=False)] == ["no word at all"]
    assert received_by(device, 0, 0) == [ids("2"), ids("! root : 5 6")]


def test_a_lines_end_may_close_spawns_and_be_a_place_to_receive() -> None:
    from tests.protocol.watching import ids_of, piece_tokenizer, signals_of

    fields = msgspec.structs.asdict(mail_protocol().protocol) | {"spawn_close": "\n", "receive": "\n"}
    tokenizer = piece_tokenizer(["<spawn>", "<send>", "</send>"])
    protocol = BoundProtocol(type(mail_protocol().protocol)(**fields), tokenizer)
    kinds = []
    watcher = protocol.watcher()
    for token in ids_of(tokenizer, ["<spawn>", "a", "\n", "b", "\n", "<send>", "0", ":", "\n", "c", "</send>"]):
        kinds += [(signal.kind, signal.address, signal.text) for signal in watcher.feed(token)]
    assert kinds == [("spawn", "", ""), ("receive", "", ""), ("send", "0", "c")]
    assert signals_of(protocol.watcher(), ids_of(tokenizer, ["\n"])) == [Signal("receive", stops=True)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"send_close": ""}, "send_open and send_close belong together"),
        ({"send_pattern": "(?P<to>.*)"}, "message"),
        ({"receive": "</spawn>"}, "only a line's end may do both"),
        ({"undelivered": "{message}"}, "undelivered"),
    ],
)
def test_declarations_that_contradict_themselves_are_told(change: dict[str, str], told: str) -> None:
    with pytest.raises(ProtocolError, match=told):
        mail_protocol(**change)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("parent", (3, 0)),
        ("root", (3,)),
        ("0", (3, 0)),
        ("0.2", (3, 0, 2)),
        ("", None),
        ("0.", None),
        ("-1", None),
        ("sibling", None),
        ("99999999999", None),
    ],
)
def test_addresses_are_paths_in_the_tree(address: str, path: tuple[int, ...] | None) -> None:
    assert path_of((3, 0, 1), address) == path

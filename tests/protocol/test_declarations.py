"""What a protocol may declare, and what is refused and why."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from runtime.errors import PromptError, ProtocolError
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import APR, BoundProtocol, Definition, TagProtocol
from tests.protocol.declared import BLOCKS, TEXT
from tests.protocol.watching import COUNTDOWN, bound_countdown


@pytest.mark.parametrize("protocol", [COUNTDOWN, TEXT, BLOCKS, APR])
def test_protocols_travel_as_json(protocol: TagProtocol) -> None:
    assert msgspec.json.decode(msgspec.json.encode(protocol), type=TagProtocol) == protocol
    assert msgspec.convert(msgspec.to_builtins(protocol), TagProtocol) == protocol


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spawn_close": ""}, "spawn_close is empty"),
        ({"join": ""}, "join is empty"),
        ({"end": ("",)}, "an empty one"),
        ({"end": ("<end>", "<win>")}, "contained in"),
        ({"forbidden": ("x<end>y",)}, "'<end>' is contained in tag 'x<end>y'"),
        ({"block_open": "<block>"}, "belong together"),
        ({"cuts_block": True}, "cuts_block needs blocks"),
        ({"return_open": ""}, "either return_open or return_pattern"),
        ({"return_pattern": "(?P<message>.*)"}, "either return_open or return_pattern"),
        ({"return_open": "", "return_pattern": ".*"}, r"lacks the group \(\?P<message>"),
        ({"return_open": "", "return_pattern": "("}, "no regular expression"),
        ({"end": ()}, "no end"),
        ({"child": "{text}"}, r"uses \{text\}; fields that can be filled here: \{message\}"),
        ({"child": "{message!r}"}, "uses"),
        ({"child": "{"}, "is no template"),
        ({"delivered": "<message>"}, r"lacks \{message\}"),
        ({"joined": ""}, r"lacks \{children\}"),
        ({"prompt": "x"}, r"lacks \{prompt\}"),
        ({"definitions": (Definition(pattern="(?P<name>x)"),)}, "need a message_pattern"),
        ({"longest_message": 0}, "longest_message is 0"),
        ({"most_messages": 0}, "most_messages is 0"),
    ],
)
def test_declarations_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        msgspec.structs.replace(COUNTDOWN, **changes)


def test_definitions_need_their_groups() -> None:
    with pytest.raises(ProtocolError, match=r"lacks the group \(\?P<name>"):
        Definition(pattern="x")
    with pytest.raises(ProtocolError, match=r"lacks the group \(\?P<parent>"):
        Definition(pattern="(?P<name>x)", appends={"path": "x"})
    with pytest.raises(ProtocolError, match=r"uses \{step\}"):
        Definition(pattern="(?P<name>x)(?P<parent>y)", appends={"path": "{step}"})


def test_misspelt_fields_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="spawn_opne"):
        msgspec.json.decode(b'{"spawn_opne": "<a>"}', type=TagProtocol)


def test_tags_and_texts_that_the_tokenizer_cannot_write() -> None:
    with pytest.raises(ProtocolError, match="cannot write '<fork>' of the protocol's tag"):
        bound_countdown(spawn_open="<fork>")
    with pytest.raises(ProtocolError, match="of the protocol's joined"):
        bound_countdown(joined="results {children}")
    lossy = Library(models.BPE({name: token for token, name in enumerate("<>jo")}, []))
    lossy.decoder = decoders.Fuse()
    with pytest.raises(ProtocolError, match="encoded and decoded it is"):
        BoundProtocol(COUNTDOWN, Tokenizer(lossy))
    with pytest.raises(PromptError):
        bound_countdown().prompt("")

"""APR's protocol as its paper's models write it: calls, children's prompts, what is returned and delivered."""

from __future__ import annotations

import re

import pytest

from runtime.errors import ProtocolError
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import APR, BoundProtocol, apr_protocol
from tests.protocol.watching import ids_of, piece_tokenizer, signals_of

ROOT = "Moving to Node #0\nCurrent State: 39:[51, 49, 36, 25], Operations: []"

BEFORE_CALL = """
Exploring Operation: 51-49=2, Resulting Numbers: [36, 25, 2]
Generated Node #0,0: 39:[36, 25, 2] Operation: 51-49=2
Exploring Operation: 36-25=11, Resulting Numbers: [51, 49, 11]
Generated Node #0,1: 39:[51, 49, 11] Operation: 36-25=11
Moving to Node #0,0
Current State: 39:[36, 25, 2], Operations: ['51-49=2']
Exploring Operation: 25*2=50, Resulting Numbers: [36, 50]
Generated Node #0,0,0: 39:[36, 50] Operation: 25*2=50
Exploring Operation: 36-25=11, Resulting Numbers: [2, 11]
Generated Node #0,0,1: 39:[2, 11] Operation: 36-25=11
"""

CALL = """<Calling Sub Searches>
<Start Sub Search 0 at level 1> Moving to Node #0,0,1
<Start Sub Search 1 at level 1> Moving to Node #0,1
<Start Sub Search 2 at level 1> Moving to Node #0
<End Calling Sub Searches>"""

CHILDREN = [
    "Moving to Node #0,0,1\nCurrent State: 39:[2, 11], Operations: ['51-49=2', '36-25=11']",
    "Moving to Node #0,1\nCurrent State: 39:[51, 49, 11], Operations: ['36-25=11']",
    "Moving to Node #0\nCurrent State: 39:[51, 49, 36, 25], Operations: []",
]

PATH = """Moving to Node #0,1
Current State: 39:[51, 49, 11], Operations: ['36-25=11']
Exploring Operation: 51-11=40, Resulting Numbers: [49, 40]
39,39 equal: Goal Reached"""

CHILD_OUTPUT = f"""
Exploring Operation: 51-11=40, Resulting Numbers: [49, 40]
39,39 equal: Goal Reached
{PATH}
"""

AFTER_CALL = f"""<Sub Searches>
<No Solution in Sub Search 0 at level 1 at Node #0,0,1>
<Goal Reached in Sub Search 1 at level 1 at Node #0,1>
{PATH}
<No Solution in Sub Search 2 at level 1 at Node #0>
<End Sub Searches>
"""


@pytest.fixture(scope="module")
def apr_tokenizer() -> Tokenizer:
    # As in a learned vocabulary, tokens span words and lines: the block's first bracket shares a token with what
    # stands before it.
    return piece_tokenizer(["\n<", "Node #0", "<Start Sub Search ", ">\n<", " Searches>\n", "Op"], ["<s>", "</s>"])


def emit(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text, the longest first."""
    tokens = []
    for piece in re.findall(r"\n<(?!E)|>\n<|Node #0|<Start Sub Search | Searches>\n|Op|.", text, re.DOTALL):
        tokens += ids_of(tokenizer, [piece])
    assert tokenizer.decode(tokens) == text
    return tokens


def test_apr_children_are_prompted_with_the_nodes_named(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    assert not bound.on_ids
    prompt = bound.prompt(ROOT)
    assert apr_tokenizer.decode(prompt) == "<s>" + ROOT
    emitted = emit(apr_tokenizer, BEFORE_CALL + CALL)
    signals = signals_of(bound.watcher(prompt), emitted)
    assert [signal.kind for signal in signals] == ["spawn", "spawn", "spawn", "join"]
    assert [apr_tokenizer.decode(signal.tokens) for signal in signals[:3]] == ["<s>" + child for child in CHILDREN]
    assert signals[0].tokens[0] == apr_tokenizer.token_to_id("<s>")

    join = signals[-1]
    assert join.keep is not None
    kept = apr_tokenizer.decode(emitted[: join.keep])
    assert kept + "\n" == BEFORE_CALL  # the line's end shares a token with the block
    assert apr_tokenizer.decode(join.tokens) == "\n"
    path = tuple(apr_tokenizer.encode(PATH))
    delivery = bound.delivery([(), path, ()], [signal.tokens for signal in signals[:3]])
    assert apr_tokenizer.decode([*emitted[: join.keep], *join.tokens, *delivery]) == BEFORE_CALL + AFTER_CALL


def test_apr_spawns_start_at_the_end_of_their_line(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    watcher = bound.watcher(bound.prompt(ROOT))
    first_line = (BEFORE_CALL + CALL).index("\n<Start Sub Search 1") + 1
    signals = [
        signal for token in apr_tokenizer.encode((BEFORE_CALL + CALL)[:first_line]) for signal in watcher.feed(token)
    ]
    assert [signal.kind for signal in signals] == ["spawn"]


def test_apr_later_calls_know_what_was_delivered(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    context = [*bound.prompt(ROOT), *apr_tokenizer.encode(BEFORE_CALL + AFTER_CALL)]
    call = "<Calling Sub Searches>\n<Start Sub Search 0 at level 1> Moving to Node #0,0,0\n<End Calling Sub Searches>"
    signals = signals_of(bound.watcher(context), apr_tokenizer.encode(call))
    assert apr_tokenizer.decode(signals[0].tokens) == (
        "<s>Moving to Node #0,0,0\nCurrent State: 39:[36, 50], Operations: ['51-49=2', '25*2=50']"
    )
    assert (signals[1].keep, signals[1].tokens) == (0, ())


def test_apr_children_return_the_path_they_repeat(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    (eos,) = ids_of(apr_tokenizer, ["</s>"])
    found = [*emit(apr_tokenizer, CHILD_OUTPUT), eos]
    signals = signals_of(bound.watcher(), found)
    assert [(signal.kind, apr_tokenizer.decode(signal.tokens)) for signal in signals] == [("end", PATH)]
    assert apr_tokenizer.decode(bound.returned(found)) == PATH
    # Also where the thread was stopped before its end token.
    assert apr_tokenizer.decode(bound.returned(found[:-1])) == PATH
    for nothing in ("\nNo solution found.\n", "\n39,39 equal: Goal Reached\n"):
        signals = signals_of(bound.watcher(), [*apr_tokenizer.encode(nothing), eos])
        assert [(signal.kind, signal.tokens) for signal in signals] == [("end", ())]
        assert bound.returned(apr_tokenizer.encode(nothing)) == ()


def test_apr_conditions_roots_on_the_budget(apr_tokenizer: Tokenizer) -> None:
    bound = BoundProtocol(apr_protocol(budget=10, bos=""), apr_tokenizer)
    prompt = bound.prompt(ROOT)
    assert apr_tokenizer.decode(prompt) == "Sub Call Budget: 10 " + ROOT
    spawn = signals_of(bound.watcher(prompt), apr_tokenizer.encode(BEFORE_CALL + CALL))[2]
    assert apr_tokenizer.decode(spawn.tokens) == ROOT
    with pytest.raises(ProtocolError, match="budget is -1"):
        apr_protocol(budget=-1)


@pytest.mark.parametrize(
    ("emitted", "reason"),
    [
        (
            "<Calling Sub Searches>\n<Start Sub Search 0 at level 1> Moving to Node #0,7\n",
            "'0,7', which was not defined",
        ),
        ("<Calling Sub Searches>\n<Start Sub Search 0 at level 1> Moving on\n", "does not match"),
        ("<Calling Sub Searches>\n<Start Sub Search\n", "message is empty"),
        ("<Start Sub Search 0", "cannot stand outside any message"),
        ("<End Calling Sub Searches>", "cannot stand outside any message"),
        ("<Calling Sub Searches>\n<Calling Sub Searches>", "cannot stand inside a spawn block"),
        ("<Sub Searches>", "cannot stand outside any message"),
    ],
)
def test_apr_malformed_calls(apr_tokenizer: Tokenizer, emitted: str, reason: str) -> None:
    bound = BoundProtocol(APR, apr_tokenizer)
    signals = signals_of(bound.watcher(bound.prompt(ROOT)), apr_tokenizer.encode(BEFORE_CALL + emitted))
    assert [signal.kind for signal in signals] == ["malformed"]
    assert reason in signals[0].reason
    ignoring = BoundProtocol(apr_protocol(on_malformed="ignore"), apr_tokenizer)
    emitted += "\n<End Calling Sub Searches>" if emitted.startswith("<Calling") else ""
    kinds = [s.kind for s in signals_of(ignoring.watcher(ignoring.prompt(ROOT)), apr_tokenizer.encode(emitted))]
    assert kinds == (["join"] if emitted.startswith("<Calling") else [])


def test_apr_deliveries_need_the_childrens_prompts(apr_tokenizer: Tokenizer) -> None:
    with pytest.raises(ProtocolError, match="2 messages were returned, but there are 0 prompts"):
        BoundProtocol(APR, apr_tokenizer).delivery([(), ()])

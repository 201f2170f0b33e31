"""The published text format of Adaptive Parallel Reasoning (arXiv 2504.15466, github.com/Parallel-Reasoning/APR).

A parent calls sub searches in a block, naming nodes that its text has generated before:

    Moving to Node #0
    Current State: 39:[51, 49, 36, 25], Operations: []
    Exploring Operation: 51-49=2, Resulting Numbers: [36, 25, 2]
    Generated Node #0,0: 39:[36, 25, 2] Operation: 51-49=2
    <Calling Sub Searches>
    <Start Sub Search 0 at level 1> Moving to Node #0,0
    <End Calling Sub Searches>

A child's prompt is its node, with the operations on the way there:

    Moving to Node #0,0
    Current State: 39:[36, 25, 2], Operations: ['51-49=2']

It returns the path that it repeats after it has reached the goal: what follows the last "Goal Reached" but one. The
block is then cut out of the parent's context and replaced by the results:

    <Sub Searches>
    <Goal Reached in Sub Search 0 at level 1 at Node #0,0>
    Moving to Node #0,0
    ...
    <No Solution in Sub Search 1 at level 1 at Node #0,1>
    <End Sub Searches>
"""

from __future__ import annotations

from typing import Literal

from runtime.errors import ProtocolError
from runtime.protocol.declaration import Definition, TagProtocol

_STATE = r"(?P<state>\d+:\[[\d, ]*\])"

_VISITED = rf"Moving to Node #(?P<name>[\d,]+)[ \t]*\nCurrent State: {_STATE}, Operations: \[(?P<operations>[^\]\n]*)\]"

_GENERATED = rf"Generated Node #(?P<name>(?P<parent>[\d,]+),\d+): {_STATE} Operation: (?P<operation>\S+)"

# What is read first reaches as far as it can: to the last "Goal Reached" that another one follows.
_RETURNED = r"(?s).*Goal Reached.(?P<message>.*Goal Reached.*)"


def apr_protocol(
    budget: int | None = None, bos: str = "<s>", eos: str = "</s>", on_malformed: Literal["end", "ignore"] = "end"
) -> TagProtocol:
    """APR's format for a tokenizer's tokens for beginning and end; an empty `bos` leaves it to the tokenizer.

    `budget` is the number of sub searches that a model trained with "Sub Call Budget" is told to make. A root is
    prompted with its node, "Moving to Node #0\\nCurrent State: 39:[51, 49, 36, 25], Operations: []".
    """
    if budget is not None and budget < 0:
        raise ProtocolError(f"budget is {budget}; it must be at least 0, or None for a prompt without one.")
    about = "in Sub Search {index} at level 1 at Node {node}>\n"
    return TagProtocol(
        prompt=bos + ("" if budget is None else f"Sub Call Budget: {budget} ") + "{prompt}",
        block_open="<Calling Sub Searches>",
        block_close="<End Calling Sub Searches>",
        cuts_block=True,
        spawn_open="<Start Sub Search",
        spawn_close="\n",
        message_pattern=r"\d+ at level \d+> Moving to Node #(?P<name>[\d,]+)",
        definitions=(
            Definition(pattern=_VISITED),
            Definition(pattern=_GENERATED, appends={"operations": "'{operation}'"}),
        ),
        child=bos + "Moving to Node #{name}\nCurrent State: {state}, Operations: [{operations}]",
        return_pattern=_RETURNED,
        end=(eos,),
        forbidden=("<Sub Searches>",),
        child_pattern=r"Moving to Node (?P<node>#[\d,]+)",
        delivered=f"<Goal Reached {about}{{message}}\n",
        delivered_nothing=f"<No Solution {about}",
        joined="<Sub Searches>\n{children}<End Sub Searches>\n",
        on_malformed=on_malformed,
    )


APR = apr_protocol()

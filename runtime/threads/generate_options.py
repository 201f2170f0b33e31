"""What one generate is asked for, on the event loop."""

from __future__ import annotations

from typing import Any

import msgspec

from policies import DepthPolicy
from runtime.link.commands import Watcher
from runtime.link.constraints import Constraint, Matcher
from runtime.link.sampling import Sampling
from runtime.protocol import BoundProtocol
from runtime.protocol.constraints import ConstraintOptions, constraint_of
from runtime.threads.arguments import GenerateArguments
from runtime.threads.session import Session


class GenerateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one generate is asked for; None is what the thread's settings say."""

    max_tokens: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    watcher: Watcher | None = None
    """Instead of stop strings."""
    sampling: Sampling | None = None
    depth: DepthPolicy | None = None
    entropies: bool = False
    stream: bool = False
    nowait: bool = False
    scores: tuple[int, ...] = ()
    """Tokens to be scored instead of any that are sampled."""
    fills: bool = False
    """Whether the context is only computed to its last token."""
    constraint: Constraint | None = None
    """What the text must be."""
    resumes: bool = False
    """Whether it goes on with a text of this constraint that the context ends with."""
    matcher: Matcher | None = None
    """Of the constraint, once it is made."""


def generate_options(
    session: Session, arguments: dict[str, Any], constraint: ConstraintOptions, *, stream: bool
) -> GenerateOptions:
    """What `generate` and `stream` are asked for by their arguments. Raises `ValueError`, naming one that is wrong."""
    given, protocol = GenerateArguments(**arguments), session.opened.protocol
    asked = constraint_of(constraint, stops=bool(given.stop))
    if asked is not None and isinstance(protocol, BoundProtocol):
        asked = msgspec.structs.replace(asked, thought=protocol.thought)
    return GenerateOptions(
        max_tokens=given.max_tokens,
        stop_tokens=given.stop_tokens | session.opened.stop_tokens,
        stop_strings=given.stop_strings,
        sampling=None if given.sampling is None else session.sampled_as(given.sampling),
        depth=given.depth,
        nowait=given.nowait,
        stream=stream,
        constraint=asked,
        resumes=bool(constraint.get("resume")),
    )

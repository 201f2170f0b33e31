"""Protocols of models that fork while they decode: branches begin with all that the model has said, and their parent
goes on with what they say.

    <Goal> <Outline>1: ...</Outline> <Outline>2: ...</Outline> </Goal>      the tag that forks
        <Path>1: ... </Path>     <Path>2: ... </Path>                       a branch for each outline, all at once
    <Conclusion> ...                                                        the parent, behind its branches
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from runtime.errors import ProtocolError
from runtime.model.tokenizer import Tokenizer
from runtime.protocol.patterns import Pattern
from runtime.protocol.templates import check_template, groups_of
from runtime.protocol.tool_tags import BoundToolTags, ToolTags


class ForkProtocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What forking, branches and what follows them look like; all of it literal text, found in what is decoded.

    A checkpoint carries one in its `braid.json` under "protocol", as it would a `TagProtocol`. Raises `ProtocolError`
    for a declaration that contradicts itself.
    """

    fork: str
    """The tag at which a model that writes it forks."""
    branch: str
    """What a branch begins with; {name} is the group `name` of its outline."""
    branch_end: str
    """The tag that ends a branch; the runtime writes it where a branch ends without one."""
    outline_pattern: str = ""
    """A regular expression (RE2) of an outline, with a group `name`; each match since the last `outlines_open` before
    the fork is a branch, the first of those of one name."""
    outlines_open: str = ""
    branches: tuple[str, ...] = ()
    """Names of the branches of every fork, instead of outlines."""
    most_branches: int | None = None
    """Outlines beyond these have no branch."""
    after_fork: str = ""
    """What follows the tag, in the parent and so in all its branches."""
    after_branch: str = ""
    """What follows a branch's end, in the branch."""
    gives: Literal["text", "keys and values"] = "text"
    """What the parent goes on with: it reads its branches' tokens one after the other, or takes over their keys and
    values, siblings at the same positions and masked from one another."""
    joined: str = ""
    """What the parent's context goes on with behind its branches."""
    most_depth: int | None = None
    """Branches so deep in the tree (1 for those of a root) fork no more; None for no bound."""
    end: tuple[str, ...] = ()
    """Tags that end a root, beside the checkpoint's stop tokens."""
    tools: ToolTags | None = None
    """How tools are called, anywhere in what a thread emits."""
    prompt: str = "{prompt}"
    """A root's context."""

    def __post_init__(self) -> None:
        for name in ("fork", "branch", "branch_end"):
            if not getattr(self, name):
                raise ProtocolError(f"{name} is empty; a protocol that forks needs it.")
        if "" in self.end:
            raise ProtocolError("end lists tags; an empty one cannot be recognised.")
        if bool(self.outline_pattern) == bool(self.branches):
            raise ProtocolError("Declare either outline_pattern, or the names of the branches that every fork has.")
        if self.outline_pattern:
            groups_of("outline_pattern", self.outline_pattern, ("name",))
        if self.gives == "keys and values" and not self.joined:
            raise ProtocolError("joined is empty; after merged branches there are no logits to go on from.")
        check_template("branch", self.branch, {"name"})
        check_template("prompt", self.prompt, {"prompt"}, ("prompt",))
        for name in ("most_branches", "most_depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ProtocolError(f"{name} is {value}; it must be at least 1, or null for no bound.")


class BoundForkProtocol:
    """A `ForkProtocol` over a tokenizer's ids. Immutable; one serves all threads of an engine."""

    def __init__(self, protocol: ForkProtocol, tokenizer: Tokenizer) -> None:
        self.protocol = protocol
        self._tokenizer = tokenizer
        self._outline = Pattern(protocol.outline_pattern)
        self.tools = None if protocol.tools is None else BoundToolTags(protocol.tools, tokenizer)

    def prompt(self, text: str, *, parse_special_tokens: bool = False) -> list[int]:
        """A root thread's context; see `BoundProtocol.prompt`."""
        given = text if parse_special_tokens else self._tokenizer.marked(text)
        return self._tokenizer.led(self._tokenizer.encode_marked(self.protocol.prompt.format(prompt=given)))

    def encode(self, text: str) -> tuple[int, ...]:
        """A declared text inside of a context."""
        return tuple(self._tokenizer.encode_inside(text)) if text else ()

    def branch(self, name: str) -> tuple[int, ...]:
        """What a branch begins with."""
        return self.encode(self.protocol.branch.format(name=name))

    def tags(self, *, in_branch: bool, depth: int) -> tuple[str, ...]:
        """What a thread so deep in its tree stops at."""
        own = self.protocol
        forks = own.most_depth is None or depth < own.most_depth
        ends = (own.branch_end,) if in_branch else own.end
        return (*((own.fork,) if forks else ()), *ends)

    def found(self, text: str, tags: Sequence[str]) -> str | None:
        """Which tag a text stopped at; None for none."""
        at = {tag: text.rfind(tag) for tag in tags}
        return max((tag for tag in tags if at[tag] >= 0), key=lambda tag: at[tag] + len(tag), default=None)

    def names(self, text: str) -> list[str]:
        """Of the branches that a context forks whose text this is. Raises `ProtocolError` where finding them would take
        too long."""
        own = self.protocol
        if own.branches:
            return list(own.branches)
        before = text[: text.rfind(own.fork)]
        opened = before.rfind(own.outlines_open) if own.outlines_open else 0
        outlines = self._outline.find_all(before[max(0, opened) :])
        found = dict.fromkeys(outline.fields["name"].strip() for outline in outlines)
        return [name for name in found if name][: own.most_branches]


ThreadWeaver = ForkProtocol(
    fork="</Outlines>",
    outlines_open="<Outlines>",
    outline_pattern=r"<Outline>\s*(?P<name>\d+)\s*:",
    after_fork="\n",
    branch="<Thread>\n{name}:",
    branch_end="</Thread>",
    joined="\n",
    most_depth=1,
)
"""The published text format of ThreadWeaver (arXiv 2512.07843, github.com/facebookresearch/threadweaver)."""

Multiverse = ForkProtocol(
    fork="</Goal>",
    outlines_open="<Goal>",
    outline_pattern=r"<Outline>\s*(?P<name>\d+(?:\.\d+)*)\s*:",
    after_fork="\n",
    branch="<Path>\n{name}:",
    branch_end="</Path>",
    after_branch="\n",
    gives="keys and values",
    joined="<Conclusion>\n",
    most_depth=6,
)
"""The published format of Multiverse's engine: paths may fork in turn, but not under more than five others."""

NPR = ForkProtocol(
    fork="</guideline>",
    outlines_open="<guideline>",
    outline_pattern=r"<plan>\s*(?P<name>\d+)\s*:",
    most_branches=5,
    after_fork="\n",
    branch="<step>\n{name}:",
    branch_end="</step>",
    after_branch="\n",
    gives="keys and values",
    joined="<takeaway>\n",
    most_depth=1,
)
"""The published format of the engine of Native Parallel Reasoner (github.com/bigai-nlco/Native-Parallel-Reasoner)."""

ParallelR1 = ForkProtocol(
    fork="<Parallel>",
    branches=("1", "2"),
    branch="<Path>",
    branch_end="</Path>",
    joined="</Parallel>",
    most_depth=1,
)
"""The published format of Parallel-R1 (github.com/zhengkid/Parallel-R1), which at inference reads its paths as text."""

"""Two trees that answered one question, compared: what was said, what it cost, and where they part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from runtime.link import Sampled, ThreadPath
from traces.causal_chain import critical_path
from traces.counterfactual.questions import Question
from traces.tree import ThreadRecord, path_name, walk_threads

Verify = Callable[[str, str], bool]
"""Whether an answer to a prompt is right."""


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """A sampled token where two threads part."""

    token: int
    depth: int
    logprob: float


class Parting(msgspec.Struct, frozen=True, kw_only=True):
    """Where a thread of two trees first says something else."""

    thread: str
    position: int
    recorded: Spoken | None
    """None where it had ended."""
    now: Spoken | None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a tree gave and took."""

    answer: str
    outcome: str | None
    is_right: bool | None
    """None without a verifier."""
    threads: int
    tokens: int
    iterations: int
    critical_path: int
    tool_calls: int
    """Of which threads are none."""
    seconds: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One question, as it was answered and as it is."""

    prompt: str
    tree: str
    recorded: Cost
    now: Cost
    partings: tuple[Parting, ...]
    """Of threads that both trees have."""
    only_recorded: tuple[str, ...]
    """Threads that the tree has no more, counted below its root."""
    only_now: tuple[str, ...]

    @property
    def is_changed(self) -> bool:
        return (self.recorded.answer, self.recorded.outcome) != (self.now.answer, self.now.outcome)


def compare(question: Question, recorded: ThreadRecord, now: ThreadRecord, verify: Verify | None) -> Comparison:
    """Threads are matched by their paths below the root."""
    ours, theirs = _below(recorded), _below(now)
    return Comparison(
        prompt=question.text,
        tree=path_name(recorded.path),
        recorded=cost_of(recorded, question, verify),
        now=cost_of(now, question, verify),
        partings=tuple(_partings(ours, theirs)),
        only_recorded=tuple(path_name(recorded.path + path) for path in sorted(ours.keys() - theirs.keys())),
        only_now=tuple(path_name(recorded.path + path) for path in sorted(theirs.keys() - ours.keys())),
    )


def cost_of(root: ThreadRecord, question: Question, verify: Verify | None) -> Cost:
    threads = list(walk_threads([root]))
    return Cost(
        answer=root.text,
        outcome=root.outcome,
        is_right=None if verify is None else bool(verify(question.text, root.text)),
        threads=sum(thread.tool is None for thread in threads),
        tokens=sum(thread.generated for thread in threads),
        iterations=sum(thread.iterations for thread in threads),
        critical_path=critical_path(root),
        tool_calls=sum(thread.tool is not None for thread in threads),
        seconds=(root.last or 0.0) - (root.first or 0.0),
    )


def _below(root: ThreadRecord) -> dict[ThreadPath, ThreadRecord]:
    return {thread.path[len(root.path) :]: thread for thread in walk_threads([root])}


def _partings(ours: Mapping[ThreadPath, ThreadRecord], theirs: Mapping[ThreadPath, ThreadRecord]) -> Iterable[Parting]:
    for path in sorted(ours.keys() & theirs.keys()):
        before, after = _samples(ours[path]), _samples(theirs[path])
        at = next((at for at, (one, other) in enumerate(zip(before, after, strict=False)) if _differ(one, other)), None)
        if at is None and len(before) != len(after):
            at = min(len(before), len(after))
        if at is not None:
            one, other = (samples[at] if at < len(samples) else None for samples in (before, after))
            position = one.position if one is not None else other.position if other is not None else 0
            yield Parting(
                thread=path_name(ours[path].path), position=position, recorded=_spoken(one), now=_spoken(other)
            )


def _samples(record: ThreadRecord) -> list[Sampled]:
    return [sample for call in record.calls for sample in call.kept]


def _differ(one: Sampled, other: Sampled) -> bool:
    return (one.token, one.position) != (other.token, other.position)


def _spoken(sample: Sampled | None) -> Spoken | None:
    return None if sample is None else Spoken(token=sample.token, depth=sample.depth, logprob=sample.logprob)

"""The longest chain of dependent tokens, over trees made by hand."""

from __future__ import annotations

from runtime.link import events as ev
from runtime.link.work import Work
from traces import thread_tree
from traces.causal_chain import critical_path, critical_threads


class Recording:
    """Writes the events of a tree by hand."""

    def __init__(self) -> None:
        self.events: list[ev.AnyEvent] = []

    def add(self, kind: type, **fields: object) -> None:
        self.events.append(kind(time=float(len(self.events)), **fields))

    def call(self, thread: tuple[int, ...], position: int, tokens: list[int]) -> None:
        self.add(ev.GenerateStarted, thread=thread, position=position, max_tokens=99, sampling=None, depth=None)
        for offset, token in enumerate(tokens):
            self.add(ev.Sampled, tick=0, thread=thread, position=position + offset, token=token, depth=3, logprob=0.0)
        self.add(
            ev.GenerateFinished,
            thread=thread,
            position=position + len(tokens),
            reason="stop",
            work=Work(generated=len(tokens)),
        )

    def spawn(self, thread: tuple[int, ...], child: tuple[int, ...] | None, tokens: tuple[int, ...]) -> None:
        self.add(ev.Spawned, thread=thread, child=child, by_model=True, fork=False, tokens=tokens, reason="")

    def join(
        self, thread: tuple[int, ...], children: list[tuple[int, ...]], cancelled: tuple[tuple[int, ...], ...] = ()
    ) -> None:
        self.add(ev.Joined, thread=thread, children=tuple(children), delivered=(), cancelled=cancelled)


def test_the_critical_path_follows_spawns_and_joins() -> None:
    # The root: 100 [1 2] 101 [3 4] 102, join, 5 tokens. A child begins after the token that closes its message.
    trace = Recording()
    trace.call((0,), 4, [100, 1, 2, 101, 100, 3, 4, 101, 102])
    # Events of spawns come late: both after all of the call.
    trace.spawn((0,), (0, 0), (1, 2))
    trace.spawn((0,), (0, 1), (3, 4))
    trace.call((0, 0), 2, list(range(20)))
    trace.call((0, 1), 2, list(range(10)))
    trace.join((0,), [(0, 0), (0, 1)])
    trace.call((0,), 13, [7] * 5)
    (root,) = thread_tree(trace.events)
    assert critical_path(root) == 4 + 20 + 5
    assert critical_threads(root) == {(0,), (0, 0)}


def test_the_critical_path_of_other_shapes() -> None:
    short = Recording()
    short.call((0,), 4, [100, 1, 2, 101, *range(200, 230)])
    short.spawn((0,), None, (1, 2))  # refused
    short.spawn((0,), (0, 0), (205, 206))
    short.call((0, 0), 2, [1, 2, 3])
    short.join((0,), [(0, 0)])
    (root,) = thread_tree(short.events)
    assert critical_path(root) == 34  # the root was at its join later than the child at its end
    assert critical_threads(root) == {(0,)}

    cancelled = Recording()
    cancelled.call((0,), 4, [100, 1, 2, 101, 102])
    cancelled.spawn((0,), (0, 0), (1, 2))
    cancelled.call((0, 0), 2, list(range(50)))
    cancelled.join((0,), [(0, 0)], cancelled=((0, 0),))
    cancelled.call((0,), 9, [8])
    (root,) = thread_tree(cancelled.events)
    assert critical_path(root) == 6

    nested = Recording()
    nested.call((0,), 4, [100, 1, 101, 102])
    nested.spawn((0,), (0, 0), (1,))
    nested.call((0, 0), 1, [100, 9, 101, 102])
    nested.spawn((0, 0), (0, 0, 0), (9,))
    nested.call((0, 0, 0), 1, [5] * 7)
    nested.join((0, 0), [(0, 0, 0)])
    nested.call((0, 0), 9, [6, 6])
    nested.join((0,), [(0, 0)])
    nested.call((0,), 9, [8])
    (root,) = thread_tree(nested.events)
    assert critical_path(root) == 3 + 3 + 7 + 2 + 1
    assert critical_threads(root) == {(0,), (0, 0), (0, 0, 0)}

    alone = Recording()
    alone.call((0,), 4, [1, 2, 3])
    (root,) = thread_tree(alone.events)
    assert critical_path(root) == 3


def test_the_critical_path_of_deep_trees_and_long_messages() -> None:
    deep = Recording()
    for level in range(1, 1500):
        deep.call((0,) * level, 1, [7, 8, 9])
        deep.spawn((0,) * level, (0,) * (level + 1), (7,))
        deep.join((0,) * level, [(0,) * (level + 1)])
    (root,) = thread_tree(deep.events)
    assert critical_path(root) == 1498 * 2 + 3

    # What a message may be mistaken for: every place begins it, and only the last one ends it.
    alike = Recording()
    alike.call((0,), 1, [5] * 20_000 + [6, 102, 1])
    alike.spawn((0,), (0, 0), (*[5] * 10_000, 6))
    alike.call((0, 0), 1, [1] * 10)
    alike.join((0,), [(0, 0)])
    (root,) = thread_tree(alike.events)
    assert critical_path(root) == 20_002 + 10

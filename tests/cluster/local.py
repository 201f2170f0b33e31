"""Clusters whose replicas are threads of this process, and can be lost at any word they say; without Ray."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from runtime import Cluster
from runtime.cluster.cluster import open_cluster
from runtime.cluster.device import TracePlan
from runtime.cluster.replica import Described, Plan, ReplicaHost
from runtime.cluster.seat import Replica, Word
from runtime.device.settings import read_settings
from runtime.errors import BraidError
from runtime.link.commands import Command, LoadWeights, Request, Statistics

Dies = Callable[[str, int], bool]
"""Whether a replica, by name, is lost before it says a word of this number."""


def never(name: str, number: int) -> bool:
    return False


class LocalReplica:
    """A replica on threads of this process. What it is sent and says is pickled, as it is for Ray."""

    def __init__(
        self,
        name: str,
        on_open: Callable[[Replica, Described], None],
        on_words: Callable[[Replica, list[Word], Statistics], None],
        on_end: Callable[[Replica, Exception], None],
        *,
        plan: Plan,
        dies: Dies,
    ) -> None:
        self.name = name
        self.pid = 0
        self._plan = plan
        self._on_open, self._on_words, self._on_end = on_open, on_words, on_end
        self._dies = dies
        self._batches: SimpleQueue[list[Command | Request] | None] = SimpleQueue()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"local-{name}", daemon=True)
        self._thread.start()

    def send(self, commands: list[Command | Request]) -> None:
        self._batches.put([_copied(command) for command in commands])

    def close(self) -> None:
        self._is_closed.set()

    def wait(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            host = ReplicaHost(self._plan)
        except Exception as error:
            self._on_end(self, error)
            return
        self._on_open(self, host.describe())
        batch = word = 0
        while not self._is_closed.is_set():
            while not self._batches.empty():
                commands = self._batches.get()
                if commands is not None:
                    host.send(batch, commands)
                    batch += 1
            words, statistics = host.take(0.001)
            for said in words:
                if self._dies(self.name, word):
                    self._is_closed.set()
                    break
                word += 1
                self._on_words(self, [pickle.loads(pickle.dumps(said))], statistics)
        host.close()
        self._on_end(self, BraidError(f"{self.name} is gone."))


def _copied(command: Command | Request) -> Command | Request:
    if isinstance(command, LoadWeights):
        return msgspec.structs.replace(command, weights=dict(command.weights))
    copied: Command | Request = pickle.loads(pickle.dumps(command))
    return copied


def local_cluster(
    checkpoint: Path | str,
    *,
    replicas: int = 2,
    dies: Dies = never,
    trace: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Cluster:
    """A cluster without Ray; `options` are those of an engine, `settings` fields of `EngineSettings`."""
    read = read_settings({"cpu_threads": 1, **(settings or {})})
    plan = Plan(
        checkpoint=checkpoint, settings=read, policy=options.get("policy"), seed=options.get("seed", 0), drafts=None
    )
    recorded = None if trace is None else TracePlan(trace, True, "drop")
    opening = partial(open_cluster, plan, replicas, recorded, partial(LocalReplica, plan=plan, dies=dies))
    return Cluster(opening, queue_size=read.queue_size, records=trace is not None, **options)

"""Replicas as Ray actors: where they run is Ray's to say; one that is gone is told, and another is made."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from runtime.cluster.courier import sendable
from runtime.cluster.replica import Described, Plan, ReplicaHost
from runtime.cluster.seat import Word
from runtime.console.logs import logger
from runtime.errors import BraidError, described
from runtime.link.commands import Command, LoadWeights, Request, Statistics

_log = logger("runtime.cluster")

PATIENCE = 30.0
"""Seconds after which a replica that cannot be placed is told of, again and again."""

LONGEST_POLL = 10.0
"""Seconds that a replica with nothing to say is waited for at a time."""

COMMANDS, REPORTS = "commands", "reports"


def ray_module() -> Any:
    """Raises `ImportError`, with what to install, where Ray is missing."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("A cluster needs Ray: pip install 'braid-runtime[ray]'.") from error


def connect(address: str | None, cpus: float) -> bool:
    """Connects to a cluster, or starts one on this machine with so many processors at least; whether it has."""
    ray = ray_module()
    if ray.is_initialized():
        return False
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning"}
    if address is not None or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    else:
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, int(-(-cpus // 1))), **quiet)
    return True


def disconnect() -> None:
    """Ends what `connect` has begun."""
    ray_module().shutdown()


class ReplicaActor:
    """What Ray runs in a process of its own."""

    def __init__(self, plan: Plan) -> None:
        """What it cannot be opened for is told by `describe`: of an actor that raises here, Ray tells a text alone."""
        self._error: Exception | None = None
        try:
            self._host = ReplicaHost(plan)
        except Exception as error:
            self._error = sendable(error)

    def describe(self) -> Described | Exception:
        """Returns when it serves, or with what keeps it from that."""
        return self._error or self._host.describe()

    def send(self, number: int, commands: list[Command | Request], weights: Any = None) -> None:
        """Takes a batch of commands. A request for other weights comes without them: they come by themselves, so that
        Ray has them in memory once for all replicas of a machine."""
        if weights is not None:
            commands = [
                msgspec.structs.replace(each, weights=weights) if isinstance(each, LoadWeights) else each
                for each in commands
            ]
        self._host.send(number, commands)

    def take(self, seconds: float) -> tuple[list[Word], Statistics]:
        """What it has to say."""
        return self._host.take(seconds)


class WeightsInStore:
    """Weights that were put into Ray's object store, once however many replicas get them."""

    def __init__(self) -> None:
        self._key: object = None
        self._reference: Any = None

    def reference(self, request: LoadWeights) -> Any:
        """To the weights of a request; those of the last one are kept, for replicas that join."""
        if self._key is not request.weights:
            tensors = {name: tensor.detach().cpu() for name, tensor in request.weights.items()}
            self._key, self._reference = request.weights, ray_module().put(tensors)
        return self._reference


class RayReplica:
    """One actor, and the thread that waits for what it says."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        options: Mapping[str, Any],
        store: WeightsInStore,
        on_open: Callable[[RayReplica, Described], None],
        on_words: Callable[[RayReplica, list[Word], Statistics], None],
        on_end: Callable[[RayReplica, Exception], None],
    ) -> None:
        """The three functions are called by a thread of its own, and return at once; the last of them once.

        Raises `ValueError` for options that Ray refuses."""
        ray = ray_module()
        self.name = name
        self.pid = 0
        self._on_open, self._on_words, self._on_end = on_open, on_words, on_end
        self._store = store
        self._sent = 0
        self._is_closed = False
        # Not restarted by Ray: what a replica had is gone with it, and another one is told what it needs.
        settings = {"num_cpus": 1, **options, "max_restarts": 0, "max_task_retries": 0}
        actor = ray.remote(concurrency_groups={COMMANDS: 1, REPORTS: 1}, **settings)(ReplicaActor)
        self._actor = actor.remote(plan)
        self._send = self._actor.send.options(concurrency_group=COMMANDS)
        self._thread = threading.Thread(target=self._run, name=f"braid-{name}", daemon=True)
        self._thread.start()

    def send(self, commands: list[Command | Request]) -> None:
        weights, bare = None, list[Command | Request]()
        for command in commands:
            if isinstance(command, LoadWeights):
                weights = self._store.reference(command)
                command = msgspec.structs.replace(command, weights={})
            bare.append(command)
        number, self._sent = self._sent, self._sent + 1
        # Of an actor that is gone the thread hears.
        with contextlib.suppress(ray_module().exceptions.RayError):
            self._send.remote(number, bare, weights)

    def close(self) -> None:
        self._is_closed = True
        with contextlib.suppress(Exception):
            ray_module().kill(self._actor)

    def wait(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            self._open()
            take = self._actor.take.options(concurrency_group=REPORTS)
            ray = ray_module()
            following = take.remote(LONGEST_POLL)
            while not self._is_closed:
                asked, following = following, take.remote(LONGEST_POLL)
                words, statistics = ray.get(asked)
                self._on_words(self, words, statistics)
        except Exception as error:
            self._on_end(self, error if isinstance(error, BraidError | ValueError) else _lost(self.name, error))
        else:
            self._on_end(self, BraidError(f"{self.name} was closed."))

    def _open(self) -> None:
        ray = ray_module()
        asked = self._actor.describe.remote()
        while True:
            try:
                found: Described | Exception = ray.get(asked, timeout=PATIENCE)
            except ray.exceptions.GetTimeoutError:
                _log.warning("a replica is not open yet: Ray may lack the resources for it", replica=self.name)
                continue
            if isinstance(found, Exception):
                raise found
            self.pid = found.pid
            self._on_open(self, found)
            return


def _lost(name: str, error: Exception) -> BraidError:
    ended = BraidError(f"{name} ended: {described(error).splitlines()[0][:500]}.")
    ended.__cause__ = error
    return ended

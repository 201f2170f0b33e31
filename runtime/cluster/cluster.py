"""Many engines as one: `Cluster.open(checkpoint, replicas=4)`, and threads, trees and traces as an engine has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import anyio
import anyio.to_thread
import msgspec

from policies import Limits, Policy
from policies.conversion import Count, converted
from runtime.cluster.courier import Courier
from runtime.cluster.device import ClusterDevice, Opening, ReplicaStatus, TracePlan
from runtime.cluster.merged_trace import MergedTrace
from runtime.cluster.placement import Placement
from runtime.cluster.ray_replica import RayReplica, WeightsInStore, connect, disconnect, ray_module
from runtime.cluster.replica import Plan
from runtime.cluster.router import Router
from runtime.device.journal import Recorder
from runtime.device.settings import SettingsOptions, read_settings
from runtime.engine import Engine
from runtime.link.commands import Deliver, OnTraceError
from runtime.link.event_values import check_recordable
from runtime.link.events import Event, Header
from runtime.link.latents import Latents
from runtime.link.sampling import Sampling
from runtime.loading.files import describe_opened
from runtime.loading.tracing import header_of, write_trace
from runtime.threads.arguments import EngineArguments, EngineOptions, checkpoint_of, path_of
from runtime.threads.opened import Opened


class Cluster(Engine):
    """An engine whose device is many replicas, each an actor of Ray's with a device of its own.

    Trees are placed by prefix and load, children anywhere. A replica that is lost is replaced, and what it worked on is
    computed again elsewhere: sampling is keyed by path, so that it says the same, and nothing is lost but time.
    """

    @classmethod
    def open(  # type: ignore[override]  # What is for servers is not for replicas.
        cls,
        checkpoint: str | Path,
        *,
        replicas: int = 2,
        ray_options: Mapping[str, Any] | None = None,
        address: str | None = None,
        policy: Policy | None = None,
        trace: str | Path | None = None,
        overwrite: bool = False,
        on_trace_error: OnTraceError = "drop",
        drafts: str | Path | None = None,
        seed: int = 0,
        limits: Limits | None = None,
        sampling: Sampling | None = None,
        observer: Callable[[Event], None] | None = None,
        record_latents: Latents | None = None,
        **settings: Unpack[SettingsOptions],
    ) -> Cluster:
        """A cluster of so many replicas of a checkpoint, which all of them, and this process, can read.

        `ray_options` are the options of each actor, as Ray has them: `num_cpus` (1 where it is not said), `num_gpus`,
        `resources`, `scheduling_strategy`, ... `address` is a running Ray cluster's; without one, and without
        RAY_ADDRESS, the Ray that this process is connected to, or else one of its own on this machine, which ends with
        the cluster. `settings` are those of each replica; `cpu_threads` is `num_cpus` where it is not said. The other
        arguments are as in `Engine.open`, but that latent states cannot be recorded.

        Raises `ImportError` without Ray, and `ValueError`, naming the argument, for one that does not fit. Entering
        raises what an engine's does, of a replica too, and waits until all replicas serve.
        """
        ray_module()
        if record_latents is not None:
            raise ValueError("record_latents is not for clusters; record them with an Engine.")
        count = converted(replicas, Count, "replicas")
        if not count:
            raise ValueError("replicas is 0; give at least 1.")
        asked = dict(ray_options or {})
        cpus = converted(asked.get("num_cpus", 1), float, "ray_options['num_cpus']")
        read = read_settings(settings)
        if read.cpu_threads is None and cpus >= 1:
            read = msgspec.structs.replace(read, cpu_threads=int(cpus))
        options = EngineOptions(
            policy=policy,
            limits=limits,
            sampling=sampling,
            seed=seed,
            queue_size=read.queue_size,
            records=trace is not None,
            observer=observer,
        )
        given = EngineArguments(**options)
        if given.records and given.policy is not None:
            check_recordable(given.policy.depth)
            check_recordable(given.policy.spawn)
        plan = Plan(
            checkpoint=checkpoint_of(checkpoint),
            settings=read,
            policy=given.policy,
            seed=given.seed,
            drafts=None if drafts is None else checkpoint_of(drafts, "drafts"),
        )
        recorded = None
        if trace is not None:
            recorded = TracePlan(
                path_of(trace, "trace"),
                converted(overwrite, bool, "overwrite"),
                converted(on_trace_error, OnTraceError, "on_trace_error"),
            )
        opening = partial(open_on_ray, plan, count, asked, cpus, address, recorded)
        return cls(opening, **options)

    @property
    def replicas(self) -> tuple[ReplicaStatus, ...]:
        """Those that serve, then those that are being opened."""
        return self._device.replicas

    async def resize(self, replicas: int) -> None:
        """Has so many replicas from now on, while trees run. Those beyond get nothing new, and are ended when their
        calls have ended; threads that were there go on elsewhere. Returns when it is done; cancelled meanwhile, it is
        done all the same. Raises `BraidError` where replicas cannot be opened."""
        count = converted(replicas, Count, "replicas")
        if not count:
            raise ValueError("replicas is 0; give at least 1.")
        done = self._device.resize(count)
        await anyio.to_thread.run_sync(done.result, abandon_on_cancel=True)

    @property
    def _device(self) -> ClusterDevice:
        device = self._running().opened.device
        assert isinstance(device, ClusterDevice)
        return device


def open_on_ray(
    plan: Plan,
    replicas: int,
    ray_options: Mapping[str, Any],
    cpus: float,
    address: str | None,
    trace: TracePlan | None,
) -> Opened:
    """A cluster whose replicas are Ray's actors, with a connection to Ray where there was none."""
    store = WeightsInStore()

    def open_replica(name: str, on_open: Any, on_words: Any, on_end: Any) -> RayReplica:
        return RayReplica(name, plan, ray_options, store, on_open, on_words, on_end)

    opened = open_cluster(plan, replicas, trace, open_replica)
    was_started = connect(address, replicas * cpus)
    return replace(opened, close=disconnect if was_started else None)


def open_cluster(plan: Plan, replicas: int, trace: TracePlan | None, open_replica: Opening) -> Opened:
    """What an engine needs of a cluster: a device that has not been started, and what the checkpoint brings."""

    def open_trace(path: Path, overwrite: bool, fingerprint: str) -> Recorder:
        return write_trace(path, header_for(plan, default, fingerprint), overwrite=overwrite)

    def make_router(deliver: Deliver) -> Router:
        return Router(Courier(opened), Placement(plan.seed), MergedTrace(open_trace), deliver)

    device = ClusterDevice(make_router, open_replica, replicas, trace)
    opened = describe_opened(plan.checkpoint, plan.settings, device, plan.drafts)
    default = plan.policy or opened.policy or Policy()
    return replace(opened, ready=device.wait_until_open)


def header_for(plan: Plan, policy: Policy, fingerprint: str) -> Header:
    """The header of a cluster's trace: an engine's, by which one device executes it again."""
    return msgspec.structs.replace(
        header_of(plan.checkpoint, fingerprint, plan.settings, policy, plan.seed, plan.drafts), started=time.time()
    )

"""Launching a training run in several processes of one thread each, which sum their gradients."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from multiprocessing import parent_process
from tempfile import TemporaryDirectory
from typing import TypeVarTuple

import torch
import torch.distributed as distributed
from torch.multiprocessing.spawn import spawn

Ts = TypeVarTuple("Ts")

MOST_PROCESSES = 256
"""More than machines that training on CPUs makes sense on have cores; each process holds a model."""


def run_processes(work: Callable[[int, int, *Ts], None], processes: int, *arguments: *Ts) -> None:
    """Calls `work(rank, processes, *arguments)` for every rank, each in a process of its own, and waits for all.

    The processes share PyTorch's default group, over gloo, and each has one thread: on CPUs, small models train
    faster so than in one process of many threads. With `processes` 1, `work` runs in this process, without a group
    and with PyTorch's threads as they are. `work` must be a function of a module; it and `arguments` reach the other
    processes as multiprocessing sends them, so a script that calls this needs the usual `if __name__ == "__main__"`.

    Raises `torch.multiprocessing.ProcessRaisedException` with the traceback of the first process that raised, or
    `ProcessExitedException` if one died; the others are ended then. They also end if this process is killed.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise ValueError(f"processes is {processes}; give 1 to {MOST_PROCESSES}.")
    if processes == 1:
        work(0, 1, *arguments)
        return
    # The processes meet at a file, so that there is no port to be free.
    with TemporaryDirectory() as meeting:
        spawn(_member, (processes, f"file://{meeting}/store", work, arguments), nprocs=processes)


def _member(rank: int, processes: int, meeting: str, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    work(rank, processes, *arguments)
    # Not in a `finally`: where work raised, other processes may be waiting inside the group.
    distributed.destroy_process_group()


def _end_with_parent() -> None:
    """PyTorch asks the system for a SIGINT then, which programs that were started in the background ignore."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Launching a training run in several processes of one thread each, which sum their gradients."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVarTuple

import torch
import torch.distributed as distributed
from torch.multiprocessing.spawn import ProcessRaisedException, spawn

Ts = TypeVarTuple("Ts")

MOST_PROCESSES = 256
"""More than machines that training on CPUs makes sense on have cores; each process holds a model."""


def run_processes(work: Callable[[int, int, *Ts], None], processes: int, *arguments: *Ts) -> None:
    """Calls `work(rank, processes, *arguments)` for every rank, each in a process of its own, and waits for all.

    The processes share PyTorch's default group, over gloo, and each has one thread: on CPUs, small models train
    faster so than in one process of many threads. With `processes` 1, `work` runs in this process, without a group
    and with PyTorch's threads as they are. `work` must be a function of a module; it and `arguments` reach the other
    processes as multiprocessing sends them, so a script that calls this needs the usual `if __name__ == "__main__"`.

    Raises what the first process that failed raised, from `torch.multiprocessing.ProcessRaisedException` with its
    traceback (which is raised itself for an error that cannot be pickled), or `ProcessExitedException` if one died;
    the others are ended then. They also end if this process is killed.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise ValueError(f"processes is {processes}; give 1 to {MOST_PROCESSES}.")
    if processes == 1:
        work(0, 1, *arguments)
        return
    # The processes meet at a file, so that there is no port to be free.
    with TemporaryDirectory() as meeting:
        try:
            spawn(_member, (processes, meeting, work, arguments), nprocs=processes)
        except ProcessRaisedException as failure:
            error = _error_of(meeting, failure.error_index)
            if error is None:
                raise
            raise error from failure


def _error_of(meeting: str, rank: int) -> Exception | None:
    """What a process left there when it raised."""
    try:
        error = pickle.loads(_error_file(meeting, rank).read_bytes())
    except Exception:
        return None
    return error if isinstance(error, Exception) else None


def _error_file(meeting: str, rank: int) -> Path:
    return Path(meeting, f"{rank}.error")


def _member(rank: int, processes: int, meeting: str, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}/store", rank=rank, world_size=processes)
    try:
        work(rank, processes, *arguments)
    except Exception as error:
        with suppress(Exception):
            _error_file(meeting, rank).write_bytes(pickle.dumps(error))
        raise
    # Not in a `finally`: where work raised, other processes may be waiting inside the group.
    distributed.destroy_process_group()


def _end_with_parent() -> None:
    """PyTorch asks the system for a SIGINT then, which programs that were started in the background ignore."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

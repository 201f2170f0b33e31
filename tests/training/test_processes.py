"""Several processes train one model, and end with what fails or started them."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from policies.training import (
    Example,
    restore,
    run_processes,
    train,
)
from policies.training.metrics import read_metrics
from policies.training.resume import save
from policies.training.supervised import TrainingRun
from tests.engine.tiny import tiny_model
from tests.training.counting import CONFIG, differences, steps_logged, successors


def train_a_share(rank: int, world: int, directory: Path) -> None:
    """For a process of its own: trains, and each rank leaves the model it has."""
    model = tiny_model(5)
    train(model, successors, CONFIG, directory, {}, rank, world)
    save(directory / str(rank), CONFIG.steps, model, [])


def die_at_once(rank: int, world: int, how: str) -> None:
    """Rank 1 fails while rank 0 waits for it."""
    if rank == 1 and how == "exits":
        os._exit(7)
    if rank == 1:
        raise ValueError("rank 1 has had enough")
    torch.distributed.barrier()


def test_processes_train_one_model_on_what_all_of_them_draw(tmp_path: Path) -> None:
    run_processes(train_a_share, 2, tmp_path)
    models = [tiny_model(0), tiny_model(0)]
    for rank, model in enumerate(models):
        restore(tmp_path / str(rank), model)
    assert not differences(*models)
    # One process that draws both shares has the same gradients, and so the same first loss.
    alone = TrainingRun(tiny_model(5), CONFIG, tmp_path / "alone", 0, 1)

    def both(_: random.Random) -> list[Example]:
        drawn = []
        for rank in (0, 1):
            total = 0
            for example in successors(random.Random(f"{CONFIG.seed}/{rank}/0")):
                drawn.append(example)
                total += len(example.tokens)
                if total >= CONFIG.tokens_per_step:
                    break
        return drawn

    alone.config = msgspec.structs.replace(CONFIG, tokens_per_step=2 * CONFIG.tokens_per_step)
    assert alone.train_step(both) == pytest.approx(read_metrics(tmp_path)[0]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [("raises", ValueError, "^rank 1 has had enough$"), ("exits", ProcessExitedException, "exit code 7")],
)
def test_a_process_that_fails_ends_the_others(how: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_processes(die_at_once, 2, how)


def test_processes_end_when_what_started_them_is_killed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        program = subprocess.Popen([sys.executable, "-m", "tests.training.waiting", str(port)])
        try:
            connections = [server.accept()[0] for _ in range(2)]
        finally:
            program.kill()
            program.wait()
        for connection in connections:
            with connection:
                # A connection ends when the process at its other end does.
                connection.settimeout(60)
                assert connection.recv(1) == b""


def test_one_process_is_this_one(tmp_path: Path) -> None:
    run_processes(train_a_share, 1, tmp_path)
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="give 1 to 256"):
        run_processes(train_a_share, 0, tmp_path)

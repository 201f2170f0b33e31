"""Sides in processes of their own: they answer, rest in between, and end with whoever asks."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.process import ROOT, SideFailed, Unavailable
from benchmarks.peers.sides import Side
from tests.peers.sides import MakeSide, started, state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the comparison needs Linux")


def test_side_answers_and_is_stopped_in_between(fake: MakeSide, tmp_path: Path) -> None:
    side = fake("side", tokens="[prompt[0], os.getpid()]")
    with started(side, tmp_path) as process:
        assert process.ready.versions == {"fake": "1.0"}
        answer = process.ask([[5, 6], [7, 8]])
        assert [tokens[0] for tokens in answer.tokens] == [5, 7]
        assert answer.seconds > 0
        pid = answer.tokens[0][1]
        assert state(pid) == "T"
        assert process.ask([[9]]).tokens == [[9, pid]], "the process is not the same"
    assert not Path(f"/proc/{pid}").exists()
    assert "noise on standard output" in (tmp_path / "side.log").read_text()


def test_what_a_side_has_started_ends_with_it(fake: MakeSide, tmp_path: Path) -> None:
    worker = "import subprocess; worker = subprocess.Popen(['sleep', '1000'])"
    with started(fake("side", tokens="[0, worker.pid]", before=worker), tmp_path) as process:
        ((_, pid),) = process.ask([[1]]).tokens
        descriptor = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], 10)
    finally:
        os.close(descriptor)
    assert ended


ASKING = """
import sys
from pathlib import Path
from benchmarks.peers.answering import Job
from benchmarks.peers.process import SideProcess, ended_in_order

script, directory = sys.argv[1:]
job = Job(checkpoint="", dtype="float32", threads=1, batch=1, prompt=1, tokens=2, kv_cache_bytes=1, scratch="")
with ended_in_order(), SideProcess("side", [sys.executable, script], job, Path(directory, "log")) as side:
    side.ask([[1]])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -9)])
def test_a_side_does_not_go_on_computing_for_nobody(fake: MakeSide, tmp_path: Path, number: int, status: int) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    endless = f"(open({str(started)!r}, 'w').write(str(os.getpid())), time.sleep(1000))"
    script = fake("side", tokens=endless).command[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asker = subprocess.Popen([sys.executable, "-c", ASKING, script, str(tmp_path)], env=environment)
    descriptor = os.pidfd_open(int(started.read_text()))
    try:
        asker.send_signal(number)
        assert asker.wait(10) == status
        ended, _, _ = select.select([descriptor], [], [], 10)
    finally:
        os.close(descriptor)
    assert ended


@pytest.mark.parametrize("threads", [1, 2])
def test_every_side_gets_the_same_threads(fake: MakeSide, tmp_path: Path, threads: int) -> None:
    if threads > len(os.sched_getaffinity(0)):
        pytest.skip("this machine has not as many processors")
    side = fake("side", tokens="[len(os.sched_getaffinity(0)), int(os.environ['OMP_NUM_THREADS'])]")
    with started(side, tmp_path, threads) as process:
        assert process.ask([[1]]).tokens == [[threads, threads]]


def test_checks_are_answered_by_the_check(fake: MakeSide, tmp_path: Path) -> None:
    check = "lambda prompts: Answered([[0, 0] for _ in prompts], [])"
    with started(fake("side", check=check), tmp_path) as process:
        assert process.ready.checks
        assert process.ask([[5, 6]]).tokens == [[5, 6]]
        assert process.ask([[5, 6]], check=True).tokens == [[0, 0]]


def test_missing_library_is_told_apart_from_failure(fake: MakeSide, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No module named 'no_such_library'"):
        started(fake("missing", loading="import no_such_library"), tmp_path).__enter__()
    with pytest.raises(Unavailable, match="/no/such/python cannot be started"):
        started(Side(name="gone", command=("/no/such/python",)), tmp_path).__enter__()
    with pytest.raises(SideFailed, match=r"failing: ValueError: weights are torn(.|\n)*noise on standard output"):
        started(fake("failing", loading="raise ValueError('weights are torn')"), tmp_path).__enter__()


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ("os.kill(os.getpid(), 9)", "ended without an answer"),
        ("1 / 0", "ZeroDivisionError"),
        ("[1, 2, 3]", r"made \[3\] tokens; 2 each for 1 prompts were due"),
    ],
)
def test_side_that_fails_while_answering(fake: MakeSide, tmp_path: Path, tokens: str, said: str) -> None:
    with started(fake("side", tokens=tokens), tmp_path) as process, pytest.raises(SideFailed, match=said) as caught:
        process.ask([[1]])
    assert caught.value.side == "side"

"""However a command of the repository ends, it is without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.console.command_line import INTERRUPTED, status_of
from runtime.errors import CheckpointError

ROOT = Path(__file__).parents[1]


def test_an_interruption_is_told_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise BaseExceptionGroup("threads", [ValueError("of a child"), KeyboardInterrupt()])

    assert status_of(interrupted) == INTERRUPTED == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_every_error_of_a_group_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> int:
        missing = FileNotFoundError(2, "No such file or directory", "run.trace")
        raise ExceptionGroup("threads", [missing, ExceptionGroup("", [CheckpointError("x: is torn.")])])

    assert status_of(failing) == 2
    assert capsys.readouterr().err == "error: run.trace: No such file or directory.\nerror: x: is torn.\n"


def test_faults_of_the_program_are_raised() -> None:
    def wrong() -> int:
        raise ExceptionGroup("threads", [ValueError("told"), AttributeError("not told")])

    with pytest.raises(ExceptionGroup):
        status_of(wrong)


TALKING = """
import sys
from runtime.console.command_line import Printer, status_of

def main():
    say = Printer().print if sys.argv[1] == "rich" else print
    for number in range(20_000):
        say(number)
    return 0

sys.exit(status_of(main))
"""


@pytest.mark.parametrize("said", ["plain", "rich"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(said: str, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", TALKING, said]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no file that is always full")
def test_output_that_cannot_be_written_is_told() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TALKING, "plain"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (2, b"error: No space left on device.\n")


def test_closed_streams_are_written_to_in_vain() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"exec {sys.executable} -c '{TALKING.replace(chr(39), chr(34))}' plain >&- 2>&-"
    assert subprocess.run(command, shell=True, env=environment, timeout=60).returncode == 0

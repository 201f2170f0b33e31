"""A program whose processes wait for ever, each holding a connection: `python -m tests.training.waiting PORT`."""

from __future__ import annotations

import signal
import socket
import sys

from policies.training import run_processes


def wait(rank: int, world: int, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(1)


if __name__ == "__main__":
    # As in a program that a shell script has started in the background.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_processes(wait, 2, int(sys.argv[1]))

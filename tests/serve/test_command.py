"""The server as it is started: where it listens, and how it stops."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest

COMMAND = [sys.executable, "-m", "runtime.serve", "countdown", "--port", "0"]


@contextmanager
def started(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}
    ) as process:
        assert process.stdout is not None
        match = re.search(r"served at (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert match is not None
        try:
            yield process, match[1]
        finally:
            process.kill()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_it_listens_at_loopback_and_stops_when_it_is_told(told: signal.Signals) -> None:
    with (
        started("--model", "other", "--drain", "0", BRAID_API_KEY="secret, second") as (process, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="second") as client,
    ):
        assert [model.id for model in client.models.list()] == ["other"]
        # An answer that would take longer is cancelled.
        stream = client.completions.create(model="other", prompt="22 26 31 53 -> 27", max_tokens=100, stream=True)
        next(iter(stream))
        process.send_signal(told)
        assert process.wait(20) == 0


def test_a_port_that_is_taken_is_told() -> None:
    with started() as (_, url):
        taken = subprocess.run([*COMMAND[:-1], url.rpartition(":")[2]], capture_output=True, text=True)
    assert taken.returncode == 2
    assert "in use (--host and --port)" in taken.stderr


def test_what_is_missing_is_told() -> None:
    code = (
        "import runpy, sys; sys.modules['uvicorn'] = None; sys.argv = ['serve', 'countdown'];"
        "runpy.run_module('runtime.serve', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "error: A server needs starlette and others: pip install 'braid-runtime[serve]'.\n"

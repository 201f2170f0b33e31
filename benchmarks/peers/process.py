"""The near end of a side's pipe: started, asked, and stopped dead while others are asked."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Never, Self

import msgspec

from benchmarks.peers.answering import Job

ROOT = Path(__file__).parents[2]
"""Where `python -m benchmarks.peers.NAME` finds the sides."""
_TAIL = 15
"""Lines of a failed side's log that are shown."""
_PATIENCE = 20.0
"""Seconds that a side has to end by itself."""


class Unavailable(Exception):
    """A side lacks something that has to be installed; says what."""


class SideFailed(Exception):
    """A side could not do its work; shows the end of its log."""

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(f"{side}: {reason}")
        self.side = side


class Ready(msgspec.Struct, frozen=True):
    versions: dict[str, str]
    checks: bool
    """Whether `ask(check=True)` is answered otherwise than `ask`."""


class Answer(msgspec.Struct, frozen=True):
    seconds: float
    """From having the prompts to having all tokens, measured in the side's process."""
    tokens: list[list[int]]
    depths: list[list[int]]


class _Reply(msgspec.Struct, frozen=True):
    ready: Ready | None = None
    missing: str | None = None
    failed: str | None = None


class SideProcess:
    """Use it inside `with`: entering loads the model, leaving ends the process and all that it started.

    Outside its calls the whole process group is stopped by signal, so that nothing that spins, polls or tidies up
    takes time from the side that is measured. Should this process die, the system wakes and ends a group that is
    stopped, and one that computes ends itself (`answering.serve`). Left by an interruption, nothing is waited for.
    """

    def __init__(self, side: str, command: Sequence[str], job: Job, log: Path) -> None:
        """`log` is the file that gets what the side prints."""
        self.side = side
        self._command = command
        self._job = job
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.ready = Ready({}, False)

    def __enter__(self) -> Self:
        """Raises `Unavailable` for what is not installed, `SideFailed` for anything else that keeps it from loading."""
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=ROOT,
                    env=environment(self._job.threads),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    process_group=0,
                )
        except OSError as error:
            raise Unavailable(f"{self._command[0]} cannot be started ({error.strerror})") from error
        try:
            reply = msgspec.json.decode(self._exchange(msgspec.json.encode(dataclasses.asdict(self._job))), type=_Reply)
            if reply.missing is not None:
                raise Unavailable(reply.missing)
            if reply.ready is None:
                raise self._failure(reply.failed or "gave no answer")
            self.ready = reply.ready
            self._pause()
        except BaseException as error:
            self._end(_patience(type(error)))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(_patience(kind))

    def ask(self, prompts: Sequence[Sequence[int]], *, check: bool = False) -> Answer:
        """Answers with as many tokens for each prompt as the job says. Raises `SideFailed`."""
        process = self._running()
        os.killpg(process.pid, signal.SIGCONT)
        line = self._exchange(msgspec.json.encode({"prompts": prompts, "check": check}))
        reply = msgspec.json.decode(line)
        if "failed" in reply:
            raise self._failure(reply["failed"])
        answer = msgspec.convert(reply, Answer)
        lengths = [len(tokens) for tokens in answer.tokens]
        if lengths != [self._job.tokens] * len(prompts):
            raise self._failure(f"made {lengths} tokens; {self._job.tokens} each for {len(prompts)} prompts were due")
        self._pause()
        return answer

    def _exchange(self, line: bytes) -> bytes:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        if not reply:
            raise self._failure("ended without an answer")
        return reply

    def _pause(self) -> None:
        """Returns when the process has stopped, or ended."""
        process = self._running()
        os.killpg(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _end(self, patience: float) -> None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            os.killpg(process.pid, signal.SIGCONT)
            with suppress(BrokenPipeError):
                process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        finally:
            # Workers that the side has started may have outlived it; they are in its group.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()

    def _failure(self, reason: str) -> SideFailed:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return SideFailed(self.side, "\n".join([reason, *lines[-_TAIL:]]))

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "use it inside `with`"
        return self._process


def _patience(kind: type[BaseException] | None) -> float:
    """Seconds that a side gets to end by itself, by what the block is left with."""
    return _PATIENCE if kind is None or issubclass(kind, Exception) else 0.0


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Within it, a SIGTERM leaves every block, which ends the sides and removes what they were given."""

    def leave(number: int, frame: FrameType | None) -> Never:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def environment(threads: int) -> dict[str, str]:
    """The caller's environment with the same number of threads for every library, and nothing fetched from hubs."""
    count = str(threads)
    own: dict[str, Any] = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), count
    )
    return {**os.environ, **own, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

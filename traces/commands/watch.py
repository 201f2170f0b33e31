"""`python -m traces watch`: a run that is being recorded, as it goes on."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.live import Live

from runtime.console import Printer, visible
from runtime.link import RunStarted, Spawned
from traces.commands.reading import OpenDevice, decode_of
from traces.live_tree import LiveTree
from traces.printing import Decode
from traces.reader import TraceReader

EACH = 0.2
"""Seconds between two looks at the file."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("watch", help="follow a run that is being recorded, until its end or Ctrl-C")
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="a checkpoint directory or a tokenizer.json (default: of the trace's checkpoint)",
    )
    parser.set_defaults(run=_watch)


def _watch(options: argparse.Namespace, open_device: OpenDevice) -> int:
    with TraceReader(options.file) as reader:
        decode = decode_of(options.tokenizer, reader.header)
        tree = LiveTree(lambda event: _question(event, decode))
        printer = Printer()
        # Without a terminal only the last picture is printed.
        with Live(tree, console=printer, auto_refresh=False, transient=False) as live:
            while True:
                for event in reader:
                    tree.observe(event)
                live.refresh()
                if reader.lost is None or not reader.may_grow:
                    break
                time.sleep(EACH)
        if reader.lost is not None:
            print(visible(f"{options.file}: {reader.lost}"), file=sys.stderr)
    return 0


def _question(event: RunStarted | Spawned, decode: Decode | None) -> str:
    if isinstance(event, RunStarted):
        return event.prompt
    return " ".join(map(str, event.tokens)) if decode is None else decode(event.tokens).strip()

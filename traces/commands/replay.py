"""`python -m traces replay`: the events in order, or the model run again and compared."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import msgspec

from runtime.console import FAILED, input_directory, visible
from traces.commands.reading import OpenDevice, read_with_warning, warn_lost
from traces.reader import TraceReader
from traces.verification import verify

DIVERGED = 1
"""Exit status of a replay that went another way."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("replay", help="print the events in order, or run the model again and compare")
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="execute every thread again with the trace's checkpoint and settings; exit status 1 if anything differs",
    )
    parser.add_argument(
        "--checkpoint",
        type=input_directory,
        metavar="DIR",
        help="with --verify: where the trace's weights are, if not where it says (they had changed, or moved)",
    )
    parser.set_defaults(run=partial(_replay, parser))


def _replay(parser: argparse.ArgumentParser, options: argparse.Namespace, open_device: OpenDevice) -> int:
    if options.verify:
        return _verify(options.file, options.checkpoint, open_device)
    if options.checkpoint is not None:
        parser.error("--checkpoint goes with --verify")
    with TraceReader(options.file) as reader:
        for event in reader:
            fields = {name: getattr(event, name) for name in event.__struct_fields__ if name != "time"}
            values = " ".join(f"{name}={value!r}" for name, value in fields.items())
            print(f"{event.time:12.6f} {type(event).__name__} {values}")
        if reader.lost is not None:
            warn_lost(options.file, reader.lost)
    return 0


def _verify(file: Path, checkpoint: Path | None, open_device: OpenDevice) -> int:
    trace = read_with_warning(file)
    header = trace.header
    if checkpoint is not None:
        header = msgspec.structs.replace(header, checkpoint=str(checkpoint))
    result = verify(trace, open_device(header))
    if result.not_executed:
        print(f"{result.not_executed} generates sampled nothing and could not be executed again")
    if result.calls == 0:
        print("Nothing could be executed again: the trace has no generate with a token.", file=sys.stderr)
        return FAILED
    print(f"{result.threads} threads, {result.calls} generates, {result.tokens} tokens executed again and found equal")
    if result.divergence is None:
        return 0
    print(visible(f"The replay goes another way: {result.divergence.detail}"), file=sys.stderr)
    return DIVERGED

"""`python -m traces show|replay|export FILE`: looks at a trace, runs it again, or makes it a picture."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from policies import Policy, from_builtins
from runtime import TraceError
from runtime.console import FAILED, Printer, input_directory, output_file, status_of, visible
from runtime.link import Device, Header, Trace
from runtime.model import tokenizer_file
from traces.printing import Decode, load_decode, show
from traces.reader import TraceReader, read
from traces.verification import verify
from traces.viewer_format import exported

OpenDevice = Callable[[Header], Device]

DIVERGED = 1
"""Exit status of a replay that went another way."""


def main(arguments: Sequence[str] | None = None, open_device: OpenDevice | None = None) -> int:
    """Runs the command line and returns its exit status; messages go to stderr, results to stdout.

    `open_device` makes the device that `replay --verify` runs on; without it the checkpoint that the trace names is
    loaded with the settings that the trace has.
    """
    return status_of(partial(_run, arguments, open_device or _open_recorded))


def _run(arguments: Sequence[str] | None, open_device: OpenDevice) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is _replay and options.checkpoint is not None and not options.verify:
        parser.error("--checkpoint goes with --verify")
    if options.run is _export and options.output is not None and _is_same(options.output, options.file):
        parser.error(f"-o/--output is the trace itself, {options.file}")
    status: int = options.run(options, open_device)
    return status


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m traces", description="Look at, replay or export a trace.")
    commands = parser.add_subparsers(required=True, metavar="show|replay|export")

    shown = commands.add_parser("show", help="print the tree of threads")
    shown.add_argument("file", type=Path)
    shown.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="a checkpoint directory or a tokenizer.json, to print text (default: the trace's checkpoint, if it is "
        "a directory that has one)",
    )
    shown.set_defaults(run=_show)

    replayed = commands.add_parser("replay", help="print the events in order, or run the model again and compare")
    replayed.add_argument("file", type=Path)
    replayed.add_argument(
        "--verify",
        action="store_true",
        help="execute every thread again with the trace's checkpoint and settings; exit status 1 if anything differs",
    )
    replayed.add_argument(
        "--checkpoint",
        type=input_directory,
        metavar="DIR",
        help="with --verify: where the trace's weights are, if not where it says (they had changed, or moved)",
    )
    replayed.set_defaults(run=_replay)

    exported = commands.add_parser("export", help="write a file for a trace viewer (ui.perfetto.dev, chrome://tracing)")
    exported.add_argument("file", type=Path)
    exported.add_argument(
        "-o", "--output", type=output_file, metavar="FILE", help="default: FILE.json beside the trace"
    )
    exported.set_defaults(run=_export)
    return parser


def _show(options: argparse.Namespace, open_device: OpenDevice) -> int:
    trace = _read(options.file)
    show(trace, Printer(), _decode(options.tokenizer, trace.header))
    return 0


def _replay(options: argparse.Namespace, open_device: OpenDevice) -> int:
    if options.verify:
        return _verify(options.file, options.checkpoint, open_device)
    with TraceReader(options.file) as reader:
        for event in reader:
            fields = {name: getattr(event, name) for name in event.__struct_fields__ if name != "time"}
            values = " ".join(f"{name}={value!r}" for name, value in fields.items())
            print(f"{event.time:12.6f} {type(event).__name__} {values}")
        if reader.lost is not None:
            _warn_lost(options.file, reader.lost)
    return 0


def _verify(file: Path, checkpoint: Path | None, open_device: OpenDevice) -> int:
    trace = _read(file)
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


def _export(options: argparse.Namespace, open_device: OpenDevice) -> int:
    output = options.output or options.file.with_name(options.file.name + ".json")
    trace = _read(options.file)
    try:
        with output.open("wb") as file:
            file.writelines(exported(trace))
    except OSError as error:
        raise TraceError(f"Cannot write {output}: {error.strerror or error}.") from error
    print(f"Wrote {visible(str(output))}. Open it at https://ui.perfetto.dev or in chrome://tracing.", file=sys.stderr)
    return 0


def _read(file: Path) -> Trace:
    trace = read(file)
    if trace.lost is not None:
        _warn_lost(file, trace.lost)
    return trace


def _warn_lost(file: Path, lost: str) -> None:
    print(visible(f"{file}: {lost}"), file=sys.stderr)


def _decode(tokenizer: Path | None, header: Header) -> Decode | None:
    if tokenizer is not None:
        return load_decode(tokenizer)
    # A trace may name what cannot be a path; `Path` would raise.
    file = tokenizer_file(Path(header.checkpoint)) if os.path.isdir(header.checkpoint) else None
    return None if file is None else load_decode(file)


def _open_recorded(header: Header) -> Device:
    """The device that the trace was made with, on this machine."""
    from runtime import (
        EngineSettings,
        open_device,  # only here, since loading a model takes seconds
    )

    try:
        settings = msgspec.convert(header.engine, EngineSettings)
        policy = None if header.policy is None else from_builtins(header.policy, Policy)
    except (msgspec.ValidationError, ValueError) as error:
        raise TraceError(f"The trace's settings or policy cannot be used: {error}") from error
    opened = open_device(header.checkpoint, settings, policy=policy, trace=None, seed=header.seed)
    if opened.fingerprint is not None and opened.fingerprint() != header.fingerprint:
        print(
            f"{visible(header.checkpoint)} has other weights than the trace was recorded with: expect it to go another "
            "way, or name the directory of those with --checkpoint.",
            file=sys.stderr,
        )
    return opened.device


if __name__ == "__main__":
    sys.exit(main())

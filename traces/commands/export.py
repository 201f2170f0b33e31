"""`python -m traces export`: a file for a trace viewer, or lines of JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from runtime import TraceError
from runtime.console import output_file, visible
from traces.commands.reading import OpenDevice, read_with_warning, warn_lost
from traces.json_lines import thread_lines
from traces.reader import TraceReader
from traces.viewer_format import exported


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export", help="write a file for a trace viewer (ui.perfetto.dev, chrome://tracing), or lines of JSON"
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--jsonl", action="store_true", help="a line of JSON for each thread, for other programs")
    parser.add_argument(
        "-o", "--output", type=output_file, metavar="FILE", help="default: FILE.json, or .jsonl, beside the trace"
    )
    parser.set_defaults(run=partial(_export, parser))


def _export(parser: argparse.ArgumentParser, options: argparse.Namespace, open_device: OpenDevice) -> int:
    ending = ".jsonl" if options.jsonl else ".json"
    output = options.output or options.file.with_name(options.file.name + ending)
    if output.resolve() == options.file.resolve():
        parser.error(f"-o/--output is the trace itself, {options.file}")
    if options.jsonl:
        with TraceReader(options.file) as reader:
            _write(output, thread_lines(reader))
            if reader.lost is not None:
                warn_lost(options.file, reader.lost)
        print(f"Wrote {visible(str(output))}, a line for each thread.", file=sys.stderr)
        return 0
    _write(output, exported(read_with_warning(options.file)))
    print(f"Wrote {visible(str(output))}. Open it at https://ui.perfetto.dev or in chrome://tracing.", file=sys.stderr)
    return 0


def _write(output: Path, parts: Iterable[bytes]) -> None:
    try:
        with output.open("wb") as file:
            file.writelines(parts)
    except OSError as error:
        raise TraceError(f"Cannot write {output}: {error.strerror or error}.") from error

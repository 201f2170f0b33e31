"""`python -m traces export`: a file for a trace viewer."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from runtime import TraceError
from runtime.console import output_file, visible
from traces.commands.reading import OpenDevice, read_with_warning
from traces.viewer_format import exported


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("export", help="write a file for a trace viewer (ui.perfetto.dev, chrome://tracing)")
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--output", type=output_file, metavar="FILE", help="default: FILE.json beside the trace")
    parser.set_defaults(run=partial(_export, parser))


def _export(parser: argparse.ArgumentParser, options: argparse.Namespace, open_device: OpenDevice) -> int:
    output = options.output or options.file.with_name(options.file.name + ".json")
    if output.resolve() == options.file.resolve():
        parser.error(f"-o/--output is the trace itself, {options.file}")
    trace = read_with_warning(options.file)
    try:
        with output.open("wb") as file:
            file.writelines(exported(trace))
    except OSError as error:
        raise TraceError(f"Cannot write {output}: {error.strerror or error}.") from error
    print(f"Wrote {visible(str(output))}. Open it at https://ui.perfetto.dev or in chrome://tracing.", file=sys.stderr)
    return 0

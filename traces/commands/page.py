"""`python -m traces page`: one HTML file with everything to look at."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from runtime import TraceError
from runtime.console import output_file, visible
from traces.commands.reading import OpenDevice, decode_of, read_with_warning
from traces.web_page.writing import page


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("page", help="write a page for browsers: the tree, every text, a timeline")
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--output", type=output_file, metavar="FILE", help="default: FILE.html beside the trace")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="a checkpoint directory or a tokenizer.json (default: of the trace's checkpoint)",
    )
    parser.set_defaults(run=partial(_page, parser))


def _page(parser: argparse.ArgumentParser, options: argparse.Namespace, open_device: OpenDevice) -> int:
    output = options.output or options.file.with_name(options.file.name + ".html")
    if output.resolve() == options.file.resolve():
        parser.error(f"-o/--output is the trace itself, {options.file}")
    trace = read_with_warning(options.file)
    text = page(trace, decode_of(options.tokenizer, trace.header))
    try:
        output.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise TraceError(f"Cannot write {output}: {error.strerror or error}.") from error
    print(f"Wrote {visible(str(output))}, {len(text) / 1e6:.2f} MB. Open it in a browser.", file=sys.stderr)
    return 0

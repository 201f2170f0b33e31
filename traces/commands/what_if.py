"""`python -m traces what-if`: the recorded questions again, under another policy, sampling or checkpoint."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
from rich.progress import Progress
from rich.table import Table

from policies import AllChildren, Fixed, Policy, from_builtins
from runtime import Tools, TraceError
from runtime.console import Printer, input_directory, output_file, visible, whole
from runtime.link import Header, Trace
from traces.commands.expressions import KINDS, policy_of, sampling_of, sweep_of
from traces.commands.reading import OpenDevice, read_with_warning
from traces.counterfactual.asking import WhatIf, what_if
from traces.counterfactual.comparing import Comparison, Cost, Parting, Spoken
from traces.counterfactual.sweeping import draw, point_of, sweep_table

MOST_SHOWN = 10
"""Changed answers that are printed; the JSON file has all."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "what-if", help="ask the recorded questions again, under another policy, sampling or checkpoint, and compare"
    )
    parser.add_argument("file", type=Path)
    for kind, example in (("depth", "LatentDiff(0.1)"), ("spawn", "MaxChildren(4)"), ("select", "SelfConsistency(3)")):
        parser.add_argument(f"--{kind}", metavar="POLICY", help=f"such as '{example}' (default: as recorded)")
    parser.add_argument(
        "--sweep",
        type=sweep_of,
        metavar="NAME=FROM:TO:COUNT",
        help="once for each number, which the name stands for in the policies: --depth 'LatentDiff(t)' --sweep "
        "t=0.01:0.3:8; or NAME=A,B,C",
    )
    parser.add_argument("--figure", type=output_file, metavar="FILE", help="with --sweep: a plot, as SVG or PNG")
    parser.add_argument("--sampling", type=sampling_of, metavar="FIELDS", help="such as temperature=0.7,top_p=0.9")
    parser.add_argument("--checkpoint", type=input_directory, metavar="DIR", help="default: the recorded one")
    parser.add_argument(
        "--tool",
        type=partial(_function, what="tool"),
        action="append",
        metavar="MODULE:FUNCTION",
        help="runs the calls of a tool that were not recorded; may be given several times",
    )
    parser.add_argument("--limit", type=whole(1), metavar="N", help="ask the first N questions alone")
    parser.add_argument(
        "--verifier",
        type=partial(_function, what="verifier"),
        metavar="MODULE:FUNCTION",
        help="says of a prompt and an answer whether it is right, such as examples.countdown.solve:is_right",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write everything there as well")
    parser.set_defaults(run=partial(_what_if, parser))


def _what_if(parser: argparse.ArgumentParser, options: argparse.Namespace, open_device: OpenDevice) -> int:
    if options.figure is not None and options.sweep is None:
        parser.error("--figure goes with --sweep")
    name, values = options.sweep or ("", [0.0])
    given = [
        {kind: text for kind in KINDS if (text := getattr(options, kind)) is not None},
        *({name: value} for value in values),
    ]
    try:
        named = [{kind: policy_of(kind, text, each) for kind, text in given[0].items()} for each in given[1:]]
    except ValueError as error:
        parser.error(str(error))
    if name and all(policies == named[0] for policies in named) and len(named) > 1:
        parser.error(f"--sweep {name}: no policy has {name} in it; write it as --depth 'LatentDiff({name})'")
    trace = read_with_warning(options.file)
    results = [
        _asked(options, trace, policies, f"{name}={value}") for policies, value in zip(named, values, strict=True)
    ]
    if options.json is not None:
        written = results if name else results[0]
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(written)) + b"\n")
    if not name:
        _show(results[0])
        return 0
    points = [point_of(value, result) for value, result in zip(values, results, strict=True)]
    Printer().print(sweep_table(name, points))
    if options.figure is not None:
        draw(name, points, options.figure)
    return 0


def _asked(options: argparse.Namespace, trace: Trace, policies: Mapping[str, Any], about: str) -> WhatIf:
    tools = None
    if options.tool:
        tools = Tools()
        for function in options.tool:
            tools.add(function)
    with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task(f"asking again {about.strip('=0.')}", total=None)
        return anyio.run(
            lambda: what_if(
                trace,
                policy=_policy(policies, trace.header),
                sampling=options.sampling,
                checkpoint=options.checkpoint,
                tools=tools,
                limit=options.limit,
                verify=options.verifier,
                progress=lambda: progress.advance(task),
            )
        )


def _show(result: WhatIf) -> None:
    printer = Printer()
    printer.print(_table(result))
    for why in result.refused[:MOST_SHOWN]:
        print(visible(why), file=sys.stderr)
    changed = [each for each in result.comparisons if each.is_changed]
    for comparison in changed[:MOST_SHOWN]:
        for line in _lines(comparison):
            printer.print(visible(line), markup=False, highlight=False, soft_wrap=True)
    if len(changed) > MOST_SHOWN:
        printer.print(f"{len(changed) - MOST_SHOWN} more answers changed; --json FILE has all.")


def _policy(named: Mapping[str, Any], header: Header) -> Policy | None:
    """What was recorded, with what is named in its place; None where nothing is, and the recorded one counts."""
    if not named:
        return None
    try:
        before = None if header.policy is None else from_builtins(header.policy, Policy)
    except ValueError as error:
        raise TraceError(f"The trace's policy cannot be used: {error}") from error
    return msgspec.structs.replace(before or Policy(depth=Fixed(), spawn=AllChildren()), **named)


def _table(result: WhatIf) -> Table:
    table = Table(
        "", "recorded", "now", "ratio", title=visible(f"{len(result.comparisons)} questions, {result.policy}")
    )
    pairs = [(each.recorded, each.now) for each in result.comparisons]
    count = max(1, len(pairs))
    changed = sum(each.is_changed for each in result.comparisons)
    table.add_row("answers changed", "", f"{changed} of {len(pairs)}", "")
    if pairs and pairs[0][0].is_right is not None:
        right = [sum(bool(cost.is_right) for cost in side) / count for side in zip(*pairs, strict=True)]
        table.add_row("right", f"{right[0]:.3f}", f"{right[1]:.3f}", "")
    names = ["threads", "tokens", "iterations", "critical_path", "tool_calls", "seconds"]
    if not any(cost.tool_calls for pair in pairs for cost in pair):
        names.remove("tool_calls")
    for name in names:
        before, after = (
            (sum(getattr(cost, name) for cost in side) / count for side in zip(*pairs, strict=True))
            if (pairs)
            else (0.0, 0.0)
        )
        ratio = f"{after / before:.3f}" if before else ""
        table.add_row(f"{name.replace('_', ' ')} a question", f"{before:.4g}", f"{after:.4g}", ratio)
    return table


def _lines(comparison: Comparison) -> list[str]:
    lines = [
        f"{comparison.tree}  {comparison.prompt}",
        f"  recorded  {_answer(comparison.recorded)}",
        f"  now       {_answer(comparison.now)}",
    ]
    lines += [_parting(parting) for parting in comparison.partings[:3]]
    if comparison.only_recorded:
        lines.append(f"  only recorded: threads {', '.join(comparison.only_recorded[:8])}")
    if comparison.only_now:
        lines.append(f"  only now: threads {', '.join(comparison.only_now[:8])}")
    return lines


def _answer(cost: Cost) -> str:
    return cost.answer or f"({cost.outcome or 'unfinished'})"


def _parting(parting: Parting) -> str:
    return (
        f"  thread {parting.thread} parts at position {parting.position}: "
        f"{_spoken(parting.recorded)} recorded, {_spoken(parting.now)} now"
    )


def _spoken(spoken: Spoken | None) -> str:
    if spoken is None:
        return "its end"
    return f"token {spoken.token} (depth {spoken.depth}, log-probability {spoken.logprob:.3f})"


def _function(text: str, what: str) -> Callable[..., Any]:
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; name it as package.module:function") from error
    if not callable(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no function, and a {what} is one")
    return cast(Callable[..., Any], found)

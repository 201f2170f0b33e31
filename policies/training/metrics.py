"""The metrics of a training run: one JSON object a line, in the run's directory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

FILE = "metrics.jsonl"

_decoder = msgspec.json.Decoder(dict[str, float | None])


def write_metrics(directory: Path, metrics: Mapping[str, float]) -> None:
    """Appends a line. `metrics` has the number of steps done as "step", and whatever was measured then."""
    with (directory / FILE).open("ab") as file:
        file.write(msgspec.json.encode(metrics) + b"\n")


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """All lines in the order written, none without a file; a last line that a kill cut short is left out.

    Raises `ValueError`, naming file and line, for a line that is not metrics.
    """
    path = directory / FILE
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            decoded = _decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}. Expected an object of numbers.") from error
        if decoded.get("step") is None:
            raise ValueError(f"{path}, line {number}: has no step.")
        # JSON has no NaN: what diverged is written as null.
        found.append({name: math.nan if value is None else value for name, value in decoded.items()})
    return found


def drop_metrics_after(directory: Path, step: int) -> list[dict[str, float]]:
    """Cuts off the lines of steps after `step`, which a resumed run does again; returns the lines that stay.

    Raises `ValueError` like `read_metrics`.
    """
    lines = read_metrics(directory)
    kept = [metrics for metrics in lines if metrics["step"] <= step]
    path = directory / FILE
    if path.is_file():
        size = sum(len(line) + 1 for line in path.read_bytes().split(b"\n")[: len(kept)])
        os.truncate(path, size)
    return kept

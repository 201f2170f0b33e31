"""A report as data: everything that its JSON file, its Markdown and its figures show."""

from __future__ import annotations

from typing import Literal

import msgspec

Value = str | int | float | bool | None


class Point(msgspec.Struct, frozen=True):
    x: float
    y: float
    label: str = ""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    points: tuple[Point, ...]
    style: Literal["line", "dashed", "points"] = "line"


class Figure(msgspec.Struct, frozen=True, kw_only=True, tag="lines"):
    """Curves or points over a numeric axis."""

    name: str
    """Of its file, without the suffix."""
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    is_log: bool = False
    """Whether the x axis is logarithmic."""


class Bars(msgspec.Struct, frozen=True, kw_only=True, tag="bars"):
    """One bar a label."""

    name: str
    title: str
    y_label: str
    bars: dict[str, float]


class Table(msgspec.Struct, frozen=True, kw_only=True):
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    """Shares are from 0 to 1; None where something was not measured."""
    caption: str = ""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    text: tuple[str, ...]
    """Paragraphs."""
    figures: tuple[Figure | Bars, ...] = ()
    tables: tuple[Table, ...] = ()


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that was to be reached."""

    aim: str
    measured: float | None
    """None where it could not be measured."""
    bound: float
    is_lower_better: bool = False
    how: str = ""
    """At which setting."""

    @property
    def is_met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.bound if self.is_lower_better else self.measured >= self.bound


class CheckpointRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    fingerprint: str
    parameters: int
    megabytes: float
    depth: str
    """The default depth policy."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What it was measured on."""

    python: str
    torch: str
    processor: str
    cores: int
    problems: str
    """The file of the problems, by name."""
    count: int
    limit: int | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    environment: Environment
    checkpoints: tuple[CheckpointRow, ...]
    missing: tuple[str, ...]
    """Checkpoints that were not there; what needs them is left out."""
    aims: tuple[Aim, ...]
    sections: tuple[Section, ...]
    cells: Table
    """Everything that was evaluated."""

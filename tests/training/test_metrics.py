"""Metrics of a run: whole lines wherever the file was cut, and their picture."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.training import (
    plot_metrics,
)
from policies.training.metrics import drop_metrics_after, read_metrics, write_metrics
from tests.training.counting import steps_logged


@settings(max_examples=30)
@given(st.integers(0, 8), st.integers(0, 40))
def test_metrics_end_at_a_step_wherever_the_file_was_cut(
    tmp_path_factory: pytest.TempPathFactory, step: int, cut: int
) -> None:
    directory = tmp_path_factory.mktemp("metrics")
    for done in range(1, 7):
        write_metrics(directory, {"step": done, "loss": 1 / done if done != 3 else float("nan")})
    path = directory / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    whole = steps_logged(directory)
    kept = [metrics["step"] for metrics in drop_metrics_after(directory, step)]
    assert kept == [done for done in whole if done <= step]
    write_metrics(directory, {"step": 99})
    assert steps_logged(directory) == [*kept, 99]


def test_lines_that_are_no_metrics_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": "low"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path)


def test_a_plot_without_metrics_or_matplotlib_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no metrics to plot"):
        plot_metrics(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_metrics(tmp_path)

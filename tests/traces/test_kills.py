"""A few kills; `python -m tests.traces.kills` does more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.traces.kills import kill_one, missing
from tests.traces.toy_device import header
from traces import TraceWriter, read


@pytest.mark.parametrize("lines", [5, 23])
def test_what_was_seen_before_a_kill_is_in_the_trace(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "run.trace"
    told = kill_one(path, lines)
    assert len(told) >= lines
    assert missing(path, told) == []
    assert missing(path, ["said|9.9.9|1"]) == ["said|9.9.9|1"]
    # The lock went with the process.
    TraceWriter(path, header(), overwrite=True).close()
    assert read(path).events == []

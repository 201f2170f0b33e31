"""A file is replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.model.files import replace_file, replacing


def test_what_was_written_takes_the_place_in_one_move(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with replacing(path) as partial:
        partial.write_bytes(b"new")
        assert not path.exists()
    replace_file(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    replace_file(path, b"old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_bytes(b"ne")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

"""Some damaged files of each kind; `python -m tests.fuzz --damage` does more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import damaging


def test_damaged_files_are_used_or_refused() -> None:
    counts = damaging.damage_files(1, 28, None)
    assert counts.total() == 28
    assert {name.split(":")[0] for name in counts} == {*damaging.FILES, damaging.GGUF, "trace"}


def test_a_fault_is_raised_with_the_command_that_does_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(checkpoint: object) -> None:
        raise KeyError("protocol")

    monkeypatch.setattr(damaging, "load_checkpoint", careless)
    monkeypatch.setattr(damaging, "checkpoints", lambda directory: iter([_whole(directory)]))
    with pytest.raises(KeyError) as raised:
        damaging.damage_files(1, 20, None)
    assert "--damage --seed 1" in raised.value.__notes__[0]


def _whole(directory: Path) -> Path:
    (directory / "config.json").write_text("{}")
    return directory

"""Native code on disk: whatever is wrong with a file or a directory, what is called was compiled from its source."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import types
from numba.core import config
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import IndexDataCacheFile

from runtime.backend.native.compiled import compile_callback, compile_function


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setattr(config, "CACHE_DIR", str(directory))
    return directory


def put_seven(numbers: Any) -> None:
    numbers[0] = 7


def put_nothing(number: Any) -> None:
    pass


def loaded() -> tuple[bool, list[str]]:
    """Whether a function came from disk, and what was wrong there; it works in any case."""
    problems: list[str] = []
    function: Any = compile_function(types.void(types.int64[::1]), put_seven, problems)
    numbers = np.zeros(1, np.int64)
    function(numbers)
    assert numbers[0] == 7
    return bool(function.stats.cache_hits), problems


def names_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of compiled functions, where Numba has compiled nothing before."""
    monkeypatch.setattr(FunctionIdentity, "_unique_ids", itertools.count(1))
    function: Any = compile_function(types.void(types.int64[::1]), put_seven, [])
    (compiled,) = function.overloads.values()
    callback: Any = compile_callback(types.void(types.int64), put_nothing, [])
    return [compiled.fndesc.mangled_name, callback.native_name]


def test_code_of_several_processes_can_be_loaded_by_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for other types may have the same name in all but its number, so the numbers have to differ."""
    names = []
    for number in range(2):
        monkeypatch.setattr(config, "CACHE_DIR", str(cache / str(number)))
        names += names_in_a_new_process(monkeypatch)
    assert len(set(names)) == 4


class Intruder:
    """Unpickled, it makes a directory."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.where),)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_first(file: Path) -> None:
    flip(file, 0)


def flip_middle(file: Path) -> None:
    flip(file, file.stat().st_size // 2)


def flip_last(file: Path) -> None:
    flip(file, file.stat().st_size - 1)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)


def replace_by_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Intruder(file.parent / "intruded")))


@pytest.mark.parametrize("damage", [empty, truncate, flip_first, flip_middle, flip_last, replace_by_pickle])
@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
def test_a_damaged_file_is_replaced(cache: Path, kind: str, damage: Callable[[Path], None]) -> None:
    assert loaded() == (False, [])
    assert loaded() == (True, [])
    (file,) = cache.rglob(kind)
    damage(file)
    is_from_disk, problems = loaded()
    assert not is_from_disk
    assert problems
    assert "damaged" in problems[0]
    assert str(file) in problems[0]
    assert not (file.parent / "intruded").exists()
    assert loaded() == (True, [])


@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
def test_a_directory_in_a_file_s_place_costs_a_compilation(cache: Path, kind: str) -> None:
    loaded()
    (file,) = cache.rglob(kind)
    file.unlink()
    file.mkdir()
    is_from_disk, problems = loaded()
    assert not is_from_disk
    assert "cannot be written" in problems[-1]


def test_code_of_another_function_is_not_taken(cache: Path) -> None:
    loaded()
    (file,) = cache.rglob("*.nbc")
    compile_function(types.void(types.int64), put_nothing, [])
    (other,) = set(cache.rglob("*.nbc")) - {file}
    file.write_bytes(other.read_bytes())
    assert loaded() == (False, [])
    assert loaded() == (True, [])


def test_a_lost_file_is_written_again(cache: Path) -> None:
    loaded()
    (file,) = cache.rglob("*.nbc")
    file.unlink()
    assert loaded() == (False, [])
    assert loaded() == (True, [])


def test_a_full_disk_is_told_once_a_function(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(IndexDataCacheFile, "_open_for_write", full)
        is_from_disk, problems = loaded()
    assert not is_from_disk
    (problem,) = problems
    assert "No space left on device" in problem


def test_a_directory_that_can_only_be_read_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    loaded()
    monkeypatch.setattr("numba.core.caching.tempfile.TemporaryFile", refused)
    assert loaded() == (True, [])


def test_a_file_in_the_directory_s_place(cache: Path) -> None:
    cache.write_bytes(b"")
    _, problems = loaded()
    assert "NUMBA_CACHE_DIR" in problems[0]


def test_callbacks_are_kept_as_well(cache: Path) -> None:
    for hits in (0, 1):
        problems: list[str] = []
        assert compile_callback(types.void(types.int64), put_nothing, problems).cache_hits == hits
        assert not problems

"""The cache of native code on disk: Numba's, but what is wrong with it costs a compilation and nothing else.

Files hold a digest of their content, so that nothing damaged, and nothing that others wrote, is ever unpickled or run.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile
from numba.core.serialize import dumps

_configured: Any = config

_DIGEST = 32
"""Bytes that a file begins with."""


def _reading(kind: Any) -> Any:
    """A kind of directory, taken also where it can only be read and has code in it."""

    class Reading(kind):
        def ensure_cache_path(self) -> None:
            try:
                super().ensure_cache_path()
            except OSError:
                if not any(Path(self.get_cache_path()).glob("*.nbi")):
                    raise

    return Reading


def _directories() -> list[Any]:
    return [_reading(kind) for kind in CompileResultCacheImpl._locator_classes]


class _CompiledFunction(CompileResultCacheImpl):
    _locator_classes = _directories()


class _CheckedFiles(IndexDataCacheFile):
    """An index (.nbi) that names a file of code (.nbc) for each key, all of them with digests."""

    def __init__(self, directory: str, base: str, stamp: Any, problems: list[str]) -> None:
        super().__init__(directory, base, stamp)
        self._problems = problems

    def load(self, key: Any) -> Any:
        stored = super().load(key)
        # An index may be older than the file that it names.
        return stored[1] if stored is not None and stored[0] == key else None

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, data))

    def _load_index(self) -> dict[Any, str]:
        try:
            version, rest = self._read(self._index_path)
            stamp, names = pickle.loads(rest) if version == self._version else (None, {})
        except FileNotFoundError:
            return {}
        except Exception as error:
            self._problems.append(f"cannot be read: {error!r}")
            return {}
        return names if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        # Signatures of another version cannot be relied upon to be read at all.
        content = self._dump((self._version, dumps((self._source_stamp, overloads))))
        with self._open_for_write(self._index_path) as file:
            file.write(content)

    def _load_data(self, name: str) -> Any:
        return self._read(self._data_path(name))

    def _dump(self, content: Any) -> bytes:
        pickled: bytes = dumps(content)
        return _digest(pickled) + pickled

    def _read(self, path: str) -> Any:
        """What `_dump` wrote. Raises `ValueError` for anything else."""
        file = Path(path)
        if file.exists() and not file.is_file():
            raise ValueError(f"{path} is no file")
        content = file.read_bytes()
        if content[:_DIGEST] != _digest(content[_DIGEST:]):
            raise ValueError(f"{path} is damaged")
        return pickle.loads(content[_DIGEST:])


class CodeCache(FunctionCache):
    """Where one native function is looked for and kept. What goes wrong is added to `problems`, and not raised."""

    _impl_class = _CompiledFunction

    def __init__(self, function: Callable[..., None], problems: list[str]) -> None:
        """Raises `RuntimeError` where no directory can be read or written."""
        super().__init__(function)
        self._problems = problems
        if _configured.CACHE_DIR and not Path(self._cache_path).is_relative_to(_configured.CACHE_DIR):
            problems.append(f"NUMBA_CACHE_DIR={_configured.CACHE_DIR} cannot be used; {self._cache_path} is")
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CheckedFiles(self._cache_path, self._impl.filename_base, stamp, problems)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None where it has to be compiled."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            self._problems.append(f"cannot be read: {error!r}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            self._problems.append(f"cannot be written: {error!r}")


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST).digest()

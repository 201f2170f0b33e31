"""Watchers and errors between processes: pickled, but for what both sides have, which goes by name.

Watchers refer to the tokenizer and to tables of the protocol; a replica has its own, and the watcher goes on there with
those. Pickles pass between processes of one program only, as everything does that Ray carries.
"""

from __future__ import annotations

import io
import pickle

import msgspec

from runtime.errors import BraidError, described
from runtime.link.commands import Signal, Watcher
from runtime.threads.opened import Opened


class FrozenWatcher(msgspec.Struct, frozen=True):
    """A watcher on its way, as it was when its generate began; `Courier.thaw` makes one that can be fed."""

    content: bytes

    def feed(self, token: int) -> tuple[Signal, ...]:
        raise TypeError(f"a watcher that is on its way cannot read token {token}")


class Courier:
    """Packs and unpacks for one checkpoint, of which either side has its own."""

    def __init__(self, opened: Opened) -> None:
        self._shared = _shared_by(opened)
        self._names = {id(value): name for name, value in self._shared.items()}

    def freeze(self, watcher: Watcher) -> FrozenWatcher:
        """Raises `BraidError` for a watcher that cannot travel."""
        buffer = io.BytesIO()
        try:
            _Packer(buffer, self._names).dump(watcher)
        except Exception as error:
            raise BraidError(
                f"A {type(watcher).__name__} cannot be sent to a replica ({described(error)}). Use watchers that can "
                "be pickled."
            ) from error
        return FrozenWatcher(buffer.getvalue())

    def thaw(self, frozen: FrozenWatcher) -> Watcher:
        watcher: Watcher = _Unpacker(io.BytesIO(frozen.content), self._shared).load()
        return watcher


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, names: dict[int, str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._names = names

    def persistent_id(self, value: object) -> str | None:
        return self._names.get(id(value))


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: dict[str, object]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, name: str) -> object:
        return self._shared[name]


def _shared_by(opened: Opened) -> dict[str, object]:
    """What every process that opens the checkpoint has, by name."""
    shared: dict[str, object] = {}
    if opened.tokenizer is not None:
        shared["tokenizer"] = opened.tokenizer
    if opened.protocol is not None:
        shared["protocol"] = opened.protocol
        for name, value in vars(opened.protocol).items():
            # Others, such as an empty tuple, may be in use elsewhere too.
            is_own = bool(value) and (hasattr(value, "__dict__") or isinstance(value, dict | tuple))
            if is_own and not any(value is other for other in shared.values()):
                shared[f"protocol.{name}"] = value
    return shared


def sendable(error: BaseException) -> Exception:
    """An error that can travel: itself, or one of Braid's that says the same."""
    if isinstance(error, Exception):
        try:
            loaded = pickle.loads(pickle.dumps(error))
            if type(loaded) is type(error) and str(loaded) == str(error):
                return error
        except Exception:
            return BraidError(f"On a replica: {described(error)}.")
    return BraidError(f"On a replica: {described(error)}.")

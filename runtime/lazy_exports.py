"""Public names of packages that are loaded when they are first used, because some of them need PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module


def lazy_exports(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that exports what it imports `if TYPE_CHECKING`, as in

        if TYPE_CHECKING:
            from runtime.engine import Engine as Engine

        __getattr__, __dir__ = lazy_exports(__name__)

    So every name stands once, where type checkers and this look for it; `__all__` has them too. Raises
    `AttributeError` for other names, as modules do.
    """

    @cache
    def modules() -> dict[str, str]:
        return _reexported(package)

    def get(name: str) -> object:
        if name == "__all__":
            return sorted(modules())
        if name not in modules():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(modules()[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(modules())


def _reexported(package: str) -> dict[str, str]:
    """The module of every name that a package's source imports under itself, `if TYPE_CHECKING`."""
    # Loaded with the first name, which takes longer than this, so that importing the package does not.
    import ast
    from importlib.abc import InspectLoader
    from importlib.util import decode_source

    spec = sys.modules[package].__spec__
    loader = None if spec is None else spec.loader
    source = loader.get_source(package) if isinstance(loader, InspectLoader) else None
    if source is None and spec is not None and spec.origin is not None and os.path.isfile(spec.origin):
        # Some loaders, as pytest's of what has a plugin in it, give no source.
        with open(spec.origin, "rb") as file:
            source = decode_source(file.read())
    if source is None:
        raise ImportError(f"{package} cannot find its names: its source is not there. Install it with its source.")
    return {
        alias.name: node.module
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
        if alias.asname == alias.name
    }

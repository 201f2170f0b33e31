"""No file imports itself by way of others, and packages export what they say.

Which layer may import which is said in pyproject.toml, and checked by `lint-imports`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import grimp
import pytest

from runtime.errors import TraceError

PACKAGES = ("policies", "runtime", "traces", "examples", "benchmarks")

UPWARDS = ("runtime.loading.tracing", "traces")
"""The one import against the layers, made where a trace is asked for."""


def in_circles(imports: dict[str, set[str]]) -> list[str]:
    """The files that are left when those that import none of the rest, or that none of it imports, are taken away."""
    left = set(imports)
    while True:
        imported = set().union(*(imports[file] for file in left))
        ends = {file for file in left if file not in imported or not imports[file] & left}
        if not ends:
            return sorted(left)
        left -= ends


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    imports = {file: set(graph.find_modules_directly_imported_by(file)) for file in graph.modules}
    importer, imported = UPWARDS
    imports[importer].remove(imported)
    assert in_circles(imports) == []


def test_files_in_a_circle_are_named() -> None:
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]


@pytest.mark.parametrize(
    "name", ["policies", "policies.training", "runtime", "runtime.console", "runtime.link", "runtime.model", "traces"]
)
def test_what_a_package_exports_is_there_whatever_was_imported_before(name: str) -> None:
    package = import_module(name)
    assert all(hasattr(package, exported) for exported in package.__all__)
    # A module that is imported takes its name in the package.
    assert not {module.name for module in iter_modules(package.__path__)} & set(package.__all__)


@pytest.mark.parametrize("name", ["runtime", "runtime.console", "runtime.link", "runtime.model", "traces"])
def test_names_that_are_loaded_late_are_what_they_say(name: str) -> None:
    package = import_module(name)
    assert dir(package) == package.__all__ == sorted(package.__all__)
    assert "import_module" not in package.__all__
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing


class Sourceless:
    """A loader that gives no source."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._path.read_text(), self._path, "exec"), module.__dict__)


def test_names_are_found_where_a_loader_gives_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytest's, which loads whatever is installed beside a plugin."""
    path = tmp_path / "sourceless.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "from runtime.lazy_exports import lazy_exports\n"
        "if TYPE_CHECKING:\n    from runtime.errors import TraceError as TraceError\n"
        "__getattr__, __dir__ = lazy_exports(__name__)\n"
    )
    loader: Any = Sourceless(path)
    spec = spec_from_file_location("sourceless", path, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sourceless", module)
    loader.exec_module(module)
    assert module.TraceError is TraceError
    assert dir(module) == ["TraceError"]

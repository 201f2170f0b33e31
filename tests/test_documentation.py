"""What documents name can be had: imports of their programs, and names that they write with their package."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import runtime

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
PACKAGES = ("runtime", "runtime.link", "runtime.model", "runtime.console", "traces", "policies", "policies.training")
NAMED = re.compile(r"`((?:runtime|traces|policies)(?:\.[A-Za-z_]+)+)\b(?!\.\w|/)")


def programs_of(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def imports_of(document: str) -> list[tuple[str, str]]:
    """Modules, and what is imported from them."""
    nodes = [node for program in programs_of(document) for node in ast.walk(ast.parse(program))]
    return [
        (node.module, name.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for name in node.names
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_programs_in_documents_import_is_public(document: str) -> None:
    for module, name in imports_of(document):
        loaded = import_module(module)
        assert hasattr(loaded, name) or find_spec(f"{module}.{name}"), f"{module} has no {name}"
        if module in PACKAGES:
            assert name in loaded.__all__, f"{module} does not export {name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_with_their_package_are_there(document: str) -> None:
    for name in NAMED.findall((ROOT / document).read_text()):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute) or import_module(name), name


OBJECTS = {
    "engine": runtime.Engine,
    "thread": runtime.ReasoningThread,
    "root": runtime.ReasoningThread,
    "child": runtime.Child,
    "usage": runtime.Usage,
    "generation": runtime.Generation,
    "answer": runtime.Answer,
}
OF_OBJECTS = re.compile(rf"`(?:await |async (?:for|with)[^`]*? )?({'|'.join(OBJECTS)})\.(?!py\b)([a-z_]+)")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_objects_are_said_to_have_they_have(document: str) -> None:
    for name, attribute in OF_OBJECTS.findall((ROOT / document).read_text()):
        assert hasattr(OBJECTS[name], attribute), f"{name}.{attribute}"


def test_documents_have_programs_and_names() -> None:
    assert sum(len(imports_of(document)) for document in DOCUMENTS) > 25
    assert sum(len(NAMED.findall((ROOT / document).read_text())) for document in DOCUMENTS) > 4
    assert sum(len(OF_OBJECTS.findall((ROOT / document).read_text())) for document in DOCUMENTS) > 20


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("runtime", "APR BoundProtocol Child ChildStatus Engine Opened ReasoningThread Statistics Stream TagProtocol"),
        ("runtime.link", "Device RunStarted Spawned Joined ThreadEnded Sampled Watcher"),
        ("runtime.model", "RavenConfig Tokenizer load_checkpoint save_checkpoint"),
        ("traces", "RunStarted Spawned Joined ThreadEnded diff read show thread_tree verify walk_threads"),
        ("policies.training", "CalibrationSet threads_in train train_grpo"),
    ],
)
def test_what_documents_tell_about_is_exported(package: str, names: str) -> None:
    loaded = import_module(package)
    for name in names.split():
        assert name in loaded.__all__
        assert getattr(loaded, name).__doc__, f"{package}.{name} has no docstring"

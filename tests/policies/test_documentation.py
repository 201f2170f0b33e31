"""The examples of docs/policies.md run, and its tables say what the classes do."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import policies
from policies import (
    DepthPolicy,
    DepthView,
    EvenBudget,
    Policy,
    SelectPolicy,
    SpawnPolicy,
    SpawnRequest,
    TreeView,
    from_json,
    to_json,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "policies.md"
CODE = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """All of the document's code, as one imported module."""
    path = tmp_path_factory.mktemp("docs") / "documented_policies.py"
    path.write_text("\n".join(CODE))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


def test_own_classes_take_ten_lines() -> None:
    classes = [block[block.index("class ") :] for block in CODE if "class " in block]
    assert len(classes) == 2
    for text in classes:
        assert sum(bool(line.strip()) for line in text.splitlines()) <= 10


def test_the_depth_policy_of_ten_lines(examples: ModuleType) -> None:
    policy = examples.Confident(0.8, max_iterations=12)
    logits = torch.tensor([[0.0, 5.0], [0.0, 0.1], [5.0, 0.0]])
    previous = policy.begin(torch.zeros(3, 4), 2)
    values, previous = policy.measure(DepthView(torch.ones(3), torch.zeros(3, 4), logits, previous))
    assert previous.shape == (3, 0)
    assert policy.is_done(values).tolist() == [True, False, True]
    for whole in (policy, EvenBudget(policy), Policy(depth=policy)):
        assert from_json(to_json(whole)) == whole


def test_the_spawn_policy_of_ten_lines(examples: ModuleType) -> None:
    policy = examples.ShortMessages(3)
    tree = TreeView(threads=1, running=1, tokens=0, iterations=0, waiting=0)
    short, long = (policy.decide(SpawnRequest((0,), (7,) * n, 0, 0, 1.0), tree) for n in (3, 4))
    assert short.run
    assert not short.reason
    assert not long.run
    assert long.reason == "message of 4 tokens"
    assert from_json(to_json(Policy(spawn=policy))) == Policy(spawn=policy)


def test_the_tables_list_every_policy() -> None:
    abstract = {"DepthPolicy", "SpawnPolicy", "SelectPolicy", "Bounding"}
    public = {
        name
        for name in policies.__all__
        if isinstance(kind := getattr(policies, name), type)
        and issubclass(kind, DepthPolicy | SpawnPolicy | SelectPolicy)
    }
    listed = re.findall(r"^\| `(\w+)\(", DOCUMENT.read_text(), re.MULTILINE)
    assert set(listed) == public - abstract
    assert len(listed) == len(set(listed))

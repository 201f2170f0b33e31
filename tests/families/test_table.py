"""The table of docs/models.md: a row for each family, and a test for each row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.model.architecture import CAUSAL
from runtime.model.families.raven import MODEL_TYPE
from tests.families.checkpoints import FIRST

DOCUMENT = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
ROWS = {
    model_type: (source, way)
    for model_type, source, way in re.findall(r"^\| `(\w+)` \| (.+?) \| (native|wide) \| .*\|$", DOCUMENT, re.MULTILINE)
}
GOLDENS = (MODEL_TYPE, "ouro")
"""Families whose references are not in transformers: outputs of theirs are among the tests."""


def test_the_table_has_a_row_for_each_family() -> None:
    assert set(ROWS) == {MODEL_TYPE, *CAUSAL}


@pytest.mark.parametrize("model_type", ROWS)
def test_a_row_is_a_family_that_is_compared_with_its_source(model_type: str) -> None:
    source, way = ROWS[model_type]
    assert way == "native"
    if model_type in GOLDENS:
        assert model_type == MODEL_TYPE or model_type in CAUSAL
        return
    assert CAUSAL[model_type].architecture in source
    assert model_type in dict(FIRST)

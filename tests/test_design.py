"""Documents name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

FILE = re.compile(r"\b(?:runtime|policies|traces|examples|benchmarks|tests)/[\w/-]+\.py\b")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_files_that_a_document_names_exist(document: Path) -> None:
    named = set(FILE.findall(document.read_text()))
    assert {path for path in named if not (ROOT / path).is_file()} == set()


def test_the_way_of_a_token_is_six_files() -> None:
    design = (ROOT / "docs" / "design.md").read_text()
    section = design.partition("## The way of a token\n")[2].partition("Two owners")[0]
    assert FILE.findall(section) == [
        "runtime/threads/context.py",
        "runtime/device/loop.py",
        "runtime/device/scheduler.py",
        "runtime/device/flight.py",
        "runtime/backend/ticking.py",
        "runtime/threads/inbox.py",
    ]

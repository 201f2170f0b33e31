"""Fake sides of a comparison, in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers.process import ROOT
from benchmarks.peers.sides import Side
from tests.peers.sides import MakeSide

FAKE = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from contextlib import contextmanager
from benchmarks.peers.answering import Answered, Loaded, serve

{{before}}

def answer(prompts):
    return Answered([{{tokens}} for prompt in prompts], [])

@contextmanager
def load(job):
    print("noise on standard output")
    {{loading}}
    yield Loaded(answer=answer, check={{check}}, versions={{{{"fake": "1.0"}}}})

if __name__ == "__main__":
    serve(load)
"""


@pytest.fixture
def fake(tmp_path: Path) -> MakeSide:
    """Makes sides that compute `tokens`, an expression of `prompt`, in processes of their own."""

    def make(
        name: str, *, tokens: str = "prompt[:2]", loading: str = "pass", check: str = "None", before: str = ""
    ) -> Side:
        script = tmp_path / f"{name}.py"
        script.write_text(FAKE.format(tokens=tokens, loading=loading, check=check, before=before))
        return Side(name=name, command=(sys.executable, str(script)))

    return make
